"""Symmetric integer grids: weights in groups along the input, activations per token.

Shape legend: M tokens, N out features, K in features, G groups of a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stackloom.kernels.act_quant import quantize_activations

SNR_CAP_DB = 320.0  # float64 resolves no less noise
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # a smaller one would be subnormal, and zero on devices that flush


def largest(bits: int) -> int:
    """Return the largest integer of a symmetric grid: 7 for 4 bits, 127 for 8.

    Example:
        >>> largest(4)
        7
    """
    return 2 ** (bits - 1) - 1


def group_scales(weight_NK: Tensor, bits: int, group: int, *, full: bool = False) -> Tensor:
    """Return the scales of the grid that spans each group's largest magnitude.

    Args:
        weight_NK: (N, K) floats, finite.
        bits: 2 to 8.
        group: elements of a row that share a scale; divides K.
        full: `max|w| / (2^(b-1) - 1/2)` instead of `max|w| / (2^(b-1) - 1)`: a finer grid that uses its lowest point
            too, and rounds a largest weight of positive sign half a step down.

    Returns:
        (N, K / group) float32, normal and positive.

    Raises:
        ValueError: `group` does not divide K, or a scale exceeds float32.
    """
    rows, columns = weight_NK.shape
    if columns % group:
        raise ValueError(f"group {group} does not divide {columns} in features")
    largest_NG = weight_NK.double().reshape(rows, columns // group, group).abs().amax(2)
    scale_NG = (largest_NG / (largest(bits) + full / 2)).float().clamp_min(SMALLEST_SCALE)
    if not torch.isfinite(scale_NG).all():
        raise ValueError("the weights exceed float32")
    return scale_NG


def round_to(weight_NK: Tensor, scale_NG: Tensor, bits: int) -> Tensor:
    """Return q = round(w / scale) (N, K) int8, clamped to [-2^(b-1), 2^(b-1) - 1]; halves to even, in float64."""
    rows, columns = weight_NK.shape
    steps_NGg = weight_NK.double().reshape(rows, scale_NG.shape[1], -1) / scale_NG.double()[..., None]
    return torch.round(steps_NGg).clamp_(-largest(bits) - 1, largest(bits)).to(torch.int8).reshape(rows, columns)


def quantize_groups(weight_NK: Tensor, bits: int, group: int, *, full: bool = False) -> tuple[Tensor, Tensor]:
    """Round a weight to the nearest point of the grid of `group_scales`.

    Without `full`, |w - scale q| <= scale / 2 for every element, as exact numbers, and q is in [-largest, largest].

    Args:
        weight_NK: (N, K) floats, finite.
        bits, group, full: as in `group_scales`.

    Returns:
        q (N, K) int8, scale (N, K / group) float32, normal and positive.

    Raises:
        ValueError: `group` does not divide K, or a scale exceeds float32.
    """
    scale_NG = group_scales(weight_NK, bits, group, full=full)
    return round_to(weight_NK, scale_NG, bits), scale_NG


def dequantize_groups(q_NK: Tensor, scale_NG: Tensor, dtype: torch.dtype) -> Tensor:
    """Return scale q (N, K), multiplied in float32 (float64 for a float64 result) and rounded once to `dtype`."""
    rows, columns = q_NK.shape
    wide = torch.promote_types(dtype, torch.float32)
    values = q_NK.to(wide).reshape(rows, scale_NG.shape[1], -1) * scale_NG.to(wide)[..., None]
    return values.reshape(rows, columns).to(dtype)


def quantize_tokens(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Round each token's features to int8, on a grid that spans its own largest magnitude.

    A token with NaN or infinity gets scale NaN, and so does whatever is computed from it; the others are not affected.

    Returns:
        q (M, K) int8 in [-127, 127], scale (M, 1) float32.
    """
    return quantize_activations(x_MK, implementation=_implementation(x_MK))


def quantize_tensor(x_MK: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Round features to int8 on one grid for all tokens; what lies beyond it saturates.

    Args:
        x_MK: (M, K) floats.
        scale: (1,) float32, positive.

    Returns:
        q (M, K) int8 in [-127, 127], scale (M, 1) float32: the given one, or NaN for a token that is not finite.
    """
    return quantize_activations(x_MK, scale, implementation=_implementation(x_MK))


def _implementation(x: Tensor) -> str:
    return "auto" if x.is_cuda else "reference"


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
