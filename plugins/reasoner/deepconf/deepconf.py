"""DeepConf: a trace's token confidence is its vote's weight, and online the reason to stop it (arXiv 2508.15260)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from stackloom.core.chat import Message
from stackloom.core.errors import ConfigError
from stackloom.core.generation import Delta
from stackloom.core.slots.reasoner import Attempt, Attempts, Solution
from stackloom.plugins.reasoner.deepconf.config import DeepConfConfig
from stackloom.plugins.reasoner.parallel import ParallelThinking, ballots, make_attempts
from stackloom.plugins.reasoner.question import Ask, Notice, Question, Trajectory
from stackloom.plugins.reasoner.thinkers import Budget, Emit
from stackloom.plugins.reasoner.votes import winner


def token_confidence(logprobs: Sequence[float]) -> float:
    """Return C = -(1/k) sum of the log-probabilities of the k likeliest tokens; higher for a more peaked distribution.

    Example:
        >>> token_confidence([-0.1, -4.0]) > token_confidence([-0.7, -0.7])
        True
    """
    return -math.fsum(logprobs) / len(logprobs)


class Windows:
    """Sliding-window means of confidences, one step at a time.

    Args:
        size: tokens of a window; a shorter trace has one window, of all its tokens.
    """

    def __init__(self, size: int) -> None:
        self._size, self._window, self._sum = size, deque[float](), 0.0
        self.means: list[float] = []

    def add(self, confidence: float) -> float | None:
        """Add a token; return the mean of the window that it completes, or None where there is none yet."""
        self._window.append(confidence)
        self._sum += confidence
        if len(self._window) > self._size:
            self._sum -= self._window.popleft()
        if len(self._window) < self._size:
            return None
        self.means.append(self._sum / self._size)
        return self.means[-1]


def window_means(confidences: Sequence[float], size: int) -> list[float]:
    """Return the mean of every whole window, or of all tokens where there are fewer than a window's."""
    windows = Windows(size)
    for confidence in confidences:
        windows.add(confidence)
    return windows.means or ([math.fsum(confidences) / len(confidences)] if confidences else [])


def trace_score(confidences: Sequence[float], kind: str, size: int) -> float:
    """Return a trace's score (section 3.1 of the paper); 0 for a trace without tokens."""
    if not confidences:
        return 0.0
    if kind in ("mean", "tail"):
        tokens = confidences if kind == "mean" else confidences[-size:]
        return math.fsum(tokens) / len(tokens)
    means = sorted(window_means(confidences, size))
    count = 1 if kind == "minimum" else max(1, len(means) // 10)
    return math.fsum(means[:count]) / count


def percentile(values: Sequence[float], share: float) -> float:
    """Return the percentile with linear interpolation, as numpy does."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class DeepConf(ParallelThinking):
    """Weighted vote; online, a warm-up sets the confidence below which later thinkers are stopped.

    Args:
        config: the plugin's options.

    Example:
        >>> solution = await DeepConf(DeepConfConfig(width=3)).solve(attempt)  # answers 7, 42, 7; 42 is surest by far
        >>> solution.chosen
        1
    """

    def __init__(self, config: DeepConfConfig) -> None:
        super().__init__(config, self)
        self.options = config
        self.top_logprobs = config.top_k

    async def aggregate(self, question: Question, trajectories: Sequence[Trajectory], ask: Ask) -> int:
        """Return the trajectory that stands for the surest answer.

        Raises:
            ConfigError: the model reports no top log-probabilities.
        """
        return self.by_vote(trajectories, self._weights(trajectories))

    def _weights(self, made: Sequence[Trajectory | Attempt]) -> list[float]:
        """Scores of those that vote, 0 for those that are filtered out."""
        if any(not one.confidences and one.tokens for one in made):
            raise ConfigError(
                "the model reports no log-probabilities of the likeliest tokens",
                where="reasoner.deepconf",
                fix="use a server that does, or reasoner.self-consistency",
            )
        scores = [trace_score(one.confidences, self.options.trace_score, self.options.group) for one in made]
        voting = [score for score, one in zip(scores, made, strict=True) if one.answer is not None]
        if self.options.mode == "online" or not voting:
            return scores
        least = sorted(voting, reverse=True)[max(1, round(len(voting) * self.options.keep)) - 1]
        return [score if score >= least else 0.0 for score in scores]

    async def round(
        self,
        question: Question,
        number: int,
        messages: tuple[Message, ...],
        share: int,
        budget: Budget,
        emit: Emit,
    ) -> tuple[list[Trajectory], str]:
        """Run all thinkers, or online the warm-up's and then, watched, the others."""
        if question.thinker.top_logprobs < 1:
            raise ConfigError(
                "the model reports no log-probabilities of the likeliest tokens",
                where="reasoner.deepconf",
                fix="use a server that does, or reasoner.self-consistency",
            )
        self.top_logprobs = min(self.options.top_k, question.thinker.top_logprobs)
        first = min(self.options.warmup, self.config.width)
        if self.options.mode == "offline" or first == self.config.width:
            return await super().round(question, number, messages, share, budget, emit)
        warm, why = await self.thinkers(question, number, messages, share).run(
            range(first), budget, emit, reserve=0.0, stop=self.stop(self.config.width), votes=self.votes
        )
        lows = [min(window_means(one.confidences, self.options.group)) for one in warm if one.confidences]
        if why != "width" or not lows:
            return warm, self.told(warm, why, emit)
        threshold = percentile(lows, self.options.percentile)
        emit(Notice(f"{first} thinkers set the threshold to a confidence of {threshold:.3f}"))
        windows = {other: Windows(self.options.group) for other in range(first, self.config.width)}

        def unsure(thinker: int, piece: Delta) -> bool:
            means = [windows[thinker].add(token_confidence(likely)) for likely in piece.top_logprobs if likely]
            return any(mean is not None and mean < threshold for mean in means)

        decide = self.stop(self.config.width)
        late, why = await self.thinkers(question, number, messages, share, unsure).run(
            range(first, self.config.width),
            budget,
            emit,
            reserve=0.0,
            stop=lambda ended: decide([*warm, *ended]),
            votes=lambda ended: self.votes([*warm, *ended]),
        )
        made = [*warm, *late]
        made = [
            replace(one, score=trace_score(one.confidences, self.options.trace_score, self.options.group))
            for one in made
        ]
        return made, self.told(made, why, emit)

    async def solve(self, attempt: Attempts) -> Solution:
        """Make all attempts together and vote by confidence.

        Raises:
            ConfigError: attempts carry no confidences.
        """
        attempts = await make_attempts(attempt, range(self.config.width))
        weights = self._weights(attempts)
        found = winner(ballots(attempts, weights), ties=self.config.ties, seed=self.config.seed, equal=self.equal)
        return Solution(0 if found is None else found.number, tuple(attempts))
