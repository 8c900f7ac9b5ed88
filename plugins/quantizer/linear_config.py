"""The options that quantizers of linear layers share, and what follows from them without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext
from stackloom.core.shapes import ModelShape
from stackloom.core.touch import Touch
from stackloom.plugins.quantizer.selection import (
    KEPT,
    legal_groups,
    nodes_of,
    path_nodes,
    planned_folds,
    planned_linears,
)

FLOPS_PER_WEIGHT = 7  # magnitude, maximum, division, rounding, product, difference, square
INPUT_SCALE_BYTES = 4


class LinearQuantizerConfig(ComponentConfig):
    """Base of the options of quantizers that exchange linear layers; a subclass narrows `scheme` to what it can do."""

    scheme: Literal["w8a8", "w4a16", "w4a8"] = option(
        "w8a8",
        "w8a8: weights and activations in int8; w4a16: int4 weights, float activations; w4a8: int4 and int8",
    )
    group_size: Literal["auto", "channel"] | Annotated[int, Field(ge=2)] = option(
        "auto",
        "weights of a row that share a scale; channel is the whole row; auto is channel for int8, and for int4 the "
        "largest of 128, 96, 64 and 32 that divides the layer's in features",
        unit="weights",
        source="inferred",
    )
    include: tuple[str, ...] = option(("*",), "patterns of linear layers to quantize, by module path", min_length=1)
    exclude: tuple[str, ...] = option(KEPT, "patterns of linear layers to keep, by module path")

    auto_groups: ClassVar[tuple[int, ...]] = (128, 96, 64, 32)

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return 8 if self.scheme == "w8a8" else 4

    @property
    def int8_activations(self) -> bool:
        """Whether activations are quantized."""
        return self.scheme != "w4a16"

    @property
    def static_activations(self) -> bool:
        """Whether layers have a place for a static scale of their inputs."""
        return False

    @property
    def folded_sites(self) -> tuple[str, ...]:
        """Kinds of producer, as in `selection.FOLDS`, into which scales of activations are moved."""
        return ()

    def group_of(self, columns: int) -> int | None:
        """Return how many weights of a row of `columns` share a scale; None where no allowed size divides it."""
        if self.group_size == "channel" or (self.group_size == "auto" and self.bits == 8):
            return columns
        allowed = self.auto_groups if self.group_size == "auto" else (self.group_size,)
        return next((size for size in allowed if columns % size == 0), None)

    def misfit(self, columns: Mapping[str, int]) -> tuple[str, str] | None:
        """Return (reason, fix) for the first layer whose in features no allowed group divides.

        Args:
            columns: in features by path, of all selected layers.
        """
        tried = " or ".join(map(str, self.auto_groups if self.group_size == "auto" else (self.group_size,)))
        legal = ", ".join(map(str, legal_groups(list(columns.values())))) or "none"
        for path, width in columns.items():
            if not self.group_of(width):
                return (
                    f"group_size {tried} does not divide the {width} in features of {path}",
                    f"sizes that divide every selected layer: {legal}",
                )
        return None

    def fit(self, ctx: FitContext) -> list[Fit]:
        """Some layer must be selected, and a group size must divide each one's in features."""
        linears = planned_linears(ctx.model, self.include, self.exclude)
        if not linears:
            return [Fit.no("no linear layer is selected: change include or exclude")]
        wrong = self.misfit({linear.path: linear.columns for linear in linears})
        answers = [Fit.no("; ".join(wrong)) if wrong else Fit.yes()]
        if any(linear.path == "lm_head" for linear in linears):
            answers.append(Fit.warn("lm_head is quantized too, which often costs accuracy"))
        if ctx.model.experts:
            answers.append(Fit.warn("routed experts are 3-D tensors and stay as they are"))
        return answers

    def layer_bytes(self, model: ModelShape, element_bytes: float) -> tuple[float, float]:
        """Return the bytes of the selected layers before and after, scales and biases included."""
        linears = planned_linears(model, self.include, self.exclude)
        before = sum(linear.float_bytes(element_bytes) for linear in linears)
        after = sum(
            linear.quantized_bytes(self.bits, self.group_of(linear.columns) or linear.columns, element_bytes)
            for linear in linears
        )
        return before, after + INPUT_SCALE_BYTES * self.static_activations * len(linears)

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
        """Replaces float layers by int8 or int4 ones; where scales are moved, rewrites what takes or meets them."""
        linears = planned_linears(ctx.model, self.include, self.exclude)
        if not linears:
            return []
        replaced = Touch(
            nodes=nodes_of(linears, ctx.model.layers),
            mode="replace",
            needs="float",
            leaves=f"int{self.bits}",
        )
        selected = {linear.path for linear in linears}
        folded = [path for path in planned_folds(ctx.model, selected, self.folded_sites) if path not in selected]
        if not folded:
            return [replaced]
        return [replaced, Touch(nodes=path_nodes(folded, ctx.model.layers), mode="rewrite", needs="float")]


class CalibratedConfig(LinearQuantizerConfig):
    """Base of the options of quantizers that look at activations."""

    unreached: Literal["refuse", "nearest"] = option(
        "refuse",
        "layers that calibration never reached, such as experts that no token chose: refuse them by name, or round "
        "them to nearest with activations per token",
    )

    @property
    def reads_data(self) -> bool:
        """Whether calibration takes the stage's data; otherwise it makes its own."""
        return True

    def fit(self, ctx: FitContext) -> list[Fit]:
        """As every quantizer of linear layers; and the stage must name data exactly where it is read."""
        answers = super().fit(ctx)
        named = [plugin for plugin in ctx.neighbours if plugin.startswith("data.")]
        if self.reads_data and not named:
            answers.append(Fit.no("it calibrates on data, and the quantize stage names none: give it data"))
        elif named and not self.reads_data:
            answers.append(Fit.warn(f"it calibrates on random tokens and does not read {named[0]}"))
        return answers

    def cost(self, work: Work) -> Cost:
        """The quantized copy of the selected layers, and a forward pass per calibration token."""
        forward = work.model.forward_flops(work.tokens, work.sequence_length // 2)
        return super().cost(work) + Cost(flops=forward)
