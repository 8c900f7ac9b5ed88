"""An environment spread over Ray actors: an attempt lives in the one with fewest, and a death costs its own alone."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from stackloom.core.chat import Message, ToolCall
from stackloom.core.errors import ConfigError
from stackloom.core.slots.environment import Environment, Episode, Reward, Split, Task, ToolError
from stackloom.environments.agent_loop import judge
from stackloom.environments.judging import JudgedElsewhere
from stackloom.worlds import build_environment

CALLS = 64  # of one actor, side by side


class HostLost(Exception):
    """The actor of an attempt died, hung or failed: nobody's attempt, and nothing to score."""


class Host:
    """What each actor runs: the environment, and the attempts that began here."""

    def __init__(self, plugin: str, options: Mapping[str, Any]) -> None:
        self._environment, self._episodes = _build(plugin, options), dict[str, Episode]()

    def start(self, name: str, task: Task) -> bool:
        """Begin an attempt; returns whether its task has a user."""
        self._episodes[name] = self._environment.start(task)
        return getattr(self._episodes[name], "user", None) is not None

    def call(self, name: str, call: ToolCall) -> tuple[bool, str]:
        """Run a tool; returns whether the agent erred, and the text."""
        try:
            return False, self._episodes[name].call(call)
        except ToolError as refused:
            return True, str(refused)

    def judged(self, name: str, messages: Sequence[Message]) -> tuple[Reward, str | None]:
        """Return reward and answer."""
        return judge(self._episodes[name], messages)

    def reply(self, name: str, messages: Sequence[Message]) -> str | None:
        """Return what the user says."""
        import asyncio

        user: Any = getattr(self._episodes[name], "user", None)
        found: str | None = asyncio.run(user.reply(tuple(messages)))
        return found

    def end(self, name: str) -> int:
        """End an attempt; returns how many are left here."""
        close: Any = getattr(self._episodes.pop(name, None), "close", None)
        if close is not None:
            close()
        return len(self._episodes)


def _build(plugin: str, options: Mapping[str, Any]) -> Environment:
    from stackloom.registry import open_registry

    with open_registry() as opened:
        return build_environment(opened, plugin, options)


class EnvironmentPool:
    """Fulfils `core.slots.environment.Environment`: tasks are made here, attempts live in actors.

    Args:
        environment: the same environment in this process.
        actors: handles of `Host` actors.
        seconds: most that one use of an attempt may take.

    Attributes:
        held: attempts per actor.
    """

    def __init__(self, environment: Environment, actors: Sequence[Any], seconds: float) -> None:
        self._environment, self.actors, self.seconds = environment, list(actors), seconds
        self.held = [0] * len(self.actors)

    def tasks(self, split: Split, count: int) -> Sequence[Task]:
        """Return the first tasks of a split."""
        return self._environment.tasks(split, count)

    def demonstration(self, task: Task) -> list[Message]:
        """Return the messages of a correct attempt."""
        return self._environment.demonstration(task)

    def start(self, task: Task) -> PoolEpisode:
        """Begin an attempt in the actor that holds fewest.

        Raises:
            HostLost: that actor died or failed; it is started again for the next.
        """
        place = min(range(len(self.actors)), key=lambda each: (self.held[each], each))
        name = secrets.token_hex(8)
        self.held[place] += 1
        try:
            has_user = self.ask(place, "start", name, task)
        except HostLost:
            self.held[place] -= 1
            raise
        return PoolEpisode(self, place, name, has_user=has_user)

    def ask(self, place: int, method: str, *arguments: Any) -> Any:
        """Have an actor do something.

        Raises:
            HostLost: it died, took too long or raised.
        """
        import ray

        try:
            return ray.get(getattr(self.actors[place], method).remote(*arguments), timeout=self.seconds)
        except ray.exceptions.GetTimeoutError:
            raise HostLost(f"actor {place} took longer than {self.seconds:g} s") from None
        except ray.exceptions.RayActorError:
            raise HostLost(f"actor {place} died") from None
        except ray.exceptions.RayTaskError as cause:
            raise HostLost(f"actor {place}: {type(cause.cause).__name__}: {cause.cause}") from None


class PoolEpisode(JudgedElsewhere):
    """Fulfils `core.slots.environment.Episode`; the attempt ends with the object.

    Attributes:
        user: whom the agent talks to, if the task has a user.
        place: number of the actor that holds the attempt.
    """

    def __init__(self, pool: EnvironmentPool, place: int, name: str, *, has_user: bool) -> None:
        self._pool, self.place, self._name, self._closed = pool, place, name, False
        self.user = self if has_user else None

    def call(self, call: ToolCall) -> str:
        """Run a tool.

        Raises:
            ToolError: what the agent got wrong.
            HostLost: the actor died, hung or failed; the attempt is masked.
        """
        self.forget()
        erred, text = self._pool.ask(self.place, "call", self._name, call)
        if erred:
            raise ToolError(text)
        return str(text)

    async def reply(self, messages: Sequence[Message]) -> str | None:
        """Return what the user says to the agent's last message."""
        found: str | None = self._pool.ask(self.place, "reply", self._name, tuple(messages))
        return found

    def judged(self, transcript: Sequence[Message]) -> tuple[Reward, str | None]:
        """Have the attempt judged where it lives.

        Raises:
            HostLost: the actor died, hung or failed; the attempt is masked.
        """
        found: tuple[Reward, str | None] = self._pool.ask(self.place, "judged", self._name, tuple(transcript))
        return found

    def close(self) -> None:
        """Let the attempt go."""
        if not self._closed:
            self._closed = True
            self._pool.held[self.place] -= 1
            with suppress(Exception):  # a dead actor holds nothing, and Ray may be gone already
                self._pool.actors[self.place].end.remote(self._name)

    def __del__(self) -> None:
        self.close()


@contextmanager
def open_pool(
    plugin: str,
    options: Mapping[str, Any] | None = None,
    *,
    actors: int = 2,
    seconds: float = 60.0,
    address: str | None = None,
) -> Iterator[EnvironmentPool]:
    """Start actors with an environment, on a Ray cluster or on this machine's loopback, and end them with the block.

    Args:
        plugin: id of the environment, installed on every machine.
        options: its own.
        actors: how many; one that dies is started again, without the attempts that it held.
        seconds: most that one use of an attempt may take.
        address: of a cluster; None takes RAY_ADDRESS, else starts Ray here.

    Raises:
        ConfigError: ray is not installed, actors is below 1, or the environment cannot be built.
        FitError: the cluster cannot be reached.
    """
    if actors < 1:
        raise ConfigError(f"{actors} actors", where="pool", fix="at least 1")
    environment = _build(plugin, options or {})
    try:
        from stackloom.run.ray_executor import connected
    except ModuleNotFoundError as cause:
        raise ConfigError(f"{cause.name} is not installed", fix="pip install 'stackloom[ray]'") from None
    with connected(address or os.environ.get("RAY_ADDRESS"), actors):
        import ray

        made: Any = ray.remote(num_cpus=0.1, max_concurrency=CALLS, max_restarts=-1)(Host)
        yield EnvironmentPool(environment, [made.remote(plugin, dict(options or {})) for _ in range(actors)], seconds)
