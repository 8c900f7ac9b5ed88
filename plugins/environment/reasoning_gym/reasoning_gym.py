"""Adapts the data sets of reasoning-gym: questions as tasks, its scorers as verifiers."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from stackloom.core.chat import Message, ToolCall
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.environment import Reward, Split, Task, ToolError
from stackloom.plugins.environment.reasoning_gym.config import ReasoningGymConfig

WHERE = "environment.reasoning-gym"
SYSTEM = Message("system", "Think step by step. Then give the final answer alone between <answer> and </answer>.")


class ReasoningGym:
    """Tasks of the named data sets in turn, without tools or demonstrations.

    The parity of a hash of an item's question decides its split, and a question comes once, so the splits share neither
    seed nor question.

    Args:
        config: the plugin's options.

    Raises:
        ConfigError: reasoning-gym is not installed, or a data set refuses its options.

    Example:
        >>> environment = ReasoningGym(ReasoningGymConfig(datasets=["gcd"]))
        >>> environment.tasks("train", 1)[0].kind
        'gcd'
    """

    def __init__(self, config: ReasoningGymConfig) -> None:
        self.config = config
        try:
            from reasoning_gym.factory import create_dataset  # an extra of some 10 distributions
        except ModuleNotFoundError as cause:
            raise ConfigError(
                f"needs a package that is not installed: {cause.name}", where=WHERE, fix="pip install reasoning-gym"
            ) from None
        self._datasets: dict[str, Any] = {}
        for name in config.datasets:
            options = config.dataset_options.get(name, {})
            try:
                self._datasets[name] = create_dataset(name, seed=config.seed, size=config.size, **options)
            except (TypeError, ValueError, AssertionError) as cause:
                raise ConfigError(
                    f"{name} refuses its options: {cause}", where=f"{WHERE}.dataset_options.{name}"
                ) from None

    def tasks(self, split: Split, count: int) -> Sequence[Task]:
        """Return the first `count` tasks of a split, the data sets in turn.

        Raises:
            ConfigError: no such split, or a data set has too few different questions for it.
        """
        if split not in ("train", "held-out"):
            raise ConfigError(f"unknown split {split!r}", where=WHERE, fix="train or held-out")
        streams = itertools.cycle([self._items(name, split) for name in self.config.datasets])
        return list(itertools.islice((next(stream) for stream in streams), count))

    def start(self, task: Task) -> ReasoningGymEpisode:
        """Begin an attempt."""
        return ReasoningGymEpisode(self.config, self._datasets, task)

    def demonstration(self, task: Task) -> list[Message]:
        """Refuse: reasoning-gym knows answers, not the way to them.

        Raises:
            FitError: always.
        """
        raise FitError("has no demonstrations", where=WHERE, fix="take an environment with the feature demonstrations")

    def _items(self, name: str, split: Split) -> Iterator[Task]:
        dataset, seen, found = self._datasets[name], set(), 0
        for index in range(self.config.size):
            item = dataset[index]
            question = str(item["question"])
            if home(question) != split or question in seen:
                continue
            seen.add(question)
            found += 1
            yield Task(
                id=f"reasoning-gym/{name}/{self.config.seed + index}",
                kind=name,
                messages=(SYSTEM, Message("user", question)),
                secret={"dataset": name, "item": item},
            )
        raise ConfigError(
            f"{name} has {found} different {split} questions among {self.config.size}",
            where=WHERE,
            fix="raise size, ask for fewer tasks, or widen the data set's options",
        )


def home(question: str) -> Split:
    """Return the one split that may have a question."""
    return "held-out" if hashlib.sha256(question.encode()).digest()[0] % 2 else "train"


class ReasoningGymEpisode:
    """One attempt, judged by the data set's own scorer.

    Args:
        config: the plugin's options.
        datasets: reasoning-gym's data sets by name.
        task: what is attempted.
    """

    def __init__(self, config: ReasoningGymConfig, datasets: dict[str, Any], task: Task) -> None:
        self._config, self._datasets, self._task = config, datasets, task

    def call(self, call: ToolCall) -> str:
        """Refuse: there are no tools.

        Raises:
            ToolError: always.
        """
        raise ToolError("there are no tools; answer between <answer> and </answer>")

    def reward(self, transcript: Sequence[Message]) -> Reward:
        """Return the scorer's value; a scorer that raises or leaves 0 to 1 gives an invalid reward."""
        answer = self.answer(transcript)
        if answer is None:
            return Reward(0.0, reason="no final message with <answer>...</answer>")
        if len(answer) > self._config.max_answer_chars:
            return Reward(0.0, reason=f"the answer has more than {self._config.max_answer_chars} characters")
        try:
            dataset = self._datasets[self._task.secret["dataset"]]
            value = float(dataset.score_answer(answer=answer, entry=self._task.secret["item"]))
        except Exception as cause:  # noqa: BLE001 - the scorers are another package's; a crash is no wrong answer
            return Reward(0.0, valid=False, reason=f"the scorer raised {type(cause).__name__}: {cause}")
        if not (math.isfinite(value) and 0 <= value <= 1):
            return Reward(0.0, valid=False, reason=f"the scorer returned {value}")
        return Reward(value, reason="scored by reasoning-gym")

    def answer(self, transcript: Sequence[Message]) -> str | None:
        """Return the text of the final message's last <answer>, without the spaces around it."""
        if not transcript or transcript[-1].role != "assistant" or transcript[-1].tool_calls:
            return None
        _, opened, rest = transcript[-1].content.rpartition("<answer>")
        text, closed, _ = rest.partition("</answer>")
        return (text.strip() or None) if opened and closed else None
