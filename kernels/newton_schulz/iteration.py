"""The Newton-Schulz iteration itself, over whatever computes its symmetric products.

Shapes: E matrices, M rows, N columns, M <= N (a tall matrix is worked on as its transpose).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

SymmetricProduct = Callable[..., torch.Tensor]
Coefficients = list[tuple[float, float, float]]
BLOCK = 2  # polynomials that share one Gram matrix in the Gram form; a third would amplify its rounding errors


def orthogonalize(
    G_EMN: torch.Tensor,
    coefficients: list[float],
    eps: float,
    form: str,
    dtype: torch.dtype,
    symmetric_product: SymmetricProduct,
) -> torch.Tensor:
    """X <- a X + b (X X') X + c (X X')^2 X from X = G / max(|G|_F, eps), once per triple of ``coefficients``.

    Args:
        G_EMN: (E, M, N), floating, any strides.
        coefficients: a, b, c of the first polynomial, then of the second, ...
        eps: smallest norm that a matrix is divided by.
        form: ``"direct"``, ``"gram"``, or ``"auto"``: Gram form where one side is at least twice the other.
        dtype: of the products and of the result.
        symmetric_product: ``(A, B, addend, alpha, beta) -> alpha A B' + beta addend`` where the result is symmetric.

    Returns:
        (E, M, N) in ``dtype``, contiguous.
    """
    tall = G_EMN.shape[-2] > G_EMN.shape[-1]
    wide = G_EMN.mT if tall else G_EMN
    X = _normalised(wide, eps, dtype)
    triples = [(coefficients[i], coefficients[i + 1], coefficients[i + 2]) for i in range(0, len(coefficients), 3)]
    rows, columns = X.shape[-2:]
    if form == "gram" or (form == "auto" and columns >= 2 * rows):
        X = _gram_form(X, triples, symmetric_product)
    else:
        X = _direct_form(X, triples, symmetric_product)
    return X.mT.contiguous() if tall else X


def _normalised(X: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """X / max(|X|_F, eps) in ``dtype``; the norm, in float32 or wider, is that of the rounded numbers."""
    rounded = torch.empty(X.shape, dtype=dtype, device=X.device).copy_(X)
    wide = torch.promote_types(dtype, torch.float32)
    norm = torch.linalg.vector_norm(rounded, dim=(-2, -1), keepdim=True, dtype=wide).clamp(min=eps)
    return torch.div(rounded, norm).to(dtype)


def _direct_form(X: torch.Tensor, triples: Coefficients, symmetric_product: SymmetricProduct) -> torch.Tensor:
    for a, b, c in triples:
        S = symmetric_product(X, X, None, 1.0, 0.0)
        P = symmetric_product(S, S, S, c, b)
        X = torch.baddbmm(X, P, X, beta=a)
    return X


def _gram_form(X: torch.Tensor, triples: Coefficients, symmetric_product: SymmetricProduct) -> torch.Tensor:
    """The same polynomials on the M x M Gram matrix, applied to X once per block.

    With S = X X' and P = aI + bS + cS^2, the next iterate P X has the Gram matrix P S P, so X itself is not needed
    until the block ends. All of these are polynomials in S and commute, hence every product is symmetric.
    """
    for first in range(0, len(triples), BLOCK):
        block = triples[first : first + BLOCK]
        S = symmetric_product(X, X, None, 1.0, 0.0)
        P = _polynomial(S, block[0], symmetric_product)
        Q = P
        for triple in block[1:]:
            S = symmetric_product(symmetric_product(P, S, None, 1.0, 0.0), P, None, 1.0, 0.0)
            P = _polynomial(S, triple, symmetric_product)
            Q = symmetric_product(P, Q, None, 1.0, 0.0)
        X = torch.bmm(Q, X)
    return X


def _polynomial(S: torch.Tensor, triple: tuple[float, float, float], symmetric_product: SymmetricProduct) -> Any:
    """A I + b S + c S^2."""
    a, b, c = triple
    P = symmetric_product(S, S, S, c, b)
    P.diagonal(dim1=-2, dim2=-1).add_(a)
    return P
