"""Options of `context.none`: there are none."""

from __future__ import annotations

from stackloom.core.config import ComponentConfig


class NoneConfig(ComponentConfig):
    """Everything stays in sight.

    Example:
        >>> NoneConfig().model_dump()
        {}
    """
