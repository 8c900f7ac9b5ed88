"""Attempts that are judged elsewhere, where one judgement gives the reward and the answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from stackloom.core.chat import Message
from stackloom.core.slots.environment import Reward


class JudgedElsewhere(ABC):
    """The judging half of `core.slots.environment.Episode`: what a reward brought along is not asked for again.

    Whatever changes the attempt calls `forget` first.
    """

    _kept: tuple[tuple[Message, ...], str | None] | None = None  # the last transcript and its answer

    @abstractmethod
    def judged(self, transcript: Sequence[Message]) -> tuple[Reward, str | None]:
        """Have the attempt judged where it lives; return its reward and its answer."""

    def reward(self, transcript: Sequence[Message]) -> Reward:
        """Have the attempt judged; its answer is kept for `answer`."""
        reward, answer = self.judged(transcript)
        self._kept = tuple(transcript), answer
        return reward

    def answer(self, transcript: Sequence[Message]) -> str | None:
        """Return the final answer in a form that equal answers share."""
        if self._kept is not None and self._kept[0] == tuple(transcript):
            return self._kept[1]
        return self.judged(transcript)[1]

    def forget(self) -> None:
        """Keep nothing of an earlier judgement."""
        self._kept = None
