"""The elementwise halves over lists of tensors equal those of one tensor, bit by bit."""

from __future__ import annotations

import pytest
import torch

from stackloom.kernels.muon_update import NEAREST, accelerated_momentum_, descend_, momentum_
from stackloom.kernels.muon_update.each import accelerated_momentum_each_, descend_each_, momentum_each_

SHAPES = [(5, 7), (1, 3), (4, 64)]


def drawn(dtype: torch.dtype, count: int) -> list[list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [[torch.randn(shape, generator=draw).to(dtype) for shape in SHAPES] for _ in range(count)]


def copied(lists: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    return [[x.clone() for x in each] for each in lists]


def assert_same(ours: list[list[torch.Tensor]], theirs: list[list[torch.Tensor]]) -> None:
    for one, two in zip(ours, theirs, strict=True):
        for x, y in zip(one, two, strict=True):
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


def outputs(dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.empty(shape, dtype=dtype) for shape in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum(dtype: torch.dtype, nesterov: bool) -> None:
    Gs, Ms = drawn(dtype, 2)
    (expected,) = copied([Ms])
    U = torch.float64 if dtype == torch.float64 else torch.bfloat16
    Us, wanted = outputs(U), outputs(U)
    momentum_each_(Gs, Ms, 0.95, nesterov, Us)
    for G, M, out in zip(Gs, expected, wanted, strict=True):
        momentum_(G, M, 0.95, nesterov, out)
    assert_same([Ms, Us], [expected, wanted])


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [NEAREST, 11])
def test_accelerated_momentum(state: torch.dtype, seed: int) -> None:
    Gs, Ms, averages = drawn(torch.float32, 3)
    averages = [x.to(state) for x in averages]
    M_expected, average_expected = copied([Ms, averages])
    Us, wanted = outputs(torch.bfloat16), outputs(torch.bfloat16)
    seeds, offsets = [seed, seed, seed], [0, 5, 9]
    accelerated_momentum_each_(Gs, Ms, averages, 0.95, True, -0.5, 0.975, seeds, offsets, Us)
    for G, M, m, offset, out in zip(Gs, M_expected, average_expected, offsets, wanted, strict=True):
        accelerated_momentum_(G, M, m, 0.95, True, -0.5, 0.975, seed, offset, out)
    assert_same([Ms, averages, Us], [M_expected, average_expected, wanted])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rates", [[0.1, 0.1, 0.1], [0.1, 0.2, 0.3]])
def test_descend(dtype: torch.dtype, rates: list[float]) -> None:
    (Ws,), (updates,) = drawn(dtype, 1), drawn(torch.bfloat16, 1)
    (expected,) = copied([Ws])
    descend_each_(Ws, updates, 0.99, rates, implementation="reference")
    for W, update, rate in zip(expected, updates, rates, strict=True):
        descend_(W, update, 0.99, rate)
    assert_same([Ws], [expected])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lists_of_different_length_are_refused(dtype: torch.dtype) -> None:
    Gs, Ms = drawn(dtype, 2)
    with pytest.raises(ValueError, match="not of one length"):
        momentum_each_(Gs, Ms[:-1], 0.9, True, outputs(torch.bfloat16))
    with pytest.raises(ValueError, match="not of one length"):
        descend_each_(Gs, Ms, 0.9, [0.1], implementation="reference")
