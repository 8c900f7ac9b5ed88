"""Muon: momentum, orthogonalised, for matrices; AdamW for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stackloom.kernels.muon_update.each import momentum_each_
from stackloom.plugins.optimizer.matrix_optimizer import Matrix, MatrixOptimizer


class Muon(MatrixOptimizer):
    """Momentum, orthogonalised by Newton-Schulz, for weight matrices; AdamW for embeddings, head and vectors.

    Example:
        >>> from stackloom.plugins.optimizer.muon.config import MuonConfig
        >>> from torch import nn
        >>> model = nn.Linear(4, 2)
        >>> Muon(MuonConfig(lr=1e-2), model.named_parameters()).routes()
        [('weight', 'muon, decay 0.1'), ('bias', 'adamw, no decay')]
    """

    plugin = "optimizer.muon"
    rule = "muon"

    def _direct(
        self,
        matrices: Sequence[Matrix],
        group: dict[str, Any],
        states: Sequence[dict[str, Tensor]],
        Gs: Sequence[Tensor],
        Us: Sequence[Tensor],
    ) -> None:
        Ms = [state["momentum_buffer"] for state in states]
        implementation = self._implementation(Gs[0])
        momentum_each_(Gs, Ms, group["momentum"], group["nesterov"], Us, implementation=implementation)
