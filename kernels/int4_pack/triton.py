"""Int4 packing in Triton: pure data movement, each byte read and written once.

Shapes: N rows (the leading dimensions flattened), K values and P = ceil(K / 2) bytes a row. A program owns a tile of
    ROWS rows by
BYTES packed bytes, that is 2 * BYTES values; values are loaded and stored as they lie, so that neighbours share a
transaction, and paired in registers (``reshape`` + ``split``, ``interleave``). The result is exact, so any config gives
the same bits and the tile may be autotuned.
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
from .reference import out_of_range

CONFIGS = (
    KernelConfig("1x1024", {"ROWS": 1, "BYTES": 1024}, num_warps=4),
    KernelConfig("1x4096", {"ROWS": 1, "BYTES": 4096}, num_warps=8),
    KernelConfig("8x256", {"ROWS": 8, "BYTES": 256}, num_warps=4),
    KernelConfig("64x32", {"ROWS": 64, "BYTES": 32}, num_warps=4),
)


@tuned(CONFIGS, reference="8x256", key=("P",))
@triton.jit
def _pack_kernel(
    values_ptr, packed_ptr, alarm_ptr, N, K, P, stride_n, stride_k, ROWS: tl.constexpr, BYTES: tl.constexpr
):
    """Packs a tile; sets the alarm, a single int32 of 0, to 1 if a value is no int4."""
    tiles = tl.cdiv(P, BYTES)
    rows = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # int64: rows * stride passes 2^31
    first = (tl.program_id(0) % tiles).to(tl.int64) * BYTES
    columns = 2 * first + tl.arange(0, 2 * BYTES)
    in_rows = (rows < N)[:, None]
    mask = in_rows & (columns < K)[None, :]
    values = tl.load(values_ptr + rows[:, None] * stride_n + columns[None, :] * stride_k, mask=mask, other=0)
    outside = (values < -8) | (values > 7)
    tl.atomic_max(alarm_ptr, 1, mask=tl.max(tl.max(outside.to(tl.int32), axis=1), axis=0) > 0)
    low, high = tl.split(tl.reshape(values, (ROWS, BYTES, 2)))
    bytes_ = first + tl.arange(0, BYTES)
    mask = in_rows & (bytes_ < P)[None, :]
    tl.store(packed_ptr + rows[:, None] * P + bytes_[None, :], (low & 15) | (high << 4), mask=mask)


@tuned(CONFIGS, reference="8x256", key=("P",))
@triton.jit
def _unpack_kernel(packed_ptr, values_ptr, N, K, P, stride_n, stride_p, ROWS: tl.constexpr, BYTES: tl.constexpr):
    tiles = tl.cdiv(P, BYTES)
    rows = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = (tl.program_id(0) % tiles).to(tl.int64) * BYTES
    bytes_ = first + tl.arange(0, BYTES)
    in_rows = (rows < N)[:, None]
    mask = in_rows & (bytes_ < P)[None, :]
    packed = tl.load(packed_ptr + rows[:, None] * stride_n + bytes_[None, :] * stride_p, mask=mask, other=0)
    values = tl.interleave((packed << 4) >> 4, packed >> 4)  # int8: the shift right keeps the sign
    columns = 2 * first + tl.arange(0, 2 * BYTES)
    tl.store(values_ptr + rows[:, None] * K + columns[None, :], values, mask=in_rows & (columns < K)[None, :])


def supports(function: str, tensor: torch.Tensor, *length: Any) -> Support:
    """Any shape and strides, on a device on which Triton runs."""
    return triton_can_run(tensor)


def _grid(rows: int, bytes_per_row: int) -> Any:
    """One dimension only: the second one of CUDA's grid ends at 65,535."""
    return lambda constants: (triton.cdiv(rows, constants["ROWS"]) * triton.cdiv(bytes_per_row, constants["BYTES"]),)


def pack(values: torch.Tensor) -> torch.Tensor:
    """As ``reference.pack``; the range check rides along in the kernel and costs one synchronisation with the host."""
    length = values.shape[-1]
    bytes_per_row = -(-length // 2)
    packed = torch.empty((*values.shape[:-1], bytes_per_row), dtype=torch.uint8, device=values.device)
    if packed.numel():
        rows = values.reshape(-1, length)
        alarm = torch.zeros(1, dtype=torch.int32, device=values.device)
        _pack_kernel[_grid(rows.shape[0], bytes_per_row)](
            rows, packed.view(torch.int8), alarm, rows.shape[0], length, bytes_per_row, *rows.stride()
        )
        if alarm.item():
            raise out_of_range(values)
    return packed


def unpack(packed: torch.Tensor, length: int) -> torch.Tensor:
    """As ``reference.unpack``."""
    bytes_per_row = packed.shape[-1]
    values = torch.empty((*packed.shape[:-1], length), dtype=torch.int8, device=packed.device)
    if values.numel():
        rows = packed.view(torch.int8).reshape(-1, bytes_per_row)
        _unpack_kernel[_grid(rows.shape[0], bytes_per_row)](
            rows, values, rows.shape[0], length, bytes_per_row, *rows.stride()
        )
    return values


def compile_targets() -> Iterator[CompileTarget]:
    """Both kernels at every config, with 16-byte aligned rows, and with odd rows whose strides divide by nothing."""
    byte = torch.int8
    for config in CONFIGS:
        for label, length, row_stride, step, sass in (
            ("aligned", 8192, 8192, 1, ("LDG.E", "STG.E")),
            ("strided", 8191, 16421, 3, ()),
        ):
            half = -(-length // 2)
            yield CompileTarget(
                _pack_kernel.kernel, f"{config.name} {label}",
                (byte, byte, torch.int32, 4096, length, half, row_stride, step),
                config.constants, config.num_warps, config.num_stages, sass,
            )
            packed_stride = row_stride // 2 if step == 1 else row_stride
            yield CompileTarget(
                _unpack_kernel.kernel, f"{config.name} {label}",
                (byte, byte, 4096, length, half, packed_stride, step),
                config.constants, config.num_warps, config.num_stages, sass,
            )
