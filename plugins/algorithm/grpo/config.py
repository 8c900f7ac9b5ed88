"""Options of `algorithm.grpo`."""

from __future__ import annotations

from stackloom.core.config import option
from stackloom.plugins.algorithm.group_config import GroupConfig


class GrpoConfig(GroupConfig):
    """The clipped ratio, with other bounds, scales and normalisers as options; no KL term.

    Example:
        >>> GrpoConfig(clip_high=0.28).clip_low
        0.2
    """

    clip_low: float = option(0.2, "the ratio is cut at 1 minus this", source="paper", gt=0, lt=1)
    clip_high: float = option(0.2, "the ratio is cut at 1 plus this", source="paper", gt=0)
    dual_clip: float | None = option(None, "largest ratio of a token with a negative advantage; null: unbounded", gt=1)
