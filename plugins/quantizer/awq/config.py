"""Options of `quantizer.awq`."""

from __future__ import annotations

from typing import Literal

from stackloom.core.config import option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext
from stackloom.plugins.quantizer.linear_config import CalibratedConfig
from stackloom.plugins.quantizer.selection import planned_linears


class AWQConfig(CalibratedConfig):
    """Int4 weights; columns that meet loud inputs are scaled up before rounding, by the best of a few strengths.

    Example:
        >>> AWQConfig().group_of(1536)
        128
    """

    scheme: Literal["w4a16", "w4a8"] = option(
        "w4a16", "int4 weights; float activations, or int8 per token", source="paper"
    )
    strengths: int = option(
        20, "exponents 0, 1/n, ..., (n-1)/n of the inputs' magnitude to try", source="official code", gt=0
    )
    fold: tuple[Literal["norm", "up", "value"], ...] = option(
        ("norm", "up", "value"),
        "where scales may go: norms (q/k/v, gate/up), up_proj (from down_proj), v_proj (from o_proj)",
        source="official code",
    )
    clip: bool = option(True, "search a smaller grid per group that loses less of the output", source="official code")
    clip_steps: int = option(20, "a grid shrinks in steps of 1/n of its range", source="official code", gt=1)
    clip_lowest: float = option(
        0.5, "smallest grid, relative to the range", unit="fraction", source="official code", gt=0, le=1
    )
    clip_exclude: tuple[str, ...] = option(
        ("*q_proj", "*k_proj"), "patterns of layers whose weights are not clipped", source="official code"
    )
    grid: Literal["narrow", "full"] = option(
        "narrow", "a group's largest weight is 7 steps; or 7.5, which uses the lowest level too", source="inferred"
    )

    @property
    def folded_sites(self) -> tuple[str, ...]:
        """Where scales may go."""
        return self.fold

    def fit(self, ctx: FitContext) -> list[Fit]:
        """As every calibrated quantizer; layers outside of the decoder's blocks cannot be taken in order."""
        answers = super().fit(ctx)
        if any(linear.path == "lm_head" for linear in planned_linears(ctx.model, self.include, self.exclude)):
            answers.append(Fit.no("lm_head lies outside of the decoder's blocks: exclude it"))
        return answers

    def cost(self, work: Work) -> Cost:
        """Besides the copy: one block's second moments in float32, and a product with them per strength."""
        linears = planned_linears(work.model, self.include, self.exclude)
        of_one_block = {linear.path.rpartition(".")[2]: linear.columns for linear in linears}
        flops = self.strengths * sum(2.0 * linear.rows * linear.columns**2 for linear in linears)
        return super().cost(work) + Cost(
            activation_bytes=2 * 4.0 * sum(columns**2 for columns in of_one_block.values()), flops=flops
        )
