"""Orthogonalisation of stacked matrices by Newton-Schulz polynomials. Maths, tiling and FLOPs: this folder's README."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..contract import Op, accumulation_dtype, rounding_rms, unit_roundoff
from ..selection import Dispatch, reference_implementation, triton_implementation
from . import reference

__all__ = ["FORMS", "OP", "POLAR_EXPRESS", "QUINTIC", "orthogonalize", "symmetric_product"]

Triple = tuple[float, float, float]
FORMS = ("auto", "direct", "gram")
QUINTIC: tuple[Triple, ...] = ((3.4445, -4.7750, 2.0315),) * 5  # KellerJordan/Muon

# Amsel, Persson, Musco, Gower 2025 (arXiv 2505.16932), degree 5; each but the last is relaxed by a factor of 1.01, so
# that rounding cannot push a singular value beyond the interval that the next polynomial was made for.
_UNRELAXED = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
POLAR_EXPRESS: tuple[Triple, ...] = (
    *((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _UNRELAXED),
    (1.875, -1.25, 0.375),
)

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def symmetric_product(
    A: torch.Tensor,
    B: torch.Tensor,
    addend: torch.Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    implementation: str = "reference",
) -> torch.Tensor:
    """Alpha A B' + beta addend, where the caller knows that the result is symmetric (B = A, or A and B commute).

    Accumulated in float32 (float64 for float64) and rounded once. The Triton implementation computes the lower triangle
    alone, so a result that is not symmetric in truth comes out wrong there.

    Args:
        A, B: (E, M, K), float64, float32, bfloat16 or float16; any strides.
        addend: (E, M, M), symmetric, of the same dtype; None for zero.
        alpha, beta: factors.
        implementation: ``"reference"``, ``"triton"`` or ``"auto"``.

    Returns:
        (E, M, M) in A's dtype, contiguous.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: shapes or devices do not fit.
        UnsupportedImplementation: the named implementation cannot run these arguments.

    Example:
        >>> symmetric_product(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 2.0]]]))
        tensor([[[5.]]])
    """
    for name, tensor in (("A", A), ("B", B), *((("addend", addend),) if addend is not None else ())):
        _insist_on_floats(name, tensor)
        if tensor.dtype != A.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, A is {A.dtype}")
        if tensor.device != A.device:
            raise ValueError(f"{name} is on {tensor.device}, A is on {A.device}")
    if A.dim() != 3 or B.shape != A.shape:
        raise ValueError(f"A and B must both be (E, M, K), got {tuple(A.shape)} and {tuple(B.shape)}")
    if addend is not None and addend.shape != (A.shape[0], A.shape[1], A.shape[1]):
        raise ValueError(f"addend must be {(A.shape[0], A.shape[1], A.shape[1])}, got {tuple(addend.shape)}")
    return _symmetric_product(A, B, addend, alpha, beta, implementation)


def orthogonalize(
    G: torch.Tensor,
    coefficients: Sequence[Triple] = QUINTIC,
    eps: float = 1e-7,
    form: str = "auto",
    dtype: torch.dtype = torch.bfloat16,
    *,
    implementation: str = "reference",
) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values go to about one, singular vectors stay.

    X = G / max(|G|_F, eps), then X <- a X + b (X X') X + c (X X')^2 X for each triple. With ``QUINTIC``, a relative
    singular value of at least 2e-3 ends in [0.68, 1.21]; nothing ever exceeds 1.21 but by rounding. A zero matrix stays
    zero; NaN spreads over its matrix and no further.

    Args:
        G: (..., M, N), float64, float32, bfloat16 or float16; any strides. Each matrix is treated alone.
        coefficients: one triple (a, b, c) per polynomial; ``QUINTIC``, or a beginning of ``POLAR_EXPRESS``.
        eps: positive; smallest norm that a matrix is divided by.
        form: ``"direct"``; ``"gram"``: pairs of polynomials share one Gram matrix; ``"auto"``: gram where one side is
            at least twice the other. The same in exact arithmetic.
        dtype: of the products and the result; float64 input is always computed in float64.
        implementation: ``"reference"``, ``"triton"`` or ``"auto"``.

    Returns:
        (..., M, N) in ``dtype`` (float64 for float64), contiguous.

    Raises:
        TypeError: G is no floating tensor, or dtype no floating dtype.
        ValueError: a shape, form, eps or coefficient does not fit.
        UnsupportedImplementation: the named implementation cannot run these arguments.
        KernelMismatch: the named implementation disagrees with the reference on this device.

    Example:
        >>> orthogonalize(torch.diag(torch.tensor([3.0, 4.0])), dtype=torch.float32).diag()
        tensor([0.7229, 1.1192])
    """
    _insist_on_floats("G", G)
    if dtype not in _DTYPES:
        raise TypeError(f"dtype must be a floating dtype, got {dtype}")
    if G.dim() < 2:
        raise ValueError(f"G must be (..., M, N), got shape {tuple(G.shape)}")
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be positive and finite, got {eps}")
    if not coefficients or any(len(triple) != 3 for triple in coefficients):
        raise ValueError(f"coefficients must be triples (a, b, c), at least one, got {coefficients!r}")
    flat = [float(value) for triple in coefficients for value in triple]
    stack = G.reshape(math.prod(G.shape[:-2]), *G.shape[-2:])
    return _orthogonalize(stack, flat, eps, form, dtype, implementation).view(G.shape)


def _insist_on_floats(name: str, tensor: Any) -> None:
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES:
        got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a float64, float32, bfloat16 or float16 tensor, got {got}")


def _budget(function: str, output: torch.Tensor, like: torch.Tensor) -> float:
    """One rounding, plus float32 accumulation over K, for a product; the same once per intermediate for the iteration.

    A polynomial of the quintic weighs the roundings of its Gram matrix, of the square and of its result with b, c and
    1: 5.3 roundings as a root sum of squares, 12 for five of them, times 1.6, the steepest relative slope |s p'(s) /
    p(s)| on the way. The Gram form rounds 11 small matrices where the direct form rounds 5, times 1.5: 28 in all. This
    holds for matrices whose singular values end near one, as random ones do; far smaller ones drown in the rounding of
    G itself.
    """
    if not output.is_floating_point():
        return 0.0
    accumulation = unit_roundoff(accumulation_dtype(output.dtype))
    if function == "symmetric_product":
        return rounding_rms(output) + (8 + math.sqrt(like.shape[-1])) * accumulation
    return 28 * rounding_rms(output) + 28 * math.sqrt(max(like.shape[-2:])) * accumulation


def _probe(function: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)
    wide = torch.randn(2, 24, 70, generator=generator).to(device, dtype)
    if function == "symmetric_product":
        square = wide[..., :24] + wide[..., :24].mT
        return wide, wide, square, 0.5, -1.5
    return wide, [value for triple in QUINTIC for value in triple], 1e-7, "auto", torch.bfloat16


_DISPATCH = Dispatch(
    "newton_schulz",
    (
        triton_implementation(__name__, "symmetric_product", "orthogonalize"),
        reference_implementation(symmetric_product=reference.symmetric_product, orthogonalize=reference.orthogonalize),
    ),
    _probe,
    _budget,
)


@torch.library.custom_op("stackloom::symmetric_product", mutates_args=())
def _symmetric_product(
    A: torch.Tensor, B: torch.Tensor, addend: torch.Tensor | None, alpha: float, beta: float, implementation: str
) -> torch.Tensor:
    return _DISPATCH.call("symmetric_product", A, B, addend, alpha, beta, implementation=implementation)


@_symmetric_product.register_fake
def _(
    A: torch.Tensor, B: torch.Tensor, addend: torch.Tensor | None, alpha: float, beta: float, implementation: str
) -> torch.Tensor:
    return A.new_empty((A.shape[0], A.shape[1], A.shape[1]))


@torch.library.custom_op("stackloom::orthogonalize", mutates_args=())
def _orthogonalize(
    G: torch.Tensor, coefficients: list[float], eps: float, form: str, dtype: torch.dtype, implementation: str
) -> torch.Tensor:
    return _DISPATCH.call("orthogonalize", G, coefficients, eps, form, dtype, implementation=implementation)


@_orthogonalize.register_fake
def _(
    G: torch.Tensor, coefficients: list[float], eps: float, form: str, dtype: torch.dtype, implementation: str
) -> torch.Tensor:
    return G.new_empty(G.shape, dtype=torch.float64 if G.dtype == torch.float64 else dtype)


OP = Op(
    name="newton_schulz",
    package=__name__,
    public={"symmetric_product": symmetric_product, "orthogonalize": orthogonalize},
    dispatch=_DISPATCH,
    budget=_budget,
    has_backward=False,
    can_torch_compile=True,
)
