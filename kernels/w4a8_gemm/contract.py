"""What every implementation of ``w4a8_gemm`` keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..contract import Case, Contract, ContractViolation, Refusal
from ..tooling.guard_pages import sparse_rows
from ..tooling.poison import poisoned_view
from . import _channel, _group, _integer, accumulator_bound, pack_weight, unpack_weight
from . import w4a8_gemm as channel
from . import w4a8_gemm_group as group
from . import w4a8_gemm_integer as integer
from .benchmarks import BENCHMARKS
from .reference import INT32_MAX


def _draw(low: int, high: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.int8) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _scale(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.01


def _operands(
    function: str,
    M: int,
    N: int,
    K: int,
    group_size: int = 64,
    bias: bool = True,
    out_dtype: torch.dtype = torch.float32,
    x_scales: int | None = None,
    view: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> Callable[[torch.device], tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        x, packed = _draw(-127, 128, M, K), pack_weight(_draw(-8, 8, N, K, seed=2))
        groups = -(-K // group_size)
        scales: dict[str, tuple[Any, ...]] = {
            "channel": (_scale(N),),
            "group": (_scale(N, groups), group_size),
            "group_integer": (_draw(-300, 300, N, groups, dtype=torch.int32), _scale(N) / 1024, group_size),
        }
        tensors = (
            x,
            _scale(M if x_scales is None else x_scales, seed=3),
            packed,
            *scales[function],
            _scale(N, seed=4) if bias else None,
        )
        moved = (view(part.to(device)) if isinstance(part, torch.Tensor) else part for part in tensors)
        return *moved, out_dtype

    return make


def _sparse(device: torch.device) -> tuple[Any, ...]:
    x, *rest = _operands("channel", 3, 20, 70)(device)
    stride = 2**31 + 64
    if device.type == "cpu":
        far = sparse_rows(3, 70, stride, torch.int8)
    else:  # the addresses are real here: a few GB of device memory
        far = torch.empty(2 * stride + 70, dtype=torch.int8, device=device).as_strided((3, 70), (stride, 1))
    return far.copy_(x), *rest


def _cases() -> tuple[Case, ...]:
    shapes = (
        ("one token", {"M": 1, "N": 63, "K": 64}),
        ("odd everywhere", {"M": 3, "N": 70, "K": 101}),
        ("a tile and one", {"M": 17, "N": 129, "K": 192}),
        ("one channel, one column", {"M": 2, "N": 1, "K": 1}),
        ("K of 576", {"M": 4, "N": 40, "K": 576}),
        ("no tokens", {"M": 0, "N": 8, "K": 64}),
        ("no channels", {"M": 3, "N": 0, "K": 64}),
        ("no bias, bfloat16 output", {"M": 5, "N": 65, "K": 128, "bias": False, "out_dtype": torch.bfloat16}),
        (
            "float16 output, one scale for all tokens",
            {"M": 5, "N": 65, "K": 128, "out_dtype": torch.float16, "x_scales": 1},
        ),
        ("strided amid poison", {"M": 5, "N": 33, "K": 128, "view": poisoned_view}),
        ("K in several shares", {"M": 5, "N": 24, "K": 2112}),
        ("a large tile", {"M": 131, "N": 70, "K": 130}),
    )
    cases = [
        Case(f"{function}: {name}", function, _operands(function, **shape), quick=name == "odd everywhere")
        for function in ("channel", "group", "group_integer")
        for name, shape in shapes
    ]
    cases += [
        Case(f"{function}: groups of {size}", function, _operands(function, 4, 40, 200, group_size=size))
        for function in ("group", "group_integer")
        for size in (32, 96, 128, 200, 4096)
    ]
    return (*cases, Case("channel: row * stride of x beyond 2^31", "channel", _sparse, sparse=True))


def _expect(holds: bool, law: str) -> None:
    if not holds:
        raise ContractViolation(law)


def _unit(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.ones(shape, device=device)


def _sums_are_exact(device: torch.device, implementation: str) -> None:
    """With scales of one, every function gives the int64 sums themselves, the largest ones included."""
    M, N, K, size = 6, 72, 1040, 64
    x, values = _draw(-127, 128, M, K), _draw(-8, 8, N, K, seed=2)
    x[0], x[1], values[0], values[1] = 127, -127, -8, 7
    truth = (x.long() @ values.long().t()).to(device, torch.float32)
    x, packed, one = x.to(device), pack_weight(values).to(device), _unit(1, device=device)
    groups = _unit(N, -(-K // size), device=device)
    run = {"out_dtype": torch.float32, "implementation": implementation}
    _expect(torch.equal(channel(x, one, packed, groups[:, 0], **run), truth), "per channel, the sums are exact")
    _expect(torch.equal(group(x, one, packed, groups, size, **run), truth), "per group, the sums are exact")
    _expect(
        torch.equal(integer(x, one, packed, groups.int(), one, size, **run), truth), "integer scales, sums are exact"
    )


def _the_bound_is_reached_without_wrapping(device: torch.device, implementation: str) -> None:
    """At the largest scale that the bound allows, the worst activations give the int64 result."""
    values, size = _draw(-8, 8, 3, 128, seed=5), 32
    packed = pack_weight(values)
    signs = torch.tensor([[1, -1, 1, -1]] * 3, dtype=torch.int32)
    unit = accumulator_bound(packed, signs, size, 128)
    scale = signs * (INT32_MAX // unit)
    bound = accumulator_bound(packed, scale, size, 128)
    _expect(INT32_MAX - unit < bound <= INT32_MAX, "the bound is linear in the scale")
    effective = values.long() * scale.long().repeat_interleave(size, 1)
    x = (127 * effective.sign()).to(torch.int8)
    exact = x.long() @ effective.t()
    _expect(int(exact.abs().max()) == bound, "some activations reach the bound")
    one = _unit(1, device=device)
    found = integer(
        x.to(device), one, packed.to(device), scale.to(device), one, size, None, torch.float32,
        implementation=implementation,
    )  # fmt: skip
    _expect(torch.equal(found.cpu(), exact.float()), "at its bound the int32 accumulator does not wrap")


def _integer_scales_are_float_scales(device: torch.device, implementation: str) -> None:
    """I / alpha as float scales gives what I and alpha give (Integer Scale, section 6.4)."""
    x, x_scale, packed, scale, _, size, bias, dtype = _operands("group_integer", 5, 40, 192)(device)
    by_integers = integer(
        x, x_scale, packed, scale, _unit(1, device=device) / 1024, size, bias, dtype, implementation=implementation
    )
    by_floats = group(x, x_scale, packed, scale / 1024, size, bias, dtype, implementation=implementation)
    error = torch.linalg.vector_norm(by_integers - by_floats) / torch.linalg.vector_norm(by_integers)
    _expect(error.item() < 1e-6, "float scales I / alpha agree with integer scales to float32 rounding")


def _a_token_does_not_see_its_batch(device: torch.device, implementation: str) -> None:
    """Integer sums do not depend on tiles or shares, so a token has the same bits alone and among 70."""
    for function, gemm in (("channel", channel), ("group_integer", integer)):
        x, x_scale, *rest = _operands(function, 70, 40, 2112, out_dtype=torch.bfloat16)(device)
        batch = gemm(x, x_scale, *rest, implementation=implementation)
        alone = gemm(x[5:6], x_scale[5:6], *rest, implementation=implementation)
        _expect(torch.equal(batch[5:6], alone), f"{function}: a token's bits do not depend on its batch")


def _the_layout_is_as_documented(device: torch.device, implementation: str) -> None:
    values = _draw(-8, 8, 5, 130)
    packed = pack_weight(values.to(device))
    _expect(torch.equal(unpack_weight(packed, 130).cpu(), values), "unpack(pack(values)) is values")
    block = packed[:, 32:64].cpu()
    _expect(torch.equal((block << 4).view(torch.int8), 16 * values[:, 64:96]), "byte << 4 is 16 times column 64b + j")
    _expect(torch.equal((block & 0xF0).view(torch.int8), 16 * values[:, 96:128]), "byte & 0xf0 is column 64b + 32 + j")
    _expect(not packed[:, 66:].any(), "zeros pad a row")


def _refuse(call: Callable[..., Any], function: str, **changes: Any) -> Callable[[torch.device, str], Any]:
    """A call that is right but for ``changes``, by position."""

    def refused(device: torch.device, implementation: str) -> Any:
        args = list(_operands(function, 3, 8, 64, group_size=32)(device))
        for position, value in changes.items():
            args[int(position[1:])] = value.to(device) if isinstance(value, torch.Tensor) else value
        return call(*args, implementation=implementation)

    return refused


_REFUSALS = (
    Refusal(
        "float x", _refuse(channel, "channel", _0=torch.zeros(3, 64)), TypeError, "x must be an int8 tensor.*float32"
    ),
    Refusal(
        "x of one dimension", _refuse(channel, "channel", _0=torch.zeros(64, dtype=torch.int8)), ValueError, r"\(M, K\)"
    ),
    Refusal(
        "x of another K",
        _refuse(channel, "channel", _0=torch.zeros(3, 65, dtype=torch.int8)),
        ValueError,
        r"packed must be \(N, 64\) to hold rows of 65 values, got \(8, 32\)",
    ),
    Refusal(
        "K beyond int32",
        _refuse(channel, "channel", _0=torch.zeros(1, 131_072, dtype=torch.int8)),
        ValueError,
        "can exceed int32; at most 131071",
    ),
    Refusal(
        "bfloat16 scale", _refuse(channel, "channel", _3=torch.ones(8).bfloat16()), TypeError, "scale must be a float32"
    ),
    Refusal(
        "x_scale too long", _refuse(channel, "channel", _1=torch.ones(4)), ValueError, r"x_scale must have shape \(3,\)"
    ),
    Refusal(
        "bias too short", _refuse(channel, "channel", _4=torch.ones(7)), ValueError, r"bias must have shape \(8,\)"
    ),
    Refusal("int8 output", _refuse(channel, "channel", _5=torch.int8), TypeError, "out_dtype must be"),
    Refusal(
        "int8 weight",
        _refuse(channel, "channel", _2=torch.zeros(8, 32, dtype=torch.int8)),
        TypeError,
        "packed must be a uint8",
    ),
    Refusal(
        "a scale per channel for groups",
        _refuse(group, "group", _3=torch.ones(8, 1)),
        ValueError,
        r"scale must have shape \(8, 2\)",
    ),
    Refusal("group of zero", _refuse(group, "group", _4=0), ValueError, "group_size must be positive, got 0"),
    Refusal(
        "float integer scale",
        _refuse(integer, "group_integer", _3=torch.ones(8, 2)),
        TypeError,
        "integer_scale must be a int32",
    ),
    Refusal(
        "scales that overflow",
        _refuse(integer, "group_integer", _3=torch.full((8, 2), 10**6, dtype=torch.int32)),
        ValueError,
        r"accumulator can reach \d+, beyond 2147483647: lower the amplifier",
    ),
)


def _library_calls() -> list[tuple[Any, tuple[Any, ...]]]:
    cpu = torch.device("cpu")
    whole, grouped, amplified = (_operands(name, 3, 8, 70)(cpu) for name in ("channel", "group", "group_integer"))
    return [
        (_channel, (*whole, "reference")),
        (_channel, (whole[0], whole[1], whole[2], whole[3], None, torch.bfloat16, "reference")),
        (_group, (*grouped, "reference")),
        (_integer, (*amplified, None, "reference")),
    ]


CONTRACT = Contract(
    cases=_cases(),
    refusals=_REFUSALS,
    laws={
        "sums are exact": _sums_are_exact,
        "the bound is reached without wrapping": _the_bound_is_reached_without_wrapping,
        "integer scales are float scales": _integer_scales_are_float_scales,
        "a token does not see its batch": _a_token_does_not_see_its_batch,
        "the layout is as documented": _the_layout_is_as_documented,
    },
    library_calls=_library_calls,
    benchmarks=BENCHMARKS,
)
