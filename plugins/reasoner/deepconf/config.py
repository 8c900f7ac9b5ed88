"""Options of `reasoner.deepconf`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from stackloom.core.config import option
from stackloom.core.fit import Fit, FitContext
from stackloom.plugins.reasoner.thinking_config import ThinkingConfig


class DeepConfConfig(ThinkingConfig):
    """Votes weighted by confidence, and an early end for thinkers that are unsure.

    Example:
        >>> DeepConfConfig(width=32, mode="online", warmup=16).warmup
        16
    """

    mode: Literal["offline", "online"] = option(
        "offline", "online stops thinkers that are less sure than the warm-up's", source="paper"
    )
    trace_score: Literal["mean", "tail", "bottom", "minimum"] = option(
        "bottom",
        "of a trace: mean of all tokens, of the last window, of the least sure tenth of windows, or the least sure",
        source="paper",
    )
    top_k: int = option(
        20,
        "likeliest tokens in a token's confidence; a server may give fewer",
        unit="tokens",
        source="official code",
        ge=1,
        le=20,
    )
    group: int = option(2048, "tokens of a window", unit="tokens", source="paper", ge=1)
    keep: float = option(
        1.0,
        "share of the surest traces that vote offline: 0.1 or 0.9 in the paper, 1 for all",
        unit="fraction",
        source="paper",
        gt=0,
        le=1,
    )
    warmup: int = option(16, "thinkers that run before the threshold is set", unit="attempts", source="paper", ge=1)
    percentile: float = option(
        10.0,
        "of the warm-up's minimum window confidences, below which a thinker is stopped: 10 permissive, 90 strict",
        unit="%",
        source="paper",
        ge=0,
        le=100,
    )

    @model_validator(mode="after")
    def _exact_stop_counts_votes(self) -> Self:
        if self.early_stop == "exact":
            raise ValueError(
                "early_stop exact counts votes, and here they have weights: "
                "bayesian or window, or reasoner.self-consistency"
            )
        return self

    def fit(self, ctx: FitContext) -> Fit:
        """Refuses the evaluate stage, whose engine reports one log-probability per token."""
        if ctx.stage == "evaluate" and "temperature" in ctx.stage_options:
            return Fit.no("needs the likeliest tokens' log-probabilities, which the local engine does not report")
        return super().fit(ctx)
