"""x w' of int8 matrices, exact in int32, by the fastest way that the device is proven to do right."""

from __future__ import annotations

import functools

import torch


def integer_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return x w' exactly.

    On a CPU this is ``torch._int_mm``, provided that it passes a probe once per process: the fast path of some CPUs
    without VNNI saturates. Elsewhere it is made in float64, which is exact because every sum stays below 2^53.

    Args:
        x: (M, K) int8; any row stride.
        weight: (N, K) int8; any row stride. The true sums fit int32.

    Returns:
        (M, N) int32.
    """
    if x.device.type != "cpu" or not x.shape[0] or x.shape[1] < 2 or not weight.shape[0] or not cpu_is_exact():
        return (x.double() @ weight.double().t()).to(torch.int32)  # torch 2.13 leaves K = 1 unwritten in _int_mm
    return torch._int_mm(x, weight.t())


@functools.cache
def cpu_is_exact() -> bool:
    """Whether ``torch._int_mm`` is exact here, on drawn operands and on those whose partial sums are the largest."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-128, 128, (32, 520), generator=generator, dtype=torch.int8) for _ in range(2))
    x[:4], weight[:4] = 127, 127
    x[4:8], weight[4:8] = -128, -128
    return torch.equal(torch._int_mm(x, weight.t()).long(), x.long() @ weight.long().t())
