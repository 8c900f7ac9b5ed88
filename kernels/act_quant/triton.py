"""Rounding of activations to int8 in Triton: a tile of rows per program, with RMSNorm and a residual sum before it.

Shapes: M rows (the leading dimensions flattened), K columns. A row of up to ``WHOLE_ROW`` columns is held in registers
and read once; a longer one is walked in blocks: for the norm, for the largest magnitude, for the codes. The tiling
depends on (M, K) alone, so that the same binary gives the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..contract import CompileTarget
from ..selection import Support
from ..tooling.device_support import triton_can_run
from .reference import SMALLEST_SCALE

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WHOLE_ROW = 8192  # columns that one program holds in registers: 16 float32 a thread over 16 warps
LONG_BLOCK = 4096  # columns at a time where the row is longer
_TINY = tl.constexpr(SMALLEST_SCALE)
_LARGEST_FLOAT = tl.constexpr(torch.finfo(torch.float32).max)
_ROUNDER = tl.constexpr(1.5 * 2**23)  # |v| <= 2^22 plus this has no bits behind the point: rounds to nearest even


class Tile(NamedTuple):
    """Rows and columns per program, and the warps that share them."""

    rows: int
    columns: int
    num_warps: int


def tile_for(columns: int) -> Tile:
    """The tiling for rows of ``columns`` elements: about 2,048 elements, or one row if that is longer."""
    block = triton.next_power_of_2(columns) if columns <= WHOLE_ROW else LONG_BLOCK
    block = max(block, 16)
    return Tile(rows=max(1, 2048 // block), columns=block, num_warps=min(16, max(4, block // 512)))


@triton.jit
def _row(x_rows, residual_rows, columns, mask, HAS_RESIDUAL: tl.constexpr):
    """A block of h = x + residual, rounded to x's dtype, in float32."""
    x = tl.load(x_rows + columns[None, :], mask=mask, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_rows + columns[None, :], mask=mask, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
    return x.to(tl.float32)


@triton.jit
def _normalised(h, rstd, weight_ptr, columns, K, HAS_NORM: tl.constexpr):
    if HAS_NORM:
        weight = tl.load(weight_ptr + columns, mask=columns < K, other=0.0).to(tl.float32)
        return h * rstd[:, None] * weight[None, :]
    else:
        return h


@triton.jit
def _largest_and_faults(values):
    """Per row: the largest finite magnitude, and how many values are not finite (a maximum may ignore NaN)."""
    sizes = tl.abs(values)
    finite = sizes <= _LARGEST_FLOAT
    return tl.max(tl.where(finite, sizes, 0.0), axis=1), tl.sum(tl.where(finite, 0, 1), axis=1)


@triton.jit
def _steps(largest, scale_ptr, STATIC: tl.constexpr):
    if STATIC:
        return largest * 0.0 + tl.load(scale_ptr)
    else:
        return tl.maximum(tl.div_rn(largest, largest * 0.0 + 127.0), _TINY)


@triton.jit
def _codes(values, steps, faults):
    finite = tl.abs(values) <= _LARGEST_FLOAT
    quotients = tl.div_rn(tl.where(finite, values, 0.0), tl.broadcast_to(steps[:, None], values.shape))
    rounded = (tl.minimum(tl.maximum(quotients, -127.0), 127.0) + _ROUNDER) - _ROUNDER
    return tl.where((faults == 0)[:, None], rounded, 0.0).to(tl.int8)


@triton.jit
def _kernel(
    x_ptr, residual_ptr, weight_ptr, scale_ptr, codes_ptr, steps_ptr, total_ptr,
    M, K, x_stride, residual_stride, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, STATIC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # int64: rows * stride passes 2^31
    in_rows = rows < M
    x_rows, residual_rows = x_ptr + rows[:, None] * x_stride, residual_ptr
    if HAS_RESIDUAL:
        residual_rows = residual_ptr + rows[:, None] * residual_stride
    rstd = tl.zeros((ROWS,), tl.float32)
    if WHOLE:
        columns = tl.arange(0, COLUMNS)
        mask = in_rows[:, None] & (columns < K)[None, :]
        h = _row(x_rows, residual_rows, columns, mask, HAS_RESIDUAL)
        if HAS_RESIDUAL:
            tl.store(total_ptr + rows[:, None] * K + columns[None, :], h.to(total_ptr.dtype.element_ty), mask=mask)
        if HAS_NORM:
            rstd = tl.rsqrt(tl.sum(h * h, axis=1) / K + eps)
        values = _normalised(h, rstd, weight_ptr, columns, K, HAS_NORM)
        largest, faults = _largest_and_faults(values)
        steps = _steps(largest, scale_ptr, STATIC)
        tl.store(codes_ptr + rows[:, None] * K + columns[None, :], _codes(values, steps, faults), mask=mask)
    else:
        if HAS_NORM:
            squares = tl.zeros((ROWS, COLUMNS), tl.float32)
            for start in range(0, K, COLUMNS):
                columns = start + tl.arange(0, COLUMNS)
                h = _row(x_rows, residual_rows, columns, in_rows[:, None] & (columns < K)[None, :], HAS_RESIDUAL)
                squares += h * h
            rstd = tl.rsqrt(tl.sum(squares, axis=1) / K + eps)
        largest, faults = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.int32)
        for start in range(0, K, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            mask = in_rows[:, None] & (columns < K)[None, :]
            h = _row(x_rows, residual_rows, columns, mask, HAS_RESIDUAL)
            if HAS_RESIDUAL:
                tl.store(total_ptr + rows[:, None] * K + columns[None, :], h.to(total_ptr.dtype.element_ty), mask=mask)
            more, faulty = _largest_and_faults(_normalised(h, rstd, weight_ptr, columns, K, HAS_NORM))
            largest, faults = tl.maximum(largest, more), faults + faulty
        steps = _steps(largest, scale_ptr, STATIC)
        for start in range(0, K, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            mask = in_rows[:, None] & (columns < K)[None, :]
            h = _row(x_rows, residual_rows, columns, mask, HAS_RESIDUAL)
            values = _normalised(h, rstd, weight_ptr, columns, K, HAS_NORM)
            tl.store(codes_ptr + rows[:, None] * K + columns[None, :], _codes(values, steps, faults), mask=mask)
    tl.store(steps_ptr + rows, tl.where(faults == 0, steps, float("nan")), mask=in_rows)


def supports(function: str, *args: Any) -> Support:
    """float32, bfloat16 or float16 tensors, all on one device on which Triton runs; any K, any strides."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            return Support(False, f"computes float32, bfloat16 and float16, got {tensor.dtype}")
    return triton_can_run(*tensors)


def quantize(x: torch.Tensor, scale: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``reference.quantize``, bit for bit."""
    return _launch(x, None, None, 0.0, scale)[:2]


def norm_quantize(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``reference.norm_quantize``, but for the order in which squares are added."""
    return _launch(x, residual, weight.contiguous(), eps, scale)


def _as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """(M, K) with columns side by side: a view where the strides allow one, else a copy."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _launch(x, residual, weight, eps, scale):
    columns = x.shape[-1]
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    steps = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    total = torch.empty(x.shape if residual is not None else (0,), dtype=x.dtype, device=x.device)
    x_rows, residual_rows = _as_rows(x), None if residual is None else _as_rows(residual)
    rows, tile = x_rows.shape[0], tile_for(columns)
    if rows:
        _kernel[(triton.cdiv(rows, tile.rows),)](
            x_rows, residual_rows, weight, scale, codes, steps, total,
            rows, columns, x_rows.stride(0), 0 if residual is None else residual_rows.stride(0), eps,
            HAS_RESIDUAL=residual is not None, HAS_NORM=weight is not None, STATIC=scale is not None,
            ROWS=tile.rows, COLUMNS=tile.columns, WHOLE=columns <= WHOLE_ROW, num_warps=tile.num_warps,
        )
    return codes, steps, total


def compile_targets() -> Iterator[CompileTarget]:
    """Every tiling with the norm and the residual and without, per token; static once; a row aligned to nothing."""
    half, single, byte = torch.bfloat16, torch.float32, torch.int8
    widths = (64, 256, 1024, 2048, 4096, WHOLE_ROW, 2 * WHOLE_ROW)
    variants = [(width, fused, False) for width in widths for fused in (False, True)]
    for columns, fused, static in (*variants, (4096, True, True)):
        tile = tile_for(columns)
        whole = columns <= WHOLE_ROW
        label = ("add norm" if fused else "plain") + (" static" if static else "") + ("" if whole else " long")
        constants = {
            "HAS_RESIDUAL": fused, "HAS_NORM": fused, "STATIC": static,
            "ROWS": tile.rows, "COLUMNS": tile.columns, "WHOLE": whole,
        }
        aligned, unaligned = ("aligned", columns, columns, ("LDG.E",)), ("unaligned", columns - 1, 2 * columns + 1, ())
        for name, width, stride, sass in (aligned, unaligned) if columns == 4096 else (aligned,):
            extra = half if fused else None
            yield CompileTarget(
                _kernel, f"{tile.rows}x{tile.columns} {label} {name}",
                (half, extra, extra, single if static else None, byte, single, half,
                 4096, width, stride, stride if fused else 0, 1e-6),
                constants, tile.num_warps, sass=sass,
            )
