"""Rounding of activations to int8 in plain torch, with an optional residual sum and RMSNorm before it."""

from __future__ import annotations

import torch

from ..contract import accumulation_dtype

LARGEST = 127  # -128 has no mirror and is never produced
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # a smaller one would be subnormal


def quantize(x: torch.Tensor, scale: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """s = max(max_k |x_k| / 127, tiny), or the given one; q_k = clamp(rint(x_k / s)), all in float32.

    Args:
        x: (..., K), any float.
        scale: one element, or None for a scale per token.

    Returns:
        q (..., K) int8 and s (..., 1) float32. A token with NaN or infinity has q = 0 and s = NaN.
    """
    wide = x.to(torch.float32)
    largest = wide.abs().amax(-1, keepdim=True)
    finite = largest <= torch.finfo(torch.float32).max  # False for NaN
    if scale is None:
        divisor = torch.full_like(largest, LARGEST)  # a number is no divisor on CUDA: its reciprocal is a factor
        steps = (largest / divisor).clamp_min(SMALLEST_SCALE)
    else:
        steps = scale.to(torch.float32).reshape(()).expand(largest.shape)
    rounded = torch.round(wide / steps).clamp_(-LARGEST, LARGEST)
    codes = torch.where(finite, rounded, 0.0).to(torch.int8)
    return _row_major(codes), _row_major(torch.where(finite, steps, torch.nan))


def norm_quantize(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`quantize` of h / sqrt(mean(h^2) + eps) * weight in float32, where h = x + residual in x's dtype.

    Args:
        x, residual: (..., K).
        weight: (K,).
        eps: positive.
        scale: as :func:`quantize`.

    Returns:
        q (..., K) int8, s (..., 1) float32 and h (..., K) in x's dtype; h is empty, (0,), without a residual.
    """
    total = x if residual is None else x + residual
    wide = total.to(accumulation_dtype(x.dtype))
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)
    kept = x.new_empty(0) if residual is None else _row_major(total)
    return *quantize(normalised, scale), kept


def _row_major(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the strides of a fresh tensor; ``contiguous()`` would leave odd strides on dimensions of size one."""
    return tensor.clone(memory_format=torch.contiguous_format)
