"""RMS normalisation over the last dimension, with gradients. Maths, tiling and traffic: this folder's README."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..contract import Op, accumulation_dtype, rounding_rms, unit_roundoff
from ..selection import Dispatch, reference_implementation, triton_implementation
from . import reference

__all__ = ["OP", "rms_norm"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, *, implementation: str = "reference"
) -> torch.Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019, equation 4).

    Computed in float32 (float64 for float64) and rounded to x's dtype once, after the weight. Differentiable once, in x
    and weight.

    Args:
        x: (..., D), float64, float32, bfloat16 or float16; any strides.
        weight: (D,), one of the same dtypes, not necessarily x's.
        eps: positive, in the units of x squared.
        implementation: ``"reference"``, ``"triton"`` or ``"auto"``.

    Returns:
        (..., D) in x's dtype, contiguous.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: shapes, devices or eps do not fit.
        UnsupportedImplementation: the named implementation cannot run these arguments.
        KernelMismatch: the named implementation disagrees with the reference on this device.

    Example:
        >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), eps=1e-12)
        tensor([[0.8485, 1.1314]])
    """
    for name, tensor in (("x", x), ("weight", weight)):
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES:
            got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a float64, float32, bfloat16 or float16 tensor, got {got}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be (..., D) with D >= 1, got shape {tuple(x.shape)}")
    if weight.dim() != 1 or weight.shape[0] != x.shape[-1]:
        raise ValueError(
            f"weight must have shape ({x.shape[-1]},) to match x's last dimension, got {tuple(weight.shape)}"
        )
    if x.device != weight.device:
        raise ValueError(f"x is on {x.device} but weight is on {weight.device}")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be positive and finite, got {eps}")
    return _forward(x, weight, eps, implementation)[0]


def _budget(function: str, output: torch.Tensor, like: torch.Tensor) -> float:
    """One rounding of the output, plus what float32 accumulation adds.

    A sum of k float32 terms in any order errs by about sqrt(k) roundoffs; eight more cover the elementwise steps of the
    forward pass (rsqrt is good to two units). The backward pass sums over D twice (rstd, projection) and over the N
    rows, with twice the steps.
    """
    columns = like.shape[-1]
    rows = like.numel() / columns
    accumulation = unit_roundoff(accumulation_dtype(like.dtype))
    steps = 16 + 2 * math.sqrt(columns) + math.sqrt(rows) if function == "backward" else 8 + math.sqrt(columns)
    return rounding_rms(output) + steps * accumulation


def _probe(function: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)
    x, grad = (torch.randn(5, 70, generator=generator).to(device, dtype) for _ in range(2))
    weight = torch.randn(70, generator=generator).to(device, dtype)
    if function == "forward":
        return x, weight, 1e-6
    return grad, x, weight, reference.forward(x, weight, 1e-6)[1]


_DISPATCH = Dispatch(
    "rms_norm",
    (
        triton_implementation(__name__, "forward", "backward"),
        reference_implementation(forward=reference.forward, backward=reference.backward),
    ),
    _probe,
    _budget,
)


@torch.library.custom_op("stackloom::rms_norm", mutates_args=())
def _forward(
    x: torch.Tensor, weight: torch.Tensor, eps: float, implementation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return _DISPATCH.call("forward", x, weight, eps, implementation=implementation)


@_forward.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, eps: float, implementation: str) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=accumulation_dtype(x.dtype))


@torch.library.custom_op("stackloom::rms_norm_backward", mutates_args=())
def _backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor, implementation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return _DISPATCH.call("backward", grad, x, weight, rstd, implementation=implementation)


@_backward.register_fake
def _(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor, implementation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, weight, _, ctx.implementation = inputs
    ctx.save_for_backward(x, weight, output[1])


def _differentiate(ctx: Any, grad: torch.Tensor, grad_rstd: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """rstd leaves the custom op for the backward pass alone; no caller sees it, so its gradient is always zero."""
    x, weight, rstd = ctx.saved_tensors
    return *_backward(grad, x, weight, rstd, ctx.implementation), None, None


_forward.register_autograd(_differentiate, setup_context=_save_for_backward)

OP = Op(
    name="rms_norm",
    package=__name__,
    public={"forward": rms_norm},
    dispatch=_DISPATCH,
    budget=_budget,
    has_backward=True,
    can_torch_compile=True,
)
