"""Options of `optimizer.adamw`."""

from __future__ import annotations

from typing import Literal

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext

MOMENTS = 2  # exp_avg and exp_avg_sq, each of the parameter's shape and dtype


class AdamWConfig(ComponentConfig):
    """Adam with decoupled weight decay.

    Example:
        >>> AdamWConfig(lr=2e-4).weight_decay
        0.1
    """

    lr: float = option(3e-4, "peak learning rate", ge=0)
    beta1: float = option(0.9, "decay of the first moment", unit="per step", source="paper", ge=0, lt=1)
    beta2: float = option(
        0.95,
        "decay of the second moment; 0.999 in the paper, 0.95 is usual for language models",
        unit="per step",
        ge=0,
        lt=1,
    )
    eps: float = option(1e-8, "added to the root of the second moment", source="paper", gt=0)
    weight_decay: float = option(
        0.1, "decoupled decay, times the learning rate, of the parameters that decay", unit="per step", ge=0
    )
    decay_vectors: bool = option(False, "whether biases, norm gains and everything else below two dimensions decay")
    decay_embeddings: bool = option(True, "whether parameters that match embedding_names decay")
    embedding_names: tuple[str, ...] = option(
        ("*embed*", "*wte*", "*wpe*"), "patterns of parameter names that are embeddings"
    )
    implementation: Literal["auto", "for-loop", "foreach", "fused"] = option(
        "auto",
        "how torch runs the update; auto leaves it to torch, foreach needs one more copy of the parameters at its peak",
    )

    def fit(self, ctx: FitContext) -> Fit:
        """Works anywhere; says in which dtype torch keeps the moments."""
        if ctx.dtype == "float32":
            return Fit.yes()
        return Fit.yes(f"both moments are kept in {ctx.dtype}, the parameters' dtype")

    def cost(self, work: Work) -> Cost:
        """Two moments per trainable parameter, in its dtype; torch's step counters, 4 bytes a tensor, are left out."""
        return Cost(optimizer_bytes=MOMENTS * work.trainable * work.element_bytes)
