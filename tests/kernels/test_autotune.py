"""Interpreted, the named config runs; compiled, all of them are autotuned; the list is the same."""

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from stackloom.kernels.tooling.autotune import KernelConfig, tuned  # noqa: E402

CONFIGS = (KernelConfig("narrow", {"BLOCK": 16}), KernelConfig("wide", {"BLOCK": 64}, num_warps=8))
interpreted = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="kernels are compiled in this run")


@tuned(CONFIGS, reference="wide", key=("count",))
@triton.jit
def _block_size(out, count, BLOCK: tl.constexpr):
    tl.store(out, BLOCK)


@interpreted
def test_the_named_config_runs_interpreted():
    out = torch.zeros(1, dtype=torch.int32)
    grids = []
    _block_size[lambda constants: grids.append(constants["BLOCK"]) or (1,)](out, 1)
    assert (out.item(), grids) == (64, [64])


def test_the_configs_are_listed_by_name():
    assert list(_block_size.configs) == ["narrow", "wide"]
    assert _block_size.reference is CONFIGS[1]


def test_a_reference_config_that_does_not_exist_is_refused():
    with pytest.raises(KeyError, match="wider"):
        tuned(CONFIGS, reference="wider", key=())(_block_size.kernel)


def test_two_configs_of_one_name_are_refused():
    with pytest.raises(ValueError, match="one name"):
        tuned((CONFIGS[0], CONFIGS[0]), reference="narrow", key=())(_block_size.kernel)


def test_compiled_kernels_are_autotuned_over_every_config(python):
    program = """
from stackloom.kernels.int4_pack.triton import _pack_kernel, CONFIGS
assert [c.kwargs for c in _pack_kernel._tuned.configs] == [dict(c.constants) for c in CONFIGS]
assert [c.num_warps for c in _pack_kernel._tuned.configs] == [c.num_warps for c in CONFIGS]
"""
    result = python("-c", program)
    assert result.returncode == 0, result.stderr
