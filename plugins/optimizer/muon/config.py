"""Options of `optimizer.muon`."""

from __future__ import annotations

from stackloom.plugins.optimizer.matrix_config import MatrixConfig


class MuonConfig(MatrixConfig):
    """Orthogonalised momentum for weight matrices; AdamW for embeddings, the head and every other parameter.

    Example:
        >>> MuonConfig(lr=2e-2, adjust_lr_fn="original").ns_steps
        5
    """
