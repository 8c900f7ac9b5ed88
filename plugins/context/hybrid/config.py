"""Options of `context.hybrid`."""

from __future__ import annotations

from stackloom.core.config import option
from stackloom.plugins.context.context_config import SummaryRequestConfig


class HybridConfig(SummaryRequestConfig):
    """Notes beyond a number of tokens, a fresh start beyond a number of turns.

    Example:
        >>> HybridConfig(tokens=1500, turns=60).tokens
        1500
    """

    turns: int = option(
        100, "messages of the agent since the last fresh start, after which it begins anew", unit="messages",
        source="inferred", ge=1,
    )  # fmt: skip
