"""Slot `context`: what an agent keeps in sight when an attempt grows longer than its context."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from stackloom.core.chat import Message
from stackloom.core.config import ComponentConfig
from stackloom.core.slot import Slot

Ask: TypeAlias = Callable[[Message], Awaitable[str]]


@dataclass(frozen=True)
class Seen:
    """What the agent would read next.

    Attributes:
        question: the task's own messages; they always stay.
        since: the messages after them, as the agent sees them now.
        tokens: of both together.
        turns: messages of the agent since the last restart; a summary does not count as one.
        measure: tokens of the question and other messages after it.
    """

    question: tuple[Message, ...]
    since: tuple[Message, ...]
    tokens: int
    turns: int
    measure: Callable[[Sequence[Message]], int]


@dataclass(frozen=True)
class Cut:
    """What the agent sees from now on.

    Attributes:
        messages: what follows the question instead of all that was there.
        restart: whether turns are counted anew.
    """

    messages: tuple[Message, ...] = ()
    restart: bool = False


class Context(Protocol):
    """The component: constructed as `Component(config)`. It keeps nothing between calls: one serves all attempts."""

    async def manage(self, seen: Seen, ask: Ask) -> Cut | None:
        """Decide before each of the agent's messages but the first; None leaves everything as it is.

        Args:
            seen: what the agent would read next.
            ask: lets the agent's own model answer one more message behind all of that; the answer's tokens are the
                agent's, its text is seen by nobody else, and it is "" where it was cut or found no room.
        """
        ...


SLOT = Slot(
    name="context",
    version=1,
    sits_in=("evaluate",),
    protocol=Context,
    config=ComponentConfig,
    summary="what an agent keeps in sight when an attempt grows longer than its context",
    features={"asks": "lets the model write summaries", "restarts": "can begin anew with the question alone"},
)
