"""Memory in pages: what is shared stays what it was, who lets go gives back, and nothing is lost or given twice."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stackloom.engine.pages import BLOCK, Pages

SHAPE = (1, 2, 1, 1)
SIZE = BLOCK * 2 * 8  # bytes of a page of float64

sequences = st.lists(st.integers(0, 1).map(lambda bit: (bit,) * (BLOCK // 2)), max_size=8).map(
    lambda parts: tuple(token for part in parts for token in part)
)


def make(pages, kept):
    return Pages(SHAPE, torch.float64, torch.device("cpu"), limit=pages * SIZE, kept=kept * SIZE)


@given(st.lists(sequences, max_size=6), sequences)
def test_with_room_the_longest_shared_beginning_is_found(known, asked):
    pages = make(100, 100)
    for tokens in known:
        row = pages.take(tokens)
        row += pages.new(-(-len(tokens) // BLOCK) - len(row))
        pages.keep(tokens, row)
        pages.release(row)
    beginnings = {tokens[:stop] for tokens in known for stop in range(0, len(tokens) + 1, BLOCK)} | {()}
    assert pages.known(asked) == max(len(found) for found in beginnings if asked[: len(found)] == found)


class Sequences(RuleBasedStateMachine):
    """Sequences that begin alike, grow, go back, share and leave, against a plain copy of what each wrote."""

    @initialize(pages=st.integers(3, 12), kept=st.integers(0, 12))
    def begin(self, pages, kept):
        self.pages = make(pages, kept)
        self.rows = []  # (tokens, pages)

    def write(self, row, place, value):
        self.pages.memory_LPHSK[0, row[place // BLOCK], :, place % BLOCK, 0] = value

    @staticmethod
    def value(tokens, place):
        """A running value of the tokens so far, which tells every beginning apart."""
        return float(hash(tokens[: place + 1]) % 10**6)

    @rule(tokens=sequences)
    def join(self, tokens):
        row = self.pages.take(tokens)
        new = self.pages.new(-(-len(tokens) // BLOCK) - len(row))
        if new is None:
            self.pages.release(row)
            return
        first = len(row) * BLOCK
        row += new
        for place in range(first, len(tokens)):
            self.write(row, place, self.value(tokens, place))
        self.pages.keep(tokens, row)
        self.rows.append((tokens, row))

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), token=st.integers(0, 1))
    def grow(self, data, token):
        at = data.draw(st.integers(0, len(self.rows) - 1))
        tokens, row = self.rows[at]
        if len(tokens) % BLOCK == 0:
            new = self.pages.new(1)
            if new is None:
                return
            row += new
        page = self.pages.own(row[-1])
        if page is None:
            return
        row[-1] = page
        tokens = (*tokens, token)
        self.write(row, len(tokens) - 1, self.value(tokens, len(tokens) - 1))
        self.rows[at] = (tokens, row)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def fork(self, data):
        tokens, row = data.draw(st.sampled_from(self.rows))
        self.pages.hold(row)
        self.rows.append((tokens, list(row)))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def go_back(self, data):
        at = data.draw(st.integers(0, len(self.rows) - 1))
        tokens, row = self.rows[at]
        tokens = tokens[: data.draw(st.integers(0, len(tokens)))]
        kept = -(-len(tokens) // BLOCK)
        self.pages.release(row[kept:])
        self.rows[at] = (tokens, row[:kept])

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def leave(self, data):
        tokens, row = self.rows.pop(data.draw(st.integers(0, len(self.rows) - 1)))
        self.pages.keep(tokens, row)
        self.pages.release(row)

    @rule()
    def forget(self):
        self.pages.forget()
        assert self.pages.idle == 0

    @invariant()
    def everyone_reads_what_was_written(self):
        for tokens, row in getattr(self, "rows", ()):
            for place in range(len(tokens)):
                found = self.pages.memory_LPHSK[0, row[place // BLOCK], :, place % BLOCK, 0]
                assert found.tolist() == [self.value(tokens, place)] * 2

    @invariant()
    def pages_are_counted(self):
        if not hasattr(self, "pages"):
            return
        held = {page for _, row in self.rows for page in row}
        assert self.pages.used == len(held) + self.pages.idle
        assert self.pages.available == self.pages.capacity - len(held)
        assert not held or self.pages.new(self.pages.available + 1) is None
        assert not self.pages.memory_LPHSK[:, 0].any()

    def teardown(self):
        for _, row in getattr(self, "rows", ()):
            self.pages.release(row)
        if hasattr(self, "pages"):
            self.pages.forget()
            assert self.pages.used == 0


Sequences.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSequences = Sequences.TestCase
