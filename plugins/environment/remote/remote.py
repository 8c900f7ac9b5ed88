"""An environment behind `stackloom env serve`: attempts are leases, kept alive while they live here."""

from __future__ import annotations

import json
import os
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import httpx

from stackloom.core.chat import Message, Tool, ToolCall
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.environment import Reward, Split, Task, ToolError
from stackloom.environments.judging import JudgedElsewhere
from stackloom.plugins.environment.remote.config import RemoteConfig

WHERE = "environment.remote"


class Lost(Exception):
    """The server went, refused or lost the lease: nobody's attempt, and nothing to score."""


class Remote:
    """Tasks and attempts of a served environment. One thread keeps all open leases alive.

    Args:
        config: the plugin's options.
    """

    def __init__(self, config: RemoteConfig) -> None:
        self.config = config
        token = os.environ.get(config.token_variable, "")
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._http = httpx.Client(base_url=config.url, headers=headers, timeout=config.seconds)
        self._open: weakref.WeakSet[RemoteEpisode] = weakref.WeakSet()
        self._beating: threading.Thread | None = None
        self._lock = threading.Lock()

    def ask(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Ask the server; None for an answer without a body.

        Raises:
            ConfigError: it says that the request is wrong, or that the token is.
            Lost: it cannot be reached, failed, or has no such lease.
        """
        try:
            content = None if body is None else json.dumps(body)  # in ASCII: a model may write lone surrogates
            answer = self._http.request(method, path, content=content, params=query or None)
        except httpx.HTTPError as cause:
            raise Lost(f"{self.config.url} cannot be reached: {cause}") from None
        if answer.status_code in (400, 401, 404, 413):
            raise ConfigError(f"the server says: {_said(answer)}", where=WHERE)
        if answer.status_code >= 400:
            raise Lost(f"the server says: {_said(answer)}")
        return answer.json() if answer.content else None

    def tasks(self, split: Split, count: int) -> Sequence[Task]:
        """Return the first `count` tasks of a split.

        Raises:
            ConfigError: no such split, or the server refuses.
            Lost: the server cannot be reached.
        """
        if split not in ("train", "held-out"):
            raise ConfigError(f"unknown split {split!r}", where=WHERE, fix="train or held-out")
        found = self.ask("GET", "/tasks", split=split, count=count)["tasks"]
        return [
            Task(
                id=each["id"],
                kind=each["kind"],
                messages=tuple(map(Message.from_openai, each["messages"])),
                tools=tuple(Tool(t["name"], t["description"], t["input_schema"]) for t in each["tools"]),
                secret={"split": split, "index": index},
            )
            for index, each in enumerate(found)
        ]

    def start(self, task: Task) -> RemoteEpisode:
        """Begin an attempt: take a lease, waiting for a free one at most `patience` seconds.

        Raises:
            Lost: none came free, or the server cannot be reached.
        """
        deadline = time.monotonic() + self.config.patience
        while True:
            try:
                lease = self.ask("POST", "/leases", dict(task.secret))
                break
            except Lost as lost:
                if "leases are out" not in str(lost) or time.monotonic() > deadline:
                    raise
            time.sleep(0.2)
        episode = RemoteEpisode(self, lease["lease"], has_user=lease["user"])
        with self._lock:
            self._open.add(episode)
            if self._beating is None:
                arguments = weakref.ref(self), lease["seconds"] / 3
                self._beating = threading.Thread(target=_beat, args=arguments, daemon=True, name="leases")
                self._beating.start()
        return episode

    def demonstration(self, task: Task) -> list[Message]:
        """Raise: the server does not tell."""
        raise FitError("has no demonstrations", where=WHERE)

    def keep(self) -> None:
        """Renew every open lease; one that is lost says so at its next use."""
        with self._lock:
            episodes = list(self._open)
        for episode in episodes:
            if not episode.closed:
                try:
                    self.ask("POST", f"/leases/{episode.lease}/heartbeat")
                except (Lost, ConfigError):
                    continue


def _beat(remote: weakref.ref[Remote], every: float) -> None:
    while True:
        time.sleep(every)
        found = remote()
        if found is None:
            return
        found.keep()
        del found


class RemoteEpisode(JudgedElsewhere):
    """Fulfils `core.slots.environment.Episode`. The lease ends with the object.

    Attributes:
        lease: its name at the server.
        user: whom the agent talks to, if the task has a user.
        closed: whether the lease was given back.
    """

    def __init__(self, remote: Remote, lease: str, *, has_user: bool) -> None:
        self._remote, self.lease, self.closed = remote, lease, False
        self.user = RemoteUser(remote, lease) if has_user else None

    def call(self, call: ToolCall) -> str:
        """Run a tool.

        Raises:
            ToolError: what the agent got wrong.
            Lost: the server or the environment failed; the attempt is masked.
        """
        self.forget()
        body = {"name": call.name, "arguments": dict(call.arguments), "id": call.id}
        try:
            found = self._remote.ask("POST", f"/leases/{self.lease}/calls", body)
        except ConfigError as refused:
            raise ToolError(str(refused)) from None
        if "error" in found:
            raise ToolError(found["error"])
        return str(found["text"])

    def judged(self, transcript: Sequence[Message]) -> tuple[Reward, str | None]:
        """Have the server judge the attempt.

        Raises:
            Lost: the server failed; the attempt is masked.
        """
        messages = [message.to_openai() for message in transcript]
        found = self._remote.ask("POST", f"/leases/{self.lease}/verdict", {"messages": messages})
        return Reward(found["value"], found["valid"], found["reason"]), found["answer"]

    def close(self) -> None:
        """Give the lease back."""
        if not self.closed:
            self.closed = True
            try:
                self._remote.ask("DELETE", f"/leases/{self.lease}")
            except (Lost, ConfigError, RuntimeError):
                return  # the server takes it back by itself

    def __del__(self) -> None:
        self.close()


class RemoteUser:
    """The user of a task, who lives at the server."""

    def __init__(self, remote: Remote, lease: str) -> None:
        self._remote, self._lease = remote, lease

    async def reply(self, messages: Sequence[Message]) -> str | None:
        """Return what the user says to the agent's last message."""
        said = [message.to_openai() for message in messages]
        found: str | None = self._remote.ask("POST", f"/leases/{self._lease}/user", {"messages": said})["reply"]
        return found


def _said(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
