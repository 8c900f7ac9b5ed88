"""Attention of single tokens over keys and values in pages. Maths, tiling and traffic: this folder's README."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..contract import Op, accumulation_dtype, rounding_rms, unit_roundoff
from ..selection import Dispatch, reference_implementation, triton_implementation
from . import reference

__all__ = ["OP", "paged_attention"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int32, torch.int64)


def paged_attention(
    q: torch.Tensor,
    memory: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    scale: float | None = None,
    *,
    implementation: str = "reference",
) -> torch.Tensor:
    """softmax(scale q k') v: one token of each sequence over the sequence's pages (Kwon et al. 2023, section 4.1).

    A decode step with grouped queries. Pages hold keys and values of all heads side by side, and sequences may share
    pages. What lies behind a sequence's last token is never used, be it NaN.

    Args:
        q: (N, H, K), float64, float32, bfloat16 or float16; any strides.
        memory: (P, 2 G, S, K) of q's dtype, keys of G heads before values of G heads; G divides H; any strides.
        table: (N, B) int32 or int64, numbers of each sequence's pages in order, below P; what stands behind the last
            page that a sequence needs must be the number of some page.
        lengths: (N,) int32 or int64, from 0 to B S; a sequence of no token gives zeros.
        scale: of the scores; 1 / sqrt(K) if None.
        implementation: ``"reference"``, ``"triton"`` or ``"auto"``.

    Returns:
        (N, H, K) in q's dtype, contiguous.

    Raises:
        TypeError: q or memory is no floating tensor, table or lengths no integer one, or dtypes differ.
        ValueError: shapes, devices or scale do not fit.
        UnsupportedImplementation: the named implementation cannot run these arguments.
        KernelMismatch: the named implementation disagrees with the reference on this device.

    Example:
        >>> memory = torch.tensor([[[[1.0], [0.0]], [[2.0], [7.0]]]])  # one page of two tokens, one head of width 1
        >>> paged_attention(torch.ones(1, 1, 1), memory, torch.tensor([[0]]), torch.tensor([1]))
        tensor([[[2.]]])
    """
    for name, tensor, kinds in (
        ("q", q, _DTYPES),
        ("memory", memory, _DTYPES),
        ("table", table, _INTEGERS),
        ("lengths", lengths, _INTEGERS),
    ):
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in kinds:
            got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            wanted = " or ".join(str(kind).removeprefix("torch.") for kind in kinds)
            raise TypeError(f"{name} must be a {wanted} tensor, got {got}")
    if q.dtype != memory.dtype:
        raise TypeError(f"q is {q.dtype} but memory is {memory.dtype}")
    if q.dim() != 3 or memory.dim() != 4 or not q.shape[2] or not q.shape[1]:
        raise ValueError(f"q must be (N, H, K) and memory (P, 2 G, S, K), got {tuple(q.shape)}, {tuple(memory.shape)}")
    heads, width = q.shape[1:]
    pages, both, size, stored = memory.shape
    if stored != width or not (pages and both and size) or both % 2 or heads % (both // 2):
        raise ValueError(
            f"memory must be (P, 2 G, S, {width}) with G a divisor of {heads} heads, got {tuple(memory.shape)}"
        )
    if table.dim() != 2 or lengths.dim() != 1 or not table.shape[0] == lengths.shape[0] == q.shape[0]:
        raise ValueError(
            f"table must be ({q.shape[0]}, B) and lengths ({q.shape[0]},), "
            f"got {tuple(table.shape)} and {tuple(lengths.shape)}"
        )
    if q.shape[0] and not table.shape[1]:
        raise ValueError("table must have at least one page per sequence")
    if len({tensor.device for tensor in (q, memory, table, lengths)}) > 1:
        raise ValueError("q, memory, table and lengths are on different devices")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    return _attend(q, memory, table, lengths, width**-0.5 if scale is None else scale, implementation)


def _budget(function: str, output: torch.Tensor, like: torch.Tensor) -> float:
    """The output's rounding, that of the weights where products take them narrow, and what float32 adds.

    A weight rounded to q's dtype errs by as much as the output's rounding does. A score errs by some sqrt(K) roundoffs
    of its size, and so does its exponential.
    """
    if not output.is_floating_point():
        return 0.0
    accumulation = unit_roundoff(accumulation_dtype(like.dtype))
    narrow = rounding_rms(output) if accumulation_dtype(like.dtype) != like.dtype else 0.0
    return rounding_rms(output) + narrow + (32 + 4 * math.sqrt(like.shape[-1])) * accumulation


def _probe(function: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)
    q, memory = (torch.randn(shape, generator=generator).to(device, dtype) for shape in ((3, 6, 64), (9, 4, 16, 64)))
    table = torch.tensor([[1, 2, 3], [4, 5, 0], [8, 7, 6]], device=device)
    return q, memory, table, torch.tensor([48, 17, 1], device=device), 0.125


_DISPATCH = Dispatch(
    "paged_attention",
    (triton_implementation(__name__, "attend"), reference_implementation(attend=reference.attend)),
    _probe,
    _budget,
)


@torch.library.custom_op("stackloom::paged_attention", mutates_args=())
def _attend(
    q: torch.Tensor, memory: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, scale: float, implementation: str
) -> torch.Tensor:
    return _DISPATCH.call("attend", q, memory, table, lengths, scale, implementation=implementation)


@_attend.register_fake
def _(
    q: torch.Tensor, memory: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, scale: float, implementation: str
) -> torch.Tensor:
    return q.new_empty(q.shape)


OP = Op(
    name="paged_attention",
    package=__name__,
    public={"attend": paged_attention},
    dispatch=_DISPATCH,
    budget=_budget,
    has_backward=False,
    can_torch_compile=True,
)
