"""Nothing is ever cut."""

from __future__ import annotations

from stackloom.core.slots.context import Ask, Cut, Seen
from stackloom.plugins.context.none.config import NoneConfig


class KeepAll:
    """The baseline of the other contexts.

    Args:
        config: the plugin's options.

    Example:
        >>> asyncio.run(KeepAll(NoneConfig()).manage(seen, ask)) is None
        True
    """

    def __init__(self, config: NoneConfig) -> None:
        self.config = config

    async def manage(self, seen: Seen, ask: Ask) -> Cut | None:
        """Leave everything as it is."""
        return None
