"""Majority vote over attempts that are made side by side."""

from __future__ import annotations

from collections.abc import Sequence

from stackloom.core.slots.reasoner import Attempts, Solution
from stackloom.plugins.reasoner.parallel import ParallelThinking, ballots, make_attempts
from stackloom.plugins.reasoner.question import Ask, Question, Trajectory
from stackloom.plugins.reasoner.self_consistency.config import SelfConsistencyConfig
from stackloom.plugins.reasoner.votes import winner


class SelfConsistency(ParallelThinking):
    """The most frequent answer of `width` attempts (arXiv 2203.11171, section 2, unweighted vote).

    Attempts without an answer do not vote; when none has one, attempt 0 is taken; in a conversation that
    is an error.

    Args:
        config: the plugin's options.

    Example:
        >>> solution = await SelfConsistency(SelfConsistencyConfig(width=3)).solve(attempt)  # answers 7, 42, 42
        >>> solution.chosen
        1
    """

    def __init__(self, config: SelfConsistencyConfig) -> None:
        super().__init__(config, self)

    async def aggregate(self, question: Question, trajectories: Sequence[Trajectory], ask: Ask) -> int:
        """Return the trajectory that stands for the most frequent answer.

        Raises:
            NoExtractableAnswer: none has an answer.
        """
        return self.by_vote(trajectories)

    async def solve(self, attempt: Attempts) -> Solution:
        """Make all attempts together and vote. If one raises, the others are cancelled and its error is raised."""
        attempts = await make_attempts(attempt, range(self.config.width))
        vote = winner(ballots(attempts), ties=self.config.ties, seed=self.config.seed, equal=self.equal)
        return Solution(0 if vote is None else vote.number, tuple(attempts))
