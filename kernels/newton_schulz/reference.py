"""Newton-Schulz in plain torch: the truth that every other implementation answers to.

Shapes: E matrices, M rows, K columns, ``...`` any leading dimensions.
"""

from __future__ import annotations

import torch

from . import iteration


def symmetric_product(
    A_EMK: torch.Tensor, B_EMK: torch.Tensor, addend_EMM: torch.Tensor | None, alpha: float, beta: float
) -> torch.Tensor:
    """Alpha A B' + beta addend, rounded once; the caller answers for the result's symmetry, nothing here uses it.

    Args:
        A_EMK, B_EMK: (E, M, K) of one dtype.
        addend_EMM: (E, M, M) of that dtype, or None for zero.

    Returns:
        (E, M, M) of that dtype, contiguous.
    """
    if addend_EMM is None:
        product = torch.bmm(A_EMK, B_EMK.mT)
        return product if alpha == 1.0 else product.mul_(alpha)
    return torch.baddbmm(addend_EMM, A_EMK, B_EMK.mT, beta=beta, alpha=alpha)


def orthogonalize(
    G_EMN: torch.Tensor, coefficients: list[float], eps: float, form: str, dtype: torch.dtype
) -> torch.Tensor:
    """As :func:`iteration.orthogonalize`, with full products."""
    return iteration.orthogonalize(G_EMN, coefficients, eps, form, _at_least(G_EMN, dtype), symmetric_product)


def _at_least(G: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    """float64 input asks for the truth, whatever the dtype of the fast path."""
    return torch.float64 if G.dtype == torch.float64 else dtype
