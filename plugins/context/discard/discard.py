"""Discard-all: the question alone, and another try."""

from __future__ import annotations

from stackloom.core.slots.context import Ask, Cut, Seen
from stackloom.plugins.context.cutting import RESTART
from stackloom.plugins.context.discard.config import DiscardConfig


class Discard:
    """Removes everything but the question when the context grows too long (section 2.10).

    Args:
        config: the plugin's options.

    Example:
        >>> cut = asyncio.run(Discard(DiscardConfig(tokens=1500)).manage(seen, ask))
        >>> cut.messages, cut.restart
        ((), True)
    """

    def __init__(self, config: DiscardConfig) -> None:
        self.config = config

    async def manage(self, seen: Seen, ask: Ask) -> Cut | None:
        """Begin anew beyond either bound."""
        config = self.config
        too_many = config.turns and seen.turns > config.turns
        return RESTART if too_many or seen.tokens > config.tokens else None
