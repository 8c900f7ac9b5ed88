"""What the engine asks of a model: take sequences in, move all of them on by one token, let one go.

Shape legend: N sequences in the batch, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from stackloom.core.errors import EngineError


class Runner(Protocol):
    """A batch of sequences and the memory they keep. Row i is the i-th sequence."""

    @property
    def capacity(self) -> int | None:
        """Most tokens that all rows together may hold; None without a bound. One row alone can always use all of it."""
        ...

    @property
    def lengths(self) -> list[int]:
        """Tokens cached per row."""
        ...

    @property
    def filling(self) -> list[int]:
        """Rows whose prompt is not wholly computed yet, ascending."""
        ...

    @property
    def room(self) -> int | None:
        """Tokens for which there is memory now; None without a bound."""
        ...

    def join(self, prompts: Sequence[Sequence[int]]) -> None:
        """Append one row per prompt; nothing is computed."""
        ...

    def fill(self, tokens: int) -> dict[int, Tensor]:
        """Compute about `tokens` more tokens of prompts, as far as there is memory.

        Returns:
            the logits after the prompt, (V,), of each row whose prompt is wholly computed now.
        """
        ...

    def reserve(self, rows: Sequence[int]) -> bool:
        """Take memory for one more token of each of these rows; False where there is too little."""
        ...

    def step(self, token_ids: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Feed one token to each of these rows, for which `reserve` took memory; the logits after it, (N, V)."""
        ...

    def leave(self, row: int) -> None:
        """Forget a row and give its memory back; the last row takes its place."""
        ...

    def rollback(self, n: int) -> int:
        """Forget the last n tokens of every row.

        Returns:
            Tokens that the caller must feed again (see core.cache.CacheView.rollback).

        Raises:
            EngineError: a row holds fewer tokens, or its memory cannot go back.
        """
        ...

    def clear(self) -> None:
        """Forget every row."""
        ...


class RowByRow:
    """Any causal language model of transformers, one forward pass per row, each on a cache of its own.

    Works for every architecture that `generate` works for, and a row never sees another; no gain from batching.

    Args:
        model: a causal language model in eval mode.
    """

    capacity = room = None

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._caches: list[Any] = []
        self._lengths: list[int] = []
        self._prompts: list[Sequence[int]] = []  # of rows that are not filled yet, which are the last ones
        takes = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    @property
    def lengths(self) -> list[int]:
        """Tokens cached per row."""
        return self._lengths

    @property
    def filling(self) -> list[int]:
        """See `Runner`; empty after `fill`."""
        return list(range(len(self._lengths) - len(self._prompts), len(self._lengths)))

    def join(self, prompts: Sequence[Sequence[int]]) -> None:
        """Append rows; see `Runner`."""
        self._prompts += prompts
        self._lengths += [0] * len(prompts)
        self._caches += [DynamicCache(config=self._model.config) for _ in prompts]

    def fill(self, tokens: int) -> dict[int, Tensor]:
        """Compute all prompts; see `Runner`."""
        found = {}
        for row, prompt in zip(self.filling, self._prompts, strict=True):
            found[row] = self._forward(prompt, self._caches[row])[0]
            self._lengths[row] = len(prompt)
        self._prompts = []
        return found

    def reserve(self, rows: Sequence[int]) -> bool:
        """There is always memory."""
        return True

    def step(self, token_ids: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Move rows on; see `Runner`."""
        logits = [self._forward([token], self._caches[row]) for token, row in zip(token_ids, rows, strict=True)]
        for row in rows:
            self._lengths[row] += 1
        return torch.cat(logits)

    def leave(self, row: int) -> None:
        """Forget a row; see `Runner`."""
        for rows in (self._caches, self._lengths):
            rows[row] = rows[-1]
            rows.pop()

    def rollback(self, n: int) -> int:
        """Forget tokens; see `Runner`."""
        check_rollback(n, self._lengths)
        for cache in self._caches if n else ():
            if not cache.is_croppable:
                raise EngineError("this model's cache keeps fixed state and cannot go back")
            cache.crop(-n)
        self._lengths = [length - n for length in self._lengths]
        return 0

    def clear(self) -> None:
        """Forget every row."""
        self._caches, self._lengths, self._prompts = [], [], []

    def _forward(self, token_ids: Sequence[int], cache: Any) -> Tensor:
        ids_1T = torch.tensor([list(token_ids)], device=self._model.device)
        output = self._model(input_ids=ids_1T, past_key_values=cache, use_cache=True, **self._last_only)
        logits_1V: Tensor = output.logits[:, -1]
        return logits_1V


def check_rollback(n: int, lengths: Sequence[int]) -> None:
    """Refuse to forget more tokens than the shortest row holds.

    Raises:
        EngineError: n is negative or too large.
    """
    if not 0 <= n <= min(lengths, default=0):
        raise EngineError(f"cannot roll {n} tokens back, the shortest sequence has {min(lengths, default=0)}")
