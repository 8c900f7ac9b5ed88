"""An attempt under noise: what the agent reads is distorted, what it does is not."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from stackloom.core.chat import Message, Tool, ToolCall
from stackloom.core.slots.environment import Episode, Reward, ToolError
from stackloom.environments.distortions import cut_list, left_out, parsed, renamed, wrapped
from stackloom.environments.tape import LONGEST_BURST, InjectedFault, Kind, Tape
from stackloom.environments.users import User

REST = Tool(
    "read_rest",
    'Read what an answer left out, by the reference under its "rest"',
    {
        "type": "object",
        "properties": {"reference": {"type": "string", "description": 'the value of "rest"'}},
        "required": ["reference"],
        "additionalProperties": False,
    },
)
FAULTS = (
    "the service did not answer in time; nothing was changed",
    "the service is busy; nothing was changed",
    "the connection was reset before the call began; nothing was changed",
)


class NoisyEpisode:
    """Fulfils `core.slots.environment.Episode` around another one.

    A call that fails by noise (T1) is not made. Everything else happens as it was asked for, and the answer is
    distorted. What an answer leaves out is read with `read_rest`, which is never noisy. The noise of a call depends on
    the call and on how often it was made before, so that nothing else that an agent does changes it.

    Args:
        base: the attempt that is wrapped.
        tape: decides what happens at which call.
        user: whom the agent talks to.

    Attributes:
        met: (tool, kind) of the noise that there was so far.
    """

    def __init__(self, base: Episode, tape: Tape, user: User | None) -> None:
        self.base, self.tape, self.user = base, tape, user
        self.met: list[tuple[str, Kind]] = []
        self._made: dict[str, int] = {}
        self._failing: dict[str, int] = {}
        self._rest: dict[str, str] = {}
        self._older: bytes | None = None
        self._stale_calls: list[str] = []

    def call(self, call: ToolCall) -> str:
        """Run a tool and return what the agent reads.

        Raises:
            InjectedFault: by noise; the call was not made.
            ToolError: as the wrapped episode.
        """
        if call.name == REST.name:
            return self._read_rest(call.arguments)
        asked = json.dumps([call.name, call.arguments], sort_keys=True, default=str)
        number = self._made[asked] = self._made.get(asked, 0) + 1
        event = f"{asked}/{number}"
        kind = self.tape.tool(event)
        if asked in self._failing or kind == "T1":
            left = self._failing.get(asked, self.tape.below(LONGEST_BURST, "burst", event) + 1)
            if left:
                self._failing[asked] = left - 1
                self.met.append((call.name, "T1"))
                raise InjectedFault(FAULTS[self.tape.below(len(FAULTS), "fault", event)])
            del self._failing[asked]
            kind = None  # after a burst the call is answered plainly
        text = self._answered(call)
        if asked in self._stale_calls:  # the same call again is answered freshly
            self._stale_calls.remove(asked)
            return text
        if kind == "T5":
            return self._stale(call, text, asked)
        return text if kind is None else self._distorted(call, text, kind, event)

    def reward(self, transcript: Sequence[Message]) -> Reward:
        """As the wrapped episode judges it."""
        return self.base.reward(transcript)

    def answer(self, transcript: Sequence[Message]) -> str | None:
        """As the wrapped episode reads it."""
        return self.base.answer(transcript)

    def close(self) -> None:
        """Let go of what the wrapped episode holds."""
        if close := getattr(self.base, "close", None):
            close()

    def _answered(self, call: ToolCall) -> str:
        """Make the call; where noise may show an older state, remember the one before the newest change."""
        if "T5" not in self.tape.active or not hasattr(self.base, "snapshot"):
            return self.base.call(call)
        before = self.base.snapshot()
        text = self.base.call(call)
        if self.base.snapshot() != before:
            self._older = before
        return text

    def _stale(self, call: ToolCall, text: str, asked: str) -> str:
        """Return what a reading call would have answered before the newest change, marked as cached."""
        if self._older is None:
            return text
        base: Any = self.base
        now = base.snapshot()
        base.restore(self._older)
        try:
            older = base.call(call)
            reads = base.snapshot() == self._older
        except ToolError:
            return text
        finally:
            base.restore(now)
        answer = parsed(older)
        if not reads or older == text or not isinstance(answer, dict):
            return text
        self.met.append((call.name, "T5"))
        self._stale_calls.append(asked)
        return json.dumps(answer | {"cached": True}, ensure_ascii=False)

    def _distorted(self, call: ToolCall, text: str, kind: Kind, event: str) -> str:
        """Return a noisy answer; one whose form this kind of noise does not know stays as it is."""
        answer = parsed(text)
        if not isinstance(answer, dict):
            return text
        reference = f"rest-{len(self._rest) + 1}"
        if kind in ("T2", "T3"):
            parts = (cut_list if kind == "T2" else left_out)(answer, reference, self.tape, event)
            if parts is None:
                return text
            shown, rest = parts
            self._rest[reference] = json.dumps(rest, ensure_ascii=False)
        else:
            shown = renamed(answer, self.tape, event) if kind == "T4" else wrapped(answer, self.tape, event)
        self.met.append((call.name, kind))
        return json.dumps(shown, ensure_ascii=False)

    def _read_rest(self, arguments: Any) -> str:
        reference = arguments.get("reference") if isinstance(arguments, dict) and len(arguments) == 1 else None
        if not isinstance(reference, str):
            raise ToolError(f"{REST.name} takes one argument, reference, a string")
        if reference not in self._rest:
            raise ToolError(f"nothing was left out under the reference {reference[:40]!r}")
        return self._rest[reference]


class SnapshotNoisyEpisode(NoisyEpisode):
    """A noisy attempt around one that can be copied: a snapshot holds the noise's own state, too."""

    base: Any

    def snapshot(self) -> bytes:
        """Return world and noise as bytes."""
        older = base64.b64encode(self._older).decode() if self._older is not None else None
        state = [self._made, self._failing, self._rest, self.met, self._stale_calls, older]
        return json.dumps(state).encode() + b"\n" + self.base.snapshot()

    def restore(self, snapshot: bytes) -> None:
        """Return to a snapshot."""
        state, _, world = snapshot.partition(b"\n")
        self._made, self._failing, self._rest, met, self._stale_calls, older = json.loads(state)
        self.met = [(tool, kind) for tool, kind in met]
        self._older = None if older is None else base64.b64decode(older)
        self.base.restore(world)
