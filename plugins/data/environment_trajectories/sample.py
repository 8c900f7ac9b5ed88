"""The smallest environment that the plugin reads, for its contract tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from stackloom.core.chat import Message, Tool, ToolCall
from stackloom.core.config import ComponentConfig
from stackloom.core.slots.environment import Task

ADD = Tool("add", "Add two numbers", {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"]})


class SumsConfig(ComponentConfig):
    """An environment without options, which shows how to add with a tool."""

    plugin_id: ClassVar[str] = "environment.sums"

    def build(self, *dependencies: Any, **named: Any) -> Sums:
        """Return the environment."""
        return Sums()


class Sums:
    """Task `i` asks for i + 1."""

    def tasks(self, split: str, count: int) -> Sequence[Task]:
        """Return `count` sums."""
        return [
            Task(f"{split}/{number}", "sum", (Message("user", f"{number} + 1?"),), (ADD,), {"number": number})
            for number in range(count)
        ]

    def demonstration(self, task: Task) -> list[Message]:
        """Call the tool and say the result."""
        number = task.secret["number"]
        return [
            Message("assistant", "", (ToolCall("add", {"a": number, "b": 1}, "call_0"),)),
            Message("tool", str(number + 1), tool_call_id="call_0", name="add"),
            Message("assistant", f"It is {number + 1}."),
        ]


def sample(folder: Path) -> dict[str, Any]:
    """Return options with that environment; nothing is written."""
    return {"environment": SumsConfig(), "count": 3}
