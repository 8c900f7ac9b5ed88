"""Options of `quantizer.gptq`."""

from __future__ import annotations

from typing import Literal

from stackloom.core.config import option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext
from stackloom.plugins.quantizer.linear_config import CalibratedConfig
from stackloom.plugins.quantizer.selection import planned_linears


class GPTQConfig(CalibratedConfig):
    """Int4 weights whose rounding errors later columns make up for, weighted by what calibration inputs look like.

    Example:
        >>> GPTQConfig(group_size="channel").group_of(576)
        576
    """

    scheme: Literal["w8a8", "w4a16", "w4a8"] = option(
        "w4a16", "w4a16: int4 weights, float activations; w4a8: int8 activations per token; w8a8: int8 weights too"
    )
    damping: float = option(
        0.01, "added to the Hessian's diagonal, relative to its mean", unit="fraction", source="official code", gt=0
    )
    act_order: bool = option(
        False, "columns with larger inputs first; a group's scale then comes from its weights as given", source="paper"
    )
    block_columns: int = option(
        128,
        "columns after which the rest is updated; no effect on the result",
        unit="columns",
        source="official code",
        gt=0,
    )
    observe: Literal["layer", "block"] = option(
        "layer",
        "inputs of a layer are taken after quantizing what runs before it: up to the layer, or up to its block",
        source="official code",
    )
    scales: Literal["reached", "given", "searched"] = option(
        "reached",
        "of a group: from the compensated weights when its first column is reached; from the weights as given; or of "
        "the clip ratio with the least error of those, weighted by the Hessian's diagonal",
        source="official code",
    )
    grid: Literal["narrow", "full"] = option(
        "narrow", "a group's largest weight is 7 steps; or 7.5, which uses the lowest level too", source="inferred"
    )

    def fit(self, ctx: FitContext) -> list[Fit]:
        """As every calibrated quantizer; layers outside of the decoder's blocks cannot be taken in order."""
        answers = super().fit(ctx)
        if any(linear.path == "lm_head" for linear in planned_linears(ctx.model, self.include, self.exclude)):
            answers.append(Fit.no("lm_head lies outside of the decoder's blocks: exclude it"))
        return answers

    def cost(self, work: Work) -> Cost:
        """Besides the copy: the largest layer's Hessian with its factors in float32, and the columns' updates."""
        linears = planned_linears(work.model, self.include, self.exclude)
        widest = max((linear.columns for linear in linears), default=0)
        flops = sum(2.0 * linear.rows * linear.columns**2 for linear in linears)
        return super().cost(work) + Cost(activation_bytes=4 * 4.0 * widest**2, flops=flops)
