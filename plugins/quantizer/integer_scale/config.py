"""Options of `quantizer.integer-scale`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext
from stackloom.core.ref import Ref, RefTo
from stackloom.core.touch import Touch
from stackloom.plugins.quantizer.selection import KEPT, planned_linears

AMPLIFIER_BYTES = 4  # an int32 per row; scales take four bytes before and after


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError(f"{value} is no power of two")
    return value


class IntegerScaleConfig(ComponentConfig):
    """Integer group scales on top of any quantizer with int8 activations.

    Example:
        >>> IntegerScaleConfig(base={"use": "quantizer.rtn", "scheme": "w4a8"}).amplifier
        1024
    """

    base: Annotated[Ref | ComponentConfig, RefTo("quantizer")] = option(
        description="the quantizer whose scales become integers; symmetric, with int8 activations"
    )
    policy: Literal["fixed", "heuristic", "error-budget"] = option(
        "fixed",
        "fixed: `amplifier`; heuristic: the smallest power of two that lifts the smallest scale to 1, at least "
        "`amplifier`; error-budget: the smallest whose predicted weight error grows by at most `error_budget`",
        source="inferred",
    )
    amplifier: Annotated[int, AfterValidator(_power_of_two), Field(ge=1, le=2**30)] = option(
        1024, "alpha of policy fixed, least alpha of policy heuristic; a power of two", source="inferred"
    )
    error_budget: float = option(
        0.02, "largest predicted growth of the weights' squared error", unit="fraction", source="house", gt=0
    )
    per: Literal["layer", "channel"] = option(
        "layer", "what shares an amplifier: a layer, or each of its output channels", source="inferred"
    )
    rounding: Literal["nearest", "up"] = option(
        "nearest", "of alpha times a scale; up never clips a group's largest weight", source="inferred"
    )
    requantize: bool = option(
        False, "round the float weights anew on the integer scales' grid, which loses error compensation of the base"
    )
    overflow: Literal["lower", "refuse"] = option(
        "lower", "where some input could overflow int32: halve the amplifier until none can, or refuse the layer"
    )
    zeroed: Literal["raise", "refuse", "keep"] = option(
        "raise", "where a scale rounds to 0 and its group is lost: double the amplifier, refuse the layer, or keep it"
    )

    def fit(self, ctx: FitContext) -> list[Fit]:
        """The base must quantize activations; what it selects and how it groups is its own to judge."""
        answers = [Fit.yes()]
        if not getattr(self.base, "int8_activations", True):
            answers = [Fit.no("integer scales need int8 activations, the base keeps floats: choose a w4a8 scheme")]
        if self.requantize:
            answers.append(Fit.warn("requantize rounds to nearest: error compensation of the base is lost"))
        return answers

    def cost(self, work: Work) -> Cost:
        """An amplifier per row of each layer that the base's patterns select; integer scales replace float ones."""
        if not isinstance(self.base, ComponentConfig):
            return Cost()
        include, exclude = getattr(self.base, "include", ("*",)), getattr(self.base, "exclude", KEPT)
        rows = sum(linear.rows for linear in planned_linears(work.model, include, exclude))
        return Cost(weight_bytes=AMPLIFIER_BYTES * rows)

    def touches(self, ctx: FitContext) -> list[Touch]:
        """What the base touches."""
        return self.base.touches(ctx) if isinstance(self.base, ComponentConfig) else []
