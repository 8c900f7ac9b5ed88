"""Two's-complement int4 values in pairs, low nibble first. Layout, tiling and traffic: this folder's README."""

from __future__ import annotations

from typing import Any

import torch

from ..contract import Op
from ..selection import Dispatch, reference_implementation, triton_implementation
from . import reference

__all__ = ["OP", "pack_int4", "unpack_int4"]


def pack_int4(values: torch.Tensor, *, implementation: str = "reference") -> torch.Tensor:
    """Two int4 values to a byte: ``values[2i]`` in the low nibble, ``values[2i + 1]`` in the high one.

    A row of odd length ends in a zero nibble.

    Args:
        values: (..., K) int8 in [-8, 7]; any strides.
        implementation: ``"reference"``, ``"triton"`` or ``"auto"``.

    Returns:
        (..., ceil(K / 2)) uint8, contiguous.

    Raises:
        TypeError: ``values`` is no int8 tensor.
        ValueError: it has no dimension, or a value lies outside of [-8, 7] (checking costs a synchronisation on a GPU).
        UnsupportedImplementation: the named implementation cannot run these arguments.
        KernelMismatch: the named implementation disagrees with the reference on this device.

    Example:
        >>> pack_int4(torch.tensor([1, -1, -8], dtype=torch.int8))
        tensor([241,   8], dtype=torch.uint8)
    """
    if not isinstance(values, torch.Tensor) or values.dtype != torch.int8:
        raise TypeError(f"values must be an int8 tensor, got {_what(values)}")
    if values.dim() == 0:
        raise ValueError("values must be (..., K), got a scalar")
    return _pack(values, implementation)


def unpack_int4(packed: torch.Tensor, length: int | None = None, *, implementation: str = "reference") -> torch.Tensor:
    """The inverse of :func:`pack_int4`. The nibble that pads an odd row is not read.

    Args:
        packed: (..., P) uint8, or the same bytes as int8; any strides.
        length: K, the number of values in a row: 2P (the default) or 2P - 1.
        implementation: ``"reference"``, ``"triton"`` or ``"auto"``.

    Returns:
        (..., K) int8 in [-8, 7], contiguous.

    Raises:
        TypeError: ``packed`` is no uint8 or int8 tensor.
        ValueError: it has no dimension, or ``length`` does not fit its last one.
        UnsupportedImplementation: the named implementation cannot run these arguments.
        KernelMismatch: the named implementation disagrees with the reference on this device.

    Example:
        >>> unpack_int4(torch.tensor([241, 8], dtype=torch.uint8), 3)
        tensor([ 1, -1, -8], dtype=torch.int8)
    """
    if not isinstance(packed, torch.Tensor) or packed.dtype not in (torch.uint8, torch.int8):
        raise TypeError(f"packed must be a uint8 or int8 tensor, got {_what(packed)}")
    if packed.dim() == 0:
        raise ValueError("packed must be (..., P), got a scalar")
    full = 2 * packed.shape[-1]
    length = full if length is None else length
    if length < 0 or length not in (full, full - 1):
        raise ValueError(
            f"{packed.shape[-1]} packed bytes hold {full} values, or {full - 1} with padding, not {length}"
        )
    return _unpack(packed, length, implementation)


def _what(argument: object) -> str:
    return str(argument.dtype) if isinstance(argument, torch.Tensor) else type(argument).__name__


def _exact(function: str, output: torch.Tensor, like: torch.Tensor) -> float:
    return 0.0


def _probe(function: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    """Every byte there is, and so every value in both places, in rows of odd length."""
    if function == "unpack":
        return torch.arange(256, device=device).to(torch.uint8).view(dtype).reshape(2, 128), 255
    return ((torch.arange(255, device=device) * 7 % 16 - 8).to(dtype).reshape(3, 85),)


_DISPATCH = Dispatch(
    "int4_pack",
    (
        triton_implementation(__name__, "pack", "unpack"),
        reference_implementation(pack=reference.pack, unpack=reference.unpack),
    ),
    _probe,
    _exact,
)


@torch.library.custom_op("stackloom::int4_pack", mutates_args=())
def _pack(values: torch.Tensor, implementation: str) -> torch.Tensor:
    return _DISPATCH.call("pack", values, implementation=implementation)


@_pack.register_fake
def _(values: torch.Tensor, implementation: str) -> torch.Tensor:
    return values.new_empty((*values.shape[:-1], (values.shape[-1] + 1) // 2), dtype=torch.uint8)


@torch.library.custom_op("stackloom::int4_unpack", mutates_args=())
def _unpack(packed: torch.Tensor, length: int, implementation: str) -> torch.Tensor:
    return _DISPATCH.call("unpack", packed, length, implementation=implementation)


@_unpack.register_fake
def _(packed: torch.Tensor, length: int, implementation: str) -> torch.Tensor:
    return packed.new_empty((*packed.shape[:-1], length), dtype=torch.int8)


OP = Op(
    name="int4_pack",
    package=__name__,
    public={"pack": pack_int4, "unpack": unpack_int4},
    dispatch=_DISPATCH,
    budget=_exact,
    has_backward=False,
    can_torch_compile=True,
)
