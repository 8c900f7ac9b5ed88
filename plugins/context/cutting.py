"""The two ways of cutting an attempt's context: begin anew, or go on from the model's own notes."""

from __future__ import annotations

from typing import Literal, cast

from stackloom.core.chat import Message
from stackloom.core.slots.context import Ask, Cut, Seen
from stackloom.plugins.context.context_config import SummaryRequestConfig

RESTART = Cut(restart=True)


async def summarize(config: SummaryRequestConfig, seen: Seen, ask: Ask) -> Cut:
    """Let the model write its notes, and keep the question and them; begin anew where that does not fit.

    Notes that were cut, that are empty, or with which the prompt would not be below the threshold, are thrown away.
    """
    notes = await ask(Message("user", config.request))
    if not notes:
        return RESTART
    role = cast("Literal['user', 'assistant', 'system']", config.role)
    kept = (Message(role, f"{config.heading}\n{notes}"),)
    return Cut(kept) if seen.measure(kept) < config.tokens else RESTART
