"""Options of `quantizer.odyssey`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext
from stackloom.core.touch import Touch
from stackloom.plugins.quantizer.selection import KEPT, PlannedLinear, legal_groups, nodes_of, planned_linears

LEAST_REACH = 2.0  # logits from 4 to 2 are clip ratios from 0.98 to 0.88
LONGEST_ROW = 131_071  # 128 * 128 * K must stay below 2^31: section 2.5


class OdysseyConfig(ComponentConfig):
    """Int4 weights per channel, int8 activations per token; clipped by output error, then compensated.

    Example:
        >>> OdysseyConfig(clipping="search").group_size
        'channel'
    """

    clipping: Literal["learned", "search", "none"] = option(
        "learned",
        "learned: on each block's output; search: per row, least weight error weighted by the inputs' second moments",
        source="paper",
    )
    compensate: bool = option(True, "Hessian compensation (GPTQ) on the clipped grid", source="paper")
    group_size: Literal["channel"] | Annotated[int, Field(ge=2)] = option(
        "channel", "weights of a row that share a scale; channel is the whole row", unit="weights", source="paper"
    )
    epochs: int = option(10, "passes over the calibration data of learned clipping", source="inferred", gt=0)
    learning_rate: float = option(1e-2, "of AdamW, learned clipping", source="inferred", gt=0)
    initial_logit: float = option(4.0, "of both clip ratios: sigmoid(4) = 0.982", source="official code")
    clip_int8_activations: bool = option(True, "learned clipping sees inputs rounded to int8", source="inferred")
    auxiliary_loss: bool = option(False, "learned clipping adds the loss on the float inputs", source="inferred")
    search_lowest: float = option(0.5, "smallest clip ratio of the search", source="house", gt=0, lt=1)
    search_points: int = option(26, "clip ratios that the search tries", source="house", gt=1)
    damping: float = option(0.01, "of the Hessian, relative to its mean diagonal", source="official code", gt=0)
    block_columns: int = option(
        128, "columns compensated before the rest is updated; no effect on the result", source="official code", gt=0
    )
    act_order: bool = option(False, "compensate columns with larger inputs first", source="inferred")
    observe: Literal["layer", "block"] = option(
        "layer",
        "inputs of a layer come after quantizing what runs before it: up to the layer, or up to its block",
        source="inferred",
    )
    include: tuple[str, ...] = option(("*",), "patterns of linear layers to quantize, by module path", min_length=1)
    exclude: tuple[str, ...] = option(KEPT, "patterns of linear layers to keep, by module path")

    @property
    def int8_activations(self) -> bool:
        """Activations are always quantized."""
        return True

    @property
    def group(self) -> int | None:
        """Weights that share a scale; None for a whole row."""
        return None if self.group_size == "channel" else self.group_size

    def fit(self, ctx: FitContext) -> list[Fit]:
        """Rows must be even and short enough for int32, groups must divide them, calibration should cover them."""
        linears = planned_linears(ctx.model, self.include, self.exclude)
        if not linears:
            return [Fit.no("no linear layer is selected: change include or exclude")]
        answers = [fit for linear in linears if (fit := self._row(linear, linears))][:1] or [Fit.yes()]
        if any(linear.path == "lm_head" for linear in linears):
            answers.append(Fit.no("lm_head lies outside of the decoder's blocks: exclude it"))
        if not any(plugin.startswith("data.") for plugin in ctx.neighbours):
            answers.append(Fit.no("it calibrates on data, and the quantize stage names none: give it data"))
        longest = max(linear.columns for linear in linears)
        sequences, length = (ctx.stage_options.get(key) for key in ("calibration_sequences", "sequence_length"))
        if self.compensate and isinstance(sequences, int) and isinstance(length, int) and sequences * length < longest:
            answers.append(Fit.warn(f"{sequences * length} calibration tokens are few for {longest} in features"))
        if self.clipping == "learned" and isinstance(sequences, int):
            reach = sequences * self.epochs * self.learning_rate  # a step of AdamW is at most about the learning rate
            if reach < LEAST_REACH:
                answers.append(
                    Fit.warn(
                        f"{sequences * self.epochs} steps of {self.learning_rate:g} move a clip logit by about "
                        f"{reach:.2g} at most, which hardly clips: raise learning_rate or epochs, or search instead"
                    )
                )
        return answers

    def _row(self, linear: PlannedLinear, linears: list[PlannedLinear]) -> Fit | None:
        if linear.columns % 2 or linear.columns > LONGEST_ROW:
            return Fit.no(f"{linear.path} has {linear.columns} in features: needs an even number up to {LONGEST_ROW}")
        if self.group is not None and linear.columns % self.group:
            legal = ", ".join(map(str, legal_groups([other.columns for other in linears])))
            return Fit.no(
                f"group_size {self.group} does not divide the {linear.columns} in features of {linear.path}; "
                f"sizes that divide every selected layer: {legal or 'none'}"
            )
        return None

    def cost(self, work: Work) -> Cost:
        """The quantized copy of the selected layers, biases included; compensation dominates the work."""
        linears = planned_linears(work.model, self.include, self.exclude)
        held = sum(linear.quantized_bytes(4, self.group or linear.columns, work.element_bytes) for linear in linears)
        flops = sum(2.0 * linear.rows * linear.columns**2 for linear in linears) if self.compensate else 0.0
        return Cost(weight_bytes=held, flops=flops)

    def touches(self, ctx: FitContext) -> list[Touch]:
        """Replaces float layers by int4 ones."""
        nodes = nodes_of(planned_linears(ctx.model, self.include, self.exclude), ctx.model.layers)
        return [Touch(nodes=nodes, mode="replace", needs="float", leaves="int4")] if nodes else []
