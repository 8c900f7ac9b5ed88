"""Best-of-N: the attempt with the highest score, or the answer whose attempts have the highest scores together."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from stackloom.core.errors import ConfigError
from stackloom.core.slots.reasoner import Attempt, Attempts, Solution
from stackloom.plugins.reasoner.best_of_n.config import BestOfNConfig
from stackloom.plugins.reasoner.parallel import ParallelThinking, ballots, make_attempts
from stackloom.plugins.reasoner.question import Ask, Question, Trajectory
from stackloom.plugins.reasoner.votes import winner


class BestOfN(ParallelThinking):
    """argmax of the score over attempts, or over classes of equal answers (arXiv 2110.14168).

    Args:
        config: the plugin's options.

    Example:
        >>> solution = await BestOfN(BestOfNConfig(width=3)).solve(attempt)  # mean log-probabilities -1.0, -0.2, -0.9
        >>> solution.chosen
        1
    """

    def __init__(self, config: BestOfNConfig) -> None:
        super().__init__(config, self)
        self.options = config
        self.top_logprobs = int(config.score == "likelihood")

    async def aggregate(self, question: Question, trajectories: Sequence[Trajectory], ask: Ask) -> int:
        """Return the best trajectory.

        Raises:
            ConfigError: a verifier is wanted and the question has none, or the server gives no log-probabilities.
        """
        if self.options.score == "likelihood":
            scores = likelihoods(trajectories)
        elif question.verify is None:
            raise ConfigError("score: verifier, and the question has none", where="score", fix="score: likelihood")
        else:
            verify = question.verify
            given = await asyncio.gather(*(verify(one.message) for one in trajectories if one.message is not None))
            if wrong := [value for value in given if not (math.isfinite(value) and 0 <= value <= 1)]:
                raise ConfigError(f"the verifier returned {wrong[0]!r}, not a score from 0 to 1", where="verify")
            scores = list(given)
        if self.options.weighted and any(one.answer is not None for one in trajectories):
            chosen = self.by_vote(trajectories, self._weights(scores))
            same = [
                place
                for place, one in enumerate(trajectories)
                if one.answer is not None and self.equal(one.answer, str(trajectories[chosen].answer))
            ]
            return max(same, key=lambda place: (scores[place], -place))
        return best(trajectories, scores)

    def _weights(self, scores: Sequence[float]) -> list[float]:
        return [math.exp(score) for score in scores] if self.options.score == "likelihood" else list(scores)

    async def solve(self, attempt: Attempts) -> Solution:
        """Make all attempts together and take the best by likelihood; rewards are never looked at."""
        attempts = await make_attempts(attempt, range(self.config.width))
        scores = likelihoods(attempts)
        if self.options.weighted and any(made.answer is not None for made in attempts):
            found = winner(
                ballots(attempts, self._weights(scores)), ties=self.config.ties, seed=self.config.seed, equal=self.equal
            )
            assert found is not None
            return Solution(found.number, tuple(attempts))
        return Solution(best(attempts, scores), tuple(attempts))


def best(made: Sequence[Trajectory | Attempt], scores: Sequence[float]) -> int:
    """Return the place of the highest score among those with an answer, or among all where none has one."""
    answered = [place for place, one in enumerate(made) if one.answer is not None] or range(len(made))
    return max(answered, key=lambda place: (scores[place], -place))


def likelihoods(made: Sequence[Trajectory | Attempt]) -> list[float]:
    """Return the mean log-probability of each.

    Raises:
        ConfigError: one has none although it generated tokens.
    """
    if any(one.logprob is None and one.tokens for one in made):
        raise ConfigError(
            "the model gives no log-probabilities of its tokens",
            where="score",
            fix="use a server that does, or score: verifier",
        )
    return [-math.inf if one.logprob is None else one.logprob for one in made]
