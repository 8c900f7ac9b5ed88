"""Claims: what a paper says, what we measured, and a verdict that is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from stackloom.core.manifest import Claim
from stackloom.core.rows import Scale, Verdict


class ClaimResult(BaseModel):
    """What a claim function returns: measurements, never a verdict.

    Attributes:
        ours: the measured value in the claim's unit.
        interval: 95 per cent interval of `ours`; None for an exact identity.
        baseline: what `ours` is compared with when the claim is a direction without a paper value.
        seeds: every seed that entered.
        details: anything the report may plot (curves, tables); JSON data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ours: float
    interval: tuple[float, float] | None = None
    baseline: float | None = None
    seeds: tuple[int, ...] = Field(min_length=1)
    details: dict[str, Any] = Field(default_factory=dict)


class ClaimContext(Protocol):
    """What a claim function may use; the SDK implements it, so that a claim compares plugins without importing them."""

    @property
    def scale(self) -> Scale:
        """The scale that was asked for."""
        ...

    @property
    def seeds(self) -> Sequence[int]:
        """Seeds to use, as many as the scale allows."""
        ...

    @property
    def device(self) -> str:
        """Torch device type."""
        ...

    @property
    def seconds_left(self) -> float:
        """Time budget that remains."""
        ...

    def component(self, plugin: str, /, *dependencies: Any, **options: Any) -> Any:
        """Build a component of any installed plugin by id."""
        ...

    def run(self, stack: Any) -> Any:
        """Run a whole stack and return its run."""
        ...


def verdict(claim: Claim, result: ClaimResult) -> Verdict:
    """Judge a result.

    "reproduced": the paper's value lies within the tolerance of ours (or of our interval); without a paper value, the
    interval lies wholly on the claimed side of the baseline. "direction": the value differs, but ours still lies on
    the claimed side of the baseline. Anything else is "not_reproduced".
    """
    low, high = result.interval or (result.ours, result.ours)
    beyond = (
        result.baseline is not None
        and {
            "higher": low > result.baseline,
            "lower": high < result.baseline,
            "equal": abs(result.ours - result.baseline) <= claim.tolerance,
        }[claim.better]
    )
    if claim.paper is None:
        return "reproduced" if beyond else "not_reproduced"
    near = low - claim.tolerance <= claim.paper <= high + claim.tolerance
    better = {"higher": low >= claim.paper, "lower": high <= claim.paper, "equal": False}[claim.better]
    if near or better:
        return "reproduced"
    return "direction" if beyond else "not_reproduced"
