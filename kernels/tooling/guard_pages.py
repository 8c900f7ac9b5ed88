"""Memory with an unmapped page beside it, so that an access out of bounds kills the process instead of going unnoticed.

The interpreter reads and writes real addresses: one element too far is silent. Here each tensor's last byte touches an
unmapped page (or its first byte does, for underruns), so run this in a child process; SIGSEGV (exit 139 from a shell,
-11 from ``subprocess``) is the verdict.

``python -m stackloom.kernels.tooling.guard_pages OP IMPLEMENTATION`` runs all cases of an op that way, outputs and
gradients too.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from ..contract import Case, Op

Side = Literal["after", "before"]
PAGE = mmap.PAGESIZE
_READ_WRITE, _PRIVATE_ANONYMOUS_NORESERVE = 3, 0x2 | 0x20 | 0x4000


def _map(length: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = libc.mmap(None, length, _READ_WRITE, _PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), f"mmap of {length} bytes")
    return address


def _forbid(address: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")


def _tensor_at(address: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    nbytes = count * dtype.itemsize
    return torch.frombuffer((ctypes.c_byte * nbytes).from_address(address), dtype=dtype)


def guarded_empty(
    shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, side: Side = "after"
) -> torch.Tensor:
    """An uninitialised CPU tensor that ends ("after") or begins ("before") at an unmapped page. Its memory is never
    freed."""
    if 0 in shape:
        return torch.empty_strided(shape, stride, dtype=dtype)
    span = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    nbytes = span * dtype.itemsize
    pages = -(-nbytes // PAGE)
    base = _map((pages + 2) * PAGE)
    _forbid(base)
    _forbid(base + (pages + 1) * PAGE)
    start = base + PAGE if side == "before" else base + (pages + 1) * PAGE - nbytes
    return _tensor_at(start, span, dtype).as_strided(shape, stride)


def guarded(tensor: torch.Tensor, side: Side = "after") -> torch.Tensor:
    """A copy of a CPU tensor, strides included, beside an unmapped page."""
    copy = guarded_empty(tuple(tensor.shape), tensor.stride(), tensor.dtype, side)
    with torch.no_grad():
        if 0 in tensor.stride() and tensor.numel():  # an expanded tensor is written through its one real copy
            index = tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())
            copy[index].copy_(tensor[index])
        else:
            copy.copy_(tensor)
    return copy


def sparse_rows(rows: int, columns: int, row_stride: int, dtype: torch.dtype) -> torch.Tensor:
    """A CPU tensor (rows, columns) whose rows lie ``row_stride`` elements apart; only touched pages take memory.

    Its reason: offsets beyond 2^31, which a kernel with 32-bit arithmetic gets wrong, without gigabytes of RAM.
    """
    count = (rows - 1) * row_stride + columns
    return _tensor_at(_map(count * dtype.itemsize), count, dtype).as_strided((rows, columns), (row_stride, 1))


@contextmanager
def guarded_outputs(side: Side) -> Iterator[None]:
    """Inside, ``torch.empty`` and ``torch.empty_like`` on CPU return guarded memory: output overruns die too."""
    empty, empty_like = torch.empty, torch.empty_like

    def contiguous(shape: tuple[int, ...], dtype: torch.dtype | None) -> torch.Tensor:
        strides = torch.empty(shape, device="meta").stride()
        return guarded_empty(shape, strides, dtype or torch.get_default_dtype(), side)

    def replace_empty(*size: Any, dtype: torch.dtype | None = None, device: Any = None, **rest: Any) -> torch.Tensor:
        if rest or torch.device(device or "cpu").type != "cpu":
            return empty(*size, dtype=dtype, device=device, **rest)
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)
        return contiguous(shape, dtype)

    def replace_empty_like(like: torch.Tensor, *, dtype: torch.dtype | None = None, **rest: Any) -> torch.Tensor:
        if rest or like.device.type != "cpu" or not like.is_contiguous():
            return empty_like(like, dtype=dtype, **rest)
        return contiguous(tuple(like.shape), dtype or like.dtype)

    torch.empty, torch.empty_like = replace_empty, replace_empty_like
    try:
        yield
    finally:
        torch.empty, torch.empty_like = empty, empty_like


def main(argv: list[str] | None = None) -> int:
    """Run every case of one op behind guard pages; dies of SIGSEGV on the first access out of bounds.

    It prints each case before it runs, so the last line names the culprit.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stackloom.kernels.tooling.guard_pages", description=main.__doc__.split("\n\n")[0]
    )
    parser.add_argument("op")
    parser.add_argument("implementation")
    options = parser.parse_args(argv)

    from ..discovery import load_op

    if os.environ.get("TRITON_INTERPRET") == "1":
        from . import interpreter

        interpreter.install()
    op = load_op(options.op)
    supports = op.dispatch.implementations[options.implementation].supports
    cases = [case for case in op.contract.cases if not case.sparse]
    able = [case for case in cases if supports(case.function, *case.make(torch.device("cpu"))).ok]
    for case in able:
        for side in ("after", "before"):
            print(f"{case.name}, guard page {side}", flush=True)
            _run_guarded(op, case, options.implementation, side)
    print(f"{op.name}: {len(able)} of {len(cases)} cases ran with {options.implementation} and stayed within bounds")
    return 0 if able else 1


def _run_guarded(op: Op, case: Case, implementation: str, side: Side) -> None:
    from .laws import gradients

    args = tuple(guarded(a, side) if isinstance(a, torch.Tensor) else a for a in case.make(torch.device("cpu")))
    with guarded_outputs(side):
        if op.has_backward:
            gradients(op.public[case.function], args, implementation=implementation)
        else:
            op.public[case.function](*args, implementation=implementation)


if __name__ == "__main__":
    raise SystemExit(main())
