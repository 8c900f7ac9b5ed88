"""Options of `reasoner.single`: none."""

from __future__ import annotations

from stackloom.core.config import ComponentConfig


class SingleConfig(ComponentConfig):
    """One attempt.

    Example:
        >>> SingleConfig()
        SingleConfig()
    """
