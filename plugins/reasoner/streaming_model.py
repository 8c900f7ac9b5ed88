"""`StreamingModel`: what reasoners ask of a language model in a conversation; a server or an engine fulfils it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from stackloom.core.chat import Message, Tool
from stackloom.core.errors import StackloomError
from stackloom.core.generation import Sampling


class ServerError(StackloomError):
    """A model's server refused, broke off or answered nonsense; the request was fine."""

    acts = "whoever runs the server"


@dataclass(frozen=True)
class ChatRequest:
    """One reply that is asked for.

    Attributes:
        messages: the conversation; the reply follows its last message.
        tools: what the reply may call.
        top_logprobs: how many of the likeliest tokens to report per token; 0 for none.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    top_logprobs: int = 0


@dataclass(frozen=True)
class Delta:
    """A piece of a reply.

    Attributes:
        text, reasoning: what was added to the visible answer, and to what the model thinks before it.
        tokens: how many tokens the piece stands for.
        logprobs: natural log-probability of each token of the piece, where they were asked for.
        top_logprobs: of each token, those of the likeliest candidates.
    """

    text: str = ""
    reasoning: str = ""
    tokens: int = 0
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Reply:
    """A whole reply.

    Attributes:
        message: the assistant's; reasoning is never part of its content.
        reasoning: what was thought before it.
        finish: "length" for a reply that was cut.
        tokens, prompt_tokens: generated and read; as the server counts them, or else as they were received.
    """

    message: Message
    reasoning: str
    finish: Literal["stop", "length", "tool_calls"]
    tokens: int
    prompt_tokens: int = 0


class StreamingModel(Protocol):
    """Continues conversations: the local model or a server behind an API."""

    context: int | None
    top_logprobs: int
    """Tokens that prompt and reply share, None if unknown; and the most top_logprobs that a request may ask for."""

    def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Reply]:
        """Yield pieces and, last, the whole reply. Closing the iterator or cancelling its task ends the generation.

        Raises:
            ContextFull: the prompt leaves no room in the context.
            ConfigError: a request that can never be answered.
            ServerError: the server failed.
        """
        ...
