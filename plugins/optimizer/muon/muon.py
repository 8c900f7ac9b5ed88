"""Muon: momentum, orthogonalised, for matrices; AdamW for the rest."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stackloom.kernels.muon_update import momentum_
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

    def _direct(self, matrix: Matrix, group: dict[str, Any], state: dict[str, Tensor], G: Tensor, U: Tensor) -> None:
        momentum, nesterov = group["momentum"], group["nesterov"]
        momentum_(G, state["momentum_buffer"], momentum, nesterov, U, implementation=self._implementation(G))
