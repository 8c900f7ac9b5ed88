"""What agents, reasoners and environments ask of a language model: a protocol that an engine or a server fulfils."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from stackloom.core.chat import Message, Tool
from stackloom.core.errors import ConfigError, StackloomError


class ContextFull(ConfigError):
    """A prompt that leaves no room in the model's context: one conversation is too long, the options are fine."""


class ServerError(StackloomError):
    """A model's server refused, broke off or answered nonsense; the request was fine."""

    acts = "whoever runs the server"


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p, top_k, min_p: nucleus, shortlist, and the share of the likeliest token's probability that a token needs;
            1.0, 0 and 0.0 leave all tokens.
        max_tokens: most tokens to generate.
        stop: strings that end the text; they are not part of it.
        seed: the draw of token i of a sequence depends on (seed, key of the request, i) alone.
        presence_penalty, frequency_penalty: taken off the logit of a token that was generated, once and per time.
        repetition_penalty: divides the positive logit, and multiplies the negative one, of each token that was read or
            generated; 1.0 changes nothing.
        json_schema: JSON Schema, as JSON, that the text follows; empty for free text.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    json_schema: str = ""


@dataclass(frozen=True)
class Request:
    """One sequence to continue.

    Attributes:
        input_ids: the prompt, at least one token.
        key: names the sequence for its random draws; equal keys and prompts give equal samples.
        top_logprobs: how many of the likeliest tokens to report per generated token.
    """

    input_ids: tuple[int, ...]
    sampling: Sampling = Sampling()
    key: str = ""
    top_logprobs: int = 0


@dataclass(frozen=True)
class Completion:
    """What was generated.

    Attributes:
        token_ids: generated ids, the end-of-text token included where it was generated.
        logprobs: natural log-probability of each under the model's own (temperature 1) distribution.
        text: decoded, without what the stop string and special tokens would add.
        finish: "stop" for an end token or stop string, "length" for max_tokens or the model's context.
        top_logprobs: per generated token the likeliest ones as (id, logprob), likeliest first, where asked for.
        versions: of the weights that chose each token; an engine counts how often they were read anew.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: Literal["stop", "length"]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    versions: tuple[int, ...] = ()


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
class ChatRequest:
    """One reply that is asked for.

    Attributes:
        messages: the conversation; the reply follows its last message.
        tools: what the reply may call.
        top_logprobs: how many of the likeliest tokens to report per token; 0 for none.
        key: names the reply for its random draws where the model is local.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    sampling: Sampling = Sampling()
    top_logprobs: int = 0
    key: str = ""


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
        errors: one sentence per malformed call, fit to be shown to the model.
    """

    message: Message
    reasoning: str = ""
    finish: Literal["stop", "length", "tool_calls"] = "stop"
    tokens: int = 0
    prompt_tokens: int = 0
    errors: tuple[str, ...] = ()


class ChatModel(Protocol):
    """Continues conversations: the local model, or a server behind an API.

    Attributes:
        context: tokens that prompt and reply share; None if unknown.
        top_logprobs: most that a request may ask for.
    """

    context: int | None
    top_logprobs: int

    def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Reply]:
        """Yield pieces and, last, the whole reply. Closing the iterator or cancelling its task ends the generation.

        Raises:
            ContextFull: the prompt leaves no room in the context.
            ConfigError: a request that can never be answered.
            ServerError: the server failed.
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
