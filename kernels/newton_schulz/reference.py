"""Newton-Schulz in plain torch: the truth that every other implementation answers to.

Shapes: E matrices, M rows, K columns, ``...`` any leading dimensions.
"""

from __future__ import annotations

import functools

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
    products = products_dtype(A_EMK.dtype, A_EMK.device)
    if products != A_EMK.dtype:
        A, B = A_EMK.to(products), A_EMK.to(products) if B_EMK is A_EMK else B_EMK.to(products)
        addend = None if addend_EMM is None else addend_EMM.to(products)
        return symmetric_product(A, B, addend, alpha, beta).to(A_EMK.dtype)
    if addend_EMM is None:
        product = torch.bmm(A_EMK, B_EMK.mT)
        return product if alpha == 1.0 else product.mul_(alpha)
    return torch.baddbmm(addend_EMM, A_EMK, B_EMK.mT, beta=beta, alpha=alpha)


def orthogonalize(
    G_EMN: torch.Tensor, coefficients: list[float], eps: float, form: str, dtype: torch.dtype
) -> torch.Tensor:
    """As :func:`iteration.orthogonalize`, with full products; see :func:`products_dtype`."""
    asked = _at_least(G_EMN, dtype)
    products = products_dtype(asked, G_EMN.device)
    if products == asked or not len(G_EMN):
        return iteration.orthogonalize(G_EMN, coefficients, eps, form, asked, symmetric_product)
    # One by one and each from memory of its own: MKL's bits depend on a stack's size and on alignment, and workers that
    # divide a stack must get the bits of one that does not.
    alone = (
        iteration.orthogonalize(matrix.clone(), coefficients, eps, form, products, symmetric_product)
        for matrix in G_EMN.split(1)
    )
    return torch.cat([result.to(asked) for result in alone])


def products_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What products in ``dtype`` are computed in: float32 where a CPU has no unit for the narrow type.

    Such a CPU multiplies bfloat16 one element at a time, some 30 times slower than float32, which also rounds less.
    """
    if device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) and not _multiplies(dtype):
        return torch.float32
    return dtype


@functools.cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN has matrix products for a narrow float on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    library = torch.ops.mkldnn
    half = library._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else library._is_mkldnn_fp16_supported
    return bool(half())


def _at_least(G: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    """float64 input asks for the truth, whatever the dtype of the fast path."""
    return torch.float64 if G.dtype == torch.float64 else dtype
