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
    def lengths(self) -> list[int]:
        """Tokens cached per row."""
        ...

    def join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Append one row per prompt and return the logits after each, (len(prompts), V)."""
        ...

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Feed one token to every row and return the logits after it, (N, V)."""
        ...

    def leave(self, row: int) -> None:
        """Forget a row; the last row takes its place."""
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

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._caches: list[Any] = []
        self._lengths: list[int] = []
        takes = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    @property
    def lengths(self) -> list[int]:
        """Tokens cached per row."""
        return self._lengths

    def join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Append rows; see `Runner`."""
        logits = []
        for prompt in prompts:
            cache = DynamicCache(config=self._model.config)
            logits.append(self._forward(prompt, cache))
            self._caches.append(cache)
            self._lengths.append(len(prompt))
        return torch.cat(logits)

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Move every row on; see `Runner`."""
        logits = [self._forward([token], cache) for token, cache in zip(token_ids, self._caches, strict=True)]
        self._lengths = [length + 1 for length in self._lengths]
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
        self._caches, self._lengths = [], []

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
