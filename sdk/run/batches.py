"""Which tokens a step trains on: a pure function of the data, the options, the seed and the step.

Examples are shuffled per epoch and packed whole into rows of at most `sequence_length` tokens; a row keeps its examples
apart through position ids that start anew. A longer example is cut; one without a trained token is left out.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stackloom.core.errors import ConfigError
from stackloom.core.planning import seed_for

WORTH = 16  # shared tokens for which a second piece of attention pays


@dataclass(frozen=True)
class Row:
    """One packed sequence.

    Attributes:
        input_ids, positions: int64 (T,); positions start at 0 with each example, or behind what it shares with another.
        targets: int64 (n,), the tokens to predict.
        predicts: int64 (n,), the index in the row of the hidden state that predicts each target.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    predicts: Tensor


class Batches:
    """The batches of a train stage.

    Args:
        data: a data component.
        sequence_length: most tokens of a row.
        batch_size: rows per step.
        seed: the stage's seed.

    Raises:
        ConfigError: no example has a token to train on.
    """

    def __init__(self, data: Any, *, sequence_length: int, batch_size: int, seed: int) -> None:
        self.sequence_length, self.batch_size, self.seed = sequence_length, batch_size, seed
        self.examples, self.left_out = _usable(data, sequence_length)
        if not self.examples:
            raise ConfigError(
                "no example has a token to train on", where="data", fix="check the loss masks and sequence_length"
            )
        self._starts = [0]  # rows before each epoch
        self._epochs: list[list[list[int]]] = []

    def rows(self, step: int, rank: int = 0, workers: int = 1) -> list[Row]:
        """Return the rows of step `step`, counted from 0: worker `rank`'s share of them, which follows the one before.

        batch_size is a multiple of `workers`.
        """
        share = self.batch_size // workers
        first = step * self.batch_size + rank * share
        return [self._row(index) for index in range(first, first + share)]

    def epoch(self, step: int) -> float:
        """Return how many times the data has been gone through before step `step`."""
        index = step * self.batch_size
        self._reach(index)
        epoch = bisect.bisect_right(self._starts, index) - 1
        return epoch + (index - self._starts[epoch]) / len(self._epochs[epoch])

    def _reach(self, index: int) -> None:
        while self._starts[-1] <= index:
            self._epochs.append(self._pack(len(self._epochs)))
            self._starts.append(self._starts[-1] + len(self._epochs[-1]))

    def _pack(self, epoch: int) -> list[list[int]]:
        order = list(range(len(self.examples)))
        random.Random(seed_for(self.seed, "epoch", epoch)).shuffle(order)
        rows: list[list[int]] = []
        room = 0
        for example in order:
            length = len(self.examples[example][0])
            if length > room:
                rows.append([])
                room = self.sequence_length
            rows[-1].append(example)
            room -= length
        return rows

    def _row(self, index: int) -> Row:
        self._reach(index)
        epoch = bisect.bisect_right(self._starts, index) - 1
        ids: list[int] = []
        positions: list[int] = []
        predicts: list[int] = []
        for example in self._epochs[epoch][index - self._starts[epoch]]:
            tokens, mask = self.examples[example]
            predicts += [len(ids) + place - 1 for place in range(1, len(tokens)) if mask[place]]
            positions += range(len(tokens))
            ids += tokens
        input_ids, at = torch.tensor(ids), torch.tensor(predicts)
        return Row(input_ids, torch.tensor(positions), input_ids[at + 1], at)


def _usable(data: Any, length: int) -> tuple[list[tuple[list[int], list[bool]]], list[str]]:
    kept, left_out = [], list(data.problems())
    for index in range(len(data)):
        example = data[index]
        if len(example.input_ids) != len(example.loss_mask):
            raise ConfigError(
                f"example {index} has {len(example.input_ids)} tokens and {len(example.loss_mask)} mask entries",
                where="data",
            )
        tokens, mask = list(example.input_ids[:length]), list(example.loss_mask[:length])
        if any(mask[1:]):
            kept.append((tokens, mask))
        else:
            left_out.append(f"example {index}: no trained token within {length} tokens")
    return kept, left_out


def flatten(rows: Sequence[Row]) -> Row:
    """Join rows into one, so that a micro-batch needs no padding."""
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row.input_ids))
    return Row(
        torch.cat([row.input_ids for row in rows]),
        torch.cat([row.positions for row in rows]),
        torch.cat([row.targets for row in rows]),
        torch.cat([row.predicts + start for row, start in zip(rows, starts, strict=False)]),
    )


def share_beginnings(row: Row) -> Row:
    """Drop what an example repeats of the beginning of the last whole one; it starts at the position behind that.

    A causal model computes the same for a repeated beginning, so losses and gradients stay what they are (up to the
    order of sums), where attention goes by positions as `packed_attention` has it. Examples that share fewer than WORTH
    tokens with the last whole one stay whole.
    """
    ids, positions = row.input_ids.tolist(), row.positions.tolist()
    begins = [place for place, position in enumerate(positions) if position == 0]
    kept: list[int] = []
    now_at = [0] * len(ids)  # where each token, or the one that stands for it, has gone
    whole = slice(0, 0)
    for begin, stop in zip(begins, [*begins[1:], len(ids)], strict=True):
        longest = min(whole.stop - whole.start, stop - begin - 1)
        shared = next((n for n in range(longest) if ids[whole.start + n] != ids[begin + n]), max(longest, 0))
        if shared < WORTH:
            shared, whole = 0, slice(begin, stop)
        elif shared == positions[kept[-1]] + 1:
            shared -= 1  # or it would seem to go on from the sequence before it
        now_at[begin : begin + shared] = now_at[whole.start : whole.start + shared]
        now_at[begin + shared : stop] = range(len(kept), len(kept) + stop - begin - shared)
        kept += range(begin + shared, stop)
    return Row(row.input_ids[kept], row.positions[kept], row.targets, torch.tensor(now_at)[row.predicts])
