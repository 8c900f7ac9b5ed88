"""Majority vote over attempts that are made side by side."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from stackloom.core.slots.reasoner import Attempt, Solution
from stackloom.plugins.reasoner.self_consistency.config import SelfConsistencyConfig


class SelfConsistency:
    """The most frequent answer of `width` attempts (arXiv 2203.11171, section 2, unweighted vote).

    Attempts without an answer do not vote; when none has one, attempt 0 is taken.

    Args:
        config: the plugin's options.

    Example:
        >>> solution = await SelfConsistency(SelfConsistencyConfig(width=3)).solve(attempt)  # answers 7, 42, 42
        >>> solution.chosen
        1
    """

    def __init__(self, config: SelfConsistencyConfig) -> None:
        self.config = config

    async def solve(self, attempt: Callable[[int], Awaitable[Attempt]]) -> Solution:
        """Make all attempts together and vote. If one raises, the others are cancelled and its error is raised."""

        async def make(index: int) -> Attempt:
            return await attempt(index)

        running = [asyncio.create_task(make(index)) for index in range(self.config.width)]
        try:
            attempts = await asyncio.gather(*running)
        except BaseException:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            raise
        return Solution(self._vote(attempts), tuple(attempts))

    def _vote(self, attempts: Sequence[Attempt]) -> int:
        votes = Counter(attempt.answer for attempt in attempts if attempt.answer is not None)
        if not votes:
            return 0
        most = max(votes.values())
        winners = [
            index
            for index, attempt in enumerate(attempts)
            if attempt.answer is not None and votes[attempt.answer] == most
        ]
        sign = {"first": 0, "shortest": 1, "longest": -1}[self.config.ties]
        return min(winners, key=lambda index: (sign * attempts[index].tokens, index))
