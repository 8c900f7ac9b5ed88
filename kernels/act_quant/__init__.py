"""Rounding of activations to int8, per token or on a given grid, alone or fused with RMSNorm. Maths: this README."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..contract import Op, unit_roundoff
from ..selection import Dispatch, reference_implementation, triton_implementation
from . import reference

__all__ = ["OP", "add_rms_norm_quantize", "quantize_activations", "rms_norm_quantize"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def quantize_activations(
    x: torch.Tensor, scale: torch.Tensor | None = None, *, implementation: str = "reference"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each token to int8 on a grid of its own (OdysseyLLM, section 2.1), or all of them on a given one.

    s = max_k |x_k| / 127, at least 2^-126; q_k = x_k / s rounded to nearest even and clamped to [-127, 127], in
    float32. A token with NaN or infinity has q = 0 and s = NaN, so that whatever is computed from it is NaN; the others
    are not affected. Not differentiable.

    Args:
        x: (..., K), float64, float32, bfloat16 or float16; any strides.
        scale: one positive float32 element, the grid of all tokens (what lies beyond it saturates), or None.
        implementation: ``"reference"``, ``"triton"`` or ``"auto"``.

    Returns:
        q (..., K) int8 and s (..., 1) float32, both contiguous.

    Raises:
        TypeError: x or scale is no floating tensor.
        ValueError: shapes or devices do not fit.
        UnsupportedImplementation: the named implementation cannot run these arguments.
        KernelMismatch: the named implementation disagrees with the reference on this device.

    Example:
        >>> quantize_activations(torch.tensor([[127.0, -1.5, 2.5]]))
        (tensor([[127,  -2,   2]], dtype=torch.int8), tensor([[1.]]))
    """
    _check(x, scale)
    return _quantize(x, scale, implementation)


def rms_norm_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    scale: torch.Tensor | None = None,
    *,
    implementation: str = "reference",
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`quantize_activations` of RMSNorm(x), in one pass: the result feeds every linear layer that reads the norm.

    The normalised row stays in float32 until it is rounded to int8; it is not rounded to x's dtype in between.

    Args:
        x, scale, implementation: as :func:`quantize_activations`.
        weight: (K,), a float.
        eps: positive, in the units of x squared.

    Returns:
        q (..., K) int8 and s (..., 1) float32, both contiguous.

    Raises:
        TypeError, ValueError, UnsupportedImplementation, KernelMismatch: as :func:`quantize_activations`.
    """
    _check(x, scale)
    _check_norm(x, weight, eps)
    return _norm_quantize(x, None, weight, eps, scale, implementation)[:2]


def add_rms_norm_quantize(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    scale: torch.Tensor | None = None,
    *,
    implementation: str = "reference",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`rms_norm_quantize` of h = x + residual, rounded to x's dtype first, and h itself for the residual stream.

    Args:
        x, weight, eps, scale, implementation: as :func:`rms_norm_quantize`.
        residual: as x.

    Returns:
        q (..., K) int8, s (..., 1) float32 and h (..., K) in x's dtype, all contiguous.

    Raises:
        TypeError, ValueError, UnsupportedImplementation, KernelMismatch: as :func:`quantize_activations`.
    """
    _check(x, scale)
    _check_norm(x, weight, eps)
    if not isinstance(residual, torch.Tensor) or residual.dtype != x.dtype:
        raise TypeError(f"residual must be a {x.dtype} tensor like x, got {_what(residual)}")
    if residual.shape != x.shape or residual.device != x.device:
        raise ValueError(
            f"residual must be {tuple(x.shape)} on {x.device} like x, got {tuple(residual.shape)} on {residual.device}"
        )
    return _norm_quantize(x, residual, weight, eps, scale, implementation)


def _what(argument: object) -> str:
    return str(argument.dtype) if isinstance(argument, torch.Tensor) else type(argument).__name__


def _check(x: torch.Tensor, scale: torch.Tensor | None) -> None:
    if not isinstance(x, torch.Tensor) or x.dtype not in _DTYPES:
        raise TypeError(f"x must be a float64, float32, bfloat16 or float16 tensor, got {_what(x)}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be (..., K) with K >= 1, got shape {tuple(x.shape)}")
    if scale is None:
        return
    if not isinstance(scale, torch.Tensor) or scale.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"scale must be a float32 tensor, got {_what(scale)}")
    if scale.numel() != 1 or scale.device != x.device:
        raise ValueError(f"scale must be one element on {x.device}, got {tuple(scale.shape)} on {scale.device}")


def _check_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    if not isinstance(weight, torch.Tensor) or weight.dtype not in _DTYPES:
        raise TypeError(f"weight must be a float64, float32, bfloat16 or float16 tensor, got {_what(weight)}")
    if tuple(weight.shape) != (x.shape[-1],) or weight.device != x.device:
        raise ValueError(
            f"weight must have shape ({x.shape[-1]},) on {x.device}, got {tuple(weight.shape)} on {weight.device}"
        )
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be positive and finite, got {eps}")


def _budget(function: str, output: torch.Tensor, like: torch.Tensor) -> float:
    """None without a norm: every step is one correctly rounded float32 operation, so the bits are given.

    With one, the mean of squares errs by about sqrt(K) roundoffs in any order, eight more cover the rest. A code moves
    by one when that carries x / s, at most 127, across a tie; ties are one apart, so the share of codes that move is
    twice the error of x / s. One code in all is granted on top, because a share of a few codes is none.
    """
    if "norm" not in function:
        return 0.0
    error = (8 + math.sqrt(like.shape[-1])) * unit_roundoff(torch.float32)
    if output.dtype == torch.int8:
        return 2 * 2 * reference.LARGEST * error + 1 / max(1, output.numel())
    return error if output.dtype == torch.float32 else unit_roundoff(output.dtype)


def _probe(function: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 70, generator=generator).to(device, dtype)
    if function == "quantize":
        return x, None
    return x, None, torch.randn(70, generator=generator).to(device, dtype), 1e-6, None


_DISPATCH = Dispatch(
    "act_quant",
    (
        triton_implementation(__name__, "quantize", "norm_quantize"),
        reference_implementation(quantize=reference.quantize, norm_quantize=reference.norm_quantize),
    ),
    _probe,
    _budget,
)


@torch.library.custom_op("stackloom::act_quant", mutates_args=())
def _quantize(x: torch.Tensor, scale: torch.Tensor | None, implementation: str) -> tuple[torch.Tensor, torch.Tensor]:
    return _DISPATCH.call("quantize", x, scale, implementation=implementation)


@_quantize.register_fake
def _(x: torch.Tensor, scale: torch.Tensor | None, implementation: str) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


@torch.library.custom_op("stackloom::norm_act_quant", mutates_args=())
def _norm_quantize(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    scale: torch.Tensor | None,
    implementation: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _DISPATCH.call("norm_quantize", x, residual, weight, eps, scale, implementation=implementation)


@_norm_quantize.register_fake
def _(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    scale: torch.Tensor | None,
    implementation: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    codes = x.new_empty(x.shape, dtype=torch.int8)
    kept = x.new_empty(0 if residual is None else x.shape)
    return codes, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32), kept


OP = Op(
    name="act_quant",
    package=__name__,
    public={
        "quantize": quantize_activations,
        "norm_quantize": rms_norm_quantize,
        "add_norm_quantize": add_rms_norm_quantize,
    },
    dispatch=_DISPATCH,
    budget=_budget,
    has_backward=False,
    can_torch_compile=True,
)
