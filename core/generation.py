"""What agents, reasoners and environments ask of a language model: a protocol that an engine or a server fulfils."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from stackloom.core.chat import Message, Tool
from stackloom.core.errors import ConfigError


class ContextFull(ConfigError):
    """A prompt that leaves no room in the model's context: one conversation is too long, the options are fine."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p, top_k: nucleus and shortlist; 1.0 and 0 leave all tokens.
        max_tokens: most tokens to generate.
        stop: strings that end the text; they are not part of it.
        seed: the draw of token i of a sequence depends on (seed, key of the request, i) alone.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One sequence to continue.

    Attributes:
        input_ids: the prompt, at least one token.
        key: names the sequence for its random draws; equal keys and prompts give equal samples.
    """

    input_ids: tuple[int, ...]
    sampling: Sampling = Sampling()
    key: str = ""


@dataclass(frozen=True)
class Completion:
    """What was generated.

    Attributes:
        token_ids: generated ids, the end-of-text token included where it was generated.
        logprobs: natural log-probability of each under the model's own (temperature 1) distribution.
        text: decoded, without what the stop string and special tokens would add.
        finish: "stop" for an end token or stop string, "length" for max_tokens or the model's context.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: Literal["stop", "length"]


class Generator(Protocol):
    """Continues sequences. Calls that wait at the same time are computed together."""

    async def generate(self, request: Request) -> Completion:
        """Continue one sequence.

        Raises:
            ContextFull: the prompt leaves no room in the context.
            ConfigError: an empty prompt, or sampling options out of range.
        """
        ...


@dataclass(frozen=True)
class ChatReply:
    """What a model behind a chat endpoint said.

    Attributes:
        message: with its tool calls.
        tokens: how many were generated.
        finish: "stop", or "length" for a message that was cut.
        errors: one sentence per malformed call, fit to be shown to the model.
    """

    message: Message
    tokens: int
    finish: Literal["stop", "length"] = "stop"
    errors: tuple[str, ...] = ()


class ChatModel(Protocol):
    """A model that takes messages and tools, as OpenAI-compatible servers do."""

    async def chat(self, messages: Sequence[Message], tools: Sequence[Tool], sampling: Sampling, key: str) -> ChatReply:
        """Return the next message of a conversation.

        Raises:
            ContextFull: the conversation leaves no room in the context.
            ConfigError: what the server refuses otherwise.
        """
        ...


class ChatTokenizer(Protocol):
    """Turns messages into token ids with the model's own template."""

    def render(self, messages: Sequence[Message], *, reply: bool) -> list[int]:
        """Return the ids of a conversation; with `reply`, up to where the assistant's next message begins."""
        ...

    @property
    def end_of_message(self) -> str:
        """The string that ends an assistant's message."""
        ...
