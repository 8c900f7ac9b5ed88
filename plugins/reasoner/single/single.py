"""Makes one attempt and takes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from stackloom.core.slots.reasoner import Attempt, Solution
from stackloom.plugins.reasoner.single.config import SingleConfig


class Single:
    """One attempt per task.

    Args:
        config: the plugin's options.

    Example:
        >>> solution = await Single(SingleConfig()).solve(attempt)
        >>> solution.chosen, len(solution.attempts)
        (0, 1)
    """

    def __init__(self, config: SingleConfig) -> None:
        self.config = config

    async def solve(self, attempt: Callable[[int], Awaitable[Attempt]]) -> Solution:
        """Make attempt 0; what it raises is raised."""
        return Solution(0, (await attempt(0),))
