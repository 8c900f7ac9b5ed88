"""Options of `optimizer.muon`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext
from stackloom.core.shapes import ModelShape


class MuonConfig(ComponentConfig):
    """Orthogonalised momentum for 2-D weights; AdamW for embeddings, the head and every other parameter.

    Example:
        >>> MuonConfig(lr=2e-2, adjust_lr_fn="original").ns_steps
        5
    """

    lr: float = option(3e-4, "peak learning rate of the matrices; 0.02 is usual with adjust_lr_fn original", ge=0)
    momentum: float = option(0.95, "decay of the momentum", unit="per step", source="official code", ge=0, lt=1)
    nesterov: bool = option(True, "look one step of momentum ahead", source="official code")
    ns_steps: int = option(5, "Newton-Schulz iterations", source="official code", ge=1, lt=100)
    ns_coefficients: tuple[float, float, float] = option(
        (3.4445, -4.7750, 2.0315), "a, b, c of the quintic a X + b (X X') X + c (X X')^2 X", source="official code"
    )
    ns_eps: float = option(1e-7, "smallest norm that a matrix is divided by", source="official code", gt=0)
    weight_decay: float = option(0.1, "decoupled decay of the matrices, times the learning rate", unit="per step", ge=0)
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = option(
        "match_rms_adamw",
        "scale by the matrix's shape: original is sqrt(max(1, rows / columns)); match_rms_adamw is "
        "0.2 sqrt(max(rows, columns)), for which AdamW's learning rate carries over",
    )
    adamw_names: tuple[str, ...] = option(
        ("*embed*", "*wte*", "*wpe*", "*lm_head*"),
        "patterns of parameter names that AdamW updates although they are 2-D",
    )
    adamw_lr: float | None = option(None, "peak learning rate of the AdamW parameters; null takes lr", ge=0)
    adamw_beta1: float = option(0.9, "decay of AdamW's first moment", unit="per step", ge=0, lt=1)
    adamw_beta2: float = option(0.95, "decay of AdamW's second moment", unit="per step", ge=0, lt=1)
    adamw_eps: float = option(1e-8, "added to the root of AdamW's second moment", gt=0)
    adamw_weight_decay: float = option(
        0.1, "decoupled decay of AdamW's 2-D parameters; vectors never decay", unit="per step", ge=0
    )

    def fit(self, ctx: FitContext) -> Fit:
        """Refuses sharded matrices, and plain momentum in bfloat16, which torch overwrites with its normalised copy."""
        if ctx.shard != "none":
            return Fit.no(f"orthogonalises whole matrices, and shard: {ctx.shard} gives each worker a piece of one")
        if ctx.dtype == "bfloat16" and not self.nesterov:
            return Fit.no(NO_NESTEROV_IN_BFLOAT16)
        return Fit.yes()

    def cost(self, work: Work) -> Cost:
        """One momentum per matrix element, two moments for the rest, and the matrix products of Newton-Schulz.

        Trainable parameters other than the whole model (an adapter's) count as matrices.
        """
        if work.trainable != work.model.parameters:
            return Cost(optimizer_bytes=work.trainable * work.element_bytes)
        matrices = list(_matrices(work.model))
        in_matrices = sum(rows * columns for rows, columns in matrices)
        elements = in_matrices + 2 * (work.trainable - in_matrices)
        return Cost(
            optimizer_bytes=elements * work.element_bytes,
            flops=sum(self._newton_schulz_flops(rows, columns) for rows, columns in matrices),
        )

    def _newton_schulz_flops(self, rows: int, columns: int) -> float:
        """Per iteration on an m by n matrix, m <= n: X X', its square, and the product with X."""
        m, n = sorted((rows, columns))
        return self.ns_steps * (2.0 * m * m * n + 2.0 * m * m * m + 2.0 * m * m * n)


NO_NESTEROV_IN_BFLOAT16 = (
    "nesterov: false in bfloat16 corrupts the momentum (torch 2.13 normalises the buffer in place): "
    "set nesterov: true, or train in float32"
)


def _matrices(model: ModelShape) -> Iterator[tuple[int, int]]:
    """Yield (rows, columns) of every weight that Muon updates; transformers keeps routed experts in 3-D tensors."""
    for _ in range(model.layers):
        for name, rows, columns in model.linears():
            if not (model.experts and name.startswith("mlp.")):
                yield rows, columns
        if model.experts:
            yield model.experts, model.hidden
