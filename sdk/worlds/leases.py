"""Attempts that clients hold for a while: a lease each, renewed by use, taken back when its holder is gone."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from stackloom.core.slots.environment import Environment, Episode, Split, Task

T = TypeVar("T")


class NoLease(Exception):
    """There is no such lease: it never was, it ended, or it ran out."""


class AllTaken(Exception):
    """As many leases as there may be are out."""


class TookTooLong(Exception):
    """The environment did not come back; the lease is over."""


@dataclass
class Lease:
    """One attempt in somebody's hands.

    Attributes:
        id: that nobody can guess.
        task, episode: what is attempted.
        expires: on the clock of `Leases`.
        turn: one use at a time.
    """

    id: str
    task: Task
    episode: Episode
    expires: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Leases:
    """All leases of one environment. Every use of an episode runs in a thread, one at a time per lease.

    Args:
        environment: whose tasks are attempted.
        most: leases at a time.
        seconds: after which an unused lease is taken back.
        call_seconds: that one use of an episode may take.
        clock: monotonic seconds.

    Attributes:
        opened, ended, expired: how many, since the start.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        most: int = 256,
        seconds: float = 120.0,
        call_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.environment, self.most, self.seconds, self.call_seconds = environment, most, seconds, call_seconds
        self._clock, self._held = clock, dict[str, Lease]()
        self._threads = ThreadPoolExecutor(min(most, 64), thread_name_prefix="lease")
        self._starting = 0
        self.opened = self.ended = self.expired = 0

    @property
    def held(self) -> int:
        """How many are out."""
        return len(self._held)

    async def tasks(self, split: Split, count: int) -> list[Task]:
        """Return the first tasks of a split."""
        return list(await self._in_thread(lambda: self.environment.tasks(split, count)))

    async def open(self, split: Split, index: int) -> Lease:
        """Begin an attempt at task `index` of a split.

        Raises:
            AllTaken: as many leases as there may be are out.
            StackloomError: what the environment says against the task.
        """
        if self.held + self._starting >= self.most:
            raise AllTaken
        self._starting += 1
        try:
            task, episode = await self._in_thread(lambda: self._start(split, index))
        finally:
            self._starting -= 1
        lease = Lease(secrets.token_urlsafe(16), task, episode, self._clock() + self.seconds)
        self._held[lease.id] = lease
        self.opened += 1
        return lease

    def _start(self, split: Split, index: int) -> tuple[Task, Episode]:
        task = self.environment.tasks(split, index + 1)[index]
        return task, self.environment.start(task)

    def find(self, name: str) -> Lease:
        """Return a lease and renew it.

        Raises:
            NoLease: there is none of this name.
        """
        lease = self._held.get(name)
        if lease is None:
            raise NoLease(name)
        lease.expires = self._clock() + self.seconds
        return lease

    async def use(self, name: str, act: Callable[[Episode], T]) -> T:
        """Let `act` have an episode; what it raises is raised here.

        Raises:
            NoLease: there is none of this name, or it ended while others used it.
            TookTooLong: the lease is over; the thread is lost until the environment comes back.
        """
        lease = self.find(name)
        async with lease.turn:
            if self._held.get(name) is not lease:
                raise NoLease(name)
            try:
                return await self._in_thread(lambda: act(lease.episode))
            except TimeoutError:
                self._held.pop(name, None)
                self.ended += 1
                raise TookTooLong(f"longer than {self.call_seconds:g} s") from None
            finally:
                lease.expires = self._clock() + self.seconds

    async def _in_thread(self, act: Callable[[], T]) -> T:
        running = asyncio.get_running_loop().run_in_executor(self._threads, act)
        return await asyncio.wait_for(running, self.call_seconds)

    async def end(self, name: str) -> None:
        """End a lease; that there is none is as well."""
        if (lease := self._held.pop(name, None)) is not None:
            self.ended += 1
            await self._close(lease)

    async def reap(self) -> int:
        """Take back what nobody used for too long, and return how many that were."""
        now = self._clock()
        late = [lease for lease in self._held.values() if lease.expires < now and not lease.turn.locked()]
        for lease in late:
            self._held.pop(lease.id, None)
            self.expired += 1
        for lease in late:
            await self._close(lease)
        return len(late)

    async def _close(self, lease: Lease) -> None:
        close: Any = getattr(lease.episode, "close", None)
        if close is not None:
            async with lease.turn:
                await self._in_thread(close)

    async def shut(self) -> None:
        """End all of them."""
        for name in list(self._held):
            await self.end(name)
        self._threads.shutdown(wait=False, cancel_futures=True)
