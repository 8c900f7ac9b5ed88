"""Options of `algorithm.gspo`."""

from __future__ import annotations

from stackloom.core.config import option
from stackloom.plugins.algorithm.group_config import GroupConfig


class GspoConfig(GroupConfig):
    """One ratio per response; the clip is narrow since a geometric mean lies close to 1.

    Example:
        >>> GspoConfig().clip_high
        0.0004
    """

    clip_low: float = option(3e-4, "the ratio is cut at 1 minus this", source="paper", gt=0, lt=1)
    clip_high: float = option(4e-4, "the ratio is cut at 1 plus this", source="paper", gt=0)
