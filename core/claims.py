"""Claims: what a paper says, what we measured, and a verdict that is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stackloom.core.manifest import Claim
from stackloom.core.rows import Scale, Verdict


class Curve(BaseModel):
    """A drawing of one or more lines over the same places.

    Attributes:
        title: what it shows.
        across, up: axis titles with their units.
        x: places, at least one.
        series: values per line, one for each place; None leaves a gap.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: str
    across: str
    up: str
    x: tuple[float, ...] = Field(min_length=1)
    series: dict[str, tuple[float | None, ...]] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_a_value_for_each_place(self) -> Curve:
        if wrong := [name for name, values in self.series.items() if len(values) != len(self.x)]:
            raise ValueError(f"series {wrong[0]!r} has {len(self.series[wrong[0]])} values for {len(self.x)} places")
        return self


class Table(BaseModel):
    """Rows below column titles.

    Attributes:
        title: what it shows.
        columns: titles with their units.
        rows: one cell for each column.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: str
    columns: tuple[str, ...] = Field(min_length=1)
    rows: tuple[tuple[str | int | float | None, ...], ...]

    @model_validator(mode="after")
    def _has_a_cell_for_each_column(self) -> Table:
        if wrong := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"a row has {len(wrong[0])} cells for {len(self.columns)} columns")
        return self


class ClaimResult(BaseModel):
    """What a claim function returns: measurements, never a verdict.

    Attributes:
        ours: the measured value in the claim's unit.
        interval: 95 per cent interval of `ours`; None for an exact identity.
        baseline: what `ours` is compared with when the claim is a direction without a paper value.
        seeds: every seed that entered.
        details: whatever explains the value; JSON data without NaN. `curves` holds a list of `Curve`, `tables` one of
            `Table`, as objects or as their fields: both are drawn on the page beside the evidence.

    Example:
        >>> curve = Curve(title="Loss", across="step", up="loss", x=[1, 2], series={"ours": [3.1, 2.9]})
        >>> ClaimResult(ours=2.9, interval=(2.8, 3.0), baseline=3.2, seeds=(0, 1), details={"curves": [curve]})
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
        """What remains of this claim's time budget; negative beyond it."""
        ...

    def component(self, plugin: str, /, *dependencies: Any, **options: Any) -> Any:
        """Build a component of any installed plugin by id."""
        ...

    def run(self, stack: Any) -> Any:
        """Run a stack (`sl.Stack`, or its plain data, whose name and device may be left out) and return its run.

        `run.metrics(index)` holds what an evaluate stage measured. A stack that has run before costs nothing.
        """
        ...

    def model(self, checkpoint: str, /, *, dtype: str = "float32") -> tuple[Any, Any]:
        """Return (model, tokenizer) of a folder or of a checkpoint that `model.hf` knows, on `device`."""
        ...

    def data(
        self, plugin: str, tokenizer: Any, /, *, sequences: int = 64, sequence_length: int = 512, **options: Any
    ) -> Sequence[Any]:
        """Return token sequences of exactly that length, 1-D int64, from a data plugin with these options."""
        ...

    def say(self, text: str) -> None:
        """Tell the user how far the claim is."""
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
