"""`LocalModel`: the local engine as a `plugins.reasoner.streaming_model.StreamingModel`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from stackloom.client.event_stream import ReasoningSplitter, split
from stackloom.core.chat import Message, parse_tool_calls, tool_prompt
from stackloom.core.errors import ConfigError
from stackloom.core.generation import ChatTokenizer, Request
from stackloom.engine.engine import Engine
from stackloom.plugins.reasoner.streaming_model import ChatRequest, Delta, Reply


class LocalModel:
    """A chat model over an engine and its tokenizer.

    Args:
        engine: the model.
        tokenizer: of that model.

    Example:
        >>> model = LocalModel(engine, HFChatTokenizer(tokenizer))
        >>> async for piece in model.stream(ChatRequest((Message("user", "Hello"),))):
        ...     print(piece)
    """

    top_logprobs = 0
    """The engine reports the log-probability of the token that it chose, and of no other."""

    def __init__(self, engine: Engine, tokenizer: ChatTokenizer) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self.context = engine.context

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Reply]:
        """Yield pieces and, last, the whole reply; see `plugins.reasoner.streaming_model.StreamingModel.stream`."""
        messages = request.messages
        if request.tools:
            given = Message("system", tool_prompt(request.tools))
            if messages and messages[0].role == "system":
                given = replace(messages[0], content=f"{messages[0].content}\n\n{given.content}")
                messages = messages[1:]
            messages = (given, *messages)
        if request.top_logprobs > 1:
            raise ConfigError("the local engine does not report the likeliest tokens", where="top_logprobs")
        ids = tuple(self._tokenizer.render(messages, reply=True))
        splitter = ReasoningSplitter()
        async with aclosing(self._engine.stream(Request(ids, request.sampling))) as pieces:
            async for piece in pieces:
                visible, reasoning = splitter.feed(piece)
                yield Delta(visible, reasoning, 1)
            completion = pieces.completion
        assert completion is not None
        text, reasoning = split(completion.text)
        parsed = parse_tool_calls(text) if request.tools else None
        if parsed is not None and parsed.calls:
            message = Message("assistant", parsed.text, parsed.calls)
        else:
            message = Message("assistant", text)
        # Known only now: the engine holds back tokens that are no whole character yet.
        if request.top_logprobs:
            yield Delta(logprobs=completion.logprobs)
        finish = "tool_calls" if message.tool_calls else completion.finish
        yield Reply(message, reasoning, finish, len(completion.token_ids), len(ids))
