"""A link that holds a stack: decoded here, fetched from nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from stackloom.core.errors import ConfigError
from stackloom.fragment import decode, encode

STACK = Path(__file__).parents[2] / "examples" / "first_stack.yaml"


@given(some.text())
def test_what_went_in_comes_out(text: str) -> None:
    assert decode(f"https://example.org/composer.html#{encode(text)}") == text


def test_a_link_plans_like_the_file_it_was_made_of_and_its_host_is_never_asked(stackloom) -> None:
    link = f"http://127.0.0.1:9/none.html#{encode(STACK.read_text())}"  # the discard port: nobody answers
    done = [stackloom("plan", given, "--device", "h100", "--json") for given in (link, str(STACK))]
    assert done[0].returncode == done[1].returncode == 0, done[0].stderr
    assert done[0].stdout == done[1].stdout


@pytest.mark.parametrize(
    "link", ["https://example.org/", "https://example.org/#stack=%", "https://example.org/#stack=_w"]
)
def test_a_link_without_a_whole_stack_says_what_to_do(link: str) -> None:
    with pytest.raises(ConfigError, match="copy"):
        decode(link)
