"""How far two tensors are apart, measured so that one bound fits every dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return |actual - expected| / |expected| in the Frobenius norm, in float64; NaN anywhere gives infinity.

    Example:
        >>> relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        0.0
    """
    difference = (actual.double() - expected.double()).norm().item()
    scale = expected.double().norm().item()
    if difference != difference or scale != scale:
        return float("inf")
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))


def eps(dtype: torch.dtype) -> float:
    """Return the distance from 1 to the next number of `dtype`."""
    return torch.finfo(dtype).eps
