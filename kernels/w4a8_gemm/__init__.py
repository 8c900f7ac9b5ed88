"""Int8 activations times packed int4 weights, integer sums on tensor cores. Maths and layout: this folder's README."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..contract import Op, rounding_rms, unit_roundoff
from ..selection import Dispatch, reference_implementation, triton_implementation
from . import reference

__all__ = [
    "OP",
    "accumulator_bound",
    "pack_weight",
    "unpack_weight",
    "w4a8_gemm",
    "w4a8_gemm_group",
    "w4a8_gemm_integer",
]

_OUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SCALE_DTYPES = (torch.float32, torch.float64)
_LONGEST_SUM = reference.INT32_MAX // (128 * 128)  # 16 q and x in [-128, 127]: K up to 131,071


def pack_weight(values: torch.Tensor) -> torch.Tensor:
    """Two int4 weights to a byte: columns 64b + j and 64b + 32 + j share byte 32b + j, the former in the low nibble.

    Args:
        values: (N, K) int8 in [-8, 7].

    Returns:
        (N, P) uint8, P = ceil(K / 64) * 32, contiguous; zeros pad K to a multiple of 64.

    Raises:
        TypeError: ``values`` is no int8 tensor.
        ValueError: it is no matrix, or a value lies outside of [-8, 7].

    Example:
        >>> pack_weight(torch.full((1, 64), -1, dtype=torch.int8))[0, :2]
        tensor([255, 255], dtype=torch.uint8)
    """
    if not isinstance(values, torch.Tensor) or values.dtype != torch.int8:
        raise TypeError(f"values must be an int8 tensor, got {_what(values)}")
    if values.dim() != 2:
        raise ValueError(f"values must be (N, K), got shape {tuple(values.shape)}")
    return reference.pack(values)


def unpack_weight(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """The inverse of :func:`pack_weight`.

    Args:
        packed: (N, P) uint8.
        columns: K, the number of values in a row.

    Returns:
        (N, K) int8 in [-8, 7], contiguous.

    Raises:
        TypeError: ``packed`` is no uint8 tensor.
        ValueError: its rows do not hold K values.
    """
    _check_packed(packed, columns)
    return reference.unpack(packed, columns)


def accumulator_bound(packed: torch.Tensor, integer_scale: torch.Tensor, group_size: int, columns: int) -> int:
    """How large the int32 accumulator of :func:`w4a8_gemm_integer` can get, for any activations in [-127, 127].

    127 * max_n sum_k |I[n, c(k)] q[n, k]| (Integer Scale, section 2.6, with the weights known instead of |q| <= 8). The
    layer is safe if and only if this is at most 2^31 - 1. Reading it synchronises
    with a GPU: do it once per checkpoint.

    Args:
        packed: (N, P) uint8.
        integer_scale: (N, G) int32.
        group_size: columns per group.
        columns: K.

    Returns:
        The bound; it is reached by some activations.

    Raises:
        TypeError, ValueError: as :func:`w4a8_gemm_integer`.
    """
    _check_packed(packed, columns)
    _check_groups("integer_scale", integer_scale, (torch.int32,), packed, columns, group_size)
    return reference.accumulator_bound(packed, integer_scale, group_size, columns)


def w4a8_gemm(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    *,
    implementation: str = "reference",
) -> torch.Tensor:
    """y[m, n] = sum_k x[m, k] q[n, k] * scale[n] * x_scale[m] + bias[n] (OdysseyLLM FastGEMM, one scale per channel).

    The sum is exact in int32; the rest is float32, rounded once to ``out_dtype``. Not differentiable.

    Args:
        x: (M, K) int8, codes in [-127, 127]; rows contiguous.
        x_scale: (M,) or (M, 1) float32, one per token, or one element for all.
        packed: (N, P) uint8, from :func:`pack_weight`.
        scale: (N,) or (N, 1) float32, the true scale (not divided by 16).
        bias: (N,) float32, or None.
        out_dtype: float32, bfloat16 or float16. Float64 scales are computed and returned in float64.
        implementation: ``"reference"``, ``"triton"`` or ``"auto"``.

    Returns:
        (M, N) in ``out_dtype``, contiguous.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: shapes or devices do not fit, or K exceeds 131,071.
        UnsupportedImplementation: the named implementation cannot run these arguments.
        KernelMismatch: the named implementation disagrees with the reference on this device.

    Example:
        >>> packed = pack_weight(torch.tensor([[1, -2]], dtype=torch.int8))
        >>> x = torch.tensor([[3, 4]], dtype=torch.int8)
        >>> w4a8_gemm(x, torch.ones(1), packed, torch.ones(1), out_dtype=torch.float32)
        tensor([[-5.]])
    """
    _check_operands(x, x_scale, packed, bias, out_dtype)
    _check_scale("scale", scale, _SCALE_DTYPES, packed.shape[0], x)
    return _channel(x, x_scale.reshape(-1), packed, scale.reshape(-1), bias, out_dtype, implementation)


def w4a8_gemm_group(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    group_size: int,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    *,
    implementation: str = "reference",
) -> torch.Tensor:
    """y[m, n] = x_scale[m] * sum_c scale[n, c] * float(sum over group c of x q) + bias[n] (FPTQ, section 2.5).

    Args:
        x, x_scale, packed, bias, out_dtype, implementation: as :func:`w4a8_gemm`.
        scale: (N, G) float32, G = ceil(K / group_size).
        group_size: columns per group, positive; the last group may be shorter. Triton needs a multiple of 32, or at
            least K.

    Returns:
        (M, N) in ``out_dtype``, contiguous.

    Raises:
        TypeError, ValueError, UnsupportedImplementation, KernelMismatch: as :func:`w4a8_gemm`.
    """
    _check_operands(x, x_scale, packed, bias, out_dtype)
    _check_groups("scale", scale, _SCALE_DTYPES, packed, x.shape[1], group_size)
    return _group(x, x_scale.reshape(-1), packed, scale, group_size, bias, out_dtype, implementation)


def w4a8_gemm_integer(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    packed: torch.Tensor,
    integer_scale: torch.Tensor,
    inverse_amplifier: torch.Tensor,
    group_size: int,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    bound: int | None = None,
    *,
    implementation: str = "reference",
) -> torch.Tensor:
    """y[m, n] = (sum_c I[n, c] * sum over group c of x q) * inverse_amplifier[n] * x_scale[m] + bias[n].

    Integer Scale, section 2.2: everything up to the amplifier is exact in int32, and refused where that cannot be
    proven.

    Args:
        x, x_scale, packed, bias, out_dtype, implementation: as :func:`w4a8_gemm`.
        integer_scale: (N, G) int32, G = ceil(K / group_size); either sign.
        inverse_amplifier: (N,) or one element, float32: 1 / alpha.
        group_size: as :func:`w4a8_gemm_group`.
        bound: what :func:`accumulator_bound` said of this weight; None computes it, at every call.

    Returns:
        (M, N) in ``out_dtype``, contiguous.

    Raises:
        ValueError: the bound exceeds 2^31 - 1, or as :func:`w4a8_gemm`.
        TypeError, UnsupportedImplementation, KernelMismatch: as :func:`w4a8_gemm`.
    """
    _check_operands(x, x_scale, packed, bias, out_dtype)
    _check_groups("integer_scale", integer_scale, (torch.int32,), packed, x.shape[1], group_size)
    _check_scale("inverse_amplifier", inverse_amplifier, _SCALE_DTYPES, packed.shape[0], x, one_for_all=True)
    amplifier = inverse_amplifier.reshape(-1).expand(packed.shape[0])
    scales = (x_scale.reshape(-1), packed, integer_scale, amplifier)
    return _integer(x, *scales, group_size, bias, out_dtype, bound, implementation)


def _what(argument: object) -> str:
    return str(argument.dtype) if isinstance(argument, torch.Tensor) else type(argument).__name__


def _check_packed(packed: torch.Tensor, columns: int) -> None:
    if not isinstance(packed, torch.Tensor) or packed.dtype != torch.uint8:
        raise TypeError(f"packed must be a uint8 tensor, got {_what(packed)}")
    expected = reference.packed_bytes(columns)
    if packed.dim() != 2 or packed.shape[1] != expected:
        raise ValueError(f"packed must be (N, {expected}) to hold rows of {columns} values, got {tuple(packed.shape)}")


def _check_operands(
    x: torch.Tensor, x_scale: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype
) -> None:
    if not isinstance(x, torch.Tensor) or x.dtype != torch.int8:
        raise TypeError(f"x must be an int8 tensor, got {_what(x)}")
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"x must be (M, K) with K >= 1, got shape {tuple(x.shape)}")
    if x.shape[1] > _LONGEST_SUM:
        raise ValueError(f"sums of {x.shape[1]} products can exceed int32; at most {_LONGEST_SUM}")
    _check_packed(packed, x.shape[1])
    if packed.device != x.device:
        raise ValueError(f"x is on {x.device} but packed is on {packed.device}")
    _check_scale("x_scale", x_scale, _SCALE_DTYPES, x.shape[0], x, one_for_all=True)
    if bias is not None:
        _check_scale("bias", bias, _SCALE_DTYPES, packed.shape[0], x)
    if out_dtype not in _OUT_DTYPES:
        raise TypeError(f"out_dtype must be float32, bfloat16 or float16, got {out_dtype}")


def _check_scale(
    name: str,
    scale: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    length: int,
    x: torch.Tensor,
    one_for_all: bool = False,
) -> None:
    if not isinstance(scale, torch.Tensor) or scale.dtype not in dtypes:
        raise TypeError(f"{name} must be a float32 tensor, got {_what(scale)}")
    fits = scale.shape in ((length,), (length, 1)) or (one_for_all and scale.numel() == 1)
    if not fits:
        raise ValueError(f"{name} must have shape ({length},), got {tuple(scale.shape)}")
    if scale.device != x.device:
        raise ValueError(f"x is on {x.device} but {name} is on {scale.device}")


def _check_groups(
    name: str,
    scale: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    packed: torch.Tensor,
    columns: int,
    group_size: int,
) -> None:
    if group_size < 1:
        raise ValueError(f"group_size must be positive, got {group_size}")
    if not isinstance(scale, torch.Tensor) or scale.dtype not in dtypes:
        wanted = str(dtypes[0]).removeprefix("torch.")
        raise TypeError(f"{name} must be a {wanted} tensor, got {_what(scale)}")
    expected = (packed.shape[0], -(-columns // group_size))
    if tuple(scale.shape) != expected:
        raise ValueError(
            f"{name} must have shape {expected} for groups of {group_size} in {columns} columns, "
            f"got {tuple(scale.shape)}"
        )
    if scale.device != packed.device:
        raise ValueError(f"packed is on {packed.device} but {name} is on {scale.device}")


def _budget(function: str, output: torch.Tensor, like: torch.Tensor) -> float:
    """One rounding of the output, plus float32 scaling of exact integer sums.

    Five roundings at most without groups (conversion, two scales, bias). A group of 32 columns is the shortest one that
    a kernel takes, and each adds a product and a sum; the errors of a sum of G terms grow like sqrt(G), and a split sum
    adds its shares in another order.
    """
    if not output.is_floating_point():
        return 0.0
    groups = -(-like.shape[1] // 32) if function == "group" else 0
    return rounding_rms(output) + (6 + 3 * math.sqrt(groups)) * unit_roundoff(torch.float32)


def _probe(function: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    """Rows that do not fill a tile, three groups with a short last one, every value there is."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randint(-127, 128, (5, 160), generator=generator, dtype=torch.int8).to(device)
    values = torch.randint(-8, 8, (72, 160), generator=generator, dtype=torch.int8)
    packed = reference.pack(values).to(device)
    x_scale, scale, bias = (torch.rand(length, generator=generator).to(device) for length in (5, 72, 72))
    if function == "channel":
        return x, x_scale, packed, scale, bias, torch.float32
    if function == "group":
        return x, x_scale, packed, torch.rand(72, 3, generator=generator).to(device), 64, bias, torch.float32
    integers = torch.randint(-999, 1000, (72, 3), generator=generator, dtype=torch.int32).to(device)
    return x, x_scale, packed, integers, scale, 64, bias, torch.float32


_DISPATCH = Dispatch(
    "w4a8_gemm",
    (
        triton_implementation(__name__, "channel", "group", "group_integer"),
        reference_implementation(
            channel=reference.channel, group=reference.group, group_integer=reference.group_integer
        ),
    ),
    _probe,
    _budget,
)


@torch.library.custom_op("stackloom::w4a8_gemm", mutates_args=())
def _channel(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    implementation: str,
) -> torch.Tensor:
    return _DISPATCH.call("channel", x, x_scale, packed, scale, bias, out_dtype, implementation=implementation)


@_channel.register_fake
def _(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    implementation: str,
) -> torch.Tensor:
    return _like_output(x, packed, scale, out_dtype)


@torch.library.custom_op("stackloom::w4a8_gemm_group", mutates_args=())
def _group(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    group_size: int,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    implementation: str,
) -> torch.Tensor:
    return _DISPATCH.call(
        "group", x, x_scale, packed, scale, group_size, bias, out_dtype, implementation=implementation
    )


@_group.register_fake
def _(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    group_size: int,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    implementation: str,
) -> torch.Tensor:
    return _like_output(x, packed, scale, out_dtype)


@torch.library.custom_op("stackloom::w4a8_gemm_integer", mutates_args=())
def _integer(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    packed: torch.Tensor,
    integer_scale: torch.Tensor,
    inverse_amplifier: torch.Tensor,
    group_size: int,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    bound: int | None,
    implementation: str,
) -> torch.Tensor:
    if bound is None:
        bound = reference.accumulator_bound(packed, integer_scale, group_size, x.shape[1])
    if bound > reference.INT32_MAX:
        raise ValueError(
            f"the int32 accumulator can reach {bound}, beyond {reference.INT32_MAX}: lower the amplifier of this "
            "layer, or use w4a8_gemm_group"
        )
    return _DISPATCH.call(
        "group_integer",
        x,
        x_scale,
        packed,
        integer_scale,
        inverse_amplifier,
        group_size,
        bias,
        out_dtype,
        implementation=implementation,
    )


@_integer.register_fake
def _(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    packed: torch.Tensor,
    integer_scale: torch.Tensor,
    inverse_amplifier: torch.Tensor,
    group_size: int,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    bound: int | None,
    implementation: str,
) -> torch.Tensor:
    return _like_output(x, packed, inverse_amplifier, out_dtype)


def _like_output(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    dtype = torch.float64 if scale.dtype == torch.float64 else out_dtype
    return x.new_empty((x.shape[0], packed.shape[0]), dtype=dtype)


OP = Op(
    name="w4a8_gemm",
    package=__name__,
    public={"channel": w4a8_gemm, "group": w4a8_gemm_group, "group_integer": w4a8_gemm_integer},
    dispatch=_DISPATCH,
    budget=_budget,
    has_backward=False,
    can_torch_compile=True,
)
