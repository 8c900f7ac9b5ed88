"""The cache contract: what an attention plugin asks the generation engine to keep, and how it sees it.

The engine owns the memory (pages, tables, reference counts, prefix sharing). A plugin declares a `CacheSpec` and works
on a `CacheView` of a batch; it never allocates.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

Tensor: TypeAlias = Any  # torch.Tensor; core does not import torch

SNAPSHOT_EVERY = 16  # steps between two snapshots of fixed state; a rollback replays at most this many


class Buffer(BaseModel):
    """One named tensor of a cache.

    Attributes:
        shape: per token for a page, per sequence for a state.
        dtype: a torch dtype name; "compute" takes the model's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, ...]
    dtype: str = "compute"


class CacheSpec(BaseModel):
    """What one attention layer keeps between calls.

    Attributes:
        pages: grows by one entry per token (keys, values, a latent).
        state: fixed size per sequence (a recurrent state, a convolution's tail).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pages: dict[str, Buffer] = Field(default_factory=dict)
    state: dict[str, Buffer] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> CacheSpec:
        if both := sorted(self.pages.keys() & self.state.keys()):
            raise ValueError(f"named both as page and as state: {', '.join(both)}")
        return self


class CacheView(Protocol):
    """A batch of B sequences' cache of one layer, as the engine shows it. Sequences may differ in length."""

    @property
    def lengths_B(self) -> Tensor:
        """Tokens cached per sequence, int64 (B,), on the compute device."""
        ...

    def append(self, tokens: int, /, **entries: Tensor) -> None:
        """Append `tokens` tokens to every sequence; an entry is (B, tokens, *page shape), all pages at once.

        A plugin with fixed state alone calls `append(tokens)` to move the lengths on.
        """
        ...

    def read(self, name: str) -> Tensor:
        """Return page `name`, (B, longest, *page shape); entries past a sequence's length are undefined."""
        ...

    def state(self, name: str) -> Tensor:
        """Return state `name`, (B, *state shape); zeros before the first write."""
        ...

    def write(self, **states: Tensor) -> None:
        """Replace states, each (B, *state shape)."""
        ...

    def snapshot(self) -> None:
        """Remember the fixed state at the current lengths, so that a rollback can return to it."""
        ...

    def rollback(self, n: int) -> int:
        """Forget the last `n` tokens of every sequence.

        Returns:
            Tokens that the caller must feed again: 0 for a cache of pages alone; with fixed state, the distance from
            the newest snapshot at or before the target (below SNAPSHOT_EVERY when snapshots are taken on time).

        Raises:
            EngineError: fewer than n tokens are cached, or no snapshot reaches back far enough.
        """
        ...
