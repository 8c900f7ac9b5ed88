"""`POST /v1/chat/completions`: the next message of a conversation."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from stackloom.core.chat import Message, Tool
from stackloom.core.generation import Completion, Request
from stackloom.engine.batch import Piece
from stackloom.engine.streaming import with_tools
from stackloom.server.bodies import ChatBody, ChatMessage, Function
from stackloom.server.formats import DONE, call, chat_logprobs, envelope, event, usage
from stackloom.server.pieces import grow
from stackloom.server.reply_reader import ReplyReader
from stackloom.server.serving import Serving


@dataclass
class _Choice:
    reader: ReplyReader
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class Chatting:
    """One request without heavy thinking.

    Args:
        serving: the model.
        body: what is asked.
    """

    def __init__(self, serving: Serving, body: ChatBody) -> None:
        self._serving, self._body = serving, body
        self._requests: list[Request] = []
        self._prompt_tokens = 0
        self._choices: list[_Choice] = []

    async def prepare(self) -> None:
        """Check everything that can be checked before the answer begins.

        Raises:
            StackloomError: what is wrong with the request.
            Refused: the server does not take it.
        """
        serving, body = self._serving, self._body
        serving.admit(body, body.n)
        sampling = serving.sampling(body, body.max_tokens or body.max_completion_tokens, schema_of(body))
        tools, forced = shown_tools(body), bool(body.forced_tools)
        ids = await serving.render(with_tools(messages_of(body), tools))
        self._prompt_tokens = len(ids)
        request = Request(ids, sampling, top_logprobs=body.top_logprobs or 0)
        await serving.check(request)
        self._requests = [replace(request, key=str(choice)) for choice in range(body.n)]
        self._choices = [_Choice(ReplyReader(tools=bool(tools), forced=forced)) for _ in range(body.n)]

    async def answer(self) -> dict[str, Any]:
        """Return the whole answer."""
        ended: dict[int, Completion] = {}
        async with aclosing(grow(self._serving.engine, self._requests)) as growing:
            async for number, found in growing:
                if isinstance(found, Completion):
                    ended[number] = found
                else:
                    self._choices[number].reader.feed(found.text)
                    self._choices[number].logprobs += self._logprobs(found)
        tokens = sum(len(one.token_ids) for one in ended.values())
        self._serving.count(self._prompt_tokens, tokens)
        head = envelope("chat.completion", self._serving.name)
        choices = [self._whole(number, ended[number]) for number in sorted(ended)]
        return head | {"choices": choices, "usage": usage(self._prompt_tokens, tokens)}

    def _whole(self, number: int, completion: Completion) -> dict[str, Any]:
        choice = self._choices[number]
        reader = choice.reader
        reader.close()
        content = reader.content.strip() if reader.calls else reader.content
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if reader.calls else "")}
        if reader.reasoning:
            message["reasoning_content"] = reader.reasoning
        if reader.calls:
            message["tool_calls"] = [call(made) for made in reader.calls]
        logprobs = {"content": choice.logprobs, "refusal": None} if self._body.logprobs else None
        finish = "tool_calls" if reader.calls else completion.finish
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": finish}

    async def events(self) -> AsyncGenerator[str, None]:
        """Yield the answer piece by piece."""
        head, tokens = envelope("chat.completion.chunk", self._serving.name), 0

        def chunk(number: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> str:
            choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return event(head | {"choices": [choice]})

        for number in range(len(self._requests)):
            yield chunk(number, {"role": "assistant", "content": ""})
        try:
            async with aclosing(grow(self._serving.engine, self._requests)) as growing:
                async for number, found in growing:
                    reader = self._choices[number].reader
                    if isinstance(found, Completion):
                        rest = delta_of(*reader.close())
                        if reader.calls:
                            rest["tool_calls"] = [call(made, place) for place, made in enumerate(reader.calls)]
                        if rest:
                            yield chunk(number, rest)
                        yield chunk(number, {}, "tool_calls" if reader.calls else found.finish)
                        continue
                    tokens += len(found.token_ids)
                    delta, logprobs = delta_of(*reader.feed(found.text)), self._logprobs(found)
                    if delta or logprobs:
                        told = {"content": logprobs, "refusal": None} if logprobs else None
                        yield chunk(number, delta, logprobs=told)
        finally:
            self._serving.count(self._prompt_tokens, tokens)
        if self._body.stream_options and self._body.stream_options.include_usage:
            yield event(head | {"choices": [], "usage": usage(self._prompt_tokens, tokens)})
        yield DONE

    def _logprobs(self, piece: Piece) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if self._body.logprobs:
            found = chat_logprobs(piece, self._serving.token)["content"]
        return found


def delta_of(content: str, reasoning: str) -> dict[str, Any]:
    """Return what a chunk adds."""
    return {name: text for name, text in (("content", content), ("reasoning_content", reasoning)) if text}


def messages_of(body: ChatBody) -> tuple[Message, ...]:
    """Return the conversation.

    Raises:
        ConfigError: content that is no text, or malformed calls.
    """

    def read(message: ChatMessage) -> Message:
        raw = message.model_dump(exclude_none=True)
        return Message.from_openai(raw | ({"role": "system"} if message.role == "developer" else {}))

    return tuple(map(read, body.messages))


def shown_tools(body: ChatBody) -> tuple[Tool, ...]:
    """Return the tools that the model is told.

    Raises:
        ConfigError: a bad name, or arguments that are no object.
    """
    if body.tool_choice == "none":
        return ()
    return tuple(_tool(tool.function) for tool in body.tools or ())


def _tool(function: Function) -> Tool:
    schema = function.parameters or {"type": "object", "properties": {}}
    return Tool(function.name, function.description or "", {"type": "object", **schema})


def schema_of(body: ChatBody) -> str:
    """Return the JSON Schema that the text has to follow; empty for free text."""
    if forced := body.forced_tools:
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": dict(_tool(tool).input_schema)},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in forced
        ]
        return json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls})
    if body.response_format is None or body.response_format.type == "text":
        return ""
    asked = body.response_format.json_schema
    return json.dumps({"type": "object"} if asked is None else asked.schema_)
