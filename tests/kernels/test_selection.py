"""What runs is what was named; ``auto`` chooses in the open; a wrong kernel never answers."""

import logging

import pytest
import torch

from stackloom.kernels.selection import (
    Dispatch,
    Implementation,
    KernelMismatch,
    Selection,
    Support,
    UnsupportedImplementation,
    disagreement,
    reference_implementation,
)

X = torch.tensor([1.0, 2.0, 3.0])


def _double(x):
    return 2 * x


def _fast(function, supports=lambda name, *args: Support(True, "anywhere"), name="fast"):
    return Implementation(name, {"double": function}, supports)


def _dispatch(*fast):
    return Dispatch(
        "double",
        (*fast, reference_implementation(double=_double)),
        probe=lambda function, device, dtype: (torch.arange(1, 6, device=device).to(dtype),),
        budget=lambda function, output, like: 1e-6,
    )


def _nan(x):
    return torch.full_like(x, float("nan"))


def _raises(error):
    def function(*args):
        raise error

    return function


def test_a_named_implementation_is_the_one_that_runs():
    calls = []
    dispatch = _dispatch(_fast(lambda x: calls.append("fast") or 2 * x))
    dispatch.call("double", X, implementation="reference")
    assert calls == []
    dispatch.call("double", X, implementation="fast")
    assert "fast" in calls


def test_a_named_implementation_that_cannot_run_says_why():
    dispatch = _dispatch(_fast(_double, lambda name, *args: Support(False, "needs sm_90, this device is sm_75")))
    with pytest.raises(
        UnsupportedImplementation,
        match=r"double: implementation 'fast' cannot run .* needs sm_90, this device is sm_75",
    ):
        dispatch.call("double", X, implementation="fast")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnsupportedImplementation, match="'cuda'; choose from fast, reference, auto"):
        _dispatch(_fast(_double)).call("double", X, implementation="cuda")


def test_auto_takes_the_first_that_can_run_and_records_why_not_the_others():
    slow = _fast(_double, lambda name, *args: Support(False, "needs 128 columns, got 3"), name="faster")
    dispatch = _dispatch(slow, _fast(_double))
    dispatch.call("double", X, implementation="auto")
    dispatch.call("double", X, implementation="auto")
    expected = Selection("double", "double", "cpu", "float32", "fast", (("faster", "needs 128 columns, got 3"),))
    assert dispatch.selections() == {expected: 2}


def test_auto_says_once_in_the_log_why_it_uses_the_reference(caplog):
    dispatch = _dispatch(_fast(_double, lambda name, *args: Support(False, "no CUDA device")))
    with caplog.at_level(logging.INFO, logger="stackloom.kernels"):
        for _ in range(3):
            dispatch.call("double", X, implementation="auto")
    assert [record.getMessage() for record in caplog.records] == [
        "double.double on cpu float32 uses reference (fast: no CUDA device)"
    ]


@pytest.mark.parametrize(
    "wrong", [lambda x: 2.001 * x, _nan, lambda x: x[:-1], lambda x: 0 * x], ids=["off", "NaN", "shape", "zero"]
)
def test_a_wrong_kernel_stops_an_explicit_choice(wrong):
    with pytest.raises(
        KernelMismatch, match=r"output 0 is .* from the float64 reference on cpu torch.float32, allowed 1e-06"
    ):
        _dispatch(_fast(wrong)).call("double", X, implementation="fast")


@pytest.mark.parametrize("wrong", [lambda x: 2.001 * x, _nan], ids=["off", "NaN"])
def test_a_wrong_kernel_is_disabled_under_auto_and_the_reference_goes_on(wrong, caplog):
    calls = []
    dispatch = _dispatch(_fast(lambda x: calls.append(x) or wrong(x)))
    for _ in range(3):
        assert torch.equal(dispatch.call("double", X, implementation="auto"), 2 * X)
    (record,) = dispatch.selections()
    assert (record.chosen, record.disabled) == ("reference", ("fast",))
    assert "disabled: output 0" in record.passed_over[0][1]
    assert len(calls) == 1, "after the probe a disabled kernel is not called again"
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_the_probe_runs_once_per_device_and_dtype():
    sizes = []
    dispatch = _dispatch(_fast(lambda x: sizes.append(x.numel()) or 2 * x))
    for _ in range(2):
        dispatch.call("double", X, implementation="fast")
        dispatch.call("double", X.double(), implementation="fast")
    assert sizes == [5, 3, 5, 3, 3, 3]


def test_a_kernel_wrong_for_one_dtype_still_serves_another():
    dispatch = _dispatch(_fast(lambda x: 3 * x if x.dtype == torch.float64 else 2 * x))
    dispatch.call("double", X, implementation="fast")
    with pytest.raises(KernelMismatch):
        dispatch.call("double", X.double(), implementation="fast")


@pytest.mark.parametrize("implementation", ["fast", "auto"])
def test_an_exception_in_supports_surfaces(implementation):
    dispatch = _dispatch(_fast(_double, _raises(ZeroDivisionError("bug in supports"))))
    with pytest.raises(ZeroDivisionError, match="bug in supports"):
        dispatch.call("double", X, implementation=implementation)


@pytest.mark.parametrize("implementation", ["fast", "auto"])
def test_a_bug_met_by_the_probe_surfaces(implementation):
    with pytest.raises(TypeError, match="bug in the kernel"):
        _dispatch(_fast(_raises(TypeError("bug in the kernel")))).call("double", X, implementation=implementation)


@pytest.mark.parametrize("implementation", ["fast", "auto"])
def test_an_exception_in_a_launch_on_the_callers_tensors_surfaces(implementation):
    def only_the_probe(x):
        if x.numel() == 5:
            return 2 * x
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        _dispatch(_fast(only_the_probe)).call("double", X, implementation=implementation)


@pytest.mark.parametrize(
    "refusal",
    [torch.OutOfMemoryError("out of memory"), RuntimeError("Triton Error [CUDA]: device kernel image is invalid")],
)
def test_a_device_that_refuses_the_probe_is_a_reason_under_auto_and_an_error_otherwise(refusal):
    dispatch = _dispatch(_fast(_raises(refusal)))
    assert torch.equal(dispatch.call("double", X, implementation="auto"), 2 * X)
    (record,) = dispatch.selections()
    assert record.passed_over == (("fast", f"the device refused the probe: {refusal}"),)
    with pytest.raises(type(refusal)):
        dispatch.call("double", X, implementation="fast")


def test_disagreement_is_relative_and_nan_never_agrees():
    truth = torch.tensor([3.0, 4.0])
    assert disagreement(truth + torch.tensor([0.0, 0.5]), truth) == pytest.approx(0.1)
    assert disagreement(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == 0.25
    assert not disagreement(torch.tensor([3.0, float("nan")]), truth) <= float("inf")
    assert not disagreement(torch.tensor([float("nan")]), torch.zeros(1)) <= float("inf")
    assert disagreement(torch.ones(1), torch.zeros(1)) == float("inf")
    assert disagreement(torch.zeros(0), torch.zeros(0)) == 0.0


def test_a_wrong_triton_kernel_stops_a_public_op_and_is_passed_over_under_auto(monkeypatch):
    kernels = pytest.importorskip("stackloom.kernels.rms_norm.triton")
    if not kernels.triton.knobs.runtime.interpret:
        pytest.skip("plants a wrong kernel in the interpreter")
    from stackloom.kernels.rms_norm import OP, reference, rms_norm

    def wrong(x, weight, eps):
        y, rstd = reference.forward(x, weight, eps)
        return y * 1.001, rstd

    monkeypatch.setattr(OP.dispatch, "_verdicts", {})
    monkeypatch.setattr(OP.dispatch, "_selections", {})
    monkeypatch.setattr(kernels, "forward", wrong)
    x, weight = torch.randn(4, 8), torch.ones(8)
    with pytest.raises(KernelMismatch, match=r"rms_norm: implementation 'triton', forward: output 0 is 0.001 from"):
        rms_norm(x, weight, implementation="triton")
    assert torch.equal(rms_norm(x, weight, implementation="auto"), rms_norm(x, weight))
    (record,) = OP.dispatch.selections()
    assert (record.chosen, record.disabled) == ("reference", ("triton",))


def test_auto_on_a_cpu_without_interpreter_uses_the_reference_of_every_op(python):
    pytest.importorskip("triton")
    program = """
import torch
from stackloom.kernels.discovery import load_op, op_names, selections
for name in op_names():
    op = load_op(name)
    for case in op.contract.cases:
        if case.quick:
            op.public[case.function](*case.make(torch.device("cpu")), implementation="auto")
records = selections()
assert {r.op for r in records} == set(op_names()), records
assert {(r.chosen, r.passed_over) for r in records} == {("reference", (("triton", REASON),))}, records
"""
    result = python("-c", program.replace("REASON", repr("needs a CUDA device, the tensors are on cpu")))
    assert result.returncode == 0, result.stderr


def test_where_triton_does_not_exist_every_op_answers_from_its_reference(python):
    program = """
import sys
sys.modules["triton"] = None
import torch
from stackloom.kernels.discovery import load_op, op_names, selections
from stackloom.kernels.selection import UnsupportedImplementation
from stackloom.kernels.tooling import laws
for name in op_names():
    op = load_op(name)
    for case in op.contract.cases:
        laws.values_match_reference(op, case, torch.device("cpu"), "auto")
        try:
            op.public[case.function](*case.make(torch.device("cpu")), implementation="triton")
        except UnsupportedImplementation as refusal:
            assert "triton is not installed" in str(refusal)
        else:
            raise SystemExit("ran triton without triton")
assert {(r.chosen, r.passed_over) for r in selections()} == {("reference", (("triton", "triton is not installed"),))}
"""
    result = python("-c", program)
    assert result.returncode == 0, result.stderr
