"""One answer from several: the tasks on which the summary of Heavy Thinking is trained and measured."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from stackloom.core.chat import Message, ToolCall
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.environment import Reward, Split, Task, ToolError
from stackloom.plugins.environment.synthesis.cached_answers import Cached, read
from stackloom.plugins.environment.synthesis.config import SynthesisConfig
from stackloom.plugins.reasoner.answers import Equality, extract
from stackloom.plugins.reasoner.question import Trajectory
from stackloom.plugins.reasoner.summary_prompt import summary_prompt
from stackloom.plugins.reasoner.votes import Ballot, winner

WHERE = "environment.synthesis"
TRIES = 200
"""Turns over all questions without a task that passes the filter, after which there is none."""


class Synthesis:
    """Tasks P(x, M): a question and cached answers to it, as `reasoner.heavy-thinking` shows them (arXiv 2601.05593).

    A task's kind says what a vote over its answers makes of it: "none right", "vote wrong" or "vote right". So the pass
    rate of "none right" is the emergent correctness, and one minus that of "vote right" the regression rate. A hash of
    the question decides its split.

    Args:
        config: the plugin's options.

    Raises:
        ConfigError: no cached answers.
        ArtifactError: a damaged file of them.

    Example:
        >>> task = Synthesis(SynthesisConfig(path="cached.jsonl")).tasks("train", 1)[0]
        >>> task.kind, task.secret["right"] < task.secret["shown"] * 9 / 24
        ('vote wrong', True)
    """

    def __init__(self, config: SynthesisConfig) -> None:
        self.config = config
        self._equal = Equality(config.extract)
        self._cached = [one for one in read(Path(config.path).expanduser()) if len(one.answers) >= config.fewest]
        if not self._cached:
            raise ConfigError(
                f"no question has {config.fewest} answers", where=f"{WHERE}.fewest", fix="lower it, or collect more"
            )

    def tasks(self, split: Split, count: int) -> Sequence[Task]:
        """Return the first `count` tasks of a split, the questions in turn, each time with other answers.

        Raises:
            ConfigError: no such split, or no question of it passes the filter.
        """
        if split not in ("train", "held-out"):
            raise ConfigError(f"unknown split {split!r}", where=WHERE, fix="train or held-out")
        return list(itertools.islice(self._draw(split), count))

    def start(self, task: Task) -> SynthesisEpisode:
        """Begin an attempt."""
        return SynthesisEpisode(self.config, self._equal, task)

    def demonstration(self, task: Task) -> list[Message]:
        """Refuse: the right answer is known, and not how one comes to it.

        Raises:
            FitError: always.
        """
        raise FitError("has no demonstrations", where=WHERE, fix="take an environment with the feature demonstrations")

    def _draw(self, split: Split) -> Iterator[Task]:
        cached = [one for one in self._cached if home(one.question) == split]
        idle = 0
        for turn in itertools.count():
            idle += 1
            for number, one in enumerate(cached):
                task = self._task(split, number, turn, one)
                if task is not None:
                    idle = 0
                    yield task
            if not cached or idle >= TRIES:
                raise ConfigError(
                    f"none of {len(cached)} {split} questions has answers that pass the filter",
                    where=WHERE,
                    fix="collect answers to more questions, or raise hardest",
                )

    def _task(self, split: Split, number: int, turn: int, one: Cached) -> Task | None:
        """Return one draw of answers to a question, or None where they do not pass the filter."""
        config = self.config
        rng = random.Random(f"{config.seed}/{one.question}/{turn}")
        size = rng.randint(config.fewest, min(config.most, len(one.answers)))
        shown = [
            Trajectory(0, place, 0, message, extract(message, config.extract))
            for place, text in enumerate(rng.sample(one.answers, size))
            if (message := Message("assistant", text))
        ]
        gold = extract(Message("assistant", one.answer), config.extract) or one.answer
        right = [made.answer is not None and self._equal(made.answer, gold) for made in shown]
        if split == "train" and config.hardest < 1 and not 0 < sum(right) < config.hardest * size:
            return None
        ballots = [Ballot(made.number, made.answer, 0) for made in shown]
        vote = winner(ballots, equal=self._equal)
        kind = "none right" if not any(right) else "vote right" if vote and right[vote.number] else "vote wrong"
        asked = (Message("user", one.question),)
        return Task(
            id=f"synthesis/{split}/{number}/{turn}",
            kind=kind,
            messages=summary_prompt(asked, shown, seed=rng.getrandbits(31), shuffle=True, room=None),
            secret={"answer": gold, "right": sum(right), "shown": size},
        )


def home(question: str) -> Split:
    """Return the one split that may have a question."""
    return "held-out" if hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()[0] % 2 else "train"


class SynthesisEpisode:
    """One attempt: right or wrong by its last message.

    Args:
        config: the plugin's options.
        equal: compares answers.
        task: what is attempted.
    """

    def __init__(self, config: SynthesisConfig, equal: Equality, task: Task) -> None:
        self._config, self._equal, self._task = config, equal, task

    def call(self, call: ToolCall) -> str:
        """Refuse: there are no tools.

        Raises:
            ToolError: always.
        """
        raise ToolError("there are no tools; answer the problem")

    def reward(self, transcript: Sequence[Message]) -> Reward:
        """Return 1 for the right final answer, else 0."""
        answer = self.answer(transcript)
        if answer is None:
            return Reward(0.0, reason="no answer in the final message")
        right = self._equal(answer, str(self._task.secret["answer"]))
        return Reward(float(right), reason="the right answer" if right else "another answer")

    def answer(self, transcript: Sequence[Message]) -> str | None:
        """Return the final message's answer, as the reasoners find it."""
        if not transcript or transcript[-1].role != "assistant" or transcript[-1].tool_calls:
            return None
        return extract(transcript[-1], self._config.extract)
