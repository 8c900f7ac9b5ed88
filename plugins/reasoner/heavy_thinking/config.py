"""Options of `reasoner.heavy-thinking`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from stackloom.core.config import option
from stackloom.plugins.reasoner.thinking_config import ThinkingConfig


class HeavyThinkingConfig(ThinkingConfig):
    """Parallel thinkers, a summary that reflects on their answers, and refinement in rounds.

    Example:
        >>> HeavyThinkingConfig(rounds=(8, 4), deadline_s=60.0).rounds_made
        (8, 4)
    """

    width: int = option(8, "thinkers of the first round", unit="attempts", source="inferred", ge=1, le=1024)
    rounds: tuple[int, ...] | None = option(
        None, "widths of all rounds, each reading the one before; None for one round of `width`", source="inferred"
    )
    aggregator: Literal["summary", "vote", "first"] = option(
        "summary", "what makes one answer of many: a summary, a vote, or thinker 0 as it is", source="paper"
    )
    summary_temperature: float = option(1.0, "sampling temperature of the summary", source="paper", ge=0, le=5)
    shuffle: bool = option(True, "show the answers in an order drawn from seed and question", source="paper")
    skip_summary_on_unanimity: int = option(
        0,
        "this many equal answers and no other make the summary unnecessary; 0 always writes it",
        source="inferred",
        ge=0,
    )
    tool_policy: Literal["propose", "first_stage_readonly", "snapshot"] = option(
        "first_stage_readonly",
        "thinkers propose calls only; run read-only tools in the first round; or run every tool in their own snapshot",
        source="inferred",
    )
    salvage_s: float = option(
        0.0,
        "part of the deadline in which unfinished thinkers are asked for an answer; 0 drops them",
        unit="s",
        source="inferred",
        ge=0,
    )
    salvage_tokens: int = option(256, "most tokens of such an answer", unit="tokens", source="inferred", ge=1)

    @model_validator(mode="after")
    def _rounds_are_widths(self) -> Self:
        if self.rounds is not None and (not self.rounds or not all(1 <= width <= 1024 for width in self.rounds)):
            raise ValueError("rounds are widths from 1 to 1024, at least one")
        if self.rounds is not None and "width" in self.model_fields_set and self.width != self.rounds[0]:
            raise ValueError(f"width is {self.width} and the first of the rounds {self.rounds[0]}: give one of them")
        if self.deadline_s is not None and self.deadline_s <= self.summary_reserve_s + self.salvage_s:
            raise ValueError(
                f"deadline_s {self.deadline_s:g} is not above summary_reserve_s and salvage_s: "
                "nothing would be left for the thinkers"
            )
        return self

    @property
    def aggregation_calls(self) -> int:
        """The summary."""
        return int(self.aggregator == "summary")

    @property
    def rounds_made(self) -> tuple[int, ...]:
        """Widths of the rounds."""
        return (self.width,) if self.rounds is None else self.rounds
