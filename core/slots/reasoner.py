"""Slot `reasoner`: spends test-time compute on one question."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
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
    """

    answer: str | None
    messages: tuple[Message, ...]
    tokens: int
    reward: Reward


@dataclass(frozen=True)
class Solution:
    """What a reasoner settled on.

    Attributes:
        chosen: index into `attempts`.
        attempts: all that were made, in order.
    """

    chosen: int
    attempts: Sequence[Attempt]


class Reasoner(Protocol):
    """The component: constructed as `Component(config)`."""

    async def solve(self, attempt: Callable[[int], Awaitable[Attempt]]) -> Solution:
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
