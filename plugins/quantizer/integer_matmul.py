"""The exact product of int8 matrices, in integers where the device has them.

Shape legend: M rows of the left matrix, N rows of the right one, K what is summed over.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor

from stackloom.kernels.w4a8_gemm.integer_product import integer_product

LONGEST_SUM = (2**31 - 1) // 128**2  # products of int8 that an int32 holds
CUDA_ROWS, CUDA_MULTIPLE = 17, 8  # torch._int_mm on CUDA: more than 16 rows, K and N multiples of 8


def int8_matmul(x_MK: Tensor, w_NK: Tensor) -> Tensor:
    """Return x w' exactly.

    On CUDA this is `torch._int_mm` (zeros pad the operands to the shapes that it takes there), provided that it passes
    a probe, once per process; otherwise `kernels.w4a8_gemm`'s `integer_product`.

    Args:
        x_MK: (M, K) int8.
        w_NK: (N, K) int8.

    Returns:
        (M, N) int32.

    Raises:
        TypeError: an operand is no int8 tensor.
        ValueError: the shapes do not go together, or K exceeds 131,071, beyond which an int32 can overflow.

    Example:
        >>> int8_matmul(torch.tensor([[1, 2]], dtype=torch.int8), torch.tensor([[3, -4]], dtype=torch.int8))
        tensor([[-5]], dtype=torch.int32)
    """
    if x_MK.dtype != torch.int8 or w_NK.dtype != torch.int8:
        raise TypeError(f"operands must be int8, got {x_MK.dtype} and {w_NK.dtype}")
    if x_MK.ndim != 2 or w_NK.ndim != 2 or x_MK.shape[1] != w_NK.shape[1]:
        raise ValueError(f"shapes {tuple(x_MK.shape)} and {tuple(w_NK.shape)} do not go together")
    if x_MK.shape[1] > LONGEST_SUM:
        raise ValueError(f"sums of {x_MK.shape[1]} products can exceed int32; at most {LONGEST_SUM}")
    if x_MK.device.type == "cuda" and integer_path():
        return _integer(x_MK, w_NK)
    return integer_product(x_MK, w_NK)


@torch.compiler.assume_constant_result
def integer_path() -> bool:
    """Return whether `torch._int_mm` is there and exact on CUDA: asked once per process."""
    return _is_exact()


@functools.cache
def _is_exact() -> bool:
    """Compare with int64 on drawn operands and on those whose partial sums are as large as int8 allows."""
    draw = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-128, 128, (32, 520), generator=draw, dtype=torch.int8) for _ in range(2))
    x[:4], w[:4] = 127, 127
    x[4:8], w[4:8] = -128, -128
    try:
        found = _integer(x.cuda(), w.cuda()).cpu()
    except (RuntimeError, NotImplementedError):
        return False
    return torch.equal(found.long(), x.long() @ w.long().T)


def _integer(x_MK: Tensor, w_NK: Tensor) -> Tensor:
    (rows, columns), outs = x_MK.shape, w_NK.shape[0]
    if not (rows and columns and outs):
        return x_MK.new_zeros((rows, outs), dtype=torch.int32)
    more_K = -columns % CUDA_MULTIPLE
    x_MK = F.pad(x_MK, (0, more_K, 0, max(0, CUDA_ROWS - rows)))
    w_NK = F.pad(w_NK, (0, more_K, 0, -outs % CUDA_MULTIPLE))
    return torch._int_mm(x_MK.contiguous(), w_NK.contiguous().t())[:rows, :outs]
