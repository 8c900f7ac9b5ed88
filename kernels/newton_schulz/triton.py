"""Symmetric matrix products in Triton: only the tiles on and below the diagonal are computed, the rest is mirrored.

Shapes: E matrices, M rows, K columns. A program owns one BLOCK x BLOCK tile (row, column) of the lower triangle of one
matrix; it accumulates in float32, rounds once, and stores the tile and its transpose. On a device the tiling is the
fastest of a few whose sums have one order, so that the bits do not depend on it (a law of the contract). The general
product that applies a polynomial to X is torch's (cuBLAS).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from ..contract import CompileTarget
from ..selection import Support
from ..tooling.autotune import KernelConfig, tuned
from ..tooling.device_support import triton_can_run
from . import iteration

DTYPES = (torch.bfloat16, torch.float16)


ALIGNMENT = 16
CONFIGS = (
    KernelConfig("64x64x64", {"BLOCK": 64, "BLOCK_K": 64}, 4, 4),
    KernelConfig("128x128x64 4 warps", {"BLOCK": 128, "BLOCK_K": 64}, 4, 3),
    KernelConfig("128x128x64 shallow", {"BLOCK": 128, "BLOCK_K": 64}, 8, 3),
    KernelConfig("128x128x64", {"BLOCK": 128, "BLOCK_K": 64}, 8, 4),
)


@tuned(CONFIGS, reference="64x64x64", key=("M", "K"))
@triton.jit
def _symmetric_product_kernel(
    a_ptr, b_ptr, addend_ptr, out_ptr,
    M, K, a_stride_e, a_stride_m, b_stride_e, b_stride_m, addend_stride_e, addend_stride_m, alpha, beta,
    HAS_ADDEND: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):
    side = tl.cdiv(M, BLOCK)
    tiles = side * (side + 1) // 2
    matrix = (tl.program_id(0) // tiles).to(tl.int64)  # int64: matrix * stride passes 2^31
    tile = tl.program_id(0) % tiles
    row = ((tl.sqrt(8.0 * tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > tile, row - 1, row)  # the root is rounded: one step either way
    row = tl.where((row + 1) * (row + 2) // 2 <= tile, row + 1, row)
    column = tile - row * (row + 1) // 2
    rows = row * BLOCK + tl.arange(0, BLOCK)
    columns = column * BLOCK + tl.arange(0, BLOCK)
    ks = tl.arange(0, BLOCK_K)
    a_rows = a_ptr + matrix * a_stride_e + rows.to(tl.int64)[:, None] * a_stride_m
    b_rows = b_ptr + matrix * b_stride_e + columns.to(tl.int64)[None, :] * b_stride_m
    in_rows, in_columns = (rows < M)[:, None], (columns < M)[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, BLOCK_K):
        in_k = start + ks < K
        a = tl.load(a_rows + (start + ks)[None, :], mask=in_rows & in_k[None, :], other=0.0)
        b = tl.load(b_rows + (start + ks)[:, None], mask=in_columns & in_k[:, None], other=0.0)
        total = tl.dot(a, b, total)
    total *= alpha
    mask = in_rows & in_columns
    if HAS_ADDEND:
        addend_rows = addend_ptr + matrix * addend_stride_e + rows.to(tl.int64)[:, None] * addend_stride_m
        total += beta * tl.load(addend_rows + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    out = out_ptr + matrix * M * M
    result = total.to(out_ptr.dtype.element_ty)
    tl.store(out + rows.to(tl.int64)[:, None] * M + columns[None, :], result, mask=mask)
    if row != column:
        mirrored = out + columns.to(tl.int64)[:, None] * M + rows[None, :]
        tl.store(mirrored, tl.trans(result), mask=(columns < M)[:, None] & (rows < M)[None, :])


def supports(function: str, *args: Any) -> Support:
    """bfloat16 or float16 products, all on one device on which Triton runs; any sizes, any strides."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    if function == "orthogonalize" and tensors[0].dtype == torch.float64:
        return Support(False, "computes bfloat16 and float16, and float64 input asks for float64")
    products = tensors if function == "symmetric_product" else ()
    for dtype in (*(tensor.dtype for tensor in products), *(arg for arg in args if isinstance(arg, torch.dtype))):
        if dtype not in DTYPES:
            return Support(False, f"computes bfloat16 and float16, got {dtype}")
    return triton_can_run(*tensors)


def _aligned(tensor: torch.Tensor, *sizes: int) -> torch.Tensor:
    """The tensor itself where its rows begin at multiples of 16 elements, else a copy amid zeros of (E, *sizes)."""
    strides_fit = tensor.stride(2) == 1 and not any(stride % ALIGNMENT for stride in tensor.stride()[:2])
    if tuple(tensor.shape[1:]) == sizes and strides_fit and tensor.data_ptr() % 16 == 0:
        return tensor
    copy = torch.zeros((tensor.shape[0], *sizes), dtype=tensor.dtype, device=tensor.device)
    copy[:, : tensor.shape[1], : tensor.shape[2]] = tensor
    return copy


def _triangle(side: int) -> int:
    return side * (side + 1) // 2


def _round_up(size: int) -> int:
    return triton.cdiv(size, ALIGNMENT) * ALIGNMENT


def symmetric_product(
    A_EMK: torch.Tensor,
    B_EMK: torch.Tensor,
    addend_EMM: torch.Tensor | None,
    alpha: float,
    beta: float,
    config: KernelConfig | None = None,
) -> torch.Tensor:
    """As ``reference.symmetric_product``, from half of the multiplications; the upper triangle mirrors the lower one.

    Sizes are padded to multiples of 16 first: rows that are aligned to nothing cost more registers than there are.
    With a ``config`` that tiling runs, else the fastest.
    """
    matrices, rows, columns = A_EMK.shape
    M, K = _round_up(rows), _round_up(columns)
    out = torch.empty((matrices, M, M), dtype=A_EMK.dtype, device=A_EMK.device)
    if out.numel():
        A, B = _aligned(A_EMK, M, K), _aligned(B_EMK, M, K)
        addend = out if addend_EMM is None else _aligned(addend_EMM, M, M)
        kernel: Any = _symmetric_product_kernel if config is None else _symmetric_product_kernel.kernel
        given: dict[str, Any] = (
            {}
            if config is None
            else {**config.constants, "num_warps": config.num_warps, "num_stages": config.num_stages}
        )
        kernel[lambda constants: (matrices * _triangle(triton.cdiv(M, constants["BLOCK"])),)](
            A, B, addend, out, M, K, *A.stride()[:2], *B.stride()[:2], *addend.stride()[:2], alpha, beta,
            HAS_ADDEND=addend_EMM is not None, **given,
        )
    return out if rows == M else out[:, :rows, :rows].contiguous()


def orthogonalize(
    G_EMN: torch.Tensor, coefficients: list[float], eps: float, form: str, dtype: torch.dtype
) -> torch.Tensor:
    """As ``reference.orthogonalize``; zeros around a matrix stay zeros, so it is padded once and cut once."""
    rows, columns = G_EMN.shape[1:]
    M, N = _round_up(rows), _round_up(columns)
    padded = G_EMN if (rows, columns) == (M, N) else _aligned(G_EMN, M, N)
    result = iteration.orthogonalize(padded, coefficients, eps, form, dtype, symmetric_product)
    return result if padded is G_EMN else result[:, :rows, :columns].contiguous()


def compile_targets() -> Iterator[CompileTarget]:
    """Every tiling, with and without an addend; rows are always aligned."""
    m, k = 4096, 8192
    for dtype in DTYPES:
        for config in CONFIGS:
            for has_addend in (False, True):
                name, kind = str(dtype).removeprefix("torch."), "with addend" if has_addend else "product"
                yield CompileTarget(
                    _symmetric_product_kernel.kernel, f"{config.name} {name} {kind}",
                    (dtype, dtype, dtype, dtype, m, k, m * k, k, m * k, k, m * m, m, 1.5, -2.5),
                    {"HAS_ADDEND": has_addend, **config.constants},
                    config.num_warps, config.num_stages, ("HGMMA",),
                )
