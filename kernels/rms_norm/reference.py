"""RMS normalisation in plain torch: the truth that every other implementation answers to.

Shapes: ``...`` any leading dimensions, D the normalised one, N the product of the leading ones.
"""

from __future__ import annotations

import torch

from ..contract import accumulation_dtype


def forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """y = x * rstd * weight with rstd = (mean(x^2) + eps)^(-1/2), rounded once.

    Computed in float32; in float64 for float64.

    Args:
        x: (..., D).
        weight: (D,).
        eps: added to the mean square.

    Returns:
        y (..., D) in x's dtype, contiguous; rstd (...) in the accumulation dtype.
    """
    accumulation = accumulation_dtype(x.dtype)
    wide = x.to(accumulation)
    rstd = torch.rsqrt(wide.square().mean(-1) + eps)
    return _row_major(wide * rstd.unsqueeze(-1) * weight.to(accumulation), x.dtype), _row_major(rstd, accumulation)


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of :func:`forward`, with xhat = x * rstd and g = grad * weight.

    dx = rstd * (g - xhat * mean(g * xhat)) and dweight = sum over rows of grad * xhat.

    Args:
        grad: (..., D), of y.
        x: (..., D), as given to forward.
        weight: (D,).
        rstd: (...), as returned by forward.

    Returns:
        dx (..., D) in x's dtype, contiguous; dweight (D,) in weight's dtype.
    """
    accumulation = accumulation_dtype(x.dtype)
    normalised = x.to(accumulation) * rstd.unsqueeze(-1)
    wide = grad.to(accumulation)
    scaled = wide * weight.to(accumulation)
    projection = (scaled * normalised).mean(-1, keepdim=True)
    dx = rstd.unsqueeze(-1) * (scaled - normalised * projection)
    dweight = (wide * normalised).reshape(-1, x.shape[-1]).sum(0)
    return _row_major(dx, x.dtype), dweight.to(weight.dtype)


def _row_major(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy with the strides of a fresh tensor; ``contiguous()`` would leave odd strides on dimensions of size one."""
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device).copy_(tensor)
