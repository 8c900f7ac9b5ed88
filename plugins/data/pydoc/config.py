"""Options of `data.pydoc`."""

from __future__ import annotations

from typing import Literal

from stackloom.core.config import ComponentConfig, option


class PydocConfig(ComponentConfig):
    """Python's own language reference, as plain text to train on or to measure perplexity on.

    Example:
        >>> PydocConfig(split="held-out", max_tokens=256).held_out
        0.1
    """

    split: Literal["train", "held-out"] = option("train", "which topics; the splits share none")
    held_out: float = option(0.1, "share of the topics' names that hashes into the held-out split", ge=0, le=1)
    max_tokens: int = option(512, "tokens of one example; a longer topic is cut into several", unit="tokens", ge=2)
    topics: tuple[str, ...] = option(("*",), "patterns of the topics to take, * and ? as in a shell", min_length=1)
