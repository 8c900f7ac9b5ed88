"""Options of `reasoner.single`."""

from __future__ import annotations

from stackloom.core.config import option
from stackloom.plugins.reasoner.thinking_config import ThinkingConfig


class SingleConfig(ThinkingConfig):
    """One attempt.

    Example:
        >>> SingleConfig(temperature=0).width
        1
    """

    width: int = option(1, "attempts: one", unit="attempts", source="house", ge=1, le=1)
