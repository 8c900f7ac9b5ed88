"""OpenAI's JSON: completions, chunks, usage, log-probabilities."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from stackloom.core.chat import Message, ToolCall
from stackloom.engine.batch import Piece

DONE = "data: [DONE]\n\n"


def event(data: Any) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n"


def envelope(kind: str, model: str) -> dict[str, Any]:
    """Return what answers and all chunks of one stream begin with."""
    prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(prompt_tokens: int, tokens: int, reasoning_tokens: int | None = None) -> dict[str, Any]:
    """Return what a request cost."""
    found: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }
    if reasoning_tokens is not None:
        found["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return found


def call(made: ToolCall, index: int | None = None) -> dict[str, Any]:
    """Return a tool call, in a stream with its number."""
    raw: dict[str, Any] = Message("assistant", tool_calls=(made,)).to_openai()["tool_calls"][0]
    return raw if index is None else {"index": index, **raw}


def chat_logprobs(piece: Piece, text: Callable[[int], str]) -> dict[str, Any]:
    """Return the log-probabilities of a piece of a chat."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        said = text(token)
        whole = None if "\ufffd" in said else list(said.encode())
        return {"token": said, "logprob": logprob, "bytes": whole}

    likeliest = piece.top_logprobs or ((),) * len(piece.token_ids)
    return {
        "content": [
            one(token, logprob) | {"top_logprobs": [one(*other) for other in others]}
            for token, logprob, others in zip(piece.token_ids, piece.logprobs, likeliest, strict=True)
        ],
        "refusal": None,
    }


def text_logprobs(pieces: Sequence[Piece], text: Callable[[int], str], offset: int = 0) -> dict[str, Any]:
    """Return the log-probabilities of a plain completion, whose text so far has `offset` characters."""
    found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for piece in pieces:
        likeliest = piece.top_logprobs or ((),) * len(piece.token_ids)
        for token, logprob, others in zip(piece.token_ids, piece.logprobs, likeliest, strict=True):
            found["tokens"].append(text(token))
            found["token_logprobs"].append(logprob)
            found["top_logprobs"].append({text(other): value for other, value in others})
            found["text_offset"].append(offset)
        offset += len(piece.text)
    return found
