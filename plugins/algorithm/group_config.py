"""Options that the algorithms with a group baseline share."""

from __future__ import annotations

from typing import Literal

from stackloom.core.config import ComponentConfig, option


class GroupConfig(ComponentConfig):
    """Advantages over the group's mean, the loss's normaliser, and which samples count.

    Example:
        >>> GroupConfig(normaliser="tokens").advantage_scale
        'std'
    """

    advantage_scale: Literal["std", "none"] = option("std", "divide advantages by the group's standard deviation")
    normaliser: Literal["response", "tokens", "constant"] = option(
        "response", "mean over each response, mean over the step's tokens, or a sum over responses times max_tokens"
    )
    max_tokens: int = option(1024, "length limit of a response, read by normaliser constant", unit="tokens", gt=0)
    engine_cap: float | None = option(
        None, "weigh tokens by training over serving probability, cut at this; null: 1", ge=1
    )
    max_age: int | None = option(None, "responses of older weights are left out; null: none", unit="versions", ge=0)
