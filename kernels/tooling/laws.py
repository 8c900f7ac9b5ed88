"""The laws that every op obeys, one function each.

pytest collects them; a benchmark runs the quick cases before it prints a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..contract import Case, ContractViolation, Op
from ..selection import KernelError, disagreement, in_float64, outputs_of
from .poison import poisoned_allocations


def values_match_reference(op: Op, case: Case, device: torch.device, implementation: str) -> None:
    """The outputs agree with the float64 reference within the op's error budget."""
    args = case.make(device)
    outputs = outputs_of(op.public[case.function](*args, implementation=implementation))
    truths = outputs_of(op.public[case.function](*map(in_float64, args), implementation="reference"))
    for index, (output, truth) in enumerate(zip(outputs, truths, strict=True)):
        _within(
            op.budget(case.function, output, args[0]),
            output,
            truth,
            f"{op.name} {implementation}, {case.name}, output {index}",
        )


def gradients_match_reference(op: Op, case: Case, device: torch.device, implementation: str) -> None:
    """The gradients agree with float64 autograd through the plain reference, not through the registered backward."""
    args = case.make(device)
    public, reference = op.public[case.function], op.dispatch.reference.functions[case.function]
    on_meta = (argument.to("meta") if isinstance(argument, torch.Tensor) else argument for argument in args)
    count = len(outputs_of(public(*on_meta)))  # a reference may return more, for its backward alone
    grads = gradients(public, args, implementation=implementation)
    truths = gradients(lambda *a: outputs_of(reference(*a))[:count], tuple(map(in_float64, args)))
    for index, (grad, truth) in enumerate(zip(grads, truths, strict=True)):
        _within(
            op.budget("backward", grad, args[0]),
            grad,
            truth,
            f"{op.name} {implementation}, {case.name}, gradient {index}",
        )


def every_output_is_written(op: Op, case: Case, device: torch.device, implementation: str) -> None:
    """Outputs and gradients are right in memory that was poisoned before the call."""
    with poisoned_allocations():
        values_match_reference(op, case, device, implementation)
        if op.has_backward:
            gradients_match_reference(op, case, device, implementation)


def two_runs_are_bit_equal(op: Op, case: Case, device: torch.device, implementation: str) -> None:
    """Outputs and gradients of two runs have the same bits."""

    def run() -> tuple[torch.Tensor, ...]:
        args = case.make(device)
        outputs = outputs_of(op.public[case.function](*args, implementation=implementation))
        return outputs + (
            gradients(op.public[case.function], args, implementation=implementation) if op.has_backward else ()
        )

    for index, (first, second) in enumerate(zip(run(), run(), strict=True)):
        if not torch.equal(first.flatten().view(torch.uint8), second.flatten().view(torch.uint8)):
            raise ContractViolation(f"{op.name} {implementation}, {case.name}: result {index} differs between two runs")


def gradients(function: Callable[..., Any], args: tuple[Any, ...], **options: Any) -> tuple[torch.Tensor, ...]:
    """Gradients of ``function`` with respect to its floating tensor arguments, for one fixed random direction.

    The direction spans every output. Its elements are eighths, exact in every float, so that float64 and narrow runs
    see the same numbers.
    """
    leaves = tuple(
        a.detach().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args
    )
    outputs = outputs_of(function(*leaves, **options))
    generator = torch.Generator().manual_seed(17)
    directions = [
        torch.randint(-8, 9, output.shape, generator=generator).to(output.device, output.dtype) / 8
        for output in outputs
    ]
    inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    return torch.autograd.grad(outputs, inputs, directions)


def quick_failures(op: Op, device: torch.device, implementation: str) -> Iterator[str]:
    """What is red in the part of the contract that a benchmark insists on; nothing when it may print."""
    laws: list[Callable[[Op, Case, torch.device, str], None]] = [values_match_reference, two_runs_are_bit_equal]
    if op.has_backward:
        laws.append(gradients_match_reference)
    for case in op.contract.cases:
        for law in laws if case.quick else ():
            try:
                law(op, case, device, implementation)
            except (ContractViolation, KernelError) as failure:
                yield f"{law.__name__}: {failure}"
    for name, own_law in op.contract.laws.items():
        try:
            own_law(device, implementation)
        except (ContractViolation, KernelError) as failure:
            yield f"{name}: {failure}"


def _within(bar: float, output: torch.Tensor, truth: torch.Tensor, where: str) -> None:
    error = disagreement(output, truth)
    if not error <= bar:  # NaN fails
        raise ContractViolation(f"{where}: relative RMS error {error:.3g}, allowed {bar:.3g}")
