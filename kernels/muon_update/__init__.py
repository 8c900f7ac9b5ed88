"""The elementwise halves of a Muon or MONA step. Maths and traffic: this folder's README.

``momentum`` and ``accelerated_momentum`` come before the orthogonalisation, ``descend`` after it. The plain functions
return new tensors; those that end in an underscore write into the state, and are what an optimizer calls.
"""

from __future__ import annotations

from typing import Any

import torch

from ..contract import Op, accumulation_dtype, rounding_rms, unit_roundoff
from ..selection import Dispatch, reference_implementation, triton_implementation
from . import reference
from .reference import NEAREST

__all__ = [
    "NEAREST",
    "OP",
    "accelerated_momentum",
    "accelerated_momentum_",
    "descend",
    "descend_",
    "momentum",
    "momentum_",
]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def momentum(
    G: torch.Tensor,
    M: torch.Tensor,
    mu: float,
    nesterov: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    *,
    implementation: str = "reference",
) -> tuple[torch.Tensor, torch.Tensor]:
    """M' = mu M + (1 - mu) G, and U = mu M' + (1 - mu) G with nesterov, else M'.

    Args:
        G, M: gradient and momentum, of one shape; float64, float32, bfloat16 or float16, any strides.
        mu: decay of the momentum, in [0, 1).
        nesterov: whether U looks one step ahead.
        dtype: of U (float64 for float64).
        implementation: ``"reference"``, ``"triton"`` or ``"auto"``.

    Returns:
        U in ``dtype`` and M' in M's dtype, contiguous.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: shapes, devices or mu do not fit.
        UnsupportedImplementation: the named implementation cannot run these arguments.
        KernelMismatch: the named implementation disagrees with the reference on this device.

    Example:
        >>> momentum(torch.tensor([1.0]), torch.tensor([0.0]), 0.5, dtype=torch.float32)
        (tensor([0.7500]), tensor([0.5000]))
    """
    _check(G, mu=mu, M=M)
    return _momentum(G, M, mu, nesterov, dtype, implementation)


def momentum_(
    G: torch.Tensor, M: torch.Tensor, mu: float, nesterov: bool, U: torch.Tensor, *, implementation: str = "reference"
) -> None:
    """:func:`momentum` into U and M themselves.

    Args:
        G, M, mu, nesterov, implementation: as in :func:`momentum`.
        U: of G's shape and the dtype that is wanted; overwritten.
    """
    _check(G, mu=mu, M=M, U=U)
    _DISPATCH.call("momentum", G, M, mu, nesterov, U.dtype, (U, M), implementation=implementation)


def accelerated_momentum(
    G: torch.Tensor,
    M: torch.Tensor,
    average: torch.Tensor,
    mu: float,
    nesterov: bool = True,
    coefficient: float = -0.5,
    decay: float = 0.975,
    seed: int = NEAREST,
    offset: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    *,
    implementation: str = "reference",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`momentum` of G + c (G - m), with m' = m + (1 - decay) (G - m) the slow average of past gradients.

    MONA (arXiv 2605.26842) with its acceleration buffer A = (1 - decay) (G - m) eliminated.

    Args:
        G, M, mu, nesterov, dtype, implementation: as in :func:`momentum`.
        average: m, of G's shape.
        coefficient: c = alpha (1 - decay); 0 is Muon, exactly.
        decay: beta_a, in [0, 1).
        seed: in [0, 2^31): a bfloat16 m is rounded stochastically from this seed; ``NEAREST`` rounds to nearest.
        offset: index of the first element within the whole matrix, so that a shard rounds as the whole would.

    Returns:
        U in ``dtype``, M' in M's dtype and m' in m's dtype, contiguous.

    Raises:
        TypeError, ValueError, UnsupportedImplementation, KernelMismatch: as in :func:`momentum`.

    Example:
        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> accelerated_momentum(one, zero, zero, 0.5, coefficient=-0.5, decay=0.75, dtype=torch.float32)
        (tensor([0.3750]), tensor([0.2500]), tensor([0.2500]))
    """
    _check(G, mu=mu, decay=decay, seed=seed, M=M, average=average)
    return _accelerated(G, M, average, mu, nesterov, coefficient, decay, seed, offset, dtype, implementation)


def accelerated_momentum_(
    G: torch.Tensor,
    M: torch.Tensor,
    average: torch.Tensor,
    mu: float,
    nesterov: bool,
    coefficient: float,
    decay: float,
    seed: int,
    offset: int,
    U: torch.Tensor,
    *,
    implementation: str = "reference",
) -> None:
    """:func:`accelerated_momentum` into U, M and ``average`` themselves."""
    _check(G, mu=mu, decay=decay, seed=seed, M=M, average=average, U=U)
    _DISPATCH.call(
        "accelerated_momentum",
        *(G, M, average, mu, nesterov, coefficient, decay, seed, offset, U.dtype, (U, M, average)),
        implementation=implementation,
    )


def descend(
    W: torch.Tensor, update: torch.Tensor, decay: float, rate: float, *, implementation: str = "reference"
) -> torch.Tensor:
    """W' = decay W - rate update.

    Args:
        W: parameter, float64, float32, bfloat16 or float16; any strides.
        update: update of the same shape, one of the same dtypes.
        decay: 1 - learning rate times weight decay.
        rate: learning rate times the scale of the matrix.
        implementation: ``"reference"``, ``"triton"`` or ``"auto"``.

    Returns:
        W' in W's dtype, contiguous.

    Raises:
        TypeError, ValueError, UnsupportedImplementation, KernelMismatch: as in :func:`momentum`.

    Example:
        >>> descend(torch.tensor([2.0]), torch.tensor([1.0]), 0.5, 0.25)
        tensor([0.7500])
    """
    _check(W, update=update)
    return _descend(W, update, decay, rate, implementation)


def descend_(
    W: torch.Tensor, update: torch.Tensor, decay: float, rate: float, *, implementation: str = "reference"
) -> None:
    """:func:`descend` into W itself."""
    _check(W, update=update)
    _DISPATCH.call("descend", W, update, decay, rate, W, implementation=implementation)


def _check(
    first: torch.Tensor, mu: float = 0.0, decay: float = 0.0, seed: int = NEAREST, **others: torch.Tensor
) -> None:
    for name, tensor in (("the first argument", first), *others.items()):
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES:
            got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a float64, float32, bfloat16 or float16 tensor, got {got}")
        if tensor.shape != first.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the first argument {tuple(first.shape)}")
        if tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device}, the first argument on {first.device}")
    for name, value in (("mu", mu), ("decay", decay)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value}")
    if not NEAREST <= seed < 2**31:
        raise ValueError(f"seed must lie in [0, 2^31), or be -1 for rounding to nearest, got {seed}")


def _budget(function: str, output: torch.Tensor, like: torch.Tensor) -> float:
    """Two roundings, because U reads M' as it was stored, and a handful of operations in float32 (float64)."""
    if not output.is_floating_point():
        return 0.0
    stored = rounding_rms(output) if function == "descend" else rounding_rms(output) + rounding_rms(like)
    return stored + 8 * unit_roundoff(accumulation_dtype(output.dtype))


def _probe(function: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)
    G, M, average = (torch.randn(7, 300, generator=generator).to(device, dtype) for _ in range(3))
    if function == "momentum":
        return G, M, 0.95, True, torch.bfloat16
    if function == "accelerated_momentum":
        return G, M, average, 0.95, True, -0.5, 0.975, NEAREST, 0, torch.bfloat16
    return G, M, 0.99, 0.1


_FUNCTIONS = ("momentum", "accelerated_momentum", "descend")
_DISPATCH = Dispatch(
    "muon_update",
    (
        triton_implementation(__name__, *_FUNCTIONS),
        reference_implementation(**{name: getattr(reference, name) for name in _FUNCTIONS}),
    ),
    _probe,
    _budget,
)


@torch.library.custom_op("stackloom::muon_momentum", mutates_args=())
def _momentum(
    G: torch.Tensor, M: torch.Tensor, mu: float, nesterov: bool, dtype: torch.dtype, implementation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return _DISPATCH.call("momentum", G, M, mu, nesterov, dtype, implementation=implementation)


@_momentum.register_fake
def _(
    G: torch.Tensor, M: torch.Tensor, mu: float, nesterov: bool, dtype: torch.dtype, implementation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return G.new_empty(G.shape, dtype=reference.at_least(G, dtype)), M.new_empty(M.shape)


@torch.library.custom_op("stackloom::muon_accelerated_momentum", mutates_args=())
def _accelerated(
    G: torch.Tensor,
    M: torch.Tensor,
    average: torch.Tensor,
    mu: float,
    nesterov: bool,
    coefficient: float,
    decay: float,
    seed: int,
    offset: int,
    dtype: torch.dtype,
    implementation: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    options = (mu, nesterov, coefficient, decay, seed, offset, dtype)
    return _DISPATCH.call("accelerated_momentum", G, M, average, *options, implementation=implementation)


@_accelerated.register_fake
def _(
    G: torch.Tensor,
    M: torch.Tensor,
    average: torch.Tensor,
    mu: float,
    nesterov: bool,
    coefficient: float,
    decay: float,
    seed: int,
    offset: int,
    dtype: torch.dtype,
    implementation: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    U = G.new_empty(G.shape, dtype=reference.at_least(G, dtype))
    return U, M.new_empty(M.shape), average.new_empty(average.shape)


@torch.library.custom_op("stackloom::muon_descend", mutates_args=())
def _descend(W: torch.Tensor, update: torch.Tensor, decay: float, rate: float, implementation: str) -> torch.Tensor:
    return _DISPATCH.call("descend", W, update, decay, rate, implementation=implementation)


@_descend.register_fake
def _(W: torch.Tensor, update: torch.Tensor, decay: float, rate: float, implementation: str) -> torch.Tensor:
    return W.new_empty(W.shape)


OP = Op(
    name="muon_update",
    package=__name__,
    public={"momentum": momentum, "accelerated_momentum": accelerated_momentum, "descend": descend},
    dispatch=_DISPATCH,
    budget=_budget,
    has_backward=False,
    can_torch_compile=True,
)
