"""Options, fit, cost and touches that adapters of two thin matrices share. Without torch."""

from __future__ import annotations

import math
from typing import Literal

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.devices import DTYPE_BYTES
from stackloom.core.fit import Fit, FitContext
from stackloom.core.touch import Touch
from stackloom.plugins.adapter.targets import LLAMA_LINEARS, planned_targets, target_fits, target_nodes


class LowRankConfig(ComponentConfig):
    """Two thin matrices beside each target."""

    rank: int = option(8, "columns of B and rows of A", source="official code", ge=1, le=65_536)
    alpha: float = option(16.0, "the product is scaled by alpha / rank", gt=0)
    rslora: bool = option(False, "scale by alpha / sqrt(rank) instead, which suits large ranks", source="paper")
    dropout: float = option(
        0.0,
        "share of the branch's input features dropped in training",
        unit="fraction",
        source="official code",
        ge=0,
        lt=1,
    )
    targets: tuple[str, ...] = option(
        LLAMA_LINEARS,
        "patterns of the linear layers to wrap: a module's path or its end, * and ? as in a shell",
        min_length=1,
    )
    init: Literal["kaiming", "gaussian"] = option(
        "kaiming",
        "how A starts: uniform within 1 / sqrt(in features), or normal with deviation 1 / rank; B starts at zero",
        source="official code",
    )
    dtype: Literal["float32", "model"] = option(
        "float32",
        "of the matrices: at least float32 keeps small updates that bfloat16 would round away; or the model's",
    )

    @property
    def scaling(self) -> float:
        """Factor of the product B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def fit(self, ctx: FitContext) -> list[Fit]:
        """Every target must name a linear layer that does not share its weight; float16 matrices are refused.

        A rank above a target's sides is a warning.
        """
        answers = target_fits(ctx.model, self.targets, self.rank)
        if self.dtype == "model" and ctx.dtype == "float16":
            answers.append(Fit.no("float16 matrices lose their updates and Adam's second moment: set dtype: float32"))
        return answers

    def cost(self, work: Work) -> Cost:
        """The matrices, exactly; and what their branch computes and saves for the backward pass.

        The stage counts gradients in the compute dtype, so that matrices in float32 add the difference here.
        """
        targets = planned_targets(work.model, self.targets)
        parameters = sum(self.rank * (linear.rows + linear.columns) for linear in targets)
        own = max(work.element_bytes, DTYPE_BYTES["float32"]) if self.dtype == "float32" else work.element_bytes
        dropped = sum(linear.columns for linear in targets) * (work.element_bytes + 1) if self.dropout else 0
        saved = work.tokens * (self.rank * len(targets) * work.element_bytes + dropped)
        passes = 4 if work.activation_checkpointing else 3
        return Cost(
            parameters=parameters,
            trainable=parameters,
            weight_bytes=parameters * own,
            gradient_bytes=parameters * (own - work.element_bytes),
            activation_bytes=saved / work.model.layers if work.activation_checkpointing else saved,
            flops=2.0 * passes * parameters * work.tokens * work.micro_batches,
        )

    def touches(self, ctx: FitContext) -> list[Touch]:
        """Wraps the targets, whose weights must be floats to be folded into."""
        nodes = target_nodes(ctx.model, self.targets)
        return [Touch(nodes=nodes, mode="wrap", needs="float")] if nodes else []
