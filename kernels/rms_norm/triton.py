"""RMS normalisation in Triton: a tile of rows per program, float32 accumulation, no atomics.

Shapes: N rows (the leading dimensions flattened), D columns. A row of up to ``WHOLE_ROW`` columns is held in registers
    and read once;
a longer one is walked in blocks and read twice. The tiling depends on (N, D) alone, never on the device or on a timing,
so that the order of every sum, and with it every bit, is the same wherever the same binary runs.
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

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WHOLE_ROW = 8192  # columns that one program holds in registers: 16 float32 a thread over 16 warps
LONG_BLOCK = 4096  # columns at a time where the row is longer
PARTIAL_SUMS = 256  # programs that share the rows in the backward pass; a constant, not the number of multiprocessors


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
def _forward_kernel(
    x_ptr, weight_ptr, y_ptr, rstd_ptr,
    N, D, stride_n, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # int64: rows * stride passes 2^31
    in_rows = rows < N
    x_rows = x_ptr + rows[:, None] * stride_n
    y_rows = y_ptr + rows[:, None] * D
    if WHOLE:
        columns = tl.arange(0, COLUMNS)
        mask = in_rows[:, None] & (columns < D)[None, :]
        x = tl.load(x_rows + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)
        rstd = tl.rsqrt(tl.sum(x * x, axis=1) / D + eps)
        y = x * rstd[:, None] * weight[None, :]
        tl.store(y_rows + columns[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)
    else:
        squares = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, D, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            mask = in_rows[:, None] & (columns < D)[None, :]
            x = tl.load(x_rows + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            squares += x * x
        rstd = tl.rsqrt(tl.sum(squares, axis=1) / D + eps)
        for start in range(0, D, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            mask = in_rows[:, None] & (columns < D)[None, :]
            x = tl.load(x_rows + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            weight = tl.load(weight_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)
            y = x * rstd[:, None] * weight[None, :]
            tl.store(y_rows + columns[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(rstd_ptr + rows, rstd, mask=in_rows)


@triton.jit
def _backward_whole_kernel(
    grad_ptr, x_ptr, weight_ptr, rstd_ptr, dx_ptr, partial_ptr,
    N, D, rows_per_program, grad_stride_n, x_stride_n,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """dx for rows_per_program rows, and their sum of grad * xhat into this program's own row of the partial sums."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    in_columns = columns < D
    weight = tl.load(weight_ptr + columns, mask=in_columns, other=0.0).to(tl.float32)
    dweight = tl.zeros((ROWS, COLUMNS), tl.float32)
    for offset in range(0, rows_per_program, ROWS):
        rows = program * rows_per_program + offset + tl.arange(0, ROWS)
        in_rows = rows < N
        mask = in_rows[:, None] & in_columns[None, :]
        x = tl.load(x_ptr + rows[:, None] * x_stride_n + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + rows[:, None] * grad_stride_n + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + rows, mask=in_rows, other=0.0)
        normalised = x * rstd[:, None]
        scaled = grad * weight[None, :]
        projection = tl.sum(scaled * normalised, axis=1) / D
        dx = rstd[:, None] * (scaled - normalised * projection[:, None])
        tl.store(dx_ptr + rows[:, None] * D + columns[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)
        dweight += grad * normalised
    tl.store(partial_ptr + program * D + columns, tl.sum(dweight, axis=0), mask=in_columns)


@triton.jit
def _backward_long_dx_kernel(
    grad_ptr, x_ptr, weight_ptr, rstd_ptr, dx_ptr,
    D, grad_stride_n, x_stride_n,
    COLUMNS: tl.constexpr,
):
    """dx of one row that is too long for registers: one walk for the projection, one for the result."""
    row = tl.program_id(0).to(tl.int64)
    x_row, grad_row = x_ptr + row * x_stride_n, grad_ptr + row * grad_stride_n
    rstd = tl.load(rstd_ptr + row)
    products = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, D, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        mask = columns < D
        x = tl.load(x_row + columns, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_row + columns, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
        products += grad * weight * (x * rstd)
    projection = tl.sum(products, axis=0) / D
    for start in range(0, D, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        mask = columns < D
        x = tl.load(x_row + columns, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_row + columns, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
        dx = rstd * (grad * weight - x * rstd * projection)
        tl.store(dx_ptr + row * D + columns, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_long_partial_kernel(
    grad_ptr, x_ptr, rstd_ptr, partial_ptr,
    N, D, rows_per_program, grad_stride_n, x_stride_n,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """The sum of grad * xhat over rows_per_program rows, for one block of columns."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = columns < D
    dweight = tl.zeros((ROWS, COLUMNS), tl.float32)
    for offset in range(0, rows_per_program, ROWS):
        rows = program * rows_per_program + offset + tl.arange(0, ROWS)
        in_rows = rows < N
        mask = in_rows[:, None] & in_columns[None, :]
        x = tl.load(x_ptr + rows[:, None] * x_stride_n + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + rows[:, None] * grad_stride_n + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + rows, mask=in_rows, other=0.0)
        dweight += grad * (x * rstd[:, None])
    tl.store(partial_ptr + program * D + columns, tl.sum(dweight, axis=0), mask=in_columns)


@triton.jit
def _sum_partials_kernel(partial_ptr, dweight_ptr, programs, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The second stage: adds the partial sums of each column in the order of the programs."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = columns < D
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, programs, ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < programs)[:, None] & in_columns[None, :]
        total += tl.load(partial_ptr + rows[:, None].to(tl.int64) * D + columns[None, :], mask=mask, other=0.0)
    tl.store(dweight_ptr + columns, tl.sum(total, axis=0).to(dweight_ptr.dtype.element_ty), mask=in_columns)


_SUM_TILE = {"ROWS": 32, "COLUMNS": 64}


def supports(function: str, *args: Any) -> Support:
    """float32, bfloat16 or float16 tensors, all on one device on which Triton runs; any D, any strides."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            return Support(False, f"computes float32, bfloat16 and float16, got {tensor.dtype}")
    return triton_can_run(*tensors)


def _as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """(N, D) with columns side by side: a view where the strides allow one, else a copy.

    The copy costs less than a kernel that reads one element per transaction.
    """
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``reference.forward``."""
    columns = x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    rows_of_x = _as_rows(x)
    rows, tile = rows_of_x.shape[0], tile_for(columns)
    if rows:
        _forward_kernel[(triton.cdiv(rows, tile.rows),)](
            rows_of_x, weight.contiguous(), y, rstd, rows, columns, rows_of_x.stride(0), eps,
            ROWS=tile.rows, COLUMNS=tile.columns, WHOLE=columns <= WHOLE_ROW, num_warps=tile.num_warps,
        )
    return y, rstd


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``reference.backward``; dweight is summed in two fixed stages, so it has the same bits at every run."""
    columns = x.shape[-1]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dweight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    rows_of_x, rows_of_grad, weight = _as_rows(x), _as_rows(grad), weight.contiguous()
    rows, tile = rows_of_x.shape[0], tile_for(columns)
    if not rows:
        return dx, dweight.zero_()
    rows_per_program = triton.cdiv(triton.cdiv(rows, PARTIAL_SUMS), tile.rows) * tile.rows
    programs = triton.cdiv(rows, rows_per_program)
    partial = torch.empty((programs, columns), dtype=torch.float32, device=x.device)
    strides = (rows_of_grad.stride(0), rows_of_x.stride(0))
    if columns <= WHOLE_ROW:
        _backward_whole_kernel[(programs,)](
            rows_of_grad, rows_of_x, weight, rstd, dx, partial, rows, columns, rows_per_program, *strides,
            ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.num_warps,
        )
    else:
        _backward_long_dx_kernel[(rows,)](
            rows_of_grad, rows_of_x, weight, rstd, dx, columns, *strides,
            COLUMNS=tile.columns, num_warps=tile.num_warps,
        )
        _backward_long_partial_kernel[(programs, triton.cdiv(columns, tile.columns))](
            rows_of_grad, rows_of_x, rstd, partial, rows, columns, rows_per_program, *strides,
            ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.num_warps,
        )
    _sum_partials_kernel[(triton.cdiv(columns, _SUM_TILE["COLUMNS"]),)](
        partial, dweight, programs, columns, **_SUM_TILE, num_warps=4
    )
    return dx, dweight


def compile_targets() -> Iterator[CompileTarget]:
    """Every kernel at every tiling, with 16-byte aligned rows and with rows that are aligned to nothing."""
    half, single = torch.bfloat16, torch.float32
    widest = (WHOLE_ROW, single)  # where registers are scarcest
    for columns, dtype in (*((columns, half) for columns in (64, 128, 256, 512, 1024, 2048, 4096, WHOLE_ROW)), widest):
        tile = tile_for(columns)
        constants = {"ROWS": tile.rows, "COLUMNS": tile.columns}
        for label, width, row_stride, sass in (
            ("aligned", columns, columns, ("LDG.E.128",)),
            ("unaligned", columns - 1, 2 * columns + 1, ()),
        ):
            config = f"{tile.rows}x{tile.columns} {str(dtype).removeprefix('torch.')} {label}"
            yield CompileTarget(
                _forward_kernel, config, (dtype, dtype, dtype, single, 4096, width, row_stride, 1e-6),
                constants | {"WHOLE": True}, tile.num_warps, sass=sass,
            )
            yield CompileTarget(
                _backward_whole_kernel, config,
                (dtype, dtype, dtype, single, dtype, single, 4096, width, 16, row_stride, row_stride),
                constants, tile.num_warps, sass=sass,
            )
    tile = tile_for(WHOLE_ROW + 1)
    columns, strides, config = 16384, (16384, 16384), f"{tile.columns} bfloat16 aligned"
    yield CompileTarget(
        _forward_kernel, f"{tile.rows}x{tile.columns} long bfloat16 aligned",
        (half, half, half, single, 4096, columns, columns, 1e-6),
        {"ROWS": tile.rows, "COLUMNS": tile.columns, "WHOLE": False}, tile.num_warps, sass=("LDG.E.128",),
    )
    yield CompileTarget(
        _backward_long_dx_kernel, config, (half, half, half, single, half, columns, *strides),
        {"COLUMNS": tile.columns}, tile.num_warps, sass=("LDG.E.128",),
    )
    yield CompileTarget(
        _backward_long_partial_kernel, config, (half, half, single, single, 4096, columns, 16, *strides),
        {"ROWS": tile.rows, "COLUMNS": tile.columns}, tile.num_warps, sass=("LDG.E.128",),
    )
    yield CompileTarget(
        _sum_partials_kernel, "32x64 aligned", (single, half, 256, 4096), _SUM_TILE, 4, sass=("LDG.E.128",)
    )
