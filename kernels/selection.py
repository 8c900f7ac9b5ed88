"""Which implementation of an op runs: the one that was named, or on request the first that can, with the reasons.

Four rules, each a test in ``tests/kernels/test_selection.py``:

* ``implementation="triton"`` runs triton or raises :class:`UnsupportedImplementation` with the reason.
* ``implementation="auto"`` takes the first implementation that can run and records what it took and why not the others
  (:meth:`Dispatch.selections`); each new record is also logged once. Nothing is ever silent.
* Before a device and dtype see an implementation for the first time, it answers a small probe. If it disagrees with the
  float64 reference, an explicit choice stops with :class:`KernelMismatch`; under ``auto`` it is disabled and the
  reference goes on.
* An exception in ``supports()`` or in a launch on the caller's tensors surfaces. Only a *device* that refuses the
  probe counts as an answer, and only under ``auto`` (out of memory, a driver too old for the binary).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

LOG = logging.getLogger("stackloom.kernels")


class KernelError(Exception):
    """Base of everything that this package raises beyond ``ValueError`` and ``TypeError`` for bad input."""


class UnsupportedImplementation(KernelError):
    """The implementation that the caller named cannot run these arguments; the message says why."""


class KernelMismatch(KernelError):
    """An implementation disagrees with the float64 reference on the actual device."""


@dataclass(frozen=True)
class Support:
    """An answer with a reason that a user can act on ("needs sm_80, this device is sm_75")."""

    ok: bool
    reason: str


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Attributes:
        name: what a caller passes as ``implementation=``.
        functions: the op's functions by name (``forward``, ``backward``, ``pack``, ...); positional arguments in,
            a tensor or a tuple of tensors out.
        supports: ``supports(function, *args)``: can it run these arguments here, and why (not).
    """

    name: str
    functions: Mapping[str, Callable[..., Any]]
    supports: Callable[..., Support]


def reference_implementation(**functions: Callable[..., Any]) -> Implementation:
    """The truth, in plain torch: runs wherever torch does."""
    return Implementation("reference", functions, lambda function, *args: Support(True, "plain torch runs everywhere"))


def triton_implementation(package: str, *functions: str) -> Implementation:
    """The implementation in ``<package>.triton``, imported at its first use, because triton need not exist.

    That module offers ``supports(function, *args) -> Support`` and one callable per name in ``functions``. Only an
    absent triton is an answer; a triton that is there and fails to import surfaces.
    """

    def module() -> Any:
        return importlib.import_module(f"{package}.triton")

    def supports(function: str, *args: Any) -> Support:
        if importlib.util.find_spec("triton") is None:
            return Support(False, "triton is not installed")
        return module().supports(function, *args)

    def function_named(name: str) -> Callable[..., Any]:
        def call(tensor: torch.Tensor, *rest: Any) -> Any:
            with torch.cuda.device_of(tensor):  # triton launches on the current device, wherever its arguments are
                return getattr(module(), name)(tensor, *rest)

        return call

    return Implementation("triton", {name: function_named(name) for name in functions}, supports)


@dataclass(frozen=True)
class Selection:
    """What ``auto`` took for one op, function, device and dtype, and why.

    Attributes:
        passed_over: ``(implementation, reason)`` for each one that was preferred but could not run.
        disabled: names among them that the device check condemned, in this process, for this device and dtype.
    """

    op: str
    function: str
    device: str
    dtype: str
    chosen: str
    passed_over: tuple[tuple[str, str], ...]
    disabled: tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.passed_over)
        because = f" ({reasons})" if reasons else ""
        return f"{self.op}.{self.function} on {self.device} {self.dtype} uses {self.chosen}{because}"


class Dispatch:
    """Chooses among an op's implementations and calls the chosen one.

    Args:
        op: the op's name.
        implementations: the preferred one first, the reference last.
        probe: ``probe(function, device, dtype)``: the smallest meaningful arguments, made on ``device``.
        budget: ``budget(function, output, like)``: the largest relative RMS error that rounding explains in ``output``,
            where ``like`` is the function's first argument; 0.0 asks for bit equality.
    """

    def __init__(
        self,
        op: str,
        implementations: Sequence[Implementation],
        probe: Callable[[str, torch.device, torch.dtype], tuple[Any, ...]],
        budget: Callable[[str, torch.Tensor, torch.Tensor], float],
    ) -> None:
        self.op = op
        self.implementations = {implementation.name: implementation for implementation in implementations}
        self.reference = implementations[-1]
        self._probe = probe
        self._budget = budget
        self._verdicts: dict[tuple[str, str, torch.device, torch.dtype], str] = {}
        self._selections: dict[Selection, int] = {}

    def call(self, function: str, *args: Any, implementation: str) -> Any:
        """Run ``function`` on ``args`` with the named implementation, or with the first that can if it is ``"auto"``.

        Raises:
            UnsupportedImplementation: the named implementation does not exist or cannot run these arguments.
            KernelMismatch: the named implementation disagrees with the reference on this device.
        """
        chosen = (
            self._first_that_can(function, args)
            if implementation == "auto"
            else self._named(implementation, function, args)
        )
        return chosen.functions[function](*args)

    def selections(self) -> dict[Selection, int]:
        """Every choice that ``auto`` made in this process, with the number of calls it served."""
        return dict(self._selections)

    def truth(self, function: str, *args: Any) -> tuple[torch.Tensor, ...]:
        """The reference's outputs with every floating argument in float64."""
        return outputs_of(self.reference.functions[function](*(in_float64(argument) for argument in args)))

    def _named(self, name: str, function: str, args: tuple[Any, ...]) -> Implementation:
        if name not in self.implementations:
            known = ", ".join(self.implementations)
            raise UnsupportedImplementation(f"{self.op} has no implementation {name!r}; choose from {known}, auto")
        implementation = self.implementations[name]
        if implementation is self.reference:
            return implementation
        support = implementation.supports(function, *args)
        if not support.ok:
            raise UnsupportedImplementation(
                f"{self.op}: implementation {name!r} cannot run {function} here: {support.reason}"
            )
        complaint = self._verdict(implementation, function, args[0])
        if complaint:
            raise KernelMismatch(f"{self.op}: implementation {name!r}, {function}: {complaint}")
        return implementation

    def _first_that_can(self, function: str, args: tuple[Any, ...]) -> Implementation:
        passed_over: list[tuple[str, str]] = []
        disabled: list[str] = []
        for implementation in self.implementations.values():
            support = implementation.supports(function, *args)
            if not support.ok:
                passed_over.append((implementation.name, support.reason))
                continue
            try:
                complaint = self._verdict(implementation, function, args[0])
            except Exception as error:
                if not _device_refuses(error):
                    raise
                passed_over.append((implementation.name, f"the device refused the probe: {error}"))
                continue
            if not complaint:
                self._record(implementation, function, args[0], passed_over, disabled)
                return implementation
            passed_over.append((implementation.name, f"disabled: {complaint}"))
            disabled.append(implementation.name)
        raise UnsupportedImplementation(f"{self.op}.{function}: nothing can run these arguments: {passed_over}")

    def _record(
        self,
        chosen: Implementation,
        function: str,
        first: torch.Tensor,
        passed_over: list[tuple[str, str]],
        disabled: list[str],
    ) -> None:
        record = Selection(
            self.op,
            function,
            str(first.device),
            str(first.dtype).removeprefix("torch."),
            chosen.name,
            tuple(passed_over),
            tuple(disabled),
        )
        if record not in self._selections:
            LOG.log(logging.WARNING if disabled else logging.INFO, "%s", record)
        self._selections[record] = self._selections.get(record, 0) + 1

    def _verdict(self, implementation: Implementation, function: str, first: torch.Tensor) -> str:
        """Empty when the implementation agrees with the reference on this device and dtype, else the complaint."""
        if implementation is self.reference:
            return ""
        key = (implementation.name, function, first.device, first.dtype)
        if key not in self._verdicts:
            if first.is_cuda and torch.cuda.is_current_stream_capturing():
                raise KernelError(
                    f"{self.op}: call {implementation.name!r} once before capturing a CUDA graph: "
                    "its check against the reference cannot be captured"
                )
            self._verdicts[key] = self._complaint(implementation, function, first.device, first.dtype)
        return self._verdicts[key]

    def _complaint(
        self, implementation: Implementation, function: str, device: torch.device, dtype: torch.dtype
    ) -> str:
        with torch.no_grad():
            args = self._probe(function, device, dtype)
            outputs = outputs_of(implementation.functions[function](*args))
            for index, (output, truth) in enumerate(zip(outputs, self.truth(function, *args), strict=True)):
                error, bar = disagreement(output, truth), self._budget(function, output, args[0])
                if not error <= bar:  # a NaN is not <= anything
                    where = f"the float64 reference on {device} {dtype}"
                    return f"output {index} is {error:.3g} from {where}, allowed {bar:.3g}"
        return ""


def outputs_of(result: Any) -> tuple[torch.Tensor, ...]:
    """A function's outputs as a tuple, whether it gave one tensor or several."""
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def in_float64(argument: Any) -> Any:
    """The argument itself, in float64 if it is a floating tensor."""
    return argument.double() if isinstance(argument, torch.Tensor) and argument.is_floating_point() else argument


def disagreement(output: torch.Tensor, truth: torch.Tensor) -> float:
    """||output - truth|| / ||truth|| for floats, the share of elements that differ for integers.

    NaN if ``output`` holds one where ``truth`` does not; infinite for a wrong shape, or for an error where the truth is
    all zero.
    """
    if output.shape != truth.shape:
        return float("inf")
    if not output.is_floating_point():
        return 0.0 if output.numel() == 0 else (output != truth).double().mean().item()
    distance = torch.linalg.vector_norm(output.double() - truth.double()).item()
    size = torch.linalg.vector_norm(truth.double()).item()
    if size:
        return distance / size
    return 0.0 if distance == 0 else float("inf") if distance > 0 else float("nan")


def _device_refuses(error: Exception) -> bool:
    """True for a device or driver that says no (out of memory or resources, an error code), as opposed to a bug."""
    return (
        isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError)
        or type(error).__name__ == "OutOfResources"
        or (isinstance(error, RuntimeError) and str(error).startswith("Triton Error [CUDA]"))
    )
