"""Options of `quantizer.rtn`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext
from stackloom.core.shapes import ModelShape
from stackloom.core.touch import Touch
from stackloom.plugins.quantizer.selection import KEPT, PlannedLinear, legal_groups, nodes_of, planned_linears

GROUP_OF_INT4 = 64
FLOPS_PER_WEIGHT = 7  # magnitude, maximum, division, rounding, product, difference, square


class RTNConfig(ComponentConfig):
    """Each weight to the nearest point of a symmetric grid, without calibration.

    Example:
        >>> RTNConfig(scheme="w4a16").group
        64
    """

    scheme: Literal["w8a8", "w4a16", "w4a8"] = option(
        "w8a8",
        "w8a8: weights and activations in int8; w4a16: int4 weights, float activations; w4a8: int4 and int8",
    )
    group_size: Literal["auto", "channel"] | Annotated[int, Field(ge=2)] = option(
        "auto",
        "weights of a row that share a scale; channel is the whole row; auto is channel for w8a8 and 64 for int4",
        unit="weights",
    )
    include: tuple[str, ...] = option(("*",), "patterns of linear layers to quantize, by module path", min_length=1)
    exclude: tuple[str, ...] = option(KEPT, "patterns of linear layers to keep, by module path")

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return 8 if self.scheme == "w8a8" else 4

    @property
    def int8_activations(self) -> bool:
        """Whether activations are quantized."""
        return self.scheme != "w4a16"

    @property
    def group(self) -> int | None:
        """Weights that share a scale; None for a whole row."""
        if self.group_size == "auto":
            return None if self.bits == 8 else GROUP_OF_INT4
        return None if self.group_size == "channel" else self.group_size

    def fit(self, ctx: FitContext) -> list[Fit]:
        """Some layer must be selected, and the group size must divide every selected layer's in features."""
        linears = planned_linears(ctx.model, self.include, self.exclude)
        if not linears:
            return [Fit.no("no linear layer is selected: change include or exclude")]
        answers = [self._divides(linears)]
        if any(linear.path == "lm_head" for linear in linears):
            answers.append(Fit.warn("lm_head is quantized too, which often costs accuracy"))
        if ctx.model.experts:
            answers.append(Fit.warn("routed experts are 3-D tensors and stay as they are"))
        return answers

    def _divides(self, linears: list[PlannedLinear]) -> Fit:
        for linear in linears:
            if self.group is not None and linear.columns % self.group:
                legal = ", ".join(map(str, legal_groups([linear.columns for linear in linears])))
                return Fit.no(
                    f"group_size {self.group} does not divide the {linear.columns} in features of {linear.path}; "
                    f"sizes that divide every selected layer: {legal or 'none'}"
                )
        return Fit.yes()

    def layer_bytes(self, model: ModelShape, element_bytes: float) -> tuple[float, float]:
        """Return the bytes of the selected layers before and after, scales and biases included."""
        linears = planned_linears(model, self.include, self.exclude)
        before = sum(linear.float_bytes(element_bytes) for linear in linears)
        after = sum(
            linear.quantized_bytes(self.bits, self.group or linear.columns, element_bytes) for linear in linears
        )
        return before, after

    def cost(self, work: Work) -> Cost:
        """The quantized copy of the selected layers, biases included.

        The stage counts it beside the float model: layers are exchanged one by one, so that the sum is never exceeded.
        """
        linears = planned_linears(work.model, self.include, self.exclude)
        return Cost(
            weight_bytes=self.layer_bytes(work.model, work.element_bytes)[1],
            flops=float(FLOPS_PER_WEIGHT * sum(linear.rows * linear.columns for linear in linears)),
        )

    def touches(self, ctx: FitContext) -> list[Touch]:
        """Replaces float layers by int8 or int4 ones."""
        nodes = nodes_of(planned_linears(ctx.model, self.include, self.exclude), ctx.model.layers)
        return [Touch(nodes=nodes, mode="replace", needs="float", leaves=f"int{self.bits}")] if nodes else []
