"""What ``w4a8_gemm`` is timed against; rounding the activations to int8 is part of our time, packing is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name

from ..act_quant import quantize_activations
from ..contract import Benchmark
from . import reference, w4a8_gemm, w4a8_gemm_group, w4a8_gemm_integer

AMPLIFIER = 1024
FP8 = torch.float8_e4m3fn
SMALL = ((576, 576), (192, 576), (1536, 576), (576, 1536))  # SmolLM2-135M
LARGE = ((4096, 4096), (11008, 4096))  # Llama-7B
ON_GPU = ((6144, 4096), (28672, 8192))


def _scales(kind: str, rows: int, columns: int, size: int, device: torch.device) -> torch.Tensor:
    """Integers / 1024, so that one weight serves every kind: about 2 to 10 times 2^-10 as in a 7B model."""
    groups = 1 if kind == "channel" else -(-columns // size)
    return torch.randint(2, 11, (rows, groups), device=device).float() / AMPLIFIER


def _dequantized(packed: torch.Tensor, scale: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
    values = reference.unpack(packed, columns).to(dtype)
    groups = scale.shape[1]
    return (values.unflatten(1, (groups, columns // groups)) * scale.to(dtype)[..., None]).flatten(1)


def _ours(kind: str, bound: int) -> Callable[..., torch.Tensor]:
    def run(
        implementation: str, x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, *rest: Any
    ) -> torch.Tensor:
        codes, steps = quantize_activations(x, implementation=implementation)
        size = x.shape[1] // scale.shape[1]
        if kind == "channel":
            return w4a8_gemm(codes, steps, packed, scale, implementation=implementation)
        if kind == "group":
            return w4a8_gemm_group(codes, steps, packed, scale, size, implementation=implementation)
        integers, inverse = rest[0], rest[1]
        return w4a8_gemm_integer(
            codes, steps, packed, integers, inverse, size, None, x.dtype, bound, implementation=implementation
        )

    return run


def _dequantize_then_matmul(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, *rest: Any) -> torch.Tensor:
    return F.linear(x, _dequantized(packed, scale, x.shape[1], x.dtype))


def _bf16(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, integers: Any, inverse: Any, weight: torch.Tensor
) -> torch.Tensor:
    return F.linear(x, weight)


def _fp8(
    x: torch.Tensor, packed: Any, scale: Any, integers: Any, inverse: Any, weight: torch.Tensor, step: torch.Tensor
) -> torch.Tensor:
    x_step = x.abs().amax(1, keepdim=True).float() / torch.finfo(FP8).max
    return torch._scaled_mm((x / x_step).to(FP8), weight.t(), x_step, step.t(), out_dtype=x.dtype)


def _int8(
    x: torch.Tensor, packed: Any, scale: torch.Tensor, integers: Any, inverse: Any, weight: torch.Tensor
) -> torch.Tensor:
    codes, steps = quantize_activations(x, implementation="auto")
    return (torch._int_mm(codes, weight.t()) * scale[:, :1].t() * steps).to(x.dtype)


def _benchmark(
    kind: str, M: int, N: int, K: int, size: int, device: str,
    baseline: Callable[..., torch.Tensor], baseline_name: str, bar: float | None, quick: bool = False,
) -> Benchmark:  # fmt: skip
    def make(target: torch.device) -> tuple[Any, ...]:
        x = torch.randn(M, K, device=target).bfloat16()
        packed = torch.randint(0, 256, (N, reference.packed_bytes(K)), dtype=torch.uint8, device=target)
        scale = _scales(kind, N, K, size, target)
        integers = (scale * AMPLIFIER).int()
        args = (x, packed, scale, integers, torch.full((1,), 1 / AMPLIFIER, device=target))
        if baseline is _dequantize_then_matmul:
            return args
        if baseline is _int8:
            return *args, reference.unpack(packed, K)
        weight = _dequantized(packed, scale, K, torch.bfloat16)
        if baseline is _bf16:
            return *args, weight
        step = weight.abs().amax(1, keepdim=True).float() / torch.finfo(FP8).max
        return *args, (weight / step).to(FP8), step

    def truth(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, *rest: Any) -> torch.Tensor:
        return x.double() @ _dequantized(packed, scale, K, torch.float64).t()

    groups = 1 if kind == "channel" else K // size
    traffic = 2 * M * K + N * K // 2 + 4 * N * groups + 2 * M * N
    bound = 127 * 8 * 10 * K  # scales are at most 10
    name = f"{kind} M={M} {N}x{K}" + ("" if kind == "channel" else f" g={size}")
    return Benchmark(
        f"{name} against {baseline_name}", kind, make, _ours(kind, bound), baseline, baseline_name, truth,
        lambda *args: traffic, bar, device, quick,
    )  # fmt: skip


KINDS = ("channel", "group", "group_integer")
BENCHMARKS = (
    *(
        _benchmark(
            kind, M, N, K, 128 if K % 128 == 0 and N >= 4096 else 64, "cpu", _dequantize_then_matmul,
            "dequantise to bfloat16, then F.linear", None, quick=(M, N) == (16, 192),
        )
        for N, K in (*SMALL, *LARGE)
        for M in (1, 16, 512)
        for kind in KINDS
    ),
    *(
        _benchmark(kind, M, N, K, 128, "cuda", baseline, name, bar, quick=(M, N) == (16, 6144))
        for N, K in ON_GPU
        for M in (1, 16, 64, 512, 4096)
        for kind in KINDS
        for baseline, name, bar in (
            (_bf16, "F.linear bfloat16", 3.0 if M <= 64 else None),
            (_fp8, "torch._scaled_mm fp8", 1.5 if M <= 64 else 0.95),
            (_int8, "torch._int_mm", None),
        )
        if (baseline is not _int8 or (M > 16 and kind == "channel"))
    ),
)  # fmt: skip
