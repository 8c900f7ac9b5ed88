"""Options that every reasoner has when it answers a question in a conversation."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext
from stackloom.plugins.reasoner.answers import ExtractorName
from stackloom.plugins.reasoner.votes import StopRule, Ties


class ThinkingConfig(ComponentConfig):
    """How thinkers are sampled, compared and stopped.

    Example:
        >>> ThinkingConfig(width=4, deadline_s=30.0).width
        4
    """

    width: int = option(8, "thinkers, side by side", unit="attempts", source="house", ge=1, le=1024)
    temperature: float = option(1.0, "sampling temperature of the thinkers", source="paper", ge=0, le=5)
    top_p: float = option(
        1.0, "nucleus of the thinkers; 1 leaves all tokens", unit="fraction", source="paper", gt=0, le=1
    )
    seed: int = option(0, "thinker k draws with seed + k", source="house", ge=0, le=2**31)
    max_tokens: int = option(4096, "most tokens of one reply", unit="tokens", source="house", ge=1)
    max_total_tokens: int | None = option(
        None, "most generated tokens of all calls together; None sets no bound", unit="tokens", source="house", ge=1
    )
    deadline_s: float | None = option(
        None, "seconds after which the answer is there; None waits", unit="s", source="house", gt=0
    )
    summary_reserve_s: float = option(
        5.0, "part of the deadline that is kept for the aggregation", unit="s", source="inferred", ge=0
    )
    max_concurrency: int = option(64, "most calls under way at once", unit="calls", source="house", ge=1, le=4096)
    min_answers: int = option(2, "answers without which the best one there is is taken", source="inferred", ge=1)
    extract: ExtractorName = option("auto", "how an answer is found in a message", source="inferred")
    early_stop: StopRule = option(
        "none", "exact: no vote that is out can change the winner; bayesian; window: the last are equal", source="paper"
    )
    confidence: float = option(
        0.95,
        "the bayesian stop's probability that the leader stays ahead",
        unit="fraction",
        source="inferred",
        gt=0.5,
        lt=1,
    )
    window: int = option(5, "equal answers in a row that end a round", unit="answers", source="inferred", ge=2)
    ties: Ties = option(
        "first",
        "which of the attempts with a most frequent answer: first, fewest or most generated tokens, or drawn by seed",
        source="inferred",
    )
    turns: int = option(
        8, "most messages of one thinker that calls tools", unit="messages", source="house", ge=1, le=256
    )

    @model_validator(mode="after")
    def _deadline_holds_the_reserve(self) -> Self:
        if self.deadline_s is not None and self.aggregation_calls and self.deadline_s <= self.summary_reserve_s:
            raise ValueError(
                f"deadline_s {self.deadline_s:g} is not above summary_reserve_s {self.summary_reserve_s:g}: "
                "nothing would be left for the thinkers"
            )
        return self

    @property
    def aggregation_calls(self) -> int:
        """Calls of a model beside the thinkers'."""
        return 0

    @property
    def rounds_made(self) -> tuple[int, ...]:
        """Widths of the rounds."""
        return (self.width,)

    def cost(self, work: Work) -> Cost:
        """The calls beside the first, which the stage counts itself."""
        calls = sum(self.rounds_made) + self.aggregation_calls - 1
        return Cost(flops=calls * work.model.forward_flops(work.tokens, 0))

    def fit(self, ctx: FitContext) -> Fit:
        """Warns where every attempt would be the same."""
        if self.width > 1 and ctx.stage_options.get("temperature") == 0:
            return Fit.warn(f"temperature 0 makes all {self.width} attempts the same: set a temperature above 0")
        return Fit.yes()
