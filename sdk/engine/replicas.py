"""Engine replicas as Ray actors, and a chat model that spreads its calls over them."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from stackloom.core import errors, generation
from stackloom.core.errors import ConfigError, EngineError, StackloomError
from stackloom.core.generation import ChatRequest, Delta, Reply, ServerError
from stackloom.engine.requests import TOP_LOGPROBS

CALLS = 1024  # at once in one replica; more wait


@dataclass(frozen=True)
class _Failed:
    """An error that a replica raised on purpose, in parts that travel."""

    kind: str
    reason: str
    where: str
    fix: str

    @classmethod
    def of(cls, error: StackloomError) -> _Failed:
        return cls(type(error).__name__, error.reason, error.where, error.fix)

    def error(self) -> StackloomError:
        kind: Any = getattr(generation, self.kind, None) or getattr(errors, self.kind, EngineError)
        made: StackloomError = kind(self.reason, where=self.where, fix=self.fix)
        return made


class Replica:
    """One engine in a process of its own; what `Replicas` calls through Ray."""

    def __init__(self, checkpoint: str, dtype: str, threads: int, options: dict[str, Any]) -> None:
        self._checkpoint, self._dtype, self._threads, self._options = checkpoint, dtype, threads, options
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._engine: Any = None
        self._model: Any = None

    async def open(self) -> _Failed | int | None:
        """Load the model; return its context, or why it cannot be loaded."""
        import torch

        from stackloom.engine.chat_tokenizer import HFChatTokenizer
        from stackloom.engine.engine import Engine
        from stackloom.engine.streaming import LocalModel
        from stackloom.opening import open_checkpoint
        from stackloom.registry import open_registry

        torch.set_num_threads(self._threads)
        try:
            with open_registry() as registry:
                _, loaded, tokenizer = open_checkpoint(self._checkpoint, registry, dtype=self._dtype)
            self._engine = Engine(loaded, tokenizer, in_loop=True, **self._options)
        except StackloomError as error:
            return _Failed.of(error)
        self._model = LocalModel(self._engine, HFChatTokenizer(tokenizer))
        return self._engine.context  # type: ignore[no-any-return]

    async def stream(self, call: str, request: ChatRequest) -> AsyncIterator[Delta | Reply | _Failed]:
        """Yield a reply's pieces and the reply, or what went wrong."""
        pieces: asyncio.Queue[Delta | Reply | _Failed | None] = asyncio.Queue()

        async def work() -> None:
            try:
                async with aclosing(self._model.stream(request)) as found:
                    async for piece in found:
                        pieces.put_nowait(piece)
            except StackloomError as error:
                pieces.put_nowait(_Failed.of(error))
            finally:
                pieces.put_nowait(None)

        task = self._calls[call] = asyncio.create_task(work())
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            del self._calls[call]

    async def cancel(self, call: str) -> None:
        """End a call, if it still runs; its pages are free from the next step on."""
        if (task := self._calls.get(call)) is not None:
            task.cancel()

    async def load(self) -> dict[str, int]:
        """What the replica does now: calls, sequences that run or wait, pages in use."""
        engine = self._engine
        return {
            "calls": len(self._calls),
            "running": engine.running,
            "waiting": engine.waiting,
            "pages": engine.pages[0],
        }


class Replicas:
    """A `core.generation.ChatModel` over engine replicas: each call goes to the one with the fewest.

    A replica that dies breaks its calls off; a call of which nothing was heard yet is made again elsewhere. Cancelling
    a call reaches its replica, which frees the sequence's pages.

    Args:
        actors: handles of `Replica` actors that have been opened.
        context: tokens that prompt and reply share; None if unknown.

    Example:
        >>> with open_replicas("smollm2-135m-instruct", 2) as model:
        ...     async for piece in model.stream(ChatRequest((Message("user", "Hello"),))):
        ...         print(piece)
    """

    top_logprobs = TOP_LOGPROBS

    def __init__(self, actors: Sequence[Any], context: int | None) -> None:
        self.actors, self.context = list(actors), context
        self._busy = [0] * len(self.actors)
        self._dead: set[int] = set()

    @property
    def alive(self) -> int:
        """How many replicas have not died."""
        return len(self.actors) - len(self._dead)

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Reply]:
        """Yield pieces and, last, the whole reply; see `core.generation.ChatModel.stream`.

        Raises:
            ServerError: the replica died after the reply had begun, or no replica is left.
        """
        import ray

        heard = False
        while self.alive:
            place = min(set(range(len(self.actors))) - self._dead, key=lambda each: (self._busy[each], each))
            try:
                async with aclosing(self._from(place, request)) as pieces:
                    async for piece in pieces:
                        heard = True
                        yield piece
                return
            except ray.exceptions.RayActorError:
                self._dead.add(place)
                if heard:
                    raise ServerError(f"replica {place} died in the middle of a reply", where="replicas") from None
        raise ServerError("no engine replica is left", where="replicas", fix="start them again")

    async def _from(self, place: int, request: ChatRequest) -> AsyncGenerator[Delta | Reply, None]:
        actor, call = self.actors[place], secrets.token_hex(8)
        self._busy[place] += 1
        whole = False
        try:
            async for reference in actor.stream.options(num_returns="streaming").remote(call, request):
                piece = await reference
                if isinstance(piece, _Failed):
                    raise piece.error()
                yield piece
                whole = isinstance(piece, Reply)
        finally:
            self._busy[place] -= 1
            if not whole:
                actor.cancel.remote(call)


@contextmanager
def open_replicas(
    checkpoint: str, count: int, *, dtype: str = "auto", address: str | None = None, **options: Any
) -> Iterator[Replicas]:
    """Start engine replicas, on a Ray cluster or on this machine's loopback, and end them when the block is left.

    Args:
        checkpoint: as `opening.open_checkpoint` takes it, on every machine.
        count: of replicas; they share a machine's cores.
        dtype: of the weights.
        address: of a cluster; None takes RAY_ADDRESS, else starts Ray here.
        options: of each `Engine`.

    Raises:
        ConfigError: ray is not installed, count is below 1, or the model cannot be loaded.
        FitError: the cluster cannot be reached.
    """
    if count < 1:
        raise ConfigError(f"{count} replicas", where="--replicas", fix="at least 1")
    try:
        from stackloom.run.ray_executor import connected
    except ModuleNotFoundError as cause:
        raise ConfigError(f"{cause.name} is not installed", fix="pip install 'stackloom[train]'") from None
    with connected(address or os.environ.get("RAY_ADDRESS"), count):
        import ray

        threads = max(1, (os.cpu_count() or 1) // count)
        made: Any = ray.remote(num_cpus=1, max_concurrency=CALLS)(Replica)
        actors = [made.remote(checkpoint, dtype, threads, options) for _ in range(count)]
        opened = ray.get([actor.open.remote() for actor in actors])
        if failed := next((found for found in opened if isinstance(found, _Failed)), None):
            raise failed.error()
        yield Replicas(actors, opened[0])
