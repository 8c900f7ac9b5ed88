"""`LocalModel`: the local engine as a `core.generation.ChatModel`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from stackloom.client.event_stream import ReasoningSplitter, split
from stackloom.core.chat import Message, Tool, parse_tool_calls, tool_prompt
from stackloom.core.generation import ChatRequest, ChatTokenizer, Delta, Reply, Request
from stackloom.engine.engine import Engine
from stackloom.engine.requests import TOP_LOGPROBS


def with_tools(messages: tuple[Message, ...], tools: Sequence[Tool]) -> tuple[Message, ...]:
    """Return a conversation whose system message tells the model its tools."""
    if not tools:
        return messages
    given = Message("system", tool_prompt(tools))
    if messages and messages[0].role == "system":
        given, messages = replace(messages[0], content=f"{messages[0].content}\n\n{given.content}"), messages[1:]
    return (given, *messages)


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

    top_logprobs = TOP_LOGPROBS

    def __init__(self, engine: Engine, tokenizer: ChatTokenizer) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self.context = engine.context

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Reply]:
        """Yield pieces and, last, the whole reply; see `core.generation.ChatModel.stream`."""
        ids = tuple(self._tokenizer.render(with_tools(request.messages, request.tools), reply=True))
        splitter = ReasoningSplitter()
        wanted = Request(ids, request.sampling, request.key, request.top_logprobs)
        async with aclosing(self._engine.stream(wanted)) as pieces:
            async for piece in pieces:
                visible, reasoning = splitter.feed(piece.text)
                likeliest = tuple(tuple(logprob for _, logprob in found) for found in piece.top_logprobs)
                asked = piece.logprobs if request.top_logprobs else ()
                yield Delta(visible, reasoning, len(piece.token_ids), asked, likeliest)
            completion = pieces.completion
        assert completion is not None
        text, reasoning = split(completion.text)
        parsed = parse_tool_calls(text) if request.tools else None
        if parsed is not None and parsed.calls:
            message = Message("assistant", parsed.text, parsed.calls)
        else:
            message = Message("assistant", text)
        finish = "tool_calls" if message.tool_calls else completion.finish
        errors = parsed.errors if parsed is not None else ()
        yield Reply(message, reasoning, finish, len(completion.token_ids), len(ids), errors)
