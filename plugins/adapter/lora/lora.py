"""LoRA: W x + scaling * B (A x), A and B trained, W frozen."""

from __future__ import annotations

from stackloom.plugins.adapter.low_rank_adapter import LowRankAdapter


class LoRA(LowRankAdapter):
    """Low-rank adaptation of a model's linear layers.

    Example:
        >>> from stackloom.plugins.adapter.lora.config import LoRAConfig
        >>> adapter = LoRA(LoRAConfig(rank=4))
        >>> names = adapter.inject(model, seed=0)  # train these
        >>> adapter.merge(model)                   # plain layers again
    """

    plugin = "adapter.lora"
