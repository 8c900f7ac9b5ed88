"""Options of `reasoner.best-of-n`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from stackloom.core.config import option
from stackloom.core.fit import Fit, FitContext
from stackloom.plugins.reasoner.thinking_config import ThinkingConfig


class BestOfNConfig(ThinkingConfig):
    """The attempt with the highest score.

    Example:
        >>> BestOfNConfig(width=8, weighted=True).weighted
        True
    """

    score: Literal["verifier", "likelihood"] = option(
        "likelihood",
        "the question's verifier, or the mean log-probability that the model gave its own tokens",
        source="house",
    )
    weighted: bool = option(
        False, "add the scores of equal answers (likelihoods as probabilities) and take the best class", source="paper"
    )

    @model_validator(mode="after")
    def _exact_stop_counts_votes(self) -> Self:
        if self.early_stop == "exact":
            raise ValueError(
                "early_stop exact counts votes, and here they have scores: "
                "bayesian or window, or reasoner.self-consistency"
            )
        return self

    def fit(self, ctx: FitContext) -> Fit:
        """Refuses a verifier in the evaluate stage: there it is what judges the result."""
        if self.score == "verifier":
            return Fit.no(
                "score: verifier needs a question's own verifier; the evaluate stage's is for the report alone"
            )
        return super().fit(ctx)
