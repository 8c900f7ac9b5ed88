"""The question and the model's own notes."""

from __future__ import annotations

from stackloom.core.slots.context import Ask, Cut, Seen
from stackloom.plugins.context.cutting import summarize
from stackloom.plugins.context.summary.config import SummaryConfig


class Summary:
    """Lets the model sum up when the context grows too long, and keeps the question and that (section 2.10, ReSum).

    Args:
        config: the plugin's options.

    Example:
        >>> asyncio.run(Summary(SummaryConfig(tokens=1500)).manage(seen, ask)).restart
        False
    """

    def __init__(self, config: SummaryConfig) -> None:
        self.config = config

    async def manage(self, seen: Seen, ask: Ask) -> Cut | None:
        """Ask for notes beyond the threshold; begin anew where they do not fit."""
        return await summarize(self.config, seen, ask) if seen.tokens > self.config.tokens else None
