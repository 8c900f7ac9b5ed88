"""The application: routes, who may use them, and what errors look like."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib.metadata import version
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from stackloom.server.bodies import ChatBody, CompletionBody
from stackloom.server.chatting import Chatting
from stackloom.server.completions import Completing
from stackloom.server.formats import event
from stackloom.server.guard import Guard
from stackloom.server.heavy import HeavyChatting
from stackloom.server.refusals import Refused, error_body, invalid, refusal
from stackloom.server.serving import Serving

LOG = logging.getLogger("stackloom.server")
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": what}
    for status, what in (
        (400, "The request is wrong; the message says where."),
        (401, "No valid token."),
        (404, "Another model."),
        (413, "The body is too large."),
        (422, "Heavy thinking: no thinker came to an answer."),
        (429, "Too many sequences wait."),
    )
}


class Work(Protocol):
    """One request of either kind."""

    async def prepare(self) -> None:
        """Check it."""
        ...

    async def answer(self) -> dict[str, Any]:
        """Return the whole answer."""
        ...

    def events(self) -> AsyncGenerator[str, None]:
        """Yield the answer piece by piece."""
        ...


def make_app(serving: Serving, *, token: str = "") -> FastAPI:
    """Return the application.

    Args:
        serving: the model.
        token: that requests must carry; empty for none.

    Example:
        >>> TestClient(make_app(serving)).get("/health").json()
        {'status': 'ok', 'model': 'smollm2-135m-instruct'}
    """
    app = FastAPI(title="stackloom", version=version("stackloom"), docs_url=None, redoc_url=None)
    app.add_middleware(Guard, token=token, max_body=serving.limits.max_body)
    started = int(time.time())

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse(error_body(error), error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
        found = invalid(error.errors())
        return JSONResponse(error_body(found), found.status)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        found = Refused(error.status_code, str(error.detail))
        return JSONResponse(error_body(found), found.status, headers=error.headers)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether requests are taken."""
        return {"status": "ok", "model": serving.name}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters, for Prometheus."""
        return Response(serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [_model(serving, started)]}

    @app.get("/v1/models/{name:path}", responses={404: ERRORS[404]})
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        if name != serving.name:
            raise Refused(404, f"the model {name!r} is not served here", code="model_not_found", param="model")
        return _model(serving, started)

    @app.post("/v1/chat/completions", responses=ERRORS)
    async def chat(body: ChatBody, request: Request) -> Response:
        """The next message of a conversation."""
        work: Work = Chatting(serving, body) if body.heavy is None else HeavyChatting(serving, body)
        return await respond(serving, request, work, stream=body.stream)

    @app.post("/v1/completions", responses=ERRORS)
    async def complete(body: CompletionBody, request: Request) -> Response:
        """A text that goes on."""
        return await respond(serving, request, Completing(serving, body), stream=body.stream)

    return app


def _model(serving: Serving, started: int) -> dict[str, Any]:
    return {
        "id": serving.name,
        "object": "model",
        "created": started,
        "owned_by": "stackloom",
        "context": serving.engine.context,
    }


async def respond(serving: Serving, request: Request, work: Work, *, stream: bool) -> Response:
    """Answer a request, whole or in pieces; a client that leaves ends the work."""
    start, path = time.monotonic(), request.url.path

    def done(status: int) -> None:
        serving.metrics.requests.labels(path, str(status)).inc()
        serving.metrics.seconds.labels(path).observe(time.monotonic() - start)

    try:
        await work.prepare()
        if stream:
            return StreamingResponse(_told(serving, work, start, done), media_type="text/event-stream")
        answer = await _unless_gone(request, work)
    except Exception as error:
        found = _logged(error)
        done(found.status)
        raise found from error
    if answer is None:
        serving.metrics.cancelled.inc()
        done(499)
        return Response(status_code=204)  # to nobody
    done(200)
    return JSONResponse(answer)


async def _told(serving: Serving, work: Work, start: float, done: Any) -> AsyncGenerator[str, None]:
    """Yield a stream's events; an error that comes too late for a status is its last one."""
    status = 499
    try:
        async with aclosing(work.events()) as events:
            async for number, text in _numbered(events):
                if number == 1:  # the first one holds the role alone
                    serving.metrics.first_seconds.observe(time.monotonic() - start)
                yield text
        status = 200
    except Exception as error:  # noqa: BLE001 - the status has been sent
        found = _logged(error)
        status = found.status
        yield event(error_body(found))
    finally:
        if status == 499:
            serving.metrics.cancelled.inc()
        done(status)


async def _numbered(events: AsyncGenerator[str, None]) -> AsyncGenerator[tuple[int, str], None]:
    number = 0
    async for text in events:
        yield number, text
        number += 1


async def _unless_gone(request: Request, work: Work) -> dict[str, Any] | None:
    """Return the answer, or None when the client left before it."""
    answering = asyncio.create_task(work.answer())
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await answering if answering.done() else None
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _logged(error: Exception) -> Refused:
    found = refusal(error)
    if found.status >= 500:
        LOG.error("a request failed", exc_info=error)
    return found
