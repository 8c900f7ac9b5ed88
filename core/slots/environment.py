"""Slot `environment`: tasks with tools, and rewards that the agent cannot reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from stackloom.core.chat import Message, Tool, ToolCall
from stackloom.core.config import ComponentConfig
from stackloom.core.slot import Slot

Split: TypeAlias = Literal["train", "held-out"]


@dataclass(frozen=True)
class Task:
    """One thing to do.

    Attributes:
        id: stable; equal options give equal tasks.
        kind: what pass rates are broken down by.
        messages: the conversation so far, as the agent sees it.
        tools: what the agent may call.
        secret: what the verifier needs and the agent must not see.
    """

    id: str
    kind: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    secret: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reward:
    """A verifier's answer.

    Attributes:
        value: 0 to 1.
        valid: False when the infrastructure failed; such a reward is masked, never scored 0.
        reason: why, for a transcript.
    """

    value: float
    valid: bool = True
    reason: str = ""


class ToolError(Exception):
    """A tool call that the agent got wrong; the message is shown to it."""


class Episode(Protocol):
    """One attempt at a task, with its own state."""

    def call(self, call: ToolCall) -> str:
        """Run a tool and return what the agent reads.

        Raises:
            ToolError: unknown tool, bad arguments or a refused action; nothing has changed.
        """
        ...

    def reward(self, transcript: Sequence[Message]) -> Reward:
        """Judge the finished attempt from the state and the transcript."""
        ...

    def answer(self, transcript: Sequence[Message]) -> str | None:
        """Return the final answer in a form that equal answers share, for voting; None where there is none."""
        ...


class Environment(Protocol):
    """The component: constructed as `Component(config)`."""

    def tasks(self, split: Split, count: int) -> Sequence[Task]:
        """Return the first `count` tasks of a split; the splits share no task."""
        ...

    def start(self, task: Task) -> Episode:
        """Begin an attempt."""
        ...

    def demonstration(self, task: Task) -> list[Message]:
        """Return the messages of a correct attempt after the task's own, with its tool calls and their results.

        Raises:
            FitError: the environment has no demonstrations (its manifest then lacks the feature).
        """
        ...


SLOT = Slot(
    name="environment",
    version=1,
    sits_in=("evaluate",),
    protocol=Environment,
    config=ComponentConfig,
    summary="tasks with tools, and rewards that the agent cannot reach",
    features={"tools": "tasks come with tools", "demonstrations": "can show a correct attempt"},
)
