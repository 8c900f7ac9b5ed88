"""Options of `adapter.lora`."""

from __future__ import annotations

from stackloom.plugins.adapter.low_rank_config import LowRankConfig


class LoRAConfig(LowRankConfig):
    """A trainable product of two thin matrices beside each target, foldable into its weight.

    Example:
        >>> LoRAConfig(rank=16, alpha=32).scaling
        2.0
    """
