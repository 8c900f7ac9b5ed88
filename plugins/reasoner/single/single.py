"""Makes one attempt and takes it."""

from __future__ import annotations

from collections.abc import Sequence

from stackloom.core.slots.reasoner import Attempts, Solution
from stackloom.plugins.reasoner.parallel import ParallelThinking
from stackloom.plugins.reasoner.question import Ask, Question, Trajectory
from stackloom.plugins.reasoner.single.config import SingleConfig


class Single(ParallelThinking):
    """One attempt per task.

    Args:
        config: the plugin's options.

    Example:
        >>> solution = await Single(SingleConfig()).solve(attempt)
        >>> solution.chosen, len(solution.attempts)
        (0, 1)
    """

    def __init__(self, config: SingleConfig) -> None:
        super().__init__(config, self)

    async def aggregate(self, question: Question, trajectories: Sequence[Trajectory], ask: Ask) -> int:
        """Return the only trajectory."""
        return 0

    async def solve(self, attempt: Attempts) -> Solution:
        """Make attempt 0; what it raises is raised."""
        return Solution(0, (await attempt(0),))
