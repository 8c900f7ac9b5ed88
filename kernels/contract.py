"""What an op promises, as data that tests, the compile gate and the benchmarks read.

An op is a folder ``kernels/<op>/`` whose ``__init__.py`` exposes ``OP``. The promise itself (cases, refusals, laws,
benchmarks) is ``CONTRACT`` in the folder's ``contract.py``, imported only by whoever checks it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .selection import Dispatch


@dataclass(frozen=True)
class Op:
    """A public op of this package.

    Attributes:
        name: the folder's name.
        package: the folder's import name.
        public: what callers use, by function name; each takes ``implementation="reference" | "triton" | "auto"`` as a
            keyword.
        dispatch: the implementations and the choice among them.
        budget: ``budget(function, output, like)``: relative RMS error against float64 that rounding explains in
            ``output``; ``function`` is a key of ``public``, or ``"backward"`` for gradients; ``like`` is the first
            argument; 0.0 means bit equality.
        has_backward: whether gradients flow through every function of ``public``.
        can_torch_compile: whether ``torch.compile(fullgraph=True)`` takes it.
    """

    name: str
    package: str
    public: Mapping[str, Callable[..., Any]]
    dispatch: Dispatch
    budget: Callable[[str, torch.Tensor, torch.Tensor], float]
    has_backward: bool
    can_torch_compile: bool

    @property
    def contract(self) -> Contract:
        """The op's promise, from its ``contract.py``."""
        return importlib.import_module(f"{self.package}.contract").CONTRACT

    @property
    def compile_targets(self) -> tuple[CompileTarget, ...]:
        """Every kernel and config that ships, from its ``triton.py``; needs triton, and not the interpreter."""
        return tuple(importlib.import_module(f"{self.package}.triton").compile_targets())


@dataclass(frozen=True)
class Case:
    """One set of arguments on which every implementation must agree with the float64 reference.

    Attributes:
        name: says what is special about it ("odd 63 bfloat16").
        function: a key of ``Op.public``.
        make: ``make(device)``: the positional arguments, the same numbers at every call.
        quick: part of the check that a benchmark runs before it prints a number.
        sparse: addresses gigabytes but touches little, so it cannot be copied behind guard pages.
    """

    name: str
    function: str
    make: Callable[[torch.device], tuple[Any, ...]]
    quick: bool = False
    sparse: bool = False


@dataclass(frozen=True)
class Refusal:
    """Bad input and the error that must meet it.

    Attributes:
        call: ``call(device, implementation)``: makes the bad call.
        error: the exception type.
        says: a regular expression found in the message.
    """

    name: str
    call: Callable[[torch.device, str], Any]
    error: type[Exception]
    says: str


@dataclass(frozen=True)
class Benchmark:
    """One timed comparison.

    Attributes:
        name: the case, sizes included.
        function: a key of ``Op.public``, for the error budget.
        make: ``make(device)``: fresh random arguments; called until the rotation is large enough.
        ours: ``ours(implementation, *args)``.
        baseline: ``baseline(*args)``: the same result by other means.
        baseline_name: what that is.
        truth: ``truth(*args)``: the float64 answer, a tensor or a tuple of them.
        traffic: ``traffic(*args)``: bytes that must cross memory, each input and output once.
        bar: the ratio to reach, or None where the project sets none.
        device: ``"cpu"``, ``"cuda"`` or ``"any"``.
        quick: runs with ``--quick``.
    """

    name: str
    function: str
    make: Callable[[torch.device], tuple[Any, ...]]
    ours: Callable[..., Any]
    baseline: Callable[..., Any]
    baseline_name: str
    truth: Callable[..., Any]
    traffic: Callable[..., int]
    bar: float | None = None
    device: str = "any"
    quick: bool = False


@dataclass(frozen=True)
class Contract:
    """What every implementation of an op must keep.

    Attributes:
        laws: by name, ``law(device, implementation)``: identities of this op alone; they raise ``ContractViolation``.
        library_calls: ``(custom op, arguments)`` on CPU for ``torch.library.opcheck``.
        smooth_calls: ``(function, arguments)`` on CPU with float64 leaves that require gradients, for
            ``torch.autograd.gradcheck``.
    """

    cases: tuple[Case, ...]
    refusals: tuple[Refusal, ...]
    laws: Mapping[str, Callable[[torch.device, str], None]]
    library_calls: Callable[[], list[tuple[Any, tuple[Any, ...]]]]
    smooth_calls: Callable[[], list[tuple[Callable[..., Any], tuple[Any, ...]]]] = list
    benchmarks: tuple[Benchmark, ...] = ()


class ContractViolation(AssertionError):
    """An implementation broke a promise of its op; the message names the case and the figures."""


@dataclass(frozen=True)
class CompileTarget:
    """One kernel with one config and one specialisation of its arguments, to be compiled without a GPU.

    Attributes:
        kernel: the ``triton.jit`` function.
        config: its name in the stored table, unique for the kernel.
        args: positional arguments; a ``torch.dtype`` stands for a 16-byte aligned pointer to that type.
        constants: the constexpr arguments by name.
        num_warps: warps per program.
        num_stages: software pipelining depth; Triton's own default where a launch says nothing.
        sass: instruction prefixes that must occur in the machine code ("IGMMA", "LDG.E.128").
    """

    kernel: Any
    config: str
    args: tuple[Any, ...]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    sass: tuple[str, ...] = field(default=())


def unit_roundoff(dtype: torch.dtype) -> float:
    """u: the largest relative error of rounding one number to ``dtype`` (to nearest)."""
    return torch.finfo(dtype).eps / 2


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for the narrow floats, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def rounding_rms(output: torch.Tensor) -> float:
    """The relative RMS error of rounding ``output`` once to its dtype.

    A remainder is uniform within +-ulp/2, so its RMS is ulp / sqrt(12) = 2u / sqrt(12) = u / sqrt(3) of the number at
    most; truncation instead of rounding would give twice that. Under 64 elements the mean says little and the worst
    case u stands.
    """
    return unit_roundoff(output.dtype) / (math.sqrt(3) if output.numel() >= 64 else 1.0)
