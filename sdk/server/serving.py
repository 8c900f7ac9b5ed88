"""`Serving`: the model behind the server, its limits, and requests to its engine."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stackloom.core.chat import Message
from stackloom.core.generation import Request, Sampling
from stackloom.engine.chat_tokenizer import HFChatTokenizer
from stackloom.engine.engine import Engine
from stackloom.plugins.reasoner.question import ThinkingReasoner
from stackloom.server.bodies import Sampled
from stackloom.server.metrics import Metrics
from stackloom.server.refusals import Refused


@dataclass(frozen=True)
class Limits:
    """What one server gives.

    Attributes:
        max_body: bytes of a request.
        max_tokens: generated tokens of one choice; also what a request without max_tokens gets.
        queue: sequences that may run or wait; beyond it a request is told to come back.
    """

    max_body: int = 4 * 1024**2
    max_tokens: int = 4096
    queue: int = 256


@dataclass
class Serving:
    """What a request is answered with.

    Attributes:
        name: of the model.
        engine: computes.
        chat: writes conversations as the model knows them.
        reasoner: builds `reasoner.heavy-thinking` from options; None where the plugin is not installed.
    """

    name: str
    engine: Engine
    chat: HFChatTokenizer
    limits: Limits = field(default_factory=Limits)
    reasoner: Callable[[Mapping[str, Any]], ThinkingReasoner] | None = None

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.engine)
        self._rendering = threading.Lock()

    def admit(self, body: Sampled, choices: int) -> None:
        """Refuse a request for another model, and any while too many sequences wait.

        Raises:
            Refused: 404 or 429.
        """
        if body.model != self.name:
            raise Refused(
                404,
                f"the model {body.model!r} is not served here, {self.name!r} is",
                code="model_not_found",
                param="model",
            )
        if self.engine.running + self.engine.waiting + choices > self.limits.queue:
            raise Refused(429, f"{self.limits.queue} sequences run or wait already", code="queue_full", retry_after=1)

    def sampling(self, body: Sampled, max_tokens: int | None, schema: str = "") -> Sampling:
        """Return a request's options.

        Raises:
            Refused: 400, more tokens than the server allows.
        """
        limit = self.limits.max_tokens
        if max_tokens is not None and max_tokens > limit:
            raise Refused(400, f"max_tokens is at most {limit} here", code="invalid_value", param="max_tokens")
        return Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            max_tokens=limit if max_tokens is None else max_tokens,
            top_k=body.top_k,
            stop=body.stops,
            seed=secrets.randbits(62) if body.seed is None else body.seed,
            min_p=body.min_p,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            repetition_penalty=body.repetition_penalty,
            json_schema=schema,
        )

    async def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return a conversation's tokens; the event loop stays free."""

        def write() -> tuple[int, ...]:
            with self._rendering:
                return tuple(self.chat.render(messages, reply=True))

        return await asyncio.to_thread(write)

    async def check(self, request: Request) -> None:
        """Refuse a request that cannot be computed, before an answer to it begins.

        Raises:
            ConfigError: as `Engine.generate`.
        """
        await asyncio.to_thread(self.engine.check, request)

    def token(self, token_id: int) -> str:
        """Return a token's text."""
        return str(self.engine.tokenizer.decode([token_id], clean_up_tokenization_spaces=False))

    def count(self, prompt_tokens: int, tokens: int) -> None:
        """Add to what was read and written."""
        self.metrics.prompt_tokens.inc(prompt_tokens)
        self.metrics.generated_tokens.inc(tokens)
