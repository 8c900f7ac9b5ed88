"""Options of `context.discard`."""

from __future__ import annotations

from stackloom.core.config import option
from stackloom.plugins.context.context_config import ThresholdConfig


class DiscardConfig(ThresholdConfig):
    """Begin anew when the prompt or the number of turns has grown too large.

    Example:
        >>> DiscardConfig(tokens=1500).turns
        0
    """

    turns: int = option(
        0, "messages of the agent after which it begins anew; 0 sets no bound", unit="messages", source="inferred", ge=0
    )
