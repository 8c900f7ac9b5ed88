"""Options of `context.summary`."""

from __future__ import annotations

from stackloom.plugins.context.context_config import SummaryRequestConfig


class SummaryConfig(SummaryRequestConfig):
    """Go on from notes when the prompt has grown too large.

    Example:
        >>> SummaryConfig(tokens=1500).role
        'user'
    """
