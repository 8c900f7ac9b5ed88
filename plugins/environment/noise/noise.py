"""The noise of real users and tools around any environment, with a proof of solvability for every task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from stackloom.core.chat import Message, tool_prompt
from stackloom.core.config import ComponentConfig
from stackloom.core.errors import ConfigError, EngineError
from stackloom.core.slots.environment import Environment, Split, Task
from stackloom.environments.tape import Tape
from stackloom.environments.wording import Request
from stackloom.plugins.environment.noise.config import NoiseConfig
from stackloom.plugins.environment.noise.episode import REST, NoisyEpisode, SnapshotNoisyEpisode
from stackloom.plugins.environment.noise.meeting import Meeting, meet
from stackloom.plugins.environment.noise.repair import Proof, prove

WHERE = "environment.noise"
MOST_TAPES = 32  # that are tried for a task
KEPT = 1024  # tasks whose tape is remembered; to find it takes some milliseconds


class Noise:
    """Tasks of another environment under noise.

    For each task tapes are drawn until an agent that makes the right calls and repairs what noise does to them solves
    it within `turns` messages and reads every value that it would have read without noise.

    Args:
        config: the plugin's options, `base` resolved to a config.

    Raises:
        ConfigError: `base` is still a reference.

    Example:
        >>> noise = Noise(NoiseConfig(base=DomainGraphConfig(tools=4, low=2, high=3), level=3))
        >>> task = noise.tasks("train", 1)[0]
        >>> noise.prove(task).passed
        True
    """

    def __init__(self, config: NoiseConfig) -> None:
        if not isinstance(config.base, ComponentConfig):
            raise ConfigError(f"{config.base.use} is not resolved yet", where=f"{WHERE}.base", fix="run a plan")
        self.config = config
        self.base: Environment = config.base.build()
        self._tape = lru_cache(maxsize=KEPT)(self._find_tape)
        self._known: dict[str, Task] = {}

    def tasks(self, split: Split, count: int) -> Sequence[Task]:
        """Return the first `count` tasks of the base's split, each with a tape under which it can be solved.

        Raises:
            EngineError: no tape leaves a task solvable within `turns` messages.
            FitError: the base shows no correct attempts.
        """
        found = []
        for task in self.base.tasks(split, count):
            self._known[task.id] = task
            found.append(self._noisy(task, self._tape(task.id)))
            del self._known[task.id]
        return found

    def start(self, task: Task) -> NoisyEpisode:
        """Begin an attempt; every attempt at a task meets the same noise."""
        base, tape = self.base.start(clean(task)), tape_of(task)
        meeting = self.meeting(task)
        user = meeting.user or getattr(base, "user", None)
        kind = SnapshotNoisyEpisode if hasattr(base, "snapshot") else NoisyEpisode
        return kind(base, tape, user)

    def demonstration(self, task: Task) -> list[Message]:
        """Return a correct attempt that meets the noise and repairs what it does."""
        return list(self.prove(task).messages)

    def prove(self, task: Task) -> Proof:
        """Attempt a task with the right calls and the repair rules."""
        return prove(self.base.demonstration(clean(task)), self.start(task), self.meeting(task), self._request(task))

    def meeting(self, task: Task) -> Meeting:
        """Return how the task's user opens and goes on."""
        base = clean(task)
        return meet(_opening(base), self._request(task), tape_of(task))

    def _request(self, task: Task) -> Request | None:
        request = getattr(self.base, "request", None)
        return request(clean(task)) if request else None

    def _find_tape(self, task_id: str) -> Tape:
        task, config = self._known[task_id], self.config
        for number in range(MOST_TAPES):
            tape = Tape(config.level, config.kinds, f"{config.seed}/{task_id}/{number}")
            proof = self.prove(self._noisy(task, tape))
            if proof.passed and proof.turns <= config.turns:
                return tape
        raise EngineError(
            f"no noise of level {config.level} leaves {task_id} solvable in {config.turns} messages ({proof.reason})",
            where=WHERE,
            fix="allow more turns, or take a lower level",
        )

    def _noisy(self, task: Task, tape: Tape) -> Task:
        """Return the task as its agent sees it under a tape."""
        secret = {"task": task, "tape": tape}
        changed = replace(task, secret=secret)
        text = meet(_opening(task), self._request(changed), tape).opening
        messages = list(task.messages)
        if (last := _last_user(task)) is not None:
            messages[last] = replace(messages[last], content=text)
        if not {"T2", "T3"} & set(tape.active) or not task.tools:
            return replace(changed, messages=tuple(messages))
        tools = (*task.tools, REST)
        for compact in (True, False):  # a prompt that lists the tools lists this one, too
            old, new = (tool_prompt(each, compact=compact) for each in (task.tools, tools))
            messages = [replace(message, content=message.content.replace(old, new)) for message in messages]
        return replace(changed, messages=tuple(messages), tools=tools)


def clean(task: Task) -> Task:
    """Return the base's task behind a noisy one."""
    base = task.secret["task"]
    assert isinstance(base, Task)
    return base


def tape_of(task: Task) -> Tape:
    """Return the tape of a noisy task."""
    tape = task.secret["tape"]
    assert isinstance(tape, Tape)
    return tape


def _last_user(task: Task) -> int | None:
    return next((n for n in reversed(range(len(task.messages))) if task.messages[n].role == "user"), None)


def _opening(task: Task) -> str:
    last = _last_user(task)
    return "" if last is None else task.messages[last].content
