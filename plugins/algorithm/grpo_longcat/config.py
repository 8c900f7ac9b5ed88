"""Options of `algorithm.grpo-longcat`."""

from __future__ import annotations

from typing import Literal

from stackloom.core.config import option
from stackloom.plugins.algorithm.group_config import GroupConfig


class GrpoLongcatConfig(GroupConfig):
    """LongCat's objective; the bounds are unpublished, so their values are ours.

    Example:
        >>> GrpoLongcatConfig().negative_high
        3.0
    """

    normaliser: Literal["response", "tokens", "constant"] = option(
        "constant",
        "mean over each response, mean over the step's tokens, or a sum over responses times max_tokens",
        source="paper",
    )
    engine_cap: float | None = option(
        2.0, "weigh tokens by training over serving probability, cut at this; null: 1", source="inferred", ge=1
    )
    max_age: int | None = option(
        2, "responses of older weights are left out; null: none", unit="versions", source="paper", ge=0
    )
    positive_high: float = option(0.28, "with A > 0 the ratio is cut at 1 plus this", source="inferred", gt=0)
    negative_low: float = option(0.2, "with A < 0 the ratio is cut at 1 minus this", source="inferred", gt=0, lt=1)
    negative_high: float = option(3.0, "with A < 0 the largest ratio", source="inferred", gt=1)
