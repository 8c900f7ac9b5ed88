"""x w' of int8 matrices, exact, by the fastest way that the device is proven to do right."""

from __future__ import annotations

import functools

import torch

EXACT_COLUMNS = 2**24 // 128**2  # so many products of int8 have a sum that float32 holds, whatever the order
ROWS_AT_ONCE = 512  # a stripe of the weight in float32 stays in cache, and the allocator hands the same pages out again


def integer_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return x w' exactly.

    On a CPU with VNNI this is ``torch._int_mm``, provided that it passes a probe once per process. On other CPUs it has
    no instructions to use and takes up to 40 times as long as a float32 product, which is exact too over blocks of
    1,024 columns. Elsewhere the product is made in float64, which is exact because every sum stays below 2^53.

    Args:
        x: (M, K) int8; any strides.
        weight: (N, K) int8; any strides. The true sums fit int32.

    Returns:
        (M, N) int32.
    """
    if x.device.type != "cpu":
        return (x.double() @ weight.double().t()).to(torch.int32)
    if not x.shape[0] or not x.shape[1] or not weight.shape[0]:
        return torch.zeros(x.shape[0], weight.shape[0], dtype=torch.int32)
    if x.shape[1] > 1 and has_int8_instructions():  # torch 2.13 leaves K = 1 unwritten
        # copies cost little; torch takes 15 times as long where rows lie apart, and 6,000 times where columns do
        return torch._int_mm(x.contiguous(), weight.contiguous().t())
    return _in_float32(x, weight)


def _in_float32(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide, columns = x.float(), x.shape[1]
    if columns <= EXACT_COLUMNS and weight.shape[0] <= ROWS_AT_ONCE:
        return (wide @ weight.float().t()).to(torch.int32)
    result = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.int32)
    for start in range(0, weight.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        for block, part in zip(wide.split(EXACT_COLUMNS, 1), weight[rows].split(EXACT_COLUMNS, 1), strict=True):
            result[:, rows] += (block @ part.float().t()).to(torch.int32)
    return result


@torch.compiler.assume_constant_result
def has_int8_instructions() -> bool:
    """Whether ``torch._int_mm`` is fast here and exact: asked once per process."""
    return _is_exact()


@functools.cache
def _is_exact() -> bool:
    """Compare with int64 on drawn operands and on those whose partial sums are as large as int8 allows."""
    if not torch.cpu._is_vnni_supported():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-128, 128, (32, 520), generator=generator, dtype=torch.int8) for _ in range(2))
    x[:4], weight[:4] = 127, 127
    x[4:8], weight[4:8] = -128, -128
    return torch.equal(torch._int_mm(x, weight.t()).long(), x.long() @ weight.long().t())
