"""The elementwise halves of a Muon or MONA step in Triton: every tensor crosses memory once, arithmetic in float32.

Shapes: N elements. A program owns BLOCK of them. Nothing is summed, so any tiling gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from ..contract import CompileTarget
from ..selection import Support
from ..tooling.device_support import triton_can_run
from .reference import NEAREST

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK, NUM_WARPS = 2048, 4  # 16 elements a thread: 16-byte loads for bfloat16, two of them for float32


@triton.jit
def _blended(g, m, mu, NESTEROV: tl.constexpr, element: tl.constexpr):
    """(U in float32, M' in ``element``); U sees M' as it is stored."""
    stored = (m + (1.0 - mu) * (g - m)).to(element)
    fast = stored.to(tl.float32)
    return (g + mu * (fast - g) if NESTEROV else fast), stored


@triton.jit
def _momentum_kernel(g_ptr, m_ptr, u_ptr, m_new_ptr, N, mu, NESTEROV: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # int64: N passes 2^31
    mask = at < N
    g = tl.load(g_ptr + at, mask=mask, other=0.0).to(tl.float32)
    m = tl.load(m_ptr + at, mask=mask, other=0.0).to(tl.float32)
    u, stored = _blended(g, m, mu, NESTEROV, m_new_ptr.dtype.element_ty)
    tl.store(m_new_ptr + at, stored, mask=mask)
    tl.store(u_ptr + at, u.to(u_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _stochastically_rounded(values, at, seed, offset):
    x = (at + offset).to(tl.uint32) * 0x9E3779B1 + seed.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    noise = (x ^ (x >> 16)) >> 16
    bits = values.to(tl.uint32, bitcast=True) + noise
    return (bits & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def _accelerated_kernel(
    g_ptr, m_ptr, average_ptr, u_ptr, m_new_ptr, average_new_ptr,
    N, mu, coefficient, decay, seed, offset,
    NESTEROV: tl.constexpr, STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < N
    g = tl.load(g_ptr + at, mask=mask, other=0.0).to(tl.float32)
    m = tl.load(m_ptr + at, mask=mask, other=0.0).to(tl.float32)
    slow = tl.load(average_ptr + at, mask=mask, other=0.0).to(tl.float32)
    difference = g - slow
    slow += (1.0 - decay) * difference
    if STOCHASTIC:
        slow = _stochastically_rounded(slow, at, seed, offset)
    tl.store(average_new_ptr + at, slow.to(average_new_ptr.dtype.element_ty), mask=mask)
    u, stored = _blended(g + coefficient * difference, m, mu, NESTEROV, m_new_ptr.dtype.element_ty)
    tl.store(m_new_ptr + at, stored, mask=mask)
    tl.store(u_ptr + at, u.to(u_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _descend_kernel(w_ptr, o_ptr, out_ptr, N, decay, rate, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < N
    w = tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float32)
    o = tl.load(o_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (decay * w - rate * o).to(out_ptr.dtype.element_ty), mask=mask)


def supports(function: str, *args: Any) -> Support:
    """float32, bfloat16 or float16 tensors, all on one device on which Triton runs; any strides."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    for dtype in (*(tensor.dtype for tensor in tensors), *(arg for arg in args if isinstance(arg, torch.dtype))):
        if dtype not in DTYPES:
            return Support(False, f"computes float32, bfloat16 and float16, got {dtype}")
    return triton_can_run(*tensors)


def _launch(
    kernel: Any, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...], *scalars: Any, **constants: Any
) -> tuple[torch.Tensor, ...]:
    """Run an elementwise kernel; an output whose elements do not lie side by side gets a copy afterwards."""
    sources = [tensor.contiguous() for tensor in inputs]
    targets = [
        out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device) for out in outputs
    ]
    count = sources[0].numel()
    if count:
        grid = (triton.cdiv(count, BLOCK),)
        kernel[grid](*sources, *targets, count, *scalars, **constants, BLOCK=BLOCK, num_warps=NUM_WARPS)
    for out, target in zip(outputs, targets, strict=True):
        if target is not out:
            out.copy_(target)
    return outputs


def _fresh(like: torch.Tensor, *dtypes: torch.dtype) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty(like.shape, dtype=dtype, device=like.device) for dtype in dtypes)


def momentum(
    G: torch.Tensor, M: torch.Tensor, mu: float, nesterov: bool, dtype: torch.dtype, out: tuple | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``reference.momentum``."""
    return _launch(_momentum_kernel, (G, M), out or _fresh(G, dtype, M.dtype), mu, NESTEROV=nesterov)


def accelerated_momentum(
    G: torch.Tensor, M: torch.Tensor, average: torch.Tensor, mu: float, nesterov: bool, coefficient: float,
    decay: float, seed: int, offset: int, dtype: torch.dtype, out: tuple | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``reference.accelerated_momentum``."""
    return _launch(
        _accelerated_kernel, (G, M, average), out or _fresh(G, dtype, M.dtype, average.dtype),
        mu, coefficient, decay, max(seed, 0), offset,
        NESTEROV=nesterov, STOCHASTIC=seed != NEAREST and average.dtype == torch.bfloat16,
    )


def descend(
    W: torch.Tensor, update: torch.Tensor, decay: float, rate: float, out: torch.Tensor | None = None
) -> torch.Tensor:
    """As ``reference.descend``."""
    return _launch(_descend_kernel, (W, update), (out,) if out is not None else _fresh(W, W.dtype), decay, rate)[0]


def compile_targets() -> Iterator[CompileTarget]:
    """Every kernel with float32 and with bfloat16 state, in sizes that divide by 16 and in sizes that do not."""
    half, single = torch.bfloat16, torch.float32
    for state in (single, half):
        name = str(state).removeprefix("torch.")
        for label, count in (("aligned", 1 << 20), ("odd", (1 << 20) - 1)):
            sass = ("LDG.E.128",) if label == "aligned" else ()
            for nesterov in (True, False):
                kind = "nesterov" if nesterov else "plain"
                yield CompileTarget(
                    _momentum_kernel, f"{name} {kind} {label}", (state, state, half, state, count, 0.95),
                    {"NESTEROV": nesterov, "BLOCK": BLOCK}, NUM_WARPS, sass=sass,
                )
            for average, stochastic in ((single, False), (half, False), (half, True)):
                rounding = "stochastic" if stochastic else "nearest"
                yield CompileTarget(
                    _accelerated_kernel, f"{name} {str(average).removeprefix('torch.')} average {rounding} {label}",
                    (state, state, average, half, state, average, count, 0.95, -0.5, 0.975, 12345, 64),
                    {"NESTEROV": True, "STOCHASTIC": stochastic, "BLOCK": BLOCK}, NUM_WARPS, sass=sass,
                )
            yield CompileTarget(
                _descend_kernel, f"{name} {label}", (state, half, state, count, 0.999, 0.01), {"BLOCK": BLOCK},
                NUM_WARPS, sass=sass,
            )
