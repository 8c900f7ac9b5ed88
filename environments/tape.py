"""Which noise meets which event of an attempt: a pure function of seed, task, tape and event; attempts repeat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from stackloom.core.slots.environment import ToolError

Kind: TypeAlias = Literal["U1", "U2", "U3", "U4", "U5", "T1", "T2", "T3", "T4", "T5", "T6"]
USER: tuple[Kind, ...] = ("U1", "U2", "U3", "U4", "U5")
TOOL: tuple[Kind, ...] = ("T1", "T2", "T3", "T4", "T5", "T6")
CATALOGUE: dict[Kind, tuple[str, str]] = {
    "U1": ("a detail is missing", "ask; the user tells it"),
    "U2": ("typing errors and colloquial words", "interpret"),
    "U3": ("chatter that does not matter", "ignore"),
    "U4": ("a detail is wrong until the user is asked", "confirm, then use the right one"),
    "U5": ("a detail is told only to who asks for it by name", "ask for it"),
    "T1": ("a call fails up to three times in a row", "call again"),
    "T2": ("a list is cut", "read the rest"),
    "T3": ("fields are left out", "read the rest"),
    "T4": ("fields are renamed, added and shuffled", "read the names"),
    "T5": ("an answer is older than the last change", "call again"),
    "T6": ("the answer is wrapped in other data", "filter"),
}
RATES = (0.0, 0.05, 0.1, 0.2, 0.3)  # probability that an event is noisy, by level
TYPES = (0, 1, 2, 4, len(CATALOGUE))  # how many kinds an attempt meets, by level
HIGHEST = len(RATES) - 1
LONGEST_BURST = 3


class InjectedFault(ToolError):
    """A fault that an environment makes on purpose: part of the task, which stays solvable, and so never masked.

    A real failure of the infrastructure is any other exception.
    """


@dataclass(frozen=True)
class Tape:
    """The noise of all attempts at one task.

    Attributes:
        level: 0 (none) to 4.
        kinds: what may occur at all.
        key: names the tape; another key is another tape.

    Example:
        >>> Tape(0, tuple(CATALOGUE), "task/0").tool(0) is None
        True
    """

    level: int
    kinds: tuple[Kind, ...]
    key: str

    @cached_property
    def active(self) -> tuple[Kind, ...]:
        """The kinds that this tape draws from: as many as its level has, in the catalogue's order."""
        count = min(TYPES[self.level], len(self.kinds))
        chosen = sorted(self.kinds, key=lambda kind: self.draw("kind", kind))[:count]
        return tuple(kind for kind in CATALOGUE if kind in chosen)

    def user(self) -> tuple[Kind, ...]:
        """What the opening meets: each active kind by itself."""
        return tuple(kind for kind in self.active if kind in USER and self.draw("user", kind) < RATES[self.level])

    def tool(self, call: str) -> Kind | None:
        """What a call meets; the text tells calls apart."""
        kinds = [kind for kind in self.active if kind in TOOL]
        if not kinds or self.draw("call", call) >= RATES[self.level]:
            return None
        return kinds[self.below(len(kinds), "which", call)]

    def draw(self, *what: object) -> float:
        """Return a number in [0, 1) that depends on the tape and on `what` alone."""
        text = "/".join(map(str, (self.key, *what)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56

    def below(self, count: int, *what: object) -> int:
        """Return an integer from 0 to count - 1."""
        return int(self.draw(*what) * count)
