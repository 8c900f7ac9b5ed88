"""`FakeServer`: an OpenAI-compatible server on the loopback that refuses, hangs, resets and junks as it is told."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

Fault: TypeAlias = Literal["", "refuse", "hang", "stall", "reset", "junk", "busy", "error", "empty", "cut"]


@dataclass(frozen=True)
class Answer:
    """How one request is answered.

    Attributes:
        words: streamed one by one.
        seconds: between two words.
        fault: "refuse" closes at once; "hang" never answers; "stall" stops after the first word; "reset" resets the
            connection there; "junk" sends what is no event stream; "busy" is a 503, "error" an event with an error,
            "empty" a stream without a word, "cut" one without an end.
        status, headers, body: sent instead, where status is given.
        raw: bytes of the event stream, sent instead of the words.
        pieces: size in which `raw` is sent; 0 for one piece.
    """

    words: tuple[str, ...] = ("The ", "answer ", "is ", "42.")
    seconds: float = 0.0
    fault: Fault = ""
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    raw: bytes = b""
    pieces: int = 0


def event(delta: Mapping[str, Any] | None = None, *, finish: str | None = None, **fields: Any) -> bytes:
    """Return one chunk of a chat completion as a server-sent event."""
    choice = {"index": 0, "delta": dict(delta or {}), "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **fields}).encode() + b"\n\n"


class FakeServer:
    """Answers `POST /v1/chat/completions` and `GET /v1/models`.

    Args:
        answer: what becomes of a request, by its number and body.

    Attributes:
        requests: bodies, in order.
        open: connections that are open now.
        aborted: answers that the client broke off.

    Example:
        >>> async with FakeServer(lambda number, body: Answer()) as server:
        ...     print(server.url)
        http://127.0.0.1:40001/v1
    """

    def __init__(self, answer: Callable[[int, Mapping[str, Any]], Answer]) -> None:
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.requests: list[Mapping[str, Any]] = []
        self.open = self.aborted = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        try:
            while await self._serve(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone, which is what `aborted` counts
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        if head.startswith("GET"):
            _send(writer, 200, {}, json.dumps({"data": [{"id": "fake"}]}))
            return True
        request = json.loads(body)
        self.requests.append(request)
        answer = self._answer(len(self.requests) - 1, request)
        leaving = asyncio.ensure_future(reader.read(1))
        speaking = asyncio.ensure_future(self._speak(answer, writer))
        try:
            done, _ = await asyncio.wait({leaving, speaking}, return_when=asyncio.FIRST_COMPLETED)
            if speaking not in done:
                self.aborted += 1
                return False
            return speaking.result()
        finally:
            for task in (leaving, speaking):
                task.cancel()
            await asyncio.gather(leaving, speaking, return_exceptions=True)

    async def _speak(self, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        if answer.fault == "refuse":
            return False
        if answer.fault == "hang":
            await asyncio.Event().wait()
        if answer.status or answer.fault == "busy":
            _send(writer, answer.status or 503, answer.headers, answer.body or '{"error": {"message": "busy"}}')
            return True
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        if answer.fault == "junk":
            _chunk(writer, b"data: <html>\xff\xfe not json\n\ndata: {]\n\n")
        elif answer.fault == "error":
            _chunk(writer, b'data: {"error": {"message": "out of memory"}}\n\n')
        elif answer.raw:
            step = answer.pieces or len(answer.raw)
            for start in range(0, len(answer.raw), step):
                _chunk(writer, answer.raw[start : start + step])
                await writer.drain()
                await asyncio.sleep(0)
        else:
            await self._words(answer, writer)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _words(self, answer: Answer, writer: asyncio.StreamWriter) -> None:
        _chunk(writer, b": keep-alive\n\n" + event({"role": "assistant", "content": ""}))
        for word in () if answer.fault == "empty" else answer.words:
            if answer.seconds:
                await asyncio.sleep(answer.seconds)
            _chunk(writer, event({"content": word}))
            await writer.drain()
            if answer.fault == "stall":
                await asyncio.Event().wait()
            if answer.fault == "reset":
                found = writer.get_extra_info("socket")
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                raise ConnectionResetError
        if answer.fault == "cut":
            return
        usage = {"prompt_tokens": 7, "completion_tokens": len(answer.words)}
        _chunk(writer, event(finish="stop"))
        _chunk(writer, b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")


def _send(writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], body: str) -> None:
    data = body.encode()
    lines = [
        f"HTTP/1.1 {status} X",
        f"content-length: {len(data)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode() + data)


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
