"""Symmetric integer grids: weights in groups along the input, activations per token.

Shape legend: M tokens, N out features, K in features, G groups of a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SNR_CAP_DB = 320.0  # float64 resolves no less noise
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # a smaller one would be subnormal, and zero on devices that flush


def largest(bits: int) -> int:
    """Return the largest integer of a symmetric grid: 7 for 4 bits, 127 for 8.

    Example:
        >>> largest(4)
        7
    """
    return 2 ** (bits - 1) - 1


def quantize_groups(weight_NK: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Round a weight to the nearest point of a grid that spans each group's largest magnitude.

    `scale = max|w| / largest(bits)` and `q = round(w / scale)`, in float64; halves go to the even neighbour. Hence
    |w - scale q| <= scale / 2 for every element, as exact numbers.

    Args:
        weight_NK: (N, K) floats, finite.
        bits: 2 to 8.
        group: elements of a row that share a scale; divides K.

    Returns:
        q (N, K) int8 in [-largest(bits), largest(bits)], scale (N, K / group) float32, normal and positive.

    Raises:
        ValueError: `group` does not divide K, or a scale exceeds float32.
    """
    rows, columns = weight_NK.shape
    if columns % group:
        raise ValueError(f"group {group} does not divide {columns} in features")
    grouped = weight_NK.double().reshape(rows, columns // group, group)
    scale = (grouped.abs().amax(2) / largest(bits)).float().clamp_min(SMALLEST_SCALE)
    if not torch.isfinite(scale).all():
        raise ValueError("the weights exceed float32")
    q = torch.round(grouped / scale.double()[..., None]).clamp_(-largest(bits), largest(bits))
    return q.to(torch.int8).reshape(rows, columns), scale


def dequantize_groups(q_NK: Tensor, scale_NG: Tensor, dtype: torch.dtype) -> Tensor:
    """Return scale q (N, K), multiplied in float32 (float64 for a float64 result) and rounded once to `dtype`."""
    rows, columns = q_NK.shape
    wide = torch.promote_types(dtype, torch.float32)
    values = q_NK.to(wide).reshape(rows, scale_NG.shape[1], -1) * scale_NG.to(wide)[..., None]
    return values.reshape(rows, columns).to(dtype)


def quantize_tokens(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Round each token's features to int8, on a grid that spans its own largest magnitude.

    A token with NaN or infinity gets a scale that is not finite, and so does whatever is computed from it; the other
    tokens are not affected.

    Returns:
        q (M, K) int8 in [-127, 127], scale (M, 1) float32.
    """
    wide = x_MK.float()
    scale = (wide.abs().amax(1, keepdim=True) / largest(8)).clamp_min(SMALLEST_SCALE)
    q = torch.round(wide / scale).clamp_(-largest(8), largest(8))
    return torch.nan_to_num(q, nan=1.0).to(torch.int8), scale


def snr_db(weight: Tensor, approximation: Tensor) -> float:
    """Return the signal-to-noise ratio 10 log10(sum w^2 / sum (w - a)^2) in decibels, at most 320.

    Example:
        >>> round(snr_db(torch.tensor([1.0, 1.0]), torch.tensor([0.9, 0.9])), 3)
        20.0
    """
    signal = weight.double().square().sum().item()
    noise = (weight.double() - approximation.double()).square().sum().item()
    return SNR_CAP_DB if noise <= signal * 10 ** (-SNR_CAP_DB / 10) else max(-SNR_CAP_DB, _decibels(signal, noise))


def _decibels(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise) if signal else -SNR_CAP_DB
