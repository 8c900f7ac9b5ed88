"""Options, fit and cost that optimizers of orthogonalised matrices share. Without torch."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext
from stackloom.core.shapes import ModelShape
from stackloom.plugins.optimizer import routing
from stackloom.plugins.optimizer.scale import ScaleRule

BF16_BYTES = 2


class MatrixConfig(ComponentConfig):
    """Orthogonalised updates for weight matrices; AdamW for embeddings, the head and every other parameter."""

    lr: float = option(3e-4, "peak learning rate of the matrices; 0.02 is usual with adjust_lr_fn original", ge=0)
    momentum: float = option(0.95, "decay of the momentum", unit="per step", source="official code", ge=0, lt=1)
    nesterov: bool = option(True, "look one step of momentum ahead", source="official code")
    momentum_dtype: Literal["parameter", "bfloat16"] = option(
        "parameter", "how the momentum is stored: in the parameter's dtype, or in bfloat16"
    )
    ns_coefficients: Literal["quintic", "polar-express"] | tuple[float, float, float] = option(
        "quintic",
        "polynomials: quintic is (3.4445, -4.7750, 2.0315) at every step, polar-express has its own for each step "
        "(arXiv 2505.16932), or a, b, c of a X + b (X X') X + c (X X')^2 X",
        source="official code",
    )
    ns_steps: int = option(5, "Newton-Schulz iterations", source="official code", ge=1, lt=100)
    ns_form: Literal["auto", "direct", "gram"] = option(
        "auto", "gram iterates on the small Gram matrix; auto does where one side is at least twice the other"
    )
    ns_dtype: Literal["bfloat16", "float32"] = option(
        "bfloat16",
        "dtype of the Newton-Schulz products; float64 parameters always take float64",
        source="official code",
    )
    ns_eps: float = option(1e-7, "smallest norm that a matrix is divided by", source="official code", gt=0)
    weight_decay: float = option(0.1, "decoupled decay of the matrices, times the learning rate", unit="per step", ge=0)
    adjust_lr_fn: ScaleRule = option(
        "match_rms_adamw",
        "scale by the matrix's shape: original is sqrt(max(1, rows / columns)); match_rms_adamw is "
        "0.2 sqrt(max(rows, columns)), for which AdamW's learning rate carries over; spectral_unclamped is "
        "sqrt(rows / columns)",
    )
    row_parts: dict[str, tuple[int, ...]] = option(
        {}, "pattern of a fused weight's name to the rows of each matrix in it, for instance {'*qkv_proj*': (8, 2, 2)}"
    )
    stacked_names: tuple[str, ...] = option(
        ("*experts*",), "patterns of 3-D parameter names that are stacks of matrices; other 3-D ones go to AdamW"
    )
    sharded: Literal["owner", "gather"] = option(
        "owner",
        "how a sharded matrix is made whole: owner sends each to one worker and its update back; gather gives all of "
        "them to every worker, each of which orthogonalises all",
    )
    implementation: Literal["auto", "reference", "triton"] = option("auto", "which kernels run the update")
    adamw_names: tuple[str, ...] = option(
        ("*embed*", "*wte*", "*wpe*", "*lm_head*"),
        "patterns of parameter names that AdamW updates although they are matrices",
    )
    force_names: tuple[str, ...] = option(
        (), "patterns of parameter names that are orthogonalised although adamw_names has them"
    )
    adamw_lr: float | None = option(None, "peak learning rate of the AdamW parameters; null takes lr", ge=0)
    adamw_beta1: float = option(0.9, "decay of AdamW's first moment", unit="per step", ge=0, lt=1)
    adamw_beta2: float = option(0.95, "decay of AdamW's second moment", unit="per step", ge=0, lt=1)
    adamw_eps: float = option(1e-8, "added to the root of AdamW's second moment", gt=0)
    adamw_weight_decay: float = option(
        0.1, "decoupled decay of AdamW's 2-D parameters; vectors never decay", unit="per step", ge=0
    )

    def fit(self, ctx: FitContext) -> Fit:
        """Works anywhere; says what sharded matrices cost on the wire."""
        if ctx.shard == "none":
            return Fit.yes()
        way = "sent to one worker and back" if self.sharded == "owner" else "gathered on every worker"
        return Fit.yes(f"shard: {ctx.shard}: each matrix's update is {way}, in {self.ns_dtype}")

    def cost(self, work: Work) -> Cost:
        """State per matrix element, two moments for the rest, and the matrix products of Newton-Schulz.

        Trainable parameters other than the whole model (an adapter's) count as matrices.
        """
        per_element = self.matrix_state_bytes(work)
        if work.trainable != work.model.parameters:
            return Cost(optimizer_bytes=work.trainable * per_element)
        matrices = list(_matrices(work.model))
        in_matrices = sum(map(prod, matrices))
        rest = 2 * (work.trainable - in_matrices) * work.element_bytes
        return Cost(
            optimizer_bytes=in_matrices * per_element + rest,
            flops=sum(count * self._newton_schulz_flops(rows, columns) for count, rows, columns in matrices),
        )

    def matrix_state_bytes(self, work: Work) -> float:
        """Bytes of state per element of a matrix: the momentum."""
        return BF16_BYTES if self.momentum_dtype == "bfloat16" else work.element_bytes

    def _newton_schulz_flops(self, rows: int, columns: int) -> float:
        """On an m by n matrix, m <= n. Direct: X X', its square, the product with X, per iteration.

        Gram form: X X' and the product with X once per pair of iterations, six more m x m products a pair, one for a
        last iteration alone.
        """
        m, n = sorted((rows, columns))
        small, large = 2.0 * m * m * m, 2.0 * m * m * n
        if self.ns_form == "gram" or (self.ns_form == "auto" and n >= 2 * m):
            pairs, single = divmod(self.ns_steps, 2)
            return pairs * (2 * large + 5 * small) + single * (2 * large + small)
        return self.ns_steps * (2 * large + small)


def _matrices(model: ModelShape) -> Iterator[tuple[int, int, int]]:
    """Yield (how many, rows, columns) of the weights that are orthogonalised, the router of a mixture included."""
    for _ in range(model.layers):
        for name, rows, columns in model.linears():
            yield (model.experts or 1) if name.startswith("mlp.") else 1, rows, columns
        if model.experts:
            yield 1, model.experts, model.hidden


def rule_of(name: str, ndim: int, trainable: bool, config: MatrixConfig, matrix_rule: str) -> str:
    """Say who updates a parameter: "<matrix_rule>, decay 0.1", "adamw, decay 0.1", "adamw, no decay" or "frozen"."""
    if not trainable:
        return "frozen"
    if routing.is_matrix(name, ndim, config):
        return f"{matrix_rule}, decay {config.weight_decay:g}"
    return f"adamw, decay {config.adamw_weight_decay:g}" if ndim >= 2 else "adamw, no decay"
