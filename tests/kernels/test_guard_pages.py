"""An access out of bounds kills the child process; no op is killed."""

import signal
from pathlib import Path

import pytest
import torch

from stackloom.kernels.tooling.guard_pages import guarded, sparse_rows

PLANTED = Path(__file__).with_name("planted_overrun.py")


@pytest.mark.parametrize(("where", "side"), [("load", "after"), ("store", "after"), ("load", "before")])
def test_the_catcher_catches_a_planted_overrun_of_one_element(python, where, side):
    pytest.importorskip("triton")
    assert python(PLANTED, where, side, interpret=True).returncode == -signal.SIGSEGV


def test_the_catcher_spares_a_kernel_that_stays_within_bounds(python):
    pytest.importorskip("triton")
    result = python(PLANTED, "none", "after", interpret=True)
    assert (result.returncode, result.stdout) == (0, "unharmed\n"), result.stderr


@pytest.mark.slow
def test_no_triton_kernel_touches_memory_beyond_its_tensors(python, op):
    pytest.importorskip("triton")
    result = python("-m", "stackloom.kernels.tooling.guard_pages", op.name, "triton", interpret=True)
    assert result.returncode == 0, (
        f"died with {result.returncode} in {result.stdout.splitlines()[-1:]}: {result.stderr}"
    )
    assert "stayed within bounds" in result.stdout


@pytest.mark.parametrize("view", [lambda t: t, lambda t: t.t(), lambda t: t[:, ::2], lambda t: t[:1].expand(3, 7)])
def test_a_guarded_copy_keeps_values_and_strides(view):
    tensor = view(torch.arange(35.0).reshape(5, 7))
    copy = guarded(tensor)
    assert torch.equal(copy, tensor)
    assert copy.stride() == tensor.stride()


def test_sparse_rows_lie_as_far_apart_as_asked():
    rows = sparse_rows(3, 5, 2**30, torch.int8)
    assert rows.stride() == (2**30, 1)
    assert rows[2].data_ptr() - rows[0].data_ptr() == 2**31
    rows.fill_(7)
    assert rows.sum() == 105
