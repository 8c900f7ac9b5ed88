"""The proof that noise leaves a task solvable: the right calls, and for each kind of noise what an agent can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stackloom.core.chat import Message, ToolCall
from stackloom.core.slots.environment import ToolError
from stackloom.environments.distortions import leaves, parsed
from stackloom.environments.tape import LONGEST_BURST, InjectedFault
from stackloom.environments.users import scripted_reply
from stackloom.environments.wording import Request, question_for
from stackloom.plugins.environment.noise.episode import REST, NoisyEpisode
from stackloom.plugins.environment.noise.meeting import Meeting

CONFIRM = "Before I change anything: is everything that you told me right?"


@dataclass(frozen=True)
class Proof:
    """An attempt by rule.

    Attributes:
        passed: the verifier accepts it, and nothing that a clean attempt reads or is told was lost.
        messages: after the task's own.
        turns: messages of the agent.
        reason: what went wrong.
    """

    passed: bool
    messages: tuple[Message, ...]
    turns: int
    reason: str = ""


class _Lost(Exception):
    """Noise took something away for good."""


def prove(demonstration: Sequence[Message], episode: NoisyEpisode, meeting: Meeting, request: Request | None) -> Proof:
    """Attempt a noisy task: ask for what is missing, confirm, call, call again, read the rest, report.

    Args:
        demonstration: a correct attempt at the clean task; its calls are made, its last message is the report.
        episode: a new attempt.
        meeting, request: its user, under noise and without.
    """
    attempt = _Attempt(episode)
    try:
        attempt.converse(meeting, request)
        turns = iter(demonstration)
        for message in turns:
            for call in message.tool_calls:
                attempt.call(call, next(turns).content)
    except _Lost as lost:
        return attempt.proof(False, str(lost))
    attempt.said.append(demonstration[-1])
    reward = episode.reward(tuple(attempt.said))
    return attempt.proof(reward.valid and reward.value == 1.0, reward.reason)


class _Attempt:
    def __init__(self, episode: NoisyEpisode) -> None:
        self.episode, self.said = episode, list[Message]()

    def proof(self, passed: bool, reason: str) -> Proof:
        turns = sum(message.role == "assistant" for message in self.said)
        if close := getattr(self.episode, "close", None):
            close()
        return Proof(passed, tuple(self.said), turns, "" if passed else reason)

    def converse(self, meeting: Meeting, request: Request | None) -> None:
        """Ask for what was left out; where something is wrong, have it put right."""
        script = meeting.script
        if script is None:
            return
        told = [meeting.opening]
        for question in [question_for(known) for known in script.withheld] or [CONFIRM]:
            self.said.append(Message("assistant", question))
            reply = scripted_reply(script, self.said)
            if reply is None:
                raise _Lost(f"the user does not answer {question!r}")
            self.said.append(Message("user", reply))
            told.append(reply)
        for known in request.known if request else ():
            if not any(known.text in text for text in told):
                raise _Lost(f"the user never tells the {known.noun}")

    def call(self, call: ToolCall, clean: str) -> None:
        """Make a call until it is answered, and read all of it."""
        read: set[str] = set()
        for _ in range(LONGEST_BURST + 2):
            text, failed = self._made(call)
            if failed:
                continue
            answer = parsed(text)
            if isinstance(answer, dict) and "rest" in answer:
                rest, _ = self._made(ToolCall(REST.name, {"reference": answer["rest"]}, call.id))
                read |= leaves(parsed(rest))
            if isinstance(answer, dict) and answer.get("cached") is True:
                continue
            read |= leaves(text if answer is None else answer)
            break
        wanted = parsed(clean)
        if missing := leaves(clean if wanted is None else wanted) - read:
            raise _Lost(f"{call.name} never answers {sorted(missing)[0]!r}")

    def _made(self, call: ToolCall) -> tuple[str, bool]:
        """Return what the agent reads, and whether noise made the call fail."""
        failed = False
        try:
            text = self.episode.call(call)
        except ToolError as refused:
            text, failed = f"Error: {refused}", isinstance(refused, InjectedFault)
        self.said.append(Message("assistant", "", (call,)))
        self.said.append(Message("tool", text, tool_call_id=call.id, name=call.name))
        return text, failed
