"""An attempt at a built task: its own world, its tools, its user, and a verifier that the agent cannot reach."""

from __future__ import annotations

from collections.abc import Sequence

from stackloom.core.chat import Message, ToolCall
from stackloom.core.slots.environment import Reward, ToolError
from stackloom.environments.factory import BuiltTask
from stackloom.environments.tools import call as call_tool
from stackloom.environments.users import Script, ScriptedUser, User
from stackloom.environments.verifier import verify


class WorldEpisode:
    """Fulfils `core.slots.environment.Episode`.

    The agent reaches `call` alone, which runs a declared tool in one transaction; target and statements lie outside the
    world. Judging changes nothing, so it may be done at any time and twice.

    Args:
        built: the task.
        user: whom the agent talks to; None ends the attempt at its first message without a call.

    Attributes:
        user: the same; the agent loop asks for it.
        world: the database; for whoever judges or shows it, no tool reaches it.
    """

    def __init__(self, built: BuiltTask, user: User | None = None) -> None:
        self._built, self.world, self.user = built, built.world(), user

    def call(self, call: ToolCall) -> str:
        """Run a tool and return what the agent reads.

        Raises:
            ToolError: no such tool here, bad arguments, or a condition that does not hold; nothing has changed.
        """
        tool = self._built.tools.get(call.name)
        if tool is None:
            raise ToolError(f"there is no tool {call.name[:60]!r}; there are {', '.join(sorted(self._built.tools))}")
        return call_tool(self.world, tool, call.arguments, self._built.domain.today).text

    def reward(self, transcript: Sequence[Message]) -> Reward:
        """1 if the world and the final message are as the task wants them, otherwise 0."""
        verdict = verify(self._built, self.world, transcript)
        return Reward(float(verdict.passed), reason=verdict.reason or "as asked")

    def answer(self, transcript: Sequence[Message]) -> str | None:
        """Return the state of the world and the final message, so that attempts which did the same vote together."""
        if not transcript or transcript[-1].role != "assistant" or transcript[-1].tool_calls:
            return None
        text = transcript[-1].content.strip()
        return f"{self.world.digest()} {' '.join(text.casefold().split())}" if text else None

    def snapshot(self) -> bytes:
        """Return the world as bytes."""
        return self.world.snapshot()

    def restore(self, snapshot: bytes) -> None:
        """Return to a snapshot."""
        self.world.restore(snapshot)

    def close(self) -> None:
        """Let the world go."""
        self.world.close()

    def __del__(self) -> None:
        self.world.close()


def scripted(built: BuiltTask) -> ScriptedUser | None:
    """Return the user who tells what the request has left out; None where it leaves out nothing."""
    held = built.request.withheld
    return ScriptedUser(Script(withheld=held, seed=built.seed)) if held else None
