"""The W4A8 products in plain torch: exact integer sums, then float scaling in a stated order.

Shapes: M tokens, N output channels, K input channels, G groups of ``group_size`` columns (the last may be shorter),
P = ceil(K / 64) * 32 packed bytes a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..int4_pack import pack_int4
from .integer_product import integer_product

BLOCK = 64  # columns whose nibbles share 32 bytes: the first half low, the second half high
INT32_MAX = 2**31 - 1
LARGEST_CODE, LARGEST_INT4 = 127, 8
SPREAD_ROWS = 32  # one product with this many rows, mostly zeros, costs less than widening the weight
COLUMNS_AT_ONCE = 512  # int32 partial sums of a stripe this wide stay in cache while the groups pass over it


def packed_bytes(columns: int) -> int:
    """P: bytes in a packed row of ``columns`` values."""
    return -(-columns // BLOCK) * (BLOCK // 2)


def pack(values: torch.Tensor) -> torch.Tensor:
    """Column 64b + j goes to the low nibble of byte 32b + j, column 64b + 32 + j to its high nibble; zeros pad.

    Args:
        values: (N, K) int8 in [-8, 7].

    Returns:
        (N, P) uint8, contiguous.
    """
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % BLOCK))
    halves = padded.unflatten(1, (-1, 2, BLOCK // 2)).transpose(-1, -2)
    return pack_int4(halves.flatten(1))


def unpack(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """The inverse of :func:`pack`.

    Args:
        packed: (N, P) uint8.
        columns: K.

    Returns:
        (N, K) int8 in [-8, 7], contiguous.
    """
    blocks = packed.view(torch.int8).unflatten(1, (-1, BLOCK // 2))
    values = torch.stack(((blocks << 4) >> 4, blocks >> 4), dim=2).flatten(1)[:, :columns]  # a shift keeps the sign
    return values.contiguous()


def channel(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """Y[m, n] = s_w[n] * sum_k x[m, k] q[n, k] * s_x[m] + b[n] (OdysseyLLM, section 2.1).

    The packed nibbles are multiplied in place, as 16 times their value, and the sum is divided by 16, which is exact.
    """
    return _finish(_sixteenfold_product(x, packed).to(scale.dtype).mul_(scale), x_scale, bias, out_dtype)


def group(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    group_size: int,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """Y[m, n] = s_x[m] * sum_c s[n, c] * float(sum of group c) + b[n] (FPTQ, section 2.5), groups in order."""
    total = torch.zeros(x.shape[0], packed.shape[0], dtype=scale.dtype, device=x.device)
    for stripe, index, sums in _group_sums(x, packed, group_size):
        total[:, stripe] += sums.to(scale.dtype).mul_(scale[stripe, index])
    return _finish(total, x_scale, bias, out_dtype)


def group_integer(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    packed: torch.Tensor,
    integer_scale: torch.Tensor,
    inverse_amplifier: torch.Tensor,
    group_size: int,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """Y[m, n] = float(sum_c I[n, c] * sum of group c) / alpha[n] * s_x[m] + b[n] (Integer Scale, section 2.2)."""
    total = torch.zeros(x.shape[0], packed.shape[0], dtype=torch.int32, device=x.device)
    for stripe, index, sums in _group_sums(x, packed, group_size):
        total[:, stripe] += sums.mul_(integer_scale[stripe, index])
    return _finish(total.to(inverse_amplifier.dtype).mul_(inverse_amplifier), x_scale, bias, out_dtype)


def accumulator_bound(packed: torch.Tensor, integer_scale: torch.Tensor, group_size: int, columns: int) -> int:
    """The largest |sum_c I[n, c] sum_k x[m, k] q[n, k]| over rows and all x in [-127, 127], in any order.

    It is 127 * max_n sum_k |I[n, c(k)]| |q[n, k]|, and some x reaches it.
    """
    if not packed.numel():
        return 0
    sizes = unpack(packed, columns).abs().to(torch.int64)
    per_group = torch.stack([part.sum(1) for part in sizes.split(group_size, dim=1)], dim=1)
    return int(LARGEST_CODE * (per_group * integer_scale.to(torch.int64).abs()).sum(1).max())


def _group_sums(x: torch.Tensor, packed: torch.Tensor, group_size: int) -> Iterator[tuple[slice, int, torch.Tensor]]:
    """Yields (stripe of output channels, group, int32 sums (M, stripe)): every group of a stripe, then the next one."""
    groups = -(-x.shape[1] // group_size)
    if groups * x.shape[0] <= SPREAD_ROWS:
        for index, sums in enumerate(_sixteenfold_product(_spread(x, group_size, groups), packed).split(x.shape[0])):
            yield slice(None), index, sums
        return
    weight = unpack(packed, x.shape[1])
    for start in range(0, packed.shape[0], COLUMNS_AT_ONCE):
        stripe = slice(start, start + COLUMNS_AT_ONCE)
        rows = weight[stripe].split(group_size, dim=1)
        for index, (part, columns) in enumerate(zip(rows, x.split(group_size, dim=1), strict=True)):
            yield stripe, index, integer_product(columns, part)


def _spread(x: torch.Tensor, group_size: int, groups: int) -> torch.Tensor:
    """(G * M, K): row (c, m) is x[m] in the columns of group c and zero elsewhere, so one product gives all sums."""
    spread = x.new_zeros((groups, *x.shape))
    for index, part in enumerate(x.split(group_size, dim=1)):
        spread[index, :, index * group_size : index * group_size + part.shape[1]] = part
    return spread.flatten(0, 1)


def _sixteenfold_product(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """x q' in int32, made as 16 times that: one pass over the bytes for each half, no sign extension."""
    low, high = _halves(x)
    sums = integer_product(low, (packed << 4).view(torch.int8))
    sums += integer_product(high, (packed & 0xF0).view(torch.int8))
    return sums.bitwise_right_shift_(4)


def _halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns of x that meet the low nibbles and those that meet the high ones, each (M, P)."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % BLOCK)).unflatten(1, (-1, 2, BLOCK // 2))
    return padded[:, :, 0].flatten(1), padded[:, :, 1].flatten(1)


def _finish(
    total: torch.Tensor, x_scale: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype
) -> torch.Tensor:
    result = total.mul_(x_scale.reshape(-1, 1))
    if bias is not None:
        result += bias
    return result.to(torch.float64 if total.dtype == torch.float64 else out_dtype)
