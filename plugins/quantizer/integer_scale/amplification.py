"""Group scales as integers over an amplifier: which amplifier, what rounding costs, and a proof against overflow.

Shape legend: N out features, K in features, G groups of a row, g weights of a group. Every amplifier is a power of two.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stackloom.plugins.quantizer.grid import largest

INT32_MAX = 2**31 - 1
MOST_SHIFTS = 30  # an amplifier is an int32
EXACT = 2**24  # integers up to here are exact in float32


def integer_scales(scale_NG: Tensor, amplifier_N: Tensor, up: bool = False) -> Tensor:
    """Return I = round(alpha s), halves to even, away from zero with `up`; signs are kept.

    Args:
        scale_NG: (N, G) floats.
        amplifier_N: (N,) alpha, positive powers of two.
        up: ceil of the magnitude, so that the largest weight of a group is not clipped.

    Returns:
        (N, G) int64.

    Source: Integer Scale, section 2.2; the direction of rounding is inferred.
    """
    amplified = scale_NG.double() * amplifier_N.double()[:, None]
    return (torch.sign(amplified) * torch.ceil(amplified.abs()) if up else torch.round(amplified)).long()


def heuristic(scale_NG: Tensor) -> int:
    """Return the smallest power of two that lifts the smallest magnitude to at least 1; 1 without a nonzero scale.

    Source: Integer Scale, section 2.3, in closed form.

    Example:
        >>> heuristic(torch.tensor([[0.003, 0.5]]))
        512
    """
    nonzero = scale_NG.double().abs()
    nonzero = nonzero[nonzero > 0]
    if not nonzero.numel():
        return 1
    _, exponent = math.frexp(nonzero.min().item())  # s = f 2^exponent, f in [0.5, 1)
    return 2 ** min(MOST_SHIFTS, max(0, 1 - exponent))


def inflation(scale_NG: Tensor, q_NK: Tensor, amplifier_N: Tensor, up: bool = False) -> tuple[Tensor, Tensor]:
    """Return per row (what integer scales add to the weights' squared error, the error s^2 / 12 of rounding itself).

    With d = I / alpha - s the added error of a weight is (q d)^2. Their ratio, summed over a layer, plus one predicts
    the inflation of the weights' mean squared error.

    Returns:
        two (N,) float64 tensors.
    """
    rows, groups = scale_NG.shape
    q_NGg = q_NK.double().reshape(rows, groups, -1)
    scale = scale_NG.double()
    off = integer_scales(scale_NG, amplifier_N, up).double() / amplifier_N.double()[:, None] - scale
    added = (q_NGg.square().sum(2) * off.square()).sum(1)
    return added, (alive(q_NK, groups) * scale.square()).sum(1) * q_NGg.shape[2] / 12


def alive(q_NK: Tensor, groups: int) -> Tensor:
    """Return (N, G) whether a group has a weight that is not zero."""
    return (q_NK.reshape(q_NK.shape[0], groups, -1) != 0).any(2)


def worst_sums(q_NK: Tensor, multiplier_NG: Tensor) -> Tensor:
    """Return the largest |A| that any int8 input can reach: 127 sum over groups of |I| sum over the group of |q|.

    It is attained by inputs of +-127 with the weights' signs, so that a row fits int32 for every input if and only if
    its value is at most 2^31 - 1; partial sums are never larger.

    Returns:
        (N,) int64.
    """
    rows, groups = multiplier_NG.shape
    magnitudes = q_NK.long().abs().reshape(rows, groups, -1).sum(2)
    return largest(8) * (multiplier_NG.long().abs() * magnitudes).sum(1)


def requantized(weight_NK: Tensor, multiplier_NG: Tensor, amplifier_N: Tensor, bits: int) -> Tensor:
    """Return the integers nearest to W / (I / alpha) in [-2^(b-1), 2^(b-1) - 1]; 0 where I is 0.

    For each weight it is the best choice on that grid, so the weights' error cannot exceed that of the old integers.

    Returns:
        (N, K) int8.
    """
    rows, groups = multiplier_NG.shape
    step = (multiplier_NG.double() / amplifier_N.double()[:, None])[..., None]
    wanted = torch.round(weight_NK.double().reshape(rows, groups, -1) / torch.where(step == 0, torch.inf, step))
    return wanted.clamp_(-largest(bits) - 1, largest(bits)).to(torch.int8).reshape(rows, -1)
