"""The low-rank branch with an annealed activation in Triton: thin products, the blend in registers, no atomics.

Shapes: M rows (the leading dimensions flattened), K in features, N out features, R rank, C either of K and N.

Four kernels serve both passes. ``_down`` multiplies rows by a thin matrix (x A', grad B), ``_up`` comes back (phi B',
dz A), ``_outer`` sums outer products over rows into shares (dA, dB), and ``_add_shares`` adds these in a fixed order.
phi exists in registers alone. Tilings depend on shapes and dtypes, never on the device or a timing, so that the order
of every sum is the same wherever the same binary runs.
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
SHARES = 32  # at most: programs that divide the rows of one tile of dA or dB
IDENTITY = "identity"


class Tile(NamedTuple):
    """Rows (of M), columns (of K or N), the rank's block, warps per program, pipelining depth."""

    rows: int
    columns: int
    rank: int
    num_warps: int
    num_stages: int


def tile_for(rank: int, dtype: torch.dtype) -> Tile:
    """The tiling for one rank: the whole of it up to 64. float32 is multiplied exactly, without tensor cores."""
    block = min(64, max(16, triton.next_power_of_2(rank)))
    if dtype == torch.float32:
        return Tile(32, 32, min(32, block), 4, 2)
    return Tile(64, 64, block, 8 if block == 64 else 4, 3)  # with 4 warps and odd rows, 64 x 64 x 64 spills


@triton.jit
def _activated(z, ACTIVATION: tl.constexpr):
    """sigma(z) and sigma'(z)."""
    if ACTIVATION == "relu":
        bent = tl.maximum(z, 0.0)
        slope = (z > 0).to(tl.float32)
    elif ACTIVATION == "silu":
        gate = tl.sigmoid(z)
        bent = z * gate
        slope = gate * (1 + z - bent)
    elif ACTIVATION == "gelu":
        below = 0.5 * (1 + tl.erf(z * 0.7071067811865476))
        bent = z * below
        slope = below + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
    elif ACTIVATION == "tanh":
        bent = 2 * tl.sigmoid(2 * z) - 1  # libdevice's tanh does not interpret
        slope = 1 - bent * bent
    else:
        bent = z
        slope = z * 0 + 1
    return bent, slope


@triton.jit
def _blended(z, beta, ACTIVATION: tl.constexpr):
    """phi(z); z itself where beta is 0."""
    if ACTIVATION == "identity":
        return z
    if ACTIVATION == "relu":
        return tl.where(z > 0, z, (1 - beta) * z)
    bent, _ = _activated(z, ACTIVATION)
    return tl.where(beta == 0, z, beta * bent + (1 - beta) * z)


@triton.jit
def _down_kernel(
    x_ptr, thin_ptr, z_ptr, beta_ptr, out_ptr, share_ptr,
    M, C, R, x_stride, thin_stride_r, thin_stride_c, scaling,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr, ACTIVATION: tl.constexpr, BACKWARD: tl.constexpr,
):
    """out (M, R) = x (M, C) thin (R, C)'; backward, scaling times that, times phi'(z), and its share of dbeta."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # int64: rows * stride passes 2^31
    ranks = tl.program_id(1) * RANK + tl.arange(0, RANK)
    in_rows, in_ranks = rows < M, ranks < R
    columns = tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(0, C, COLUMNS):
        in_columns = start + columns < C
        x = tl.load(
            x_ptr + rows[:, None] * x_stride + (start + columns)[None, :],
            mask=in_rows[:, None] & in_columns[None, :], other=0.0,
        )
        thin = tl.load(
            thin_ptr + (start + columns).to(tl.int64)[:, None] * thin_stride_c + ranks[None, :] * thin_stride_r,
            mask=in_columns[:, None] & in_ranks[None, :], other=0.0,
        )
        total = tl.dot(x, thin, total, input_precision="ieee")
    mask = in_rows[:, None] & in_ranks[None, :]
    places = rows[:, None] * R + ranks[None, :]
    if BACKWARD:
        beta = tl.load(beta_ptr).to(tl.float32)
        z = tl.load(z_ptr + places, mask=mask, other=0.0).to(tl.float32)
        bent, slope = _activated(z, ACTIVATION)
        total *= scaling
        share = tl.sum(tl.sum(total * (bent - z), axis=1), axis=0)
        tl.store(share_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), share)
        total *= tl.where(beta == 0, 1.0, beta * slope + (1 - beta))
    tl.store(out_ptr + places, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _up_kernel(
    z_ptr, thin_ptr, beta_ptr, addend_ptr, out_ptr,
    M, C, R, addend_stride, thin_stride_r, thin_stride_c, scaling,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr, ACTIVATION: tl.constexpr, HAS_ADDEND: tl.constexpr,
):
    """out (M, C) = addend + scaling phi(z) (M, R) thin (R, C)."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_rows, in_columns = rows < M, columns < C
    ranks = tl.arange(0, RANK)
    beta = tl.load(beta_ptr).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, R, RANK):
        in_ranks = start + ranks < R
        z = tl.load(
            z_ptr + rows[:, None] * R + (start + ranks)[None, :], mask=in_rows[:, None] & in_ranks[None, :], other=0.0
        )
        thin = tl.load(
            thin_ptr + columns.to(tl.int64)[None, :] * thin_stride_c + (start + ranks)[:, None] * thin_stride_r,
            mask=in_ranks[:, None] & in_columns[None, :], other=0.0,
        )
        phi = _blended(z.to(tl.float32), beta, ACTIVATION).to(z.dtype)
        total = tl.dot(phi, thin, total, input_precision="ieee")
    total *= scaling
    mask = in_rows[:, None] & in_columns[None, :]
    if HAS_ADDEND:
        places = addend_ptr + rows[:, None] * addend_stride + columns[None, :]
        total += tl.load(places, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows[:, None] * C + columns[None, :], total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _outer_kernel(
    wide_ptr, z_ptr, beta_ptr, share_ptr,
    M, C, R, rows_per_program, wide_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr, ACTIVATION: tl.constexpr,
):
    """This program's share of wide (M, C)' phi(z) (M, R), over rows_per_program rows, into (shares, C, R)."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.program_id(2) * RANK + tl.arange(0, RANK)
    in_columns, in_ranks = columns < C, ranks < R
    beta = tl.load(beta_ptr).to(tl.float32)
    total = tl.zeros((COLUMNS, RANK), tl.float32)
    for offset in range(0, rows_per_program, ROWS):
        rows = program * rows_per_program + offset + tl.arange(0, ROWS)
        in_rows = rows < M
        wide = tl.load(
            wide_ptr + rows[:, None] * wide_stride + columns[None, :],
            mask=in_rows[:, None] & in_columns[None, :], other=0.0,
        )
        z = tl.load(z_ptr + rows[:, None] * R + ranks[None, :], mask=in_rows[:, None] & in_ranks[None, :], other=0.0)
        phi = _blended(z.to(tl.float32), beta, ACTIVATION).to(z.dtype)
        total = tl.dot(tl.trans(wide), phi, total, input_precision="ieee")
    places = share_ptr + (program * C + columns)[:, None] * R + ranks[None, :]
    tl.store(places, total, mask=in_columns[:, None] & in_ranks[None, :])


@triton.jit
def _add_shares_kernel(
    share_ptr, out_ptr, shares, C, R, out_stride_c, out_stride_r, scaling, COLUMNS: tl.constexpr, RANK: tl.constexpr
):
    """out[c, r] = scaling times the sum of the shares (shares, C, R), in their order."""
    columns = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.program_id(1) * RANK + tl.arange(0, RANK)
    mask = (columns < C)[:, None] & (ranks < R)[None, :]
    total = tl.zeros((COLUMNS, RANK), tl.float32)
    for share in range(shares):
        total += tl.load(share_ptr + (share * C + columns)[:, None] * R + ranks[None, :], mask=mask, other=0.0)
    places = out_ptr + columns[:, None] * out_stride_c + ranks[None, :] * out_stride_r
    tl.store(places, (total * scaling).to(out_ptr.dtype.element_ty), mask=mask)


def supports(function: str, *args: Any) -> Support:
    """float32, bfloat16 or float16, all on one device on which Triton runs; any sizes, any strides."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    if tensors[0].dtype not in DTYPES:
        return Support(False, f"computes float32, bfloat16 and float16, got {tensors[0].dtype}")
    return triton_can_run(*tensors)


def _as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """(M, C) with columns side by side: a view where the strides allow one, else a copy."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _down(
    wide: torch.Tensor, thin_RC: torch.Tensor, tile: Tile, out: torch.Tensor, *,
    z: torch.Tensor | None = None, beta: torch.Tensor | None = None, activation: str = IDENTITY, scaling: float = 1.0,
) -> torch.Tensor | None:
    """wide thin' into out; backward with z and beta, and then the shares of dbeta come back."""
    rank = thin_RC.shape[0]
    grid = (triton.cdiv(wide.shape[0], tile.rows), triton.cdiv(rank, tile.rank))
    backward = z is not None
    share = torch.empty(grid, dtype=torch.float32, device=wide.device) if backward else None
    _down_kernel[grid](
        wide, thin_RC, z if backward else wide, beta if backward else wide, out, share if backward else out,
        *wide.shape, rank, wide.stride(0), *thin_RC.stride(), scaling,
        ROWS=tile.rows, COLUMNS=tile.columns, RANK=tile.rank, ACTIVATION=activation, BACKWARD=backward,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )
    return share


def _up(
    z: torch.Tensor, thin_RC: torch.Tensor, beta: torch.Tensor, tile: Tile, out: torch.Tensor, *,
    addend: torch.Tensor | None = None, activation: str = IDENTITY, scaling: float = 1.0,
) -> None:
    """Addend + scaling phi(z) thin into out."""
    rank, columns = thin_RC.shape
    grid = (triton.cdiv(z.shape[0], tile.rows), triton.cdiv(columns, tile.columns))
    _up_kernel[grid](
        z, thin_RC, beta, out if addend is None else addend, out,
        z.shape[0], columns, rank, 0 if addend is None else addend.stride(0), *thin_RC.stride(), scaling,
        ROWS=tile.rows, COLUMNS=tile.columns, RANK=tile.rank, ACTIVATION=activation, HAS_ADDEND=addend is not None,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )


def _outer(
    wide: torch.Tensor, z: torch.Tensor, beta: torch.Tensor, tile: Tile, out_CR: torch.Tensor, *,
    activation: str = IDENTITY, scaling: float = 1.0,
) -> None:
    """Scaling wide' phi(z) into out, (C, R) of any strides."""
    (rows, columns), rank = wide.shape, z.shape[1]
    rows_per_program = triton.cdiv(triton.cdiv(rows, SHARES), tile.rows) * tile.rows
    shares = triton.cdiv(rows, rows_per_program)
    share = torch.empty((shares, columns, rank), dtype=torch.float32, device=wide.device)
    blocks = (triton.cdiv(columns, tile.columns), triton.cdiv(rank, tile.rank))
    _outer_kernel[(shares, *blocks)](
        wide, z, beta, share, rows, columns, rank, rows_per_program, wide.stride(0),
        ROWS=tile.rows, COLUMNS=tile.columns, RANK=tile.rank, ACTIVATION=activation,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )
    _add_shares_kernel[blocks](
        share, out_CR, shares, columns, rank, *out_CR.stride(), scaling,
        COLUMNS=tile.columns, RANK=tile.rank, num_warps=4,
    )


def forward(
    x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, beta: torch.Tensor,
    activation: str, scaling: float, addend: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``reference.forward``."""
    rank, columns = A.shape[0], B.shape[0]
    y = torch.empty((*x.shape[:-1], columns), dtype=x.dtype, device=x.device)
    z = torch.empty((*x.shape[:-1], rank), dtype=x.dtype, device=x.device)
    if y.numel():
        tile = tile_for(rank, x.dtype)
        inner = z.view(-1, rank)
        _down(_as_rows(x), A, tile, inner)
        rows = None if addend is None else _as_rows(addend)
        _up(inner, B.t(), beta, tile, y, addend=rows, activation=activation, scaling=scaling)
    return y, z


def backward(
    grad: torch.Tensor, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, beta: torch.Tensor, z: torch.Tensor,
    activation: str, scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``reference.backward``; every sum has a fixed order, so two runs have the same bits."""
    dx, dA, dB = (torch.empty(tensor.shape, dtype=tensor.dtype, device=x.device) for tensor in (x, A, B))
    if not grad.numel():
        return dx.zero_(), dA.zero_(), dB.zero_(), torch.zeros_like(beta)
    rank = A.shape[0]
    tile = tile_for(rank, x.dtype)
    grads, rows, inner = _as_rows(grad), _as_rows(x), z.reshape(-1, rank)
    dz = torch.empty_like(inner)
    shares = _down(grads, B.t(), tile, dz, z=inner, beta=beta, activation=activation, scaling=scaling)
    _up(dz, A, beta, tile, dx)
    _outer(rows, dz, beta, tile, dA.t())
    _outer(grads, inner, beta, tile, dB, activation=activation, scaling=scaling)
    assert shares is not None
    return dx, dA, dB, shares.sum().to(beta.dtype)


def compile_targets() -> Iterator[CompileTarget]:
    """Every kernel at every rank's tiling, for each activation once, with aligned rows and with rows of any length."""
    single, half = torch.float32, torch.bfloat16
    for dtype, rank, activation, aligned in (
        *((half, rank, "relu", aligned) for rank in (16, 32, 64) for aligned in (True, False)),
        *((half, 32, activation, True) for activation in ("silu", "gelu", "tanh")),
        (torch.float16, 32, "relu", True), (single, 16, "silu", True), (single, 32, "gelu", False),
    ):
        tile = tile_for(rank, dtype)
        rank = rank if aligned else rank - 1
        width = 2048 if aligned else 2047
        name = str(dtype).removeprefix("torch.")
        config = f"{tile.rows}x{tile.columns}x{tile.rank} {name} {activation} {'aligned' if aligned else 'odd'}"
        constants = {"ROWS": tile.rows, "COLUMNS": tile.columns, "RANK": tile.rank}
        launch = (tile.num_warps, tile.num_stages, () if dtype == single else ("HGMMA",))
        for backward in (False, True):
            thin = (width, 1) if not backward else (1, rank)  # A lies along K, B along R
            yield CompileTarget(
                _down_kernel, f"{config} {'backward' if backward else 'forward'}",
                (dtype, dtype, dtype, single, dtype, single, 4096, width, rank, width, *thin, 2.0),
                constants | {"ACTIVATION": activation if backward else IDENTITY, "BACKWARD": backward}, *launch,
            )
        for has_addend in (True, False):
            thin = (1, rank) if has_addend else (width, 1)
            yield CompileTarget(
                _up_kernel, f"{config} {'addend' if has_addend else 'identity'}",
                (dtype, dtype, single, dtype, dtype, 4096, width, rank, width, *thin, 2.0),
                constants | {"ACTIVATION": activation if has_addend else IDENTITY, "HAS_ADDEND": has_addend}, *launch,
            )
        yield CompileTarget(
            _outer_kernel, config, (dtype, dtype, single, single, 4096, width, rank, 128, width),
            constants | {"ACTIVATION": activation}, *launch,
        )
        if activation == "relu":
            yield CompileTarget(
                _add_shares_kernel, config, (single, dtype, 32, width, rank, 1, width, 2.0),
                {"COLUMNS": tile.columns, "RANK": tile.rank},
            )
