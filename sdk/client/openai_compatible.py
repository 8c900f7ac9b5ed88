"""`OpenAICompatible`: one model on one or several OpenAI-compatible servers."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from stackloom.client.event_stream import EventStream, ReasoningSplitter, split
from stackloom.client.transport import make_http
from stackloom.core.chat import Message, ToolCall
from stackloom.core.errors import ConfigError
from stackloom.core.generation import ChatRequest, ContextFull, Delta, Reply, Sampling, ServerError

RETRIED = frozenset({429, 500, 502, 503, 504})
FULL = re.compile(
    r"context.{0,40}(length|window|size)|maximum context|too many tokens|prompt is too long", re.IGNORECASE
)
MAX_ERROR = 64 * 1024
MAX_REPLY = 32 * 1024**2
"""Characters of one reply beyond which a server is taken to have lost its way."""


class Broken(Exception):
    """A call failed before a byte of its reply came, and may be made again.

    Args:
        why: one clause.
        wait: seconds that the server asked for.
    """

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.why, self.wait = why, wait


@dataclass
class Server:
    """One of the servers.

    Attributes:
        url: up to and with "/v1".
        running: calls under way.
        rests_until: of the monotonic clock; after a failure others are preferred until then.
    """

    url: str
    running: int = 0
    rests_until: float = 0.0


@dataclass
class _Reading:
    """A reply while it is received."""

    splitter: ReasoningSplitter = field(default_factory=ReasoningSplitter)
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    finish: str | None = None
    tokens: int = 0
    usage: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0


class OpenAICompatible:
    """Fulfils `core.generation.ChatModel` over `POST /chat/completions`, always streaming.

    Each call goes to the server with the fewest calls under way. What fails before the first byte of a reply is made
    again after a jittered wait (or the server's Retry-After), on another server where there is one; what fails later is
    an error. Cancelling the task that reads a stream closes its connection, on which servers stop generating.

    Args:
        urls: of one server or several with the same model, for instance "http://127.0.0.1:8000/v1".
        model: its name there; None asks the first server which one it has.
        api_key: sent as a bearer token.
        http: an AsyncClient with httpx's API, which stays open; None makes one with httpx2.
        context: tokens of prompt and reply together, if known.
        top_logprobs: most that the servers give; 0 where they give none.
        retries: how often a call is made again.
        stall_s: seconds without a byte after which a stream is given up.
        extra: further fields of the request body, for instance {"top_k": 20}.

    Raises:
        ConfigError: no url or a bad one, or httpx2 is not installed.

    Example:
        >>> async with OpenAICompatible("http://127.0.0.1:8000/v1", "qwen") as model:
        ...     async for piece in model.stream(ChatRequest((Message("user", "Hello"),))):
        ...         print(piece)
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        model: str | None = None,
        *,
        api_key: str = "",
        http: Any = None,
        context: int | None = None,
        top_logprobs: int = 20,
        retries: int = 4,
        stall_s: float = 300.0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self._servers = [Server(_checked(url)) for url in ([urls] if isinstance(urls, str) else urls)]
        if not self._servers:
            raise ConfigError("no server", where="urls", fix="give at least one, for instance http://127.0.0.1:8000/v1")
        self._own = http is None
        self._http = make_http(stall_s=stall_s) if http is None else http
        self.model, self.context, self.top_logprobs = model, context, top_logprobs
        self._headers = {"accept": "text/event-stream"} | ({"authorization": f"Bearer {api_key}"} if api_key else {})
        self._retries, self._extra, self._stall_s = retries, dict(extra or {}), stall_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection, if the HTTP client is our own."""
        if self._own:
            await self._http.aclose()

    async def models(self) -> list[str]:
        """Return the names of the models of the first server.

        Raises:
            ConfigError: it refuses the key or the URL.
            ServerError: it does not answer, or not with a list of models.
        """
        server = self._servers[0]
        try:
            async with asyncio.timeout(30):
                response = await self._http.get(f"{server.url}/models", headers=self._headers)
                if response.status_code != 200:
                    await _refused(server, response)
            return [str(entry["id"]) for entry in response.json()["data"]]
        except TimeoutError:
            raise ServerError("no answer within 30 s", where=server.url) from None
        except ConfigError:
            raise
        except Exception as cause:
            raise ServerError(
                f"cannot list its models: {type(cause).__name__}: {cause}"[:500],
                where=server.url,
                fix="is the server running, and does the URL end with /v1?",
            ) from cause

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Reply]:
        """Yield pieces and, last, the whole reply; see `core.generation.ChatModel.stream`."""
        if self.model is None:
            self.model = next(iter(await self.models()), "default")
        body = self._body(request)
        for left in range(self._retries, -1, -1):
            server = self._least_loaded()
            server.running += 1
            try:
                async with aclosing(self._once(server, body)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            except Broken as broken:
                server.rests_until = time.monotonic() + (1.0 if broken.wait is None else broken.wait)
                if left == 0:
                    raise ServerError(
                        f"{broken.why}, {self._retries + 1} times" if self._retries else broken.why,
                        where=server.url,
                        fix="look at the server's log; is it running and not overloaded?",
                    ) from None
                tried = self._retries - left
                wait = min(8.0, 0.1 * 2**tried) * random.uniform(0.5, 1.5)
                if broken.wait is not None and len(self._servers) == 1:
                    wait = max(wait, broken.wait)
            finally:
                server.running -= 1
            await asyncio.sleep(wait)

    def _least_loaded(self) -> Server:
        now = time.monotonic()
        return min(self._servers, key=lambda server: (server.rests_until > now, server.running))

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [message.to_openai() for message in request.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        neutral = Sampling()
        for name in ("top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
            if (value := getattr(sampling, name)) != getattr(neutral, name):
                body[name] = value
        if sampling.json_schema:
            schema = {"name": "reply", "strict": True, "schema": json.loads(sampling.json_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if request.tools:
            body["tools"] = [tool.to_openai() for tool in request.tools]
        if request.top_logprobs:
            if not self.top_logprobs:
                raise ConfigError(
                    "the server gives no log-probabilities", where="top_logprobs", fix="choose a reasoner without them"
                )
            body |= {"logprobs": True, "top_logprobs": min(request.top_logprobs, self.top_logprobs)}
        return body | self._extra

    async def _once(self, server: Server, body: Mapping[str, Any]) -> AsyncGenerator[Delta | Reply, None]:
        """Make one call.

        Raises:
            Broken: it may be made again.
        """
        reading, begun = _Reading(), False
        try:
            async with self._http.stream(
                "POST", f"{server.url}/chat/completions", json=body, headers=self._headers
            ) as response:
                if response.status_code != 200:
                    await _refused(server, response)
                async with aclosing(_events(response)) as events:
                    async for data in events:
                        begun = True
                        if data.strip() == "[DONE]":
                            break
                        for delta in _read(reading, _load(server, data)):
                            yield delta
        except (Broken, ConfigError, ServerError):
            raise
        except Exception as cause:
            if type(cause).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2"):
                raise
            why = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
            if begun:
                raise ServerError(f"the stream broke off: {why}", where=server.url) from cause
            if "ReadTimeout" in why:
                raise ServerError(f"no byte within {self._stall_s:g} s", where=server.url) from cause
            raise Broken(why) from cause
        for delta in _rest(reading):
            yield delta
        yield _reply(server, reading)


async def _events(response: Any) -> AsyncGenerator[str, None]:
    events = EventStream()
    async for piece in response.aiter_raw() if _plain(response) else response.aiter_bytes():
        for data in events.feed(piece):
            yield data
    for data in events.close():
        yield data


def _plain(response: Any) -> bool:
    return str(response.headers.get("content-encoding", "identity")) == "identity"


async def _refused(server: Server, response: Any) -> None:
    """Raise what a status other than 200 means."""
    text = bytearray()
    async for piece in response.aiter_bytes():
        text += piece
        if len(text) > MAX_ERROR:
            break
    said = " ".join(text[:MAX_ERROR].decode("utf-8", "replace").split())[:300]
    status = response.status_code
    if status in RETRIED:
        raise Broken(f"status {status}: {said}", _retry_after(response.headers.get("retry-after", "")))
    if status in (400, 413, 422) and FULL.search(said):
        raise ContextFull(f"the server says that the prompt is too long: {said}", where=server.url)
    if status in (401, 403):
        raise ConfigError(f"the server refuses the key (status {status})", where=server.url, fix="set --api-key-env")
    if status == 404:
        raise ConfigError(
            f"status 404: {said}", where=server.url, fix="does the URL end with /v1, and is the model's name right?"
        )
    if 400 <= status < 500:
        raise ConfigError(f"the server refuses the request (status {status}): {said}", where=server.url)
    raise ServerError(f"status {status}: {said}", where=server.url)


def _retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header, given as seconds or as a date; at most a minute."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(60.0, max(0.0, seconds)) if math.isfinite(seconds) else None


def _load(server: Server, data: str) -> Mapping[str, Any]:
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        raise ServerError(f"an event is not JSON: {data[:80]!r}", where=server.url) from None
    if not isinstance(chunk, dict):
        raise ServerError(f"an event is no object: {data[:80]!r}", where=server.url)
    if chunk.get("error"):
        raise ServerError(f"the server stopped with an error: {str(chunk['error'])[:300]}", where=server.url)
    return chunk


def _read(reading: _Reading, chunk: Mapping[str, Any]) -> list[Delta]:
    """Take in one chunk; whatever has an unexpected type is as if it were absent."""
    if isinstance(usage := chunk.get("usage"), dict):
        reading.usage = usage
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    delta = choice.get("delta") if isinstance(choice.get("delta"), dict) else {}
    assert isinstance(delta, dict)
    if isinstance(choice.get("finish_reason"), str):
        reading.finish = choice["finish_reason"]
    logprobs, likeliest = _logprobs(choice.get("logprobs"))
    thought = next(
        (text for name in ("reasoning_content", "reasoning") if isinstance(text := delta.get(name), str)), ""
    )
    content = delta.get("content") if isinstance(delta.get("content"), str) else ""
    assert isinstance(content, str)
    visible, inline = reading.splitter.feed(content) if content else ("", "")
    called = _take_calls(reading, delta.get("tool_calls"))
    if not (content or thought or called or logprobs):
        return []
    tokens = len(logprobs) or 1
    reading.tokens += tokens
    reading.size += len(content) + len(thought) + called
    if reading.size > MAX_REPLY:
        raise ServerError(f"a reply of more than {MAX_REPLY} characters", where="server")
    reading.text.append(visible)
    reading.reasoning.append(thought + inline)
    return [Delta(visible, thought + inline, tokens, logprobs, likeliest)]


def _take_calls(reading: _Reading, raw: object) -> int:
    """Add a chunk's pieces of tool calls; return their characters."""
    taken = 0
    for piece in raw if isinstance(raw, list) else ():
        if not isinstance(piece, dict) or not isinstance(piece.get("index", 0), int):
            continue
        call = reading.calls.setdefault(piece.get("index", 0), {"id": "", "name": "", "arguments": ""})
        function = piece.get("function") if isinstance(piece.get("function"), dict) else {}
        assert isinstance(function, dict)
        for name, value in (
            ("id", piece.get("id")),
            ("name", function.get("name")),
            ("arguments", function.get("arguments")),
        ):
            if isinstance(value, str):
                call[name] += value
                taken += len(value)
    return taken


def _logprobs(raw: object) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    content = raw.get("content") if isinstance(raw, dict) else None
    tokens = [token for token in content if isinstance(token, dict)] if isinstance(content, list) else []
    likeliest = [
        tuple(_finite(one.get("logprob")) for one in token.get("top_logprobs") or () if isinstance(one, dict))
        for token in tokens
    ]
    return tuple(_finite(token.get("logprob")) for token in tokens), tuple(likeliest)


def _finite(value: object) -> float:
    """A log-probability; servers write -inf and null for what cannot happen."""
    return max(-9999.0, float(value)) if isinstance(value, int | float) and not math.isnan(value) else -9999.0


def _rest(reading: _Reading) -> list[Delta]:
    visible, inline = reading.splitter.close()
    reading.text.append(visible)
    reading.reasoning.append(inline)
    return [Delta(visible, inline)] if visible or inline else []


def _reply(server: Server, reading: _Reading) -> Reply:
    """Return the whole reply.

    Raises:
        ServerError: it ended without saying why.
    """
    text, reasoning = "".join(reading.text), "".join(reading.reasoning)
    if not reasoning:
        text, reasoning = split(text)
    if reading.finish is None:
        raise ServerError("the stream ended before the reply did", where=server.url)
    try:
        calls: tuple[ToolCall, ...] = Message.from_openai(
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": call["id"], "function": {"name": call["name"], "arguments": call["arguments"]}}
                    for _, call in sorted(reading.calls.items())
                ],
            }
        ).tool_calls
        errors: tuple[str, ...] = ()
    except ConfigError as cause:  # the model's mistake, not the server's
        calls, errors = (), (cause.reason,)
    counted = reading.usage.get("completion_tokens")
    prompt = reading.usage.get("prompt_tokens")
    return Reply(
        Message("assistant", text, calls),
        reasoning,
        "tool_calls" if calls else "length" if reading.finish == "length" else "stop",
        counted if type(counted) is int and counted >= 0 else reading.tokens,
        prompt if type(prompt) is int and prompt >= 0 else 0,
        errors,
    )


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is no server's URL", where="urls", fix="for instance http://127.0.0.1:8000/v1")
    return url.rstrip("/")
