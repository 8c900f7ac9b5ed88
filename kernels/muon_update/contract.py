"""What every implementation of ``muon_update`` keeps, and what it is timed against."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim._muon import _zeropower_via_newtonschulz

from ..contract import Benchmark, Case, Contract, ContractViolation, Refusal
from ..newton_schulz import QUINTIC, orthogonalize
from ..tooling.guard_pages import sparse_rows
from ..tooling.poison import poisoned_view
from . import (
    NEAREST,
    _accelerated,
    _descend,
    _momentum,
    accelerated_momentum,
    accelerated_momentum_,
    descend,
    descend_,
    momentum,
    momentum_,
    reference,
)

HALF, SINGLE = torch.bfloat16, torch.float32


def _numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _tensors(
    count: int, *options: Any, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], view: Any = lambda x: x
) -> Callable[..., tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        kinds = (dtypes * count)[:count]
        return *(view(_numbers(shape, kind, seed).to(device)) for seed, kind in enumerate(kinds)), *options

    return make


def _sparse(count: int, *options: Any) -> Callable[..., tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        rows = 2, 21, 2**31 + 8
        if device.type == "cpu":
            first = sparse_rows(*rows, HALF)
        else:  # the addresses are real here: a few GB of device memory
            first = torch.empty(rows[2] + rows[1], dtype=HALF, device=device).as_strided(rows[:2], (rows[2], 1))
        first.copy_(_numbers(rows[:2], HALF, 0))
        return first, *(_numbers(rows[:2], HALF, seed).to(device) for seed in range(1, count)), *options

    return make


def _cases() -> tuple[Case, ...]:
    blend, faster, slower = (0.95, True), (0.95, True, -0.5, 0.975), (0.9, False, 0.8, 0.1)
    cases = []
    for shape in ((1,), (63,), (7, 1000), (0, 5), ()):
        for dtypes in ((SINGLE,), (HALF,), (torch.float16,)):
            name = f"{'x'.join(map(str, shape)) or 'scalar'} {str(dtypes[0]).removeprefix('torch.')}"
            quick = shape == (7, 1000)
            cases += [
                Case(f"momentum {name}", "momentum", _tensors(2, *blend, shape=shape, dtypes=dtypes), quick),
                Case(
                    f"accelerated {name}",
                    "accelerated_momentum",
                    _tensors(3, *faster, shape=shape, dtypes=dtypes),
                    quick,
                ),
                Case(f"descend {name}", "descend", _tensors(2, 0.999, 0.01, shape=shape, dtypes=dtypes), quick),
            ]
    mixed = (SINGLE, SINGLE, HALF)
    return (
        *cases,
        Case("plain momentum", "momentum", _tensors(2, 0.9, False, shape=(5, 64), dtypes=(SINGLE,))),
        Case(
            "positive acceleration without nesterov",
            "accelerated_momentum",
            _tensors(3, *slower, shape=(5, 64), dtypes=(SINGLE,)),
        ),
        Case(
            "bfloat16 average of float32 gradients",
            "accelerated_momentum",
            _tensors(3, *faster, shape=(33, 65), dtypes=mixed),
            quick=True,
        ),
        Case(
            "float32 parameter, bfloat16 update",
            "descend",
            _tensors(2, 0.999, 0.01, shape=(33, 65), dtypes=(SINGLE, HALF)),
        ),
        Case(
            "strided amid NaN",
            "accelerated_momentum",
            _tensors(3, *faster, shape=(9, 70), dtypes=(SINGLE,), view=poisoned_view),
        ),
        Case("transposed", "momentum", _tensors(2, *blend, shape=(9, 70), dtypes=(SINGLE,), view=lambda x: x.mT)),
        Case("momentum with a stride beyond 2^31", "momentum", _sparse(2, *blend), sparse=True),
        Case("descend with a stride beyond 2^31", "descend", _sparse(2, 0.999, 0.01), sparse=True),
    )


def _expect(holds: bool, law: str) -> None:
    if not holds:
        raise ContractViolation(law)


def _state(device: torch.device, shape: tuple[int, ...] = (9, 70)) -> list[torch.Tensor]:
    return [_numbers(shape, SINGLE, seed).to(device) for seed in range(3)]


def _without_acceleration_it_is_momentum(device: torch.device, implementation: str) -> None:
    G, M, average = _state(device)
    plain = momentum(G, M, 0.95, implementation=implementation)
    for decay in (0.0, 0.5, 0.975):
        with_zero = accelerated_momentum(G, M, average, 0.95, True, 0.0, decay, implementation=implementation)
        same = all(torch.equal(one, two) for one, two in zip(plain, with_zero[:2], strict=True))
        _expect(same, f"coefficient 0 and decay {decay} is plain momentum, bit by bit")


def _in_place_is_out_of_place(device: torch.device, implementation: str) -> None:
    """Contiguous state, and a parameter whose elements do not lie side by side."""
    G, M, average = _state(device)
    want = accelerated_momentum(G, M, average, 0.95, seed=7, implementation=implementation)
    U = torch.empty_like(G, dtype=HALF)
    accelerated_momentum_(G, M, average, 0.95, True, -0.5, 0.975, 7, 0, U, implementation=implementation)
    _expect(all(map(torch.equal, (U, M, average), want)), "accelerated_momentum_ writes what the plain one returns")
    want = momentum(G, M, 0.9, False, implementation=implementation)
    momentum_(G, M, 0.9, False, U, implementation=implementation)
    _expect(all(map(torch.equal, (U, M), want)), "momentum_ writes what the plain one returns")
    for W in (G.clone(), G.mT.contiguous().mT):
        want = descend(W, U, 0.99, 0.1, implementation=implementation)
        descend_(W, U, 0.99, 0.1, implementation=implementation)
        _expect(torch.equal(W, want), "descend_ writes what descend returns")


def _shards_are_the_whole(device: torch.device, implementation: str) -> None:
    """Bit by bit, stochastic rounding included: a shard knows where it begins."""
    G, M, average = _state(device, (13, 37))
    average = average.to(HALF)
    rows = (0, 1, 6, 6, 13)
    for seed in (NEAREST, 12345):
        whole = accelerated_momentum(G, M, average, 0.95, seed=seed, implementation=implementation)
        parts = [
            accelerated_momentum(
                G[a:b], M[a:b], average[a:b], 0.95, seed=seed, offset=37 * a, implementation=implementation
            )
            for a, b in itertools.pairwise(rows)
        ]
        for one, shards in zip(whole, zip(*parts, strict=True), strict=True):
            _expect(torch.equal(one, torch.cat(shards)), f"shards are the whole (seed {seed})")


def _stochastic_rounding_is_unbiased(device: torch.device, implementation: str) -> None:
    """Its mean error is within five standard errors of zero where rounding to nearest always errs by a quarter ulp."""
    count = 1 << 14
    value = 1 + 2**-9  # a quarter of the way from 1 to its bfloat16 neighbour
    G = torch.full((count,), value, device=device)
    average = torch.ones(count, dtype=HALF, device=device)
    zero = torch.zeros(count, device=device)
    new = accelerated_momentum(G, zero, average, 0.0, decay=0.0, seed=3, implementation=implementation)[2]
    nearest = accelerated_momentum(G, zero, average, 0.0, decay=0.0, implementation=implementation)[2]
    _expect(bool((nearest == 1).all()), "to nearest, a quarter of an ulp is lost")
    _expect(set(new.unique().tolist()) == {1.0, 1 + 2**-7}, "stochastic rounding gives one of the two neighbours")
    standard_error = 2**-7 * (0.25 * 0.75 / count) ** 0.5
    _expect(abs(new.double().mean().item() - value) < 5 * standard_error, "stochastic rounding is unbiased")
    want = reference.stochastically_rounded(G.cpu(), 3, 0)
    _expect(torch.equal(new.float().cpu(), want), "every implementation draws the same numbers")


def _refuse(call: Callable[..., Any], *args: Any) -> Callable[[torch.device, str], Any]:
    def refused(device: torch.device, implementation: str) -> Any:
        return call(*(a.to(device) if isinstance(a, torch.Tensor) else a for a in args), implementation=implementation)

    return refused


_ONES = torch.ones(3)
_REFUSALS = (
    Refusal("two shapes", _refuse(momentum, _ONES, torch.ones(4), 0.9), ValueError, r"M has shape \(4,\)"),
    Refusal("momentum 1", _refuse(momentum, _ONES, _ONES, 1.0), ValueError, r"mu must lie in \[0, 1\), got 1.0"),
    Refusal("integers", _refuse(momentum, _ONES.int(), _ONES, 0.9), TypeError, "got torch.int32"),
    Refusal("complex", _refuse(descend, _ONES, _ONES.cfloat(), 1.0, 0.1), TypeError, "update must be.*complex64"),
    Refusal(
        "decay 1", _refuse(accelerated_momentum, _ONES, _ONES, _ONES, 0.9, True, 0.5, 1.0), ValueError, "decay must lie"
    ),
    Refusal(
        "a negative seed",
        _refuse(accelerated_momentum, _ONES, _ONES, _ONES, 0.9, True, 0.5, 0.9, -2),
        ValueError,
        "seed must lie",
    ),
)


def _library_calls() -> list[tuple[Any, tuple[Any, ...]]]:
    G, M, average = _state(torch.device("cpu"), (3, 5))
    return [
        (_momentum, (G, M, 0.9, True, HALF, "reference")),
        (_accelerated, (G, M, average.to(HALF), 0.9, False, -0.5, 0.975, 5, 0, SINGLE, "reference")),
        (_descend, (G.mT, M.mT, 0.99, 0.1, "reference")),
    ]


def _separate_passes(G: torch.Tensor, M: torch.Tensor, average: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The acceleration in plain torch, operation by operation, new tensors as ours."""
    difference = G - average
    augmented = G - 0.5 * difference
    average = average + 0.025 * difference
    M = torch.lerp(M, augmented, 0.05)
    return torch.lerp(augmented, M, 0.95).bfloat16(), M, average


def _benchmark(count: int, device: str, quick: bool = False) -> Benchmark:
    def make(target: torch.device) -> tuple[Any, ...]:
        return tuple(torch.randn(count, device=target) for _ in range(3))

    return Benchmark(
        f"accelerated_momentum {count / 1e6:g}M float32",
        "accelerated_momentum",
        make,
        ours=lambda implementation, *args: accelerated_momentum(*args, 0.95, implementation=implementation),
        baseline=_separate_passes,
        baseline_name="torch, operation by operation",
        truth=lambda *args: _separate_passes_in_float64(*args),
        traffic=lambda *args: 22 * count,
        device=device,
        quick=quick,
    )


def _separate_passes_in_float64(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
    doubles = (arg.double() for arg in args)
    return reference.accelerated_momentum(*doubles, 0.95, True, -0.5, 0.975, NEAREST, 0, torch.float64)


def _step(matrices: int, rows: int, columns: int, device: str, accelerated: bool, bar: float) -> Benchmark:
    """A whole step over one stack, out of place on both sides."""
    scale, weight_decay, lr = 0.2 * max(rows, columns) ** 0.5, 0.1, 1e-3

    def make(target: torch.device) -> tuple[Any, ...]:
        return tuple(torch.randn(matrices, rows, columns, device=target) for _ in range(4))

    def ours(implementation: str, W: torch.Tensor, *buffers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        G, M, average = buffers
        U, *state = (
            accelerated_momentum(G, M, average, 0.95, implementation=implementation)
            if accelerated
            else momentum(G, M, 0.95, implementation=implementation)
        )
        update = orthogonalize(U, dtype=reference.at_least(U, HALF), implementation=implementation)
        return descend(W, update, 1 - lr * weight_decay, lr * scale, implementation=implementation), *state

    def torch_muon(W: torch.Tensor, G: torch.Tensor, M: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
        new = []
        for weight, gradient, old in zip(W, G, M, strict=True):
            buffer = old.lerp(gradient, 0.05)
            update = _zeropower_via_newtonschulz(gradient.lerp(buffer, 0.95), QUINTIC[0], len(QUINTIC), 1e-7)
            new.append((weight * (1 - lr * weight_decay)).add_(update, alpha=-lr * scale))
        return torch.stack(new)

    return Benchmark(
        f"{'MONA' if accelerated else 'Muon'} step {matrices}x{rows}x{columns}",
        "accelerated_momentum" if accelerated else "momentum",
        make,
        ours=ours,
        baseline=torch_muon,
        baseline_name="torch.optim.Muon's step, matrix by matrix",
        truth=lambda *args: ours("reference", *(arg.double() for arg in args)),
        traffic=lambda W, *rest: (42 if accelerated else 30) * W.numel(),
        bar=bar,
        device=device,
        quick=rows < 200,
    )


def _steps(device: str, *shapes: tuple[int, int, int]) -> tuple[Benchmark, ...]:
    """Bars as ratios of torch's time to ours: Muon at most its time, MONA at most 1.15 of it."""
    return tuple(
        _step(*shape, device, accelerated, bar) for shape in shapes for accelerated, bar in ((False, 1.0), (True, 0.87))
    )


CONTRACT = Contract(
    cases=_cases(),
    refusals=_REFUSALS,
    laws={
        "without acceleration it is momentum": _without_acceleration_it_is_momentum,
        "in place is out of place": _in_place_is_out_of_place,
        "shards are the whole": _shards_are_the_whole,
        "stochastic rounding is unbiased": _stochastic_rounding_is_unbiased,
    },
    library_calls=_library_calls,
    benchmarks=(
        _benchmark(1 << 20, "cpu", quick=True),
        *_steps("cpu", (8, 96, 256), (4, 576, 576), (2, 576, 1536)),
        _benchmark(1 << 26, "cuda", quick=True),
        *_steps("cuda", (1, 4096, 4096), (1, 4096, 14336), (16, 1024, 2816)),
    ),
)
