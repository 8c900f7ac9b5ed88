"""Notes, and a fresh start when they lead nowhere."""

from __future__ import annotations

from stackloom.core.slots.context import Ask, Cut, Seen
from stackloom.plugins.context.cutting import RESTART, summarize
from stackloom.plugins.context.hybrid.config import HybridConfig


class Hybrid:
    """The paper's combination (section 2.10). A summary is no fresh start: the turns before it still count.

    Args:
        config: the plugin's options.

    Example:
        >>> asyncio.run(Hybrid(HybridConfig(tokens=1500, turns=60)).manage(seen, ask)).restart
        False
    """

    def __init__(self, config: HybridConfig) -> None:
        self.config = config

    async def manage(self, seen: Seen, ask: Ask) -> Cut | None:
        """Begin anew beyond the turns; ask for notes beyond the tokens."""
        if seen.turns > self.config.turns:
            return RESTART
        return await summarize(self.config, seen, ask) if seen.tokens > self.config.tokens else None
