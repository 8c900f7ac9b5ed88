"""`ScriptedModel`: a model whose replies, delays and failures are known; for tests and claims about the machinery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from stackloom.core.chat import Message, ToolCall
from stackloom.core.generation import ChatRequest, Delta, Reply


@dataclass(frozen=True)
class Line:
    """One scripted reply.

    Attributes:
        text, reasoning: streamed word by word, a token each.
        seconds: from the request to the end, spread over the words.
        error: raised after the words.
        hangs: never ends.
        finish: as in Reply.
        logprob: of every token.
        likeliest: log-probabilities of the likeliest candidates of every token.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    seconds: float = 0.0
    error: Exception | None = None
    hangs: bool = False
    finish: str = "stop"
    logprob: float = -0.5
    likeliest: tuple[float, ...] = (-0.5, -1.5)


@dataclass
class ScriptedModel:
    """Fulfils `core.generation.ChatModel`.

    Args:
        script: the reply to a request, which it may read; seeds tell thinkers apart.

    Attributes:
        asked: every request, in order.
        running, most: calls under way now, and at most at once.
        broken_off: calls that were closed before their end.

    Example:
        >>> model = ScriptedModel(lambda request: Line(str(request.sampling.seed % 3)))
    """

    script: Callable[[ChatRequest], Line]
    context: int | None = None
    top_logprobs: int = 20
    asked: list[ChatRequest] = field(default_factory=list)
    running: int = 0
    most: int = 0
    broken_off: int = 0

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Reply]:
        """Yield the script's words, then the reply."""
        self.asked.append(request)
        line = self.script(request)
        self.running += 1
        self.most = max(self.most, self.running)
        ended = False
        try:
            words = [(word, True) for word in _words(line.reasoning)] + [(word, False) for word in _words(line.text)]
            cut = words[: request.sampling.max_tokens]
            for word, thought in cut:
                await asyncio.sleep(line.seconds / len(cut))
                yield Delta(
                    text="" if thought else word,
                    reasoning=word if thought else "",
                    tokens=1,
                    logprobs=(line.logprob,) if request.top_logprobs else (),
                    top_logprobs=(line.likeliest[: request.top_logprobs],) if request.top_logprobs else (),
                )
            if not cut:
                await asyncio.sleep(line.seconds)
            if line.hangs:
                await asyncio.Event().wait()
            if line.error is not None:
                raise line.error
            ended = True
            text = "".join(word for word, thought in cut if not thought)
            finish = "length" if len(cut) < len(words) else "tool_calls" if line.tool_calls else line.finish
            prompt = sum(len(_words(message.content)) for message in request.messages)
            yield Reply(Message("assistant", text, line.tool_calls), line.reasoning, finish, len(cut), prompt)  # type: ignore[arg-type]
        finally:
            self.running -= 1
            self.broken_off += not ended and line.error is None


def _words(text: str) -> list[str]:
    return [word if place == 0 else f" {word}" for place, word in enumerate(text.split(" "))] if text else []
