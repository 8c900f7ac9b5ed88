"""Every implementation of every op keeps the op's contract; the cases are in ``kernels/<op>/contract.py``."""

import re

import pytest
import torch

from stackloom.kernels.selection import KernelMismatch, Support, UnsupportedImplementation, outputs_of
from stackloom.kernels.tooling import laws


def _support(op, implementation, case, device) -> Support:
    return op.dispatch.implementations[implementation].supports(case.function, *case.make(device))


def test_agrees_with_float64_in_poisoned_memory_or_says_why_it_cannot_run(subject, case, device):
    op, implementation = subject
    support = _support(op, implementation, case, device)
    if support.ok:
        laws.every_output_is_written(op, case, device, implementation)
    else:
        with pytest.raises(UnsupportedImplementation, match=re.escape(support.reason)):
            laws.values_match_reference(op, case, device, implementation)


def test_two_runs_are_bit_equal(subject, quick_case, device):
    op, implementation = subject
    if _support(op, implementation, quick_case, device).ok:
        laws.two_runs_are_bit_equal(op, quick_case, device, implementation)


def test_keeps_the_laws_of_its_op(subject, law, device):
    implementation = subject[1]
    law[1](device, implementation)


def test_bad_input_meets_a_clear_error(subject, refusal, device):
    implementation = subject[1]
    with pytest.raises(refusal.error, match=refusal.says):
        refusal.call(device, implementation)


def test_runs_most_of_its_cases_rather_than_refusing_them(subject, device):
    op, implementation = subject
    support = [_support(op, implementation, case, device).ok for case in op.contract.cases if not case.sparse]
    assert sum(support) > 0.8 * len(support)


def test_every_op_has_a_triton_implementation_and_ends_with_its_reference(op):
    assert list(op.dispatch.implementations) == ["triton", "reference"]
    assert op.dispatch.reference.name == "reference"


def test_registered_gradients_are_the_derivative_of_the_forward_pass(op):
    calls = op.contract.smooth_calls()
    assert bool(calls) == op.has_backward
    for function, args in calls:
        assert torch.autograd.gradcheck(function, args)


def test_custom_ops_pass_torch_opcheck(op):
    for custom_op, args in op.contract.library_calls():
        torch.library.opcheck(custom_op, args)


def test_outputs_never_alias_inputs(op):
    for custom_op, args in op.contract.library_calls():
        outputs = custom_op(*args)
        inputs = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            assert output.untyped_storage().data_ptr() not in inputs


def test_compiles_without_a_graph_break_and_changes_no_bit(op):
    assert op.can_torch_compile
    for case in op.contract.cases:
        if case.quick:
            args = case.make(torch.device("cpu"))
            function = op.public[case.function]
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
            assert all(map(torch.equal, outputs_of(compiled(*args)), outputs_of(function(*args))))


def test_meta_tensors_give_the_shapes_dtypes_and_strides_of_real_ones(op):
    for case in op.contract.cases:
        if not case.sparse:
            args = case.make(torch.device("cpu"))
            reals = outputs_of(op.public[case.function](*args))
            metas = outputs_of(
                op.public[case.function](*(arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args))
            )
            for real, meta in zip(reals, metas, strict=True):
                assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


def test_values_off_by_one_rounding_too_many_break_the_budget(op):
    """The budget is tight enough to see a store that truncates where it should round."""
    if not op.has_backward:
        assert op.budget("pack", torch.zeros(3, dtype=torch.int8), torch.zeros(3, dtype=torch.int8)) == 0.0
        return
    wide = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    rounded = wide.bfloat16()
    truncated = (wide.view(torch.int32) & ~0xFFFF).view(torch.float32).bfloat16()
    bar = op.budget("forward", rounded, rounded)
    norm = torch.linalg.vector_norm
    assert norm(rounded.double() - wide.double()) / norm(wide.double()) < bar
    assert norm(truncated.double() - wide.double()) / norm(wide.double()) > bar


@pytest.mark.gpu
def test_the_device_check_passes_for_every_implementation(subject, device):
    op, implementation = subject
    for case in op.contract.cases:
        if not case.sparse and _support(op, implementation, case, device).ok:
            try:
                op.public[case.function](*case.make(device), implementation=implementation)
            except KernelMismatch as mismatch:
                pytest.fail(str(mismatch))
