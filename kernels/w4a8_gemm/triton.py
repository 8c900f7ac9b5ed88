"""W4A8 products in Triton: y' = W x' on int8 tensor cores, packed weights widened in registers, one fused epilogue.

Shapes: M tokens, N output channels, K input channels, P packed bytes a row, G groups of ``group_size`` columns, S
shares of K. A program owns BN channels by BM tokens and walks its share of K in steps of HALF packed bytes, that is 2
* HALF columns: the low nibbles meet one half of them, the high nibbles the other. The weight is the left operand,
because that is the one that Hopper takes from registers, and because its 64 rows then never idle at one token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..contract import CompileTarget
from ..selection import Support
from ..tooling.autotune import interpreting
from ..tooling.device_support import triton_can_run

CHANNEL, GROUP, GROUP_INTEGER = (tl.constexpr(mode) for mode in range(3))
INTERPRETED = tl.constexpr(interpreting())  # the interpreter knows no inline PTX
PROGRAMS = 264  # two for each of an H100's 132 multiprocessors; a constant, so that the bits are the same everywhere
SHORTEST_SHARE = 1024  # columns: a share of K is never shorter, or its sums cost more than they save


class Tile(NamedTuple):
    """Channels and tokens a program owns, packed bytes a step, warps, pipelining depth."""

    BN: int
    BM: int
    HALF: int
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        """Its name in the compile gate's table."""
        return f"{self.BN}x{self.BM}x{2 * self.HALF} {self.num_warps}w{self.num_stages}s"


# By the largest M each serves. README, "Tiling", says why.
CHANNEL_TILES = (
    (16, Tile(64, 16, 128, 4, 4)),
    (64, Tile(64, 64, 64, 4, 4)),
    (None, Tile(128, 128, 64, 8, 4)),
)
GROUP_TILES = (
    (16, Tile(64, 16, 64, 4, 4)),
    (64, Tile(64, 64, 64, 4, 4)),
    (None, Tile(128, 128, 64, 8, 3)),
)
SPLIT_UP_TO = 64  # tokens: beyond them a tile's sums are as much traffic as its weights


@triton.jit
def _low(packed):
    """16 times the value in the low nibble, four bytes at an instruction or two."""
    if INTERPRETED:
        return packed << 4
    else:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xF0F0F0F0; }",
            "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4,
        )


@triton.jit
def _high(packed):
    """16 times the value in the high nibble."""
    if INTERPRETED:
        return packed & -16
    else:
        return tl.inline_asm_elementwise(
            "and.b32 $0, $1, 0xF0F0F0F0;", "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4
        )


@triton.jit
def _finish(total, tokens, channels, M, N, x_scale_ptr, x_scale_step, scale_ptr, bias_ptr, y_ptr,
            PER_CHANNEL: tl.constexpr, HAS_BIAS: tl.constexpr):  # fmt: skip
    """The epilogue of a (BN, BM) tile: float32 scales in the order of the reference, bias, one rounding, store."""
    in_tokens, in_channels = tokens < M, channels < N
    if PER_CHANNEL:
        total = total * tl.load(scale_ptr + channels, mask=in_channels, other=0.0)[:, None]
    total = total * tl.load(x_scale_ptr + tokens * x_scale_step, mask=in_tokens, other=0.0)[None, :]
    if HAS_BIAS:
        total = total + tl.load(bias_ptr + channels, mask=in_channels, other=0.0)[:, None]
    at = tokens.to(tl.int64)[None, :] * N + channels[:, None]
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=in_tokens[None, :] & in_channels[:, None])


@triton.jit
def _gemm_kernel(
    x_ptr, packed_ptr, x_scale_ptr, scale_ptr, group_scale_ptr, bias_ptr, y_ptr, share_ptr,
    M, N, K, P, G, group_size, x_stride, x_scale_step, steps_per_share,
    MODE: tl.constexpr, HAS_BIAS: tl.constexpr, SPLIT: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, HALF: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BM)
    tokens = (tl.program_id(0) % tiles_m) * BM + tl.arange(0, BM)  # neighbours share weights, which are what is large
    channels = (tl.program_id(0) // tiles_m) * BN + tl.arange(0, BN)
    in_tokens, in_channels = tokens < M, channels < N
    bytes_ = tl.arange(0, HALF)
    columns = (bytes_ // 32) * 64 + bytes_ % 32  # of the low nibbles, within a step; the high ones are 32 further
    x_rows = x_ptr + tokens.to(tl.int64)[None, :] * x_stride
    packed_rows = packed_ptr + channels.to(tl.int64)[:, None] * P
    acc = tl.zeros((BN, BM), tl.float32 if MODE == GROUP else tl.int32)
    first = tl.program_id(1) * steps_per_share
    for step in range(first, tl.minimum(first + steps_per_share, tl.cdiv(P, HALF))):
        at_bytes, at_low = step * HALF + bytes_, step * (2 * HALF) + columns
        packed = tl.load(packed_rows + at_bytes[None, :], mask=in_channels[:, None] & (at_bytes < P)[None, :], other=0)
        low = tl.load(x_rows + at_low[:, None], mask=(at_low < K)[:, None] & in_tokens[None, :], other=0)
        high = tl.load(x_rows + at_low[:, None] + 32, mask=(at_low + 32 < K)[:, None] & in_tokens[None, :], other=0)
        if MODE == CHANNEL:
            acc = tl.dot(_low(packed), low, acc, out_dtype=tl.int32)
            acc = tl.dot(_high(packed), high, acc, out_dtype=tl.int32)
        else:
            part = tl.dot(_low(packed), low, out_dtype=tl.int32)
            group = step * (2 * HALF) // group_size
            if HALF == 32:  # a group may end between the two halves
                acc = _add_group(acc, part, group_scale_ptr, group, channels, in_channels, N, G, MODE)
                group = (step * (2 * HALF) + 32) // group_size
                part = tl.dot(_high(packed), high, out_dtype=tl.int32)
            else:
                part = tl.dot(_high(packed), high, part, out_dtype=tl.int32)
            acc = _add_group(acc, part, group_scale_ptr, group, channels, in_channels, N, G, MODE)
    if SPLIT:
        at = (tl.program_id(1).to(tl.int64) * M + tokens[None, :]) * N + channels[:, None]
        tl.store(share_ptr + at, acc, mask=in_tokens[None, :] & in_channels[:, None])
    else:
        if MODE == CHANNEL:
            acc = acc >> 4
        _finish(acc.to(tl.float32), tokens, channels, M, N, x_scale_ptr, x_scale_step, scale_ptr, bias_ptr, y_ptr,
                MODE != GROUP, HAS_BIAS)  # fmt: skip


@triton.jit
def _add_group(acc, part, group_scale_ptr, group, channels, in_channels, N, G, MODE: tl.constexpr):
    """acc + scale * part / 16, where the division is exact: part is a sum of multiples of 16."""
    scale = tl.load(group_scale_ptr + group * N + channels, mask=in_channels & (group < G), other=0)
    if MODE == GROUP_INTEGER:
        return acc + (part >> 4) * scale[:, None]
    else:
        return acc + (part >> 4).to(tl.float32) * scale[:, None]


@triton.jit
def _add_shares_kernel(
    share_ptr, x_scale_ptr, scale_ptr, bias_ptr, y_ptr, M, N, shares, x_scale_step,
    MODE: tl.constexpr, HAS_BIAS: tl.constexpr, BN: tl.constexpr,
):
    """Adds the shares of one token in their order, so that every run gives the same bits, then the epilogue."""
    tiles_n = tl.cdiv(N, BN)
    tokens = tl.program_id(0) // tiles_n + tl.arange(0, 1)
    channels = (tl.program_id(0) % tiles_n) * BN + tl.arange(0, BN)
    mask = (channels < N)[:, None] & (tokens < M)[None, :]
    total = tl.zeros((BN, 1), tl.float32 if MODE == GROUP else tl.int32)
    for share in range(shares):
        at = (share * M + tokens.to(tl.int64)[None, :]) * N + channels[:, None]
        total += tl.load(share_ptr + at, mask=mask, other=0)
    if MODE == CHANNEL:
        total = total >> 4
    _finish(total.to(tl.float32), tokens, channels, M, N, x_scale_ptr, x_scale_step, scale_ptr, bias_ptr, y_ptr,
            MODE != GROUP, HAS_BIAS)  # fmt: skip


_SUM_TILE = {"BN": 512}


def tile_for(mode: int, tokens: int, group_size: int) -> Tile:
    """The tile for M tokens: a function of the shape alone."""
    table = CHANNEL_TILES if mode == CHANNEL.value else GROUP_TILES
    tile = next(tile for largest, tile in table if largest is None or tokens <= largest)
    if mode != CHANNEL.value and group_size % (2 * tile.HALF):
        return tile._replace(HALF=32)  # a step must not cross a group
    return tile


def shares_for(tile: Tile, tokens: int, channels: int, columns: int) -> int:
    """How many programs share K: as many as fill the device, each with at least ``SHORTEST_SHARE`` columns."""
    if tokens > SPLIT_UP_TO:
        return 1
    tiles = triton.cdiv(channels, tile.BN) * triton.cdiv(tokens, tile.BM)
    return max(1, min(PROGRAMS // tiles, columns // SHORTEST_SHARE))


def supports(function: str, x: torch.Tensor, x_scale: torch.Tensor, packed: torch.Tensor, *rest: Any) -> Support:
    """Float32 scales on one device on which Triton runs; groups of a multiple of 32, or one group."""
    tensors = [x, x_scale, packed, *(arg for arg in rest if isinstance(arg, torch.Tensor))]
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return Support(False, "scales in float32, got torch.float64")
    group_size = next((arg for arg in rest if isinstance(arg, int)), x.shape[1])
    if group_size % 32 and group_size < x.shape[1]:
        return Support(False, f"takes groups of a multiple of 32 columns, got {group_size}")
    return triton_can_run(*tensors)


def channel(
    x: torch.Tensor, x_scale: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor,
    bias: torch.Tensor | None, out_dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """As ``reference.channel``, bit for bit before the scales."""
    return _launch(CHANNEL.value, x, x_scale, packed, scale.contiguous(), None, x.shape[1], bias, out_dtype)


def group(
    x: torch.Tensor, x_scale: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor,
    group_size: int, bias: torch.Tensor | None, out_dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """As ``reference.group``; one group is one scale per channel."""
    if scale.shape[1] == 1:
        return channel(x, x_scale, packed, scale[:, 0], bias, out_dtype)
    return _launch(GROUP.value, x, x_scale, packed, None, scale, group_size, bias, out_dtype)


def group_integer(
    x: torch.Tensor, x_scale: torch.Tensor, packed: torch.Tensor, integer_scale: torch.Tensor,
    inverse_amplifier: torch.Tensor, group_size: int, bias: torch.Tensor | None, out_dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """As ``reference.group_integer``, bit for bit before the amplifier."""
    amplifier = inverse_amplifier.contiguous()
    step = min(group_size, -(-x.shape[1] // 128) * 128)  # one group: any size from K on is the same
    return _launch(GROUP_INTEGER.value, x, x_scale, packed, amplifier, integer_scale, step, bias, out_dtype)


def _launch(mode, x, x_scale, packed, scale, group_scale, group_size, bias, out_dtype):
    x = x if x.stride(1) == 1 else x.contiguous()
    packed, group_scale = packed.contiguous(), None if group_scale is None else group_scale.t().contiguous()
    bias = None if bias is None else bias.contiguous()
    (M, K), (N, P) = x.shape, packed.shape
    y = torch.empty((M, N), dtype=out_dtype, device=x.device)
    if not y.numel():
        return y
    tile = tile_for(mode, M, group_size)
    steps = triton.cdiv(P, tile.HALF)
    per_share = triton.cdiv(steps, shares_for(tile, M, N, K))
    shares = triton.cdiv(steps, per_share)
    partial = torch.float32 if mode == GROUP.value else torch.int32
    split = torch.empty((shares, M, N), dtype=partial, device=x.device) if shares > 1 else None
    x_scale_step = 0 if x_scale.numel() == 1 else x_scale.stride(0)
    _gemm_kernel[(triton.cdiv(N, tile.BN) * triton.cdiv(M, tile.BM), shares)](
        x, packed.view(torch.int8), x_scale, scale, group_scale, bias, y, split,
        M, N, K, P, 1 if group_scale is None else group_scale.shape[0], group_size,
        x.stride(0), x_scale_step, per_share,
        MODE=mode, HAS_BIAS=bias is not None, SPLIT=split is not None,
        BN=tile.BN, BM=tile.BM, HALF=tile.HALF, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )
    if split is not None:
        _add_shares_kernel[(M * triton.cdiv(N, _SUM_TILE["BN"]),)](
            split, x_scale, scale, bias, y, M, N, shares, x_scale_step,
            MODE=mode, HAS_BIAS=bias is not None, **_SUM_TILE, num_warps=4,
        )
    return y


def compile_targets() -> Iterator[CompileTarget]:
    """Every tile in every mode and both step lengths, whole and split, and one on rows aligned to nothing."""
    byte, single, half = torch.int8, torch.float32, torch.bfloat16
    for mode, label, table in (
        (CHANNEL.value, "channel", CHANNEL_TILES), (GROUP.value, "group", GROUP_TILES),
        (GROUP_INTEGER.value, "integer", GROUP_TILES),
    ):
        partial = single if mode == GROUP.value else torch.int32
        group_scale = {CHANNEL.value: None, GROUP.value: single, GROUP_INTEGER.value: torch.int32}[mode]
        scale = None if mode == GROUP.value else single

        def target(tile: Tile, name: str, split: bool, K: int, stride: int, mode=mode, label=label, partial=partial,
                   group_scale=group_scale, scale=scale) -> CompileTarget:  # fmt: skip
            constants = {"MODE": mode, "HAS_BIAS": True, "SPLIT": split}
            constants |= {"BN": tile.BN, "BM": tile.BM, "HALF": tile.HALF}
            pointers = (byte, byte, single, scale, group_scale, single, half, partial if split else None)
            numbers = (4096, 4096, K, -(-K // 64) * 32, 32, 2 * tile.HALF, stride, 1, 32)
            return CompileTarget(
                _gemm_kernel, f"{label} {tile.name} {name}", (*pointers, *numbers), constants,
                tile.num_warps, tile.num_stages, ("IGMMA",),
            )

        for largest, tile in table:
            for half_step in (tile.HALF,) if mode == CHANNEL.value else (tile.HALF, 32):
                shape = tile._replace(HALF=half_step)
                yield target(shape, "whole", False, 4096, 4096)
                if largest is not None:
                    yield target(shape, "split", True, 4096, 4096)
        if mode == CHANNEL.value:
            yield target(table[0][1], "whole unaligned", False, 4095, 4097)
        yield CompileTarget(
            _add_shares_kernel, f"{label} 512", (partial, single, scale, single, half, 16, 4096, 4, 1),
            {"MODE": mode, "HAS_BIAS": True, **_SUM_TILE}, 4,
        )
