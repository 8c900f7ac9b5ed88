"""Options of `algorithm.reinforce`."""

from __future__ import annotations

from stackloom.plugins.algorithm.group_config import GroupConfig


class ReinforceConfig(GroupConfig):
    """Advantage times log-probability; samples are taken as those of the newest weights.

    Example:
        >>> ReinforceConfig().normaliser
        'response'
    """
