"""Options of `reasoner.self-consistency`."""

from __future__ import annotations

from stackloom.core.config import option
from stackloom.plugins.reasoner.thinking_config import ThinkingConfig


class SelfConsistencyConfig(ThinkingConfig):
    """Several attempts, and the answer that most of them gave.

    Example:
        >>> SelfConsistencyConfig(width=8, ties="shortest").width
        8
    """

    width: int = option(4, "attempts per task", unit="attempts", source="house", ge=1, le=1024)
    temperature: float = option(0.7, "sampling temperature in a conversation", source="paper", ge=0, le=5)
