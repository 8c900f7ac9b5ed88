"""Options of `reasoner.self-consistency`."""

from __future__ import annotations

from typing import Literal

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext


class SelfConsistencyConfig(ComponentConfig):
    """Several attempts, and the answer that most of them gave.

    Example:
        >>> SelfConsistencyConfig(width=8, ties="shortest").width
        8
    """

    width: int = option(4, "attempts per task", unit="attempts", source="house", ge=1, le=1024)
    ties: Literal["first", "shortest", "longest"] = option(
        "first",
        "which attempt with a most frequent answer: the first, or the one with the fewest or most generated tokens",
        source="inferred",
    )

    def cost(self, work: Work) -> Cost:
        """The attempts beside the first, which the stage counts itself."""
        return Cost(flops=(self.width - 1) * work.model.forward_flops(work.tokens, 0))

    def fit(self, ctx: FitContext) -> Fit:
        """Warns where every attempt would be the same."""
        if self.width > 1 and ctx.stage_options.get("temperature") == 0:
            return Fit.warn(f"temperature 0 makes all {self.width} attempts the same: set a temperature above 0")
        return Fit.yes()
