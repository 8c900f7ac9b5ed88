"""An environment behind HTTP: leases, calls, the user's words and the verdict; what a task keeps secret stays here."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from stackloom.core.chat import Message, ToolCall
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.environment import Episode, Task, ToolError
from stackloom.environments.agent_loop import judge
from stackloom.server.guard import Guard
from stackloom.server.refusals import Refused, error_body, invalid
from stackloom.worlds.leases import AllTaken, Leases, NoLease, TookTooLong

LOG = logging.getLogger("stackloom.worlds")
MOST_TASKS = 10_000
MOST_MESSAGES = 2_000


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OpenBody(_Body):
    """Which task to attempt."""

    split: Literal["train", "held-out"]
    index: int = Field(ge=0, lt=MOST_TASKS)


class CallBody(_Body):
    """A tool call."""

    name: str = Field(min_length=1, max_length=128)
    arguments: dict[str, Any] = {}
    id: str = Field("", max_length=256)


class MessagesBody(_Body):
    """The conversation after the task's own messages, in OpenAI's form."""

    messages: list[dict[str, Any]] = Field(max_length=MOST_MESSAGES)


class _Answer(JSONResponse):
    """JSON in ASCII, so that what a model writes can be told whatever it is, a lone surrogate included."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


def make_app(leases: Leases, *, token: str = "", max_body: int = 4 << 20) -> FastAPI:
    """Return the application.

    Args:
        leases: of the environment that is served.
        token: that requests must carry; empty for none.
        max_body: bytes of a request.

    Example:
        >>> TestClient(make_app(Leases(environment))).post("/leases", json={"split": "train", "index": 0}).status_code
        201
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def reaping() -> None:
            while True:
                await asyncio.sleep(max(0.05, leases.seconds / 4))
                if reaped := await leases.reap():
                    LOG.info("%d leases ran out", reaped)

        reaper = asyncio.create_task(reaping())
        yield
        reaper.cancel()
        with suppress(asyncio.CancelledError):
            await reaper
        await leases.shut()

    app = FastAPI(
        title="stackloom environment",
        version=version("stackloom"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        default_response_class=_Answer,
    )
    app.add_middleware(Guard, token=token, max_body=max_body)

    def answered(found: Refused) -> JSONResponse:
        return _Answer(error_body(found), found.status, headers=found.headers)

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
        return answered(invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        return answered(Refused(error.status_code, str(error.detail)))

    @app.exception_handler(NoLease)
    async def gone(request: Request, error: NoLease) -> JSONResponse:
        return answered(Refused(410, "this lease is over, or never was", code="no_lease"))

    @app.exception_handler(AllTaken)
    async def full(request: Request, error: AllTaken) -> JSONResponse:
        return answered(Refused(429, f"all {leases.most} leases are out", code="all_taken", retry_after=1))

    @app.exception_handler(ConfigError)
    @app.exception_handler(FitError)
    async def wrong(request: Request, error: Exception) -> JSONResponse:
        return answered(Refused(400, str(error), code="invalid_value"))

    @app.exception_handler(TookTooLong)
    async def hung(request: Request, error: TookTooLong) -> JSONResponse:
        return answered(Refused(504, f"the environment took {error}; the lease is over", code="infra"))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """How many leases are out, and have been."""
        counts = {"held": leases.held, "opened": leases.opened, "ended": leases.ended, "expired": leases.expired}
        return {"status": "ok", "most": leases.most} | counts

    @app.get("/tasks")
    async def tasks(split: Literal["train", "held-out"], count: Annotated[int, Field(ge=0, le=MOST_TASKS)]) -> Any:
        """The first tasks of a split, without what they keep secret."""
        return {"tasks": [_shown(task) for task in await leases.tasks(split, count)]}

    @app.post("/leases", status_code=201)
    async def open_lease(body: OpenBody) -> dict[str, Any]:
        """Begin an attempt."""
        lease = await leases.open(body.split, body.index)
        user = getattr(lease.episode, "user", None) is not None
        return {"lease": lease.id, "seconds": leases.seconds, "user": user, "task": _shown(lease.task)}

    @app.post("/leases/{lease}/heartbeat")
    async def heartbeat(lease: str) -> dict[str, Any]:
        """Keep a lease that is not used."""
        leases.find(lease)
        return {"seconds": leases.seconds}

    @app.post("/leases/{lease}/calls")
    async def call(lease: str, body: CallBody) -> Response:
        """Run a tool. `error` is the agent's, to read; another failure is ours, and masks the attempt."""
        made = ToolCall(body.name, body.arguments, body.id)
        try:
            text = await leases.use(lease, lambda episode: episode.call(made))
        except ToolError as refused:
            return _Answer({"error": str(refused)})
        except (NoLease, TookTooLong):
            raise
        except Exception as cause:
            LOG.exception("tool %s of lease %s", body.name, lease)
            return answered(Refused(500, f"the tool raised {type(cause).__name__}", code="infra"))
        return _Answer({"text": text})

    @app.post("/leases/{lease}/user")
    async def user(lease: str, body: MessagesBody) -> dict[str, Any]:
        """What the user says to a message without calls; null where nothing."""
        said = _read(body.messages)

        def ask(episode: Episode) -> str | None:
            speaker: Any = getattr(episode, "user", None)
            return asyncio.run(speaker.reply(said)) if speaker else None

        return {"reply": await leases.use(lease, ask)}

    @app.post("/leases/{lease}/verdict")
    async def verdict(lease: str, body: MessagesBody) -> dict[str, Any]:
        """Judge the attempt. It may go on afterwards; judging changes nothing."""
        said = _read(body.messages)
        reward, answer = await leases.use(lease, lambda episode: judge(episode, said))
        return {"value": reward.value, "valid": reward.valid, "reason": reward.reason, "answer": answer}

    @app.delete("/leases/{lease}", status_code=204)
    async def end(lease: str) -> Response:
        """End an attempt; twice is as well."""
        await leases.end(lease)
        return Response(status_code=204)

    return app


def _shown(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "kind": task.kind,
        "messages": [message.to_openai() for message in task.messages],
        "tools": [
            {"name": tool.name, "description": tool.description, "input_schema": dict(tool.input_schema)}
            for tool in task.tools
        ],
    }


def _read(messages: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message.from_openai(message) for message in messages)
