"""Pieces of text: whole characters, nothing of a stop string, together the whole text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackloom.engine.text import REPLACEMENT, GrowingText
from stackloom.testing import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def pieces_of(ids, stop=()):
    text, pieces = GrowingText(TOKENIZER, stop), []
    for token in ids:
        pieces.append(text.append(token))
        if text.stopped:
            break
    pieces.append(text.finish())
    assert text.text == "".join(pieces)
    return pieces, text


@given(st.text().filter(lambda text: "<|im_" not in text))
def test_pieces_add_up_and_hold_whole_characters(text):
    pieces, _ = pieces_of(TOKENIZER.encode(text, add_special_tokens=False))
    assert "".join(pieces) == text
    if REPLACEMENT not in text:
        assert all(REPLACEMENT not in piece for piece in pieces)


@given(st.lists(st.integers(0, 257)))
def test_pieces_of_any_bytes_add_up_to_the_decoded_whole(ids):
    pieces, _ = pieces_of(ids)
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special_tokens=True)


@given(st.text("abé😀", max_size=30), st.lists(st.text("abé😀", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(text, stops):
    pieces, growing = pieces_of(TOKENIZER.encode(text, add_special_tokens=False), stops)
    ends = [text.find(stop) for stop in stops if stop in text]
    assert growing.stopped == bool(ends)
    # Stop strings are looked for as the text grows: the one that is complete first ends it.
    complete = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=len(text))
    seen = text[:complete]
    assert "".join(pieces) == seen[: min((seen.find(stop) for stop in stops if stop in seen), default=len(seen))]


def test_a_stop_string_over_several_tokens_is_never_emitted_in_part():
    pieces, growing = pieces_of(TOKENIZER.encode("one ENE END two", add_special_tokens=False), ["END"])
    assert growing.stopped
    assert "".join(pieces) == "one ENE "
    assert pieces[5] == ""  # the N may still become END
    assert "EN" in "".join(pieces[:8])


@pytest.mark.parametrize("character", ["é", "漢", "😀"])
def test_a_character_comes_in_one_piece(character):
    ids = TOKENIZER.encode(character, add_special_tokens=False)
    pieces, _ = pieces_of(ids)
    assert pieces == [""] * (len(ids) - 1) + [character, ""]


def test_half_a_character_at_the_end_is_shown_as_such():
    pieces, _ = pieces_of(TOKENIZER.encode("a😀", add_special_tokens=False)[:-1])
    assert pieces == ["a", "", "", "", REPLACEMENT]
