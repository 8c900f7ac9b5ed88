"""Slot `attention`: a token mixer of one layer, over whole sequences and step by step on a cache."""

from __future__ import annotations

from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from stackloom.core.cache import CacheSpec, CacheView, Tensor
from stackloom.core.config import ComponentConfig
from stackloom.core.slot import Slot


class LayerShape(BaseModel):
    """What one layer's mixer is built for: the argument of `Component(config, layer)`.

    Attributes:
        hidden: width of the residual stream.
        heads, kv_heads, head_dim: query heads, key/value heads and their width.
        max_positions: longest sequence.
        rope_theta: base of the rotary embedding.
        bias: whether the query, key and value projections carry biases.
        index: number of the layer, from 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    max_positions: int = Field(2048, gt=0)
    rope_theta: float = Field(10_000.0, gt=0)
    bias: bool = False
    index: int = Field(0, ge=0)


class Attention(Protocol):
    """The component: a `torch.nn.Module` built as `Component(config, layer)`; parameters are its own.

    The three calls agree: `forward` over T tokens equals `prefill` over any split of them, equals T times `step`.
    """

    cache_spec: CacheSpec

    def __call__(self, x_BTD: Tensor) -> Tensor:
        """Mix whole sequences causally from position 0, (B, T, hidden) to (B, T, hidden); differentiable."""
        ...

    def prefill(self, x_BTD: Tensor, view: CacheView) -> Tensor:
        """Mix T more tokens of each sequence on top of what the view holds, and append them to it."""
        ...

    def step(self, x_BD: Tensor, view: CacheView) -> Tensor:
        """Mix one more token of each sequence, (B, hidden) to (B, hidden), and append it to the view."""
        ...


SLOT = Slot(
    name="attention",
    version=1,
    sits_in=("model",),
    protocol=Attention,
    config=ComponentConfig,
    summary="token mixer of a layer: whole sequences, prefill and single steps on a cache",
    features={
        "pages": "keeps per-token pages",
        "state": "keeps fixed-size state",
        "gqa": "fewer key/value heads than heads",
    },
)
