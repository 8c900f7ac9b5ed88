"""What every implementation of ``int4_pack`` keeps, bit for bit, and what it is timed against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..contract import Benchmark, Case, Contract, ContractViolation, Refusal
from ..tooling.guard_pages import sparse_rows
from ..tooling.poison import poisoned_view
from . import _pack, _unpack, pack_int4, reference, unpack_int4


def _int4(*shape: int) -> torch.Tensor:
    return torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(5), dtype=torch.int8)


def _bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(6), dtype=torch.uint8)


def _values(*shape: int, view: Callable[[torch.Tensor], torch.Tensor] = lambda t: t) -> Callable[..., tuple[Any, ...]]:
    return lambda device: (view(_int4(*shape).to(device)),)


def _packed(
    *shape: int, padded: bool = False, view: Callable[[torch.Tensor], torch.Tensor] = lambda t: t
) -> Callable[..., tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        packed = view(_bytes(*shape).to(device))
        return packed, 2 * packed.shape[-1] - padded

    return make


def _sparse(
    numbers: Callable[..., torch.Tensor], rows: int, columns: int, row_stride: int, *length: int
) -> Callable[..., tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        dense = numbers(rows, columns)
        if device.type == "cpu":
            tensor = sparse_rows(rows, columns, row_stride, dense.dtype)
        else:  # the addresses are real here: a few GB of device memory
            count = (rows - 1) * row_stride + columns
            tensor = torch.empty(count, dtype=dense.dtype, device=device).as_strided((rows, columns), (row_stride, 1))
        return tensor.copy_(dense), *length

    return make


_CASES = (
    *(Case(f"pack {length} values", "pack", _values(3, length), quick=length == 63) for length in (1, 2, 63, 1000)),
    *(
        Case(
            f"unpack {length} values", "unpack", _packed(3, -(-length // 2), padded=length % 2 == 1), quick=length == 63
        )
        for length in (1, 2, 63, 1000)
    ),
    Case("pack one row", "pack", _values(65)),
    Case("pack no values", "pack", _values(4, 0)),
    Case("pack no rows", "pack", _values(0, 6)),
    Case("unpack no bytes", "unpack", _packed(4, 0)),
    Case("pack several tiles each way", "pack", _values(2, 9, 1201)),
    Case("unpack several tiles each way", "unpack", _packed(2, 9, 601, padded=True)),
    Case("unpack int8 bytes", "unpack", _packed(5, 33, view=lambda t: t.view(torch.int8))),
    Case("pack strided amid values that are no int4", "pack", _values(7, 41, view=poisoned_view), quick=True),
    Case("unpack strided", "unpack", _packed(7, 41, view=poisoned_view), quick=True),
    Case("pack transposed", "pack", _values(6, 5, view=lambda t: t.t())),
    Case("unpack transposed", "unpack", _packed(6, 5, view=lambda t: t.t())),
    Case("pack one row expanded", "pack", _values(1, 9, view=lambda t: t.expand(4, 9))),
    Case(
        "pack with leading dimensions that do not collapse", "pack", _values(3, 5, 11, view=lambda t: t.transpose(0, 1))
    ),
    Case("pack with row * stride beyond 2^31", "pack", _sparse(_int4, 3, 21, 2**30), sparse=True),
    Case("pack with a stride beyond 2^31", "pack", _sparse(_int4, 2, 21, 2**31 + 8), sparse=True),
    Case("unpack with row * stride beyond 2^31", "unpack", _sparse(_bytes, 3, 21, 2**30, 41), sparse=True),
)


def _expect(holds: bool, law: str) -> None:
    if not holds:
        raise ContractViolation(law)


def _unpack_inverts_pack(device: torch.device, implementation: str) -> None:
    """For all 256 pairs of values, and for odd rows, whose padding nibble is zero."""
    nibbles = torch.arange(-8, 8, dtype=torch.int8)
    pairs = torch.cartesian_prod(nibbles, nibbles).to(device)
    packed = pack_int4(pairs, implementation=implementation)
    _expect(packed.unique().numel() == 256, "256 pairs of values make 256 different bytes")
    _expect(torch.equal(unpack_int4(packed, implementation=implementation), pairs), "unpack(pack(values)) is values")
    odd = pairs.reshape(-1)[:511].reshape(7, 73)
    packed = pack_int4(odd, implementation=implementation)
    _expect(bool((packed[:, -1] < 16).all()), "an odd row is padded with a zero nibble")
    _expect(
        torch.equal(unpack_int4(packed, 73, implementation=implementation), odd),
        "unpack(pack(odd rows), K) is the odd rows",
    )


def _low_nibble_comes_first(device: torch.device, implementation: str) -> None:
    packed = pack_int4(torch.tensor([1, 2, -1, 0], dtype=torch.int8, device=device), implementation=implementation)
    _expect(packed.tolist() == [0x21, 0x0F], "values 1, 2, -1, 0 are the bytes 0x21, 0x0f")


def _a_nibble_in_place_is_sixteen_times_its_value(device: torch.device, implementation: str) -> None:
    """The x16 layout: ``byte << 4`` and ``byte & 0xf0``, read as int8, are 16 times the two values."""
    packed = _bytes(40).to(device)
    low, high = unpack_int4(packed, implementation=implementation).unflatten(-1, (-1, 2)).unbind(-1)
    _expect(torch.equal((packed << 4).view(torch.int8), 16 * low), "int8(byte << 4) is 16 times the low value")
    _expect(torch.equal((packed & 0xF0).view(torch.int8), 16 * high), "int8(byte & 0xf0) is 16 times the high value")


def _refuse(call: Callable[..., Any], *args: Any) -> Callable[[torch.device, str], Any]:
    def refused(device: torch.device, implementation: str) -> Any:
        return call(*(a.to(device) if isinstance(a, torch.Tensor) else a for a in args), implementation=implementation)

    return refused


def _with(value: int, index: int) -> torch.Tensor:
    values = _int4(5, 63).fill_(0)
    values.view(-1)[index] = value
    return values


_REFUSALS = (
    Refusal("8 as the last value", _refuse(pack_int4, _with(8, -1)), ValueError, r"\[-8, 7\], got 0 to 8"),
    Refusal("-9 as the first value", _refuse(pack_int4, _with(-9, 0)), ValueError, r"\[-8, 7\], got -9 to 0"),
    Refusal("127", _refuse(pack_int4, _with(127, 40)), ValueError, r"got 0 to 127"),
    Refusal("-128", _refuse(pack_int4, _with(-128, 40)), ValueError, r"got -128 to 0"),
    Refusal(
        "int32 values", _refuse(pack_int4, torch.zeros(4, dtype=torch.int32)), TypeError, "int8 tensor, got torch.int32"
    ),
    Refusal("a list", _refuse(pack_int4, [1, 2]), TypeError, "int8 tensor, got list"),
    Refusal("a scalar", _refuse(pack_int4, torch.tensor(1, dtype=torch.int8)), ValueError, "got a scalar"),
    Refusal("float bytes", _refuse(unpack_int4, torch.zeros(4)), TypeError, "uint8 or int8 tensor, got torch.float32"),
    Refusal(
        "more values than bytes hold",
        _refuse(unpack_int4, _bytes(2, 4), 9),
        ValueError,
        "hold 8 values, or 7 with padding, not 9",
    ),
    Refusal(
        "fewer values than bytes hold",
        _refuse(unpack_int4, _bytes(2, 4), 6),
        ValueError,
        "hold 8 values, or 7 with padding, not 6",
    ),
    Refusal("a negative length", _refuse(unpack_int4, _bytes(2, 0), -1), ValueError, "not -1"),
)


def _library_calls() -> list[tuple[Any, tuple[Any, ...]]]:
    return [
        (_pack, (_int4(3, 7), "reference")),
        (_pack, (_int4(8, 3).t(), "reference")),
        (_unpack, (_bytes(3, 4), 7, "reference")),
    ]


def _pack_with_bit_operations(values: torch.Tensor) -> torch.Tensor:
    pairs = values.view(torch.uint8)
    return (pairs[..., 0::2] & 15) | (pairs[..., 1::2] << 4)


def _benchmarks(rows: int, columns: int, device: str, quick: bool) -> tuple[Benchmark, ...]:
    """Packing against plain torch and both directions against a copy that reads and writes as many bytes in all."""
    traffic = rows * columns + rows * columns // 2

    def values(target: torch.device) -> tuple[Any, ...]:
        return (torch.randint(-8, 8, (rows, columns), dtype=torch.int8, device=target),)

    def packed(target: torch.device) -> tuple[Any, ...]:
        return (torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device=target),)

    def with_as_many_bytes(make: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        return lambda target: (*make(target), torch.randint(0, 256, (traffic // 2,), dtype=torch.uint8, device=target))

    def pack(implementation: str, tensor: torch.Tensor, *copied: torch.Tensor) -> torch.Tensor:
        return pack_int4(tensor, implementation=implementation)

    def unpack(implementation: str, tensor: torch.Tensor, *copied: torch.Tensor) -> torch.Tensor:
        return unpack_int4(tensor, implementation=implementation)

    size = f"{rows}x{columns}"
    shared: dict[str, Any] = {"traffic": lambda *args: traffic, "device": device, "quick": quick}
    a_copy: dict[str, Any] = {
        "baseline": lambda tensor, copied: copied.clone(),
        "baseline_name": "a copy of as many bytes",
        **shared,
    }
    return (
        Benchmark(
            f"pack {size}",
            "pack",
            values,
            pack,
            baseline=_pack_with_bit_operations,
            baseline_name="torch bit operations, no range check",
            truth=reference.pack,
            **shared,
        ),
        Benchmark(
            f"pack {size} against a copy",
            "pack",
            with_as_many_bytes(values),
            pack,
            truth=lambda tensor, copied: reference.pack(tensor),
            **a_copy,
        ),
        Benchmark(
            f"unpack {size} against a copy",
            "unpack",
            with_as_many_bytes(packed),
            unpack,
            truth=lambda tensor, copied: reference.unpack(tensor, columns),
            **a_copy,
        ),
    )


CONTRACT = Contract(
    cases=_CASES,
    refusals=_REFUSALS,
    laws={
        "unpack inverts pack": _unpack_inverts_pack,
        "the low nibble comes first": _low_nibble_comes_first,
        "a nibble in place is sixteen times its value": _a_nibble_in_place_is_sixteen_times_its_value,
    },
    library_calls=_library_calls,
    benchmarks=(*_benchmarks(1024, 4096, "cpu", quick=True), *_benchmarks(28672, 8192, "cuda", quick=True)),
)
