"""Any MCP server as an environment: its tools, tasks from a file, and checks that are data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from stackloom.core.chat import Message, Tool, ToolCall, tool_prompt
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.environment import Reward, Split, Task, ToolError
from stackloom.plugins.environment.mcp.config import MCPConfig

WHERE = "environment.mcp"


class MCP:
    """Tasks of a JSON Lines file over the tools of an MCP server.

    A line has an `id`, `messages` (role and content) or a `prompt`, and says what is right: `answer`, which the final
    message must contain, or `check`, a call of the server after the attempt whose text must contain `contains`:
    {"tool": "get_order", "arguments": {"id": "7"}, "contains": "cancelled"}. Both may be given, and both must hold.

    Args:
        config: the plugin's options.

    Raises:
        ConfigError: the mcp package or the file is missing, a line is no task, or the server cannot be reached.
    """

    def __init__(self, config: MCPConfig) -> None:
        self.config = config
        try:
            from stackloom.environments import mcp_client
        except ModuleNotFoundError as cause:
            raise ConfigError(f"{cause.name} is not installed", where=WHERE, fix="pip install 'mcp>=2.0'") from None
        self._connect = mcp_client.McpTools
        self._lines = _read(Path(config.tasks))

    @cached_property
    def _tools(self) -> tuple[Tool, ...]:
        """What the server offers, asked once."""
        connection = self._open()
        connection.close()
        offered = {tool.name: tool for tool in connection.tools}
        if unknown := sorted(set(self.config.only) - offered.keys()):
            raise ConfigError(
                f"the server has no tool {', '.join(unknown)}",
                where=f"{WHERE}.only",
                fix=f"it has {', '.join(sorted(offered))}",
            )
        return tuple(offered[name] for name in self.config.only) if self.config.only else tuple(offered.values())

    def _open(self) -> Any:
        config = self.config
        return self._connect(
            config.command,
            config.url,
            environment=config.variables,
            seconds=config.seconds,
            most_characters=config.most_characters,
        )

    def tasks(self, split: Split, count: int) -> Sequence[Task]:
        """Return the first `count` tasks of a split, in the file's order.

        Raises:
            ConfigError: no such split, or fewer tasks.
        """
        if split not in ("train", "held-out"):
            raise ConfigError(f"unknown split {split!r}", where=WHERE, fix="train or held-out")
        chosen = [line for line in self._lines if _held_out(line["id"], self.config.held_out) == (split == "held-out")]
        if len(chosen) < count:
            raise ConfigError(
                f"{self.config.tasks} has {len(chosen)} tasks for {split}, {count} are wanted",
                where=f"{WHERE}.tasks",
                fix="write more, or change held_out",
            )
        return [
            Task(
                id=line["id"],
                kind=line.get("kind", "mcp"),
                messages=self._opening(line["messages"]),
                tools=self._tools,
                secret={"answer": line.get("answer"), "check": line.get("check")},
            )
            for line in chosen[:count]
        ]

    def _opening(self, messages: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
        """The line's messages, with the tools behind its system prompt."""
        system = "\n\n".join(each["content"] for each in messages if each["role"] == "system")
        tools = tool_prompt(self._tools, compact=self.config.compact)
        said = [Message("user", each["content"]) for each in messages if each["role"] == "user"]
        return (Message("system", f"{system}\n\n{tools}".strip()), *said)

    def start(self, task: Task) -> MCPEpisode:
        """Begin an attempt; at its first call it gets a connection, and with `command` a server, of its own."""
        return MCPEpisode(task, self._open)

    def demonstration(self, task: Task) -> list[Message]:
        """Raise: a file of tasks has none."""
        raise FitError("has no demonstrations", where=WHERE)


class MCPEpisode:
    """Fulfils `core.slots.environment.Episode`. The connection ends with the object."""

    def __init__(self, task: Task, connect: Callable[[], Any]) -> None:
        self._task, self._connect, self._opened = task, connect, False
        self._names = {tool.name for tool in task.tools}

    @cached_property
    def _connection(self) -> Any:
        connection = self._connect()
        self._opened = True
        return connection

    def call(self, call: ToolCall) -> str:
        """Call a tool of the server.

        Raises:
            ToolError: no such tool here, or the server says that the call was wrong.
            ServerLost: the server went or hung; the attempt is masked.
        """
        if call.name not in self._names:
            raise ToolError(f"there is no tool {call.name[:60]!r}; there are {', '.join(sorted(self._names))}")
        text: str = self._connection.call(call.name, call.arguments)
        return text

    def reward(self, transcript: Sequence[Message]) -> Reward:
        """1 if the final message and the server's state are as the task says.

        Raises:
            ServerLost: the server went or hung; the attempt is masked.
        """
        secret = self._task.secret
        final = self.answer(transcript)
        if final is None:
            return Reward(0.0, reason="no final message")
        if secret["answer"] is not None and _plain(secret["answer"]) not in final:
            return Reward(0.0, reason="the answer is not in the final message")
        if check := secret["check"]:
            try:
                found = self._connection.call(check["tool"], check.get("arguments", {}))
            except ToolError as refused:
                found = str(refused)
            if check["contains"] not in found:
                return Reward(0.0, reason=f"{check['tool']} does not tell {check['contains']!r}")
        return Reward(1.0, reason="as the task says")

    def answer(self, transcript: Sequence[Message]) -> str | None:
        """Return the final message without its layout."""
        if not transcript or transcript[-1].role != "assistant" or transcript[-1].tool_calls:
            return None
        return _plain(transcript[-1].content) or None

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._opened:
            self._connection.close()

    def __del__(self) -> None:
        self.close()


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _held_out(name: str, share: float) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < share * 2**64


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(f"cannot be read: {cause}", where=f"{WHERE}.tasks") from None
    found: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(lines, 1):
        if text.strip():
            line = _line(text, f"{path}:{number}")
            if line["id"] in found:
                raise ConfigError(f"the id {line['id']!r} comes twice", where=f"{path}:{number}")
            found[line["id"]] = line
    return list(found.values())


def _line(text: str, where: str) -> dict[str, Any]:
    """One task, checked by hand so that each complaint names its place."""
    try:
        line = json.loads(text)
    except ValueError as cause:
        raise ConfigError(f"is no JSON: {cause}", where=where) from None
    known = {"id", "kind", "prompt", "messages", "answer", "check"}
    if not isinstance(line, dict) or not isinstance(line.get("id"), str) or line.keys() - known:
        raise ConfigError("is no object with an id, and of " + ", ".join(sorted(known)), where=where)
    if isinstance(line.get("prompt"), str):
        line["messages"] = [{"role": "user", "content": line["prompt"]}]
    messages = line.get("messages")
    if not isinstance(messages, list) or not messages or not all(_is_message(each) for each in messages):
        raise ConfigError("needs a prompt, or messages with role and content", where=where)
    check = line.get("check")
    if check is not None and not (
        isinstance(check, Mapping)
        and isinstance(check.get("tool"), str)
        and isinstance(check.get("contains"), str)
        and isinstance(check.get("arguments", {}), Mapping)
    ):
        raise ConfigError("check needs tool and contains as texts, and arguments as an object", where=where)
    if check is None and not isinstance(line.get("answer"), str):
        raise ConfigError("needs an answer or a check, or nothing could be right", where=where)
    return line


def _is_message(value: object) -> bool:
    return (
        isinstance(value, Mapping) and value.get("role") in ("system", "user") and isinstance(value.get("content"), str)
    )
