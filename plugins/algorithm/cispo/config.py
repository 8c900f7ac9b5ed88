"""Options of `algorithm.cispo`."""

from __future__ import annotations

from stackloom.core.config import option
from stackloom.plugins.algorithm.group_config import GroupConfig


class CispoConfig(GroupConfig):
    """The ratio is a cut weight without gradient, so that every token keeps one.

    Example:
        >>> CispoConfig().weight_high
        3.0
    """

    weight_low: float = option(0.0, "smallest weight of a token", source="paper", ge=0, le=1)
    weight_high: float = option(
        3.0, "largest weight of a token; the paper tunes it and prints no value", source="inferred", ge=1
    )
