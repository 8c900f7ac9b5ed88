"""LoRA's branch with an annealed activation in it, with gradients. Maths, tiling and traffic: this folder's README."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..contract import Op, accumulation_dtype, rounding_rms, unit_roundoff
from ..selection import Dispatch, reference_implementation, triton_implementation
from . import reference
from .reference import ACTIVATIONS, blend

__all__ = ["ACTIVATIONS", "OP", "afa_lora", "blend"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_WIDE = (torch.float64, torch.float32)


def afa_lora(
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: torch.Tensor,
    activation: str = "relu",
    scaling: float = 1.0,
    addend: torch.Tensor | None = None,
    *,
    implementation: str = "reference",
) -> torch.Tensor:
    """y = addend + scaling phi(x A') B' with phi(z) = beta sigma(z) + (1 - beta) z (arXiv 2512.22455).

    beta is read on the device when the op runs: a new value neither recompiles a graph nor breaks a captured one. With
    beta 0 phi(z) is z, and with beta 1 it is sigma(z), bit by bit. Products accumulate in float32 (float64 for
    float64); z, phi and y are each rounded to x's dtype once. Differentiable once, in every tensor.

    Args:
        x: (..., K), float64, float32, bfloat16 or float16; any strides.
        A: (R, K), of x's dtype.
        B: (N, R), of x's dtype.
        beta: 0-d, float32 or float64, in [0, 1]; its value is not checked, because that would wait for the device.
        activation: sigma: ``"relu"``, ``"silu"``, ``"gelu"`` (with the error function) or ``"tanh"``.
        scaling: factor of the branch, finite.
        addend: (..., N), of x's dtype: what the frozen layer gives; None for zero.
        implementation: ``"reference"``, ``"triton"`` or ``"auto"``.

    Returns:
        (..., N) in x's dtype, contiguous.

    Raises:
        TypeError: a tensor has no floating dtype, or another than x.
        ValueError: shapes, devices, activation or scaling do not fit.
        UnsupportedImplementation: the named implementation cannot run these arguments.
        KernelMismatch: the named implementation disagrees with the reference on this device.

    Example:
        >>> x, A, B = torch.tensor([[1.0, -2.0]]), torch.eye(2), torch.eye(2)
        >>> afa_lora(x, A, B, torch.tensor(0.75), "relu", 2.0)
        tensor([[ 2., -1.]])
    """
    for name, tensor in (("x", x), ("A", A), ("B", B), *((("addend", addend),) if addend is not None else ())):
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES:
            got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a float64, float32, bfloat16 or float16 tensor, got {got}")
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, x is {x.dtype}")
    if not isinstance(beta, torch.Tensor) or beta.dtype not in _WIDE:
        got = beta.dtype if isinstance(beta, torch.Tensor) else type(beta).__name__
        raise TypeError(f"beta must be a float32 or float64 tensor, so that no schedule is rounded, got {got}")
    if beta.dim():
        raise ValueError(f"beta must be 0-d, got shape {tuple(beta.shape)}")
    if x.dim() == 0 or A.dim() != 2 or B.dim() != 2:
        raise ValueError(f"x, A, B must be (..., K), (R, K), (N, R), got {_shapes(x, A, B)}")
    if A.shape[1] != x.shape[-1] or B.shape[1] != A.shape[0] or not A.numel() or not B.numel():
        raise ValueError(f"x, A, B must be (..., K), (R, K), (N, R), none of K, R, N zero, got {_shapes(x, A, B)}")
    if addend is not None and addend.shape != (*x.shape[:-1], B.shape[0]):
        raise ValueError(f"addend must be {(*x.shape[:-1], B.shape[0])}, got {tuple(addend.shape)}")
    for name, tensor in (("A", A), ("B", B), ("beta", beta), *((("addend", addend),) if addend is not None else ())):
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if not math.isfinite(scaling):
        raise ValueError(f"scaling must be finite, got {scaling}")
    return _forward(x, A, B, beta, activation, float(scaling), addend, implementation)[0]


def _shapes(*tensors: torch.Tensor) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)


def _budget(function: str, output: torch.Tensor, like: torch.Tensor) -> float:
    """Roundings of z, phi and y, each 0.74 of the bound on average, as a root sum of squares: 1.28, allowed 1.41.

    The backward pass rounds g, phi'(z) through z, dz and the gradient itself, and the products of a few elements
    average nothing: twice the bound. float32 accumulates over K forwards; over N, M and R backwards, where ``like``
    tells K and M and 64 more stand for the rest. dbeta adds terms of both signs that were rounded in x's dtype: what is
    left of the sum may be smaller than they are, by 8 here.
    """
    accumulation = unit_roundoff(accumulation_dtype(output.dtype))
    columns = like.shape[-1]
    if function == "backward":
        rows = max(1, like.numel() // columns)
        if not output.dim():
            return 8 * unit_roundoff(like.dtype) + 64 * accumulation
        return 2 * rounding_rms(output) + (64 + 2 * math.sqrt(columns) + 2 * math.sqrt(rows)) * accumulation
    return math.sqrt(2) * rounding_rms(output) + (16 + math.sqrt(columns)) * accumulation


def _probe(function: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((9, 70), (5, 70), (40, 5), (9, 40), (9, 40))
    x, A, B, addend, grad = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    beta = torch.tensor(0.4, device=device)
    if function == "forward":
        return x, A, B, beta, "silu", 0.5, addend
    return grad, x, A, B, beta, reference.forward(x, A, B, beta, "silu", 0.5, None)[1], "silu", 0.5


_DISPATCH = Dispatch(
    "afa_lora",
    (
        triton_implementation(__name__, "forward", "backward"),
        reference_implementation(forward=reference.forward, backward=reference.backward),
    ),
    _probe,
    _budget,
)


@torch.library.custom_op("stackloom::afa_lora", mutates_args=())
def _forward(
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: torch.Tensor,
    activation: str,
    scaling: float,
    addend: torch.Tensor | None,
    implementation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _DISPATCH.call("forward", x, A, B, beta, activation, scaling, addend, implementation=implementation)


@_forward.register_fake
def _(
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: torch.Tensor,
    activation: str,
    scaling: float,
    addend: torch.Tensor | None,
    implementation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty((*x.shape[:-1], B.shape[0])), x.new_empty((*x.shape[:-1], A.shape[0]))


@torch.library.custom_op("stackloom::afa_lora_backward", mutates_args=())
def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: torch.Tensor,
    z: torch.Tensor,
    activation: str,
    scaling: float,
    implementation: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return _DISPATCH.call("backward", grad, x, A, B, beta, z, activation, scaling, implementation=implementation)


@_backward.register_fake
def _(
    grad: torch.Tensor,
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: torch.Tensor,
    z: torch.Tensor,
    activation: str,
    scaling: float,
    implementation: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), A.new_empty(A.shape), B.new_empty(B.shape), beta.new_empty(())


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, A, B, beta, ctx.activation, ctx.scaling, addend, ctx.implementation = inputs
    ctx.has_addend = addend is not None
    ctx.save_for_backward(x, A, B, beta, output[1])


def _differentiate(ctx: Any, grad: torch.Tensor, grad_z: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """z leaves the custom op for the backward pass alone; no caller sees it, so its gradient is always zero."""
    x, A, B, beta, z = ctx.saved_tensors
    dx, dA, dB, dbeta = _backward(grad, x, A, B, beta, z, ctx.activation, ctx.scaling, ctx.implementation)
    return dx, dA, dB, dbeta, None, None, grad if ctx.has_addend else None, None


_forward.register_autograd(_differentiate, setup_context=_save_for_backward)

OP = Op(
    name="afa_lora",
    package=__name__,
    public={"forward": afa_lora},
    dispatch=_DISPATCH,
    budget=_budget,
    has_backward=True,
    can_torch_compile=True,
)
