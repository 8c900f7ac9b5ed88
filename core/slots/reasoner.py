"""Slot `reasoner`: spends test-time compute on one question."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

from stackloom.core.chat import Message
from stackloom.core.config import ComponentConfig
from stackloom.core.slot import Slot
from stackloom.core.slots.environment import Reward


@dataclass(frozen=True)
class Attempt:
    """One finished attempt. A reasoner sees everything but the reward.

    Attributes:
        answer: in a form that equal answers share; None where there is none.
        messages: what the agent and its tools said.
        tokens: generated tokens.
        reward: the verifier's answer, for the report alone.
        logprob: mean natural log-probability of the generated tokens; None where it is not known.
        confidences: of each generated token (see reasoner.deepconf); empty where they are not known.
    """

    answer: str | None
    messages: tuple[Message, ...]
    tokens: int
    reward: Reward
    logprob: float | None = None
    confidences: tuple[float, ...] = ()


@dataclass(frozen=True)
class Solution:
    """What a reasoner settled on.

    Attributes:
        chosen: index into `attempts`.
        attempts: all that were made, in order.
    """

    chosen: int
    attempts: Sequence[Attempt]


class Attempts(Protocol):
    """Makes attempts at one task, each from the task's own state of the world, and holds the task's messages."""

    question: tuple[Message, ...]

    def __call__(self, index: int, messages: Sequence[Message] | None = None, /) -> Awaitable[Attempt]:
        """Make the attempt numbered `index`; `messages` stand in for the question where they are given."""
        ...


class Reasoner(Protocol):
    """The component: constructed as `Component(config)`."""

    async def solve(self, attempt: Attempts) -> Solution:
        """Solve one task; `attempt(i)` makes the i-th independent attempt, and attempts may be awaited together."""
        ...


SLOT = Slot(
    name="reasoner",
    version=1,
    sits_in=("evaluate",),
    protocol=Reasoner,
    config=ComponentConfig,
    summary="spends test-time compute on one question",
    features={"parallel": "makes attempts side by side", "sequential": "builds on earlier attempts"},
)
