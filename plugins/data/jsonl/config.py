"""Options of `data.jsonl`."""

from __future__ import annotations

from typing import Literal

from stackloom.core.config import ComponentConfig, option


class JsonlConfig(ComponentConfig):
    """Examples from a JSON Lines file, with the loss on what the model should learn to write.

    Example:
        >>> JsonlConfig(path="chats.jsonl").format
        'messages'
    """

    path: str = option(
        description="the file, UTF-8, one JSON object per line; relative to the working directory", min_length=1
    )
    format: Literal["messages", "text", "prompt-completion"] = option(
        "messages", "fields of each line: `messages` (and `tools`), `text`, or `prompt` and `completion`"
    )
    max_tokens: int | None = option(
        None, "longer examples are cut at the end; null keeps them whole", unit="tokens", ge=2
    )
    on_bad: Literal["error", "skip"] = option("error", "whether a bad line stops the run or is left out and reported")
