"""Events and reasoning tags are read the same whatever the pieces in which they come."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackloom.client.event_stream import EventStream, ReasoningSplitter, split
from stackloom.core.generation import ServerError


def pieces(data, cuts):
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:stop] for start, stop in itertools.pairwise(places)]


@given(st.lists(st.integers(0, 10_000), max_size=30), st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_do_not_depend_on_the_pieces(cuts, end):
    text = end.join(
        [": hi", "", "event: x", "data: {'a': 'é☃'}", "", "data:one", "data: two", "id: 3", "", "data: last"]
    )
    stream = EventStream()
    found = [data for piece in pieces(text.encode(), cuts) for data in stream.feed(piece)]
    assert found + list(stream.close()) == ["{'a': 'é☃'}", "one\ntwo", "last"]


def test_endless_event_is_refused():
    stream = EventStream()
    for _ in range(7):
        assert list(stream.feed(b"data: " + b"x" * 2**20 + b"\n")) == []
    with pytest.raises(ServerError, match="MiB"):
        list(stream.feed(b"x" * 2**20))


@given(st.lists(st.integers(0, 200), max_size=20), st.sampled_from(["think", "longcat_think", "thinking"]))
def test_reasoning_does_not_depend_on_the_pieces(cuts, tag):
    text = f" \n<{tag}>a < b </thin c</{tag}>\n\nThe <b>answer</b> "
    splitter = ReasoningSplitter()
    found = [*(splitter.feed(piece) for piece in pieces(text, cuts)), splitter.close()]
    visible, reasoning = ("".join(part) for part in zip(*found, strict=True))
    assert (visible, reasoning) == ("The <b>answer</b> ", "a < b </thin c")


@pytest.mark.parametrize(
    ("text", "visible", "reasoning"),
    [
        ("<think>never closed", "", "never closed"),
        ("opened by the template</think>\n\n42", "42", "opened by the template"),
        ("no tags < at all", "no tags < at all", ""),
        ("<thi", "<thi", ""),
        ("", "", ""),
        ("say <think> aloud", "say <think> aloud", ""),
    ],
)
def test_missing_tags_are_understood(text, visible, reasoning):
    assert split(text) == (visible, reasoning)
