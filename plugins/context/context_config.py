"""Options that the context plugins share."""

from __future__ import annotations

from stackloom.core.config import ComponentConfig, option
from stackloom.core.fit import Fit, FitContext

REQUEST = (
    "Your context is nearly full, and all of it but the question will be removed. Write down everything that you need "
    "in order to go on without it: what you have found so far, what led nowhere, and what is still to be done."
)


class ThresholdConfig(ComponentConfig):
    """A number of tokens beyond which something is done."""

    tokens: int = option(
        80_000,
        "tokens of the next prompt beyond which the context is cut; the paper found 80K better than 20K and 100K",
        unit="tokens",
        source="paper",
        ge=16,
    )

    def fit(self, ctx: FitContext) -> Fit:
        """A threshold that the model never reaches does nothing."""
        if self.tokens >= ctx.model.max_positions:
            return Fit.warn(
                f"tokens is {self.tokens} and the model's context holds {ctx.model.max_positions}: "
                "it is full before it is cut"
            )
        return Fit.yes()


class SummaryRequestConfig(ThresholdConfig):
    """How a model is asked for a summary."""

    request: str = option(REQUEST, "what the model is asked to write down", source="inferred", min_length=1)
    heading: str = option(
        "Your notes from earlier, of which nothing else is left:",
        "what precedes the notes when the model reads them again",
        source="inferred",
    )
    role: str = option("user", "who says the notes", source="inferred", pattern="^(user|assistant|system)$")
