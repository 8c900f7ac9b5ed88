"""What every implementation of ``newton_schulz`` keeps, and what it is timed against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim._muon import _zeropower_via_newtonschulz

from ..contract import Benchmark, Case, Contract, ContractViolation, Refusal
from ..tooling.guard_pages import sparse_rows
from ..tooling.poison import poisoned_view
from . import POLAR_EXPRESS, QUINTIC, _orthogonalize, _symmetric_product, orthogonalize, reference, symmetric_product

FLAT = [value for triple in QUINTIC for value in triple]
BOUND = 1.22  # of singular values after the quintic: 1.203 in exact arithmetic, the rest is bfloat16


def _numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _gram(
    *shape: int, dtype: torch.dtype, view: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
) -> Callable[..., tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        A = view(_numbers(*shape, dtype=dtype).to(device))
        return A, A

    return make


def _square(matrices: int, rows: int, dtype: torch.dtype) -> Callable[..., tuple[Any, ...]]:
    """c S S + b S for a symmetric S, as a polynomial needs it."""

    def make(device: torch.device) -> tuple[Any, ...]:
        S = _numbers(matrices, rows, rows, dtype=torch.float32)
        S = (S + S.mT).to(device, dtype)
        return S, S, S, 2.0315, -4.775

    return make


def _commuting(device: torch.device) -> tuple[Any, ...]:
    """Diagonal matrices commute, exactly."""
    return tuple(torch.diag_embed(_numbers(2, 40, dtype=torch.bfloat16, seed=seed)).to(device) for seed in (0, 1))


def _sparse(row_stride: int) -> Callable[..., tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        if device.type == "cpu":
            rows = sparse_rows(3, 48, row_stride, torch.bfloat16)
        else:  # the addresses are real here: a few GB of device memory
            rows = torch.empty(2 * row_stride + 48, dtype=torch.bfloat16, device=device)
            rows = rows.as_strided((3, 48), (row_stride, 1))
        rows.copy_(_numbers(3, 48, dtype=torch.bfloat16))
        return rows.unsqueeze(0), rows.unsqueeze(0)

    return make


def _matrices(
    *shape: int, dtype: torch.dtype, form: str = "auto", coefficients: Any = QUINTIC, view: Any = lambda x: x
) -> Callable[..., tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        return view(_numbers(*shape, dtype=dtype).to(device)), coefficients, 1e-7, form

    return make


def _cases() -> tuple[Case, ...]:
    half, single = torch.bfloat16, torch.float32
    return (
        Case("product 2x70x50 bfloat16", "symmetric_product", _gram(2, 70, 50, dtype=half), quick=True),
        Case("product 3x64x128 float16", "symmetric_product", _gram(3, 64, 128, dtype=torch.float16)),
        Case("product 1x1x1", "symmetric_product", _gram(1, 1, 1, dtype=half)),
        Case("product 1x63x1000", "symmetric_product", _gram(1, 63, 1000, dtype=half)),
        Case("product 1x150x33: three tiles", "symmetric_product", _gram(1, 150, 33, dtype=half)),
        Case("product of no matrices", "symmetric_product", _gram(0, 8, 8, dtype=half)),
        Case("product amid NaN", "symmetric_product", _gram(2, 20, 30, dtype=half, view=poisoned_view)),
        Case("product of transposed views", "symmetric_product", _gram(2, 50, 30, dtype=half, view=lambda x: x.mT)),
        Case("square plus addend", "symmetric_product", _square(2, 66, half), quick=True),
        Case("commuting factors", "symmetric_product", _commuting),
        Case("product with row * stride beyond 2^31", "symmetric_product", _sparse(2**30 + 16), sparse=True),
        Case("orthogonalize 3x40x56 bfloat16", "orthogonalize", _matrices(3, 40, 56, dtype=half), quick=True),
        Case("orthogonalize 40x90: Gram form", "orthogonalize", _matrices(2, 40, 90, dtype=half), quick=True),
        Case("orthogonalize 90x40 direct", "orthogonalize", _matrices(90, 40, dtype=half, form="direct")),
        Case("orthogonalize 63x63 Gram form", "orthogonalize", _matrices(63, 63, dtype=single, form="gram")),
        Case(
            "orthogonalize with Polar Express",
            "orthogonalize",
            _matrices(2, 33, 48, dtype=single, coefficients=POLAR_EXPRESS[:5]),
        ),
        Case("orthogonalize 2x3x1x7", "orthogonalize", _matrices(2, 3, 1, 7, dtype=single)),
        Case("orthogonalize amid NaN", "orthogonalize", _matrices(2, 20, 24, dtype=single, view=poisoned_view)),
        Case("orthogonalize no matrices", "orthogonalize", _matrices(0, 4, 5, dtype=single)),
    )


def _expect(holds: bool, law: str) -> None:
    if not holds:
        raise ContractViolation(law)


def _spectrum_stays_bounded(device: torch.device, implementation: str) -> None:
    """Random, nearly rank-deficient and rank-one matrices; both forms."""
    U, _, V = torch.linalg.svd(_numbers(40, 96, dtype=torch.float32), full_matrices=False)
    spectra = (torch.ones(40), torch.logspace(0, -6, 40), torch.eye(40)[0])
    for form in ("direct", "gram"):
        for spectrum in spectra:
            result = orthogonalize((U * spectrum @ V).to(device), form=form, implementation=implementation)
            largest = torch.linalg.matrix_norm(result.float(), ord=2).item()
            _expect(largest <= BOUND, f"{form}: a singular value came out as {largest}, at most {BOUND} is promised")


def _zero_stays_zero(device: torch.device, implementation: str) -> None:
    for form in ("direct", "gram"):
        result = orthogonalize(torch.zeros(2, 20, 50, device=device), form=form, implementation=implementation)
        _expect(bool((result == 0).all()), f"{form}: a zero matrix gives zero")


def _nan_stays_in_its_matrix(device: torch.device, implementation: str) -> None:
    G = _numbers(3, 20, 24, dtype=torch.float32).to(device)
    clean = orthogonalize(G, implementation=implementation)
    G[1, 3, 5] = float("nan")
    result = orthogonalize(G, implementation=implementation)
    _expect(bool(result[1].isnan().all()), "a NaN reaches every element of its matrix")
    _expect(torch.equal(result[::2], clean[::2]), "a NaN leaves the other matrices of the stack alone")


def _a_stack_is_its_matrices(device: torch.device, implementation: str) -> None:
    for form in ("direct", "gram"):
        G = _numbers(4, 33, 70, dtype=torch.float32).to(device)
        together = orthogonalize(G, form=form, implementation=implementation)
        alone = torch.stack([orthogonalize(matrix, form=form, implementation=implementation) for matrix in G])
        error = (together.float() - alone.float()).norm() / alone.float().norm()
        _expect(error <= 2e-2, f"{form}: a stack differs from its matrices by {error}")


def _transposes_commute(device: torch.device, implementation: str) -> None:
    """Bit by bit, because a tall matrix takes the route of its transpose."""
    G = _numbers(2, 24, 56, dtype=torch.float32).to(device)
    one = orthogonalize(G, implementation=implementation)
    two = orthogonalize(G.mT, implementation=implementation)
    _expect(torch.equal(one, two.mT), "the transpose's result is the result's transpose")


def _tilings_agree(device: torch.device, implementation: str) -> None:
    if implementation != "triton":
        return
    from . import triton as kernels

    sizes = (2, 150, 100) if device.type == "cpu" else (2, 400, 1000)  # interpreted tiles take their time
    A = torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    first, *others = (kernels.symmetric_product(A, A, None, 1.0, 0.0, config) for config in kernels.CONFIGS)
    for other, config in zip(others, kernels.CONFIGS[1:], strict=True):
        if not torch.equal(first, other):
            raise ContractViolation(f"tiling {config.name} gives other bits than {kernels.CONFIGS[0].name}")


def _result_is_symmetric(device: torch.device, implementation: str) -> None:
    A = _numbers(2, 70, 40, dtype=torch.bfloat16).to(device)
    S = symmetric_product(A, A, implementation=implementation).float()
    bar = 2 * torch.finfo(torch.bfloat16).eps * S.abs().max()
    _expect(bool(((S - S.mT).abs() <= bar).all()), "A A' is symmetric")


def _refuse(call: Callable[..., Any], *args: Any, **options: Any) -> Callable[[torch.device, str], Any]:
    def refused(device: torch.device, implementation: str) -> Any:
        moved = (a.to(device) if isinstance(a, torch.Tensor) else a for a in args)
        return call(*moved, **options, implementation=implementation)

    return refused


_REFUSALS = (
    Refusal("a vector", _refuse(orthogonalize, torch.ones(3)), ValueError, r"\(\.\.\., M, N\)"),
    Refusal("integers", _refuse(orthogonalize, torch.ones(3, 3, dtype=torch.int32)), TypeError, "got torch.int32"),
    Refusal("complex", _refuse(orthogonalize, torch.ones(3, 3, dtype=torch.cfloat)), TypeError, "got torch.complex64"),
    Refusal("an unknown form", _refuse(orthogonalize, torch.ones(3, 3), form="svd"), ValueError, "auto, direct, gram"),
    Refusal("eps zero", _refuse(orthogonalize, torch.ones(3, 3), eps=0.0), ValueError, "eps must be positive"),
    Refusal("pairs", _refuse(orthogonalize, torch.ones(3, 3), ((1.0, 2.0),)), ValueError, "triples"),
    Refusal("no polynomial", _refuse(orthogonalize, torch.ones(3, 3), ()), ValueError, "at least one"),
    Refusal(
        "factors of two shapes",
        _refuse(symmetric_product, torch.ones(1, 2, 3), torch.ones(1, 3, 3)),
        ValueError,
        "must both be",
    ),
    Refusal(
        "an addend of another size",
        _refuse(symmetric_product, torch.ones(1, 2, 3), torch.ones(1, 2, 3), torch.ones(1, 3, 3)),
        ValueError,
        "addend must be",
    ),
    Refusal(
        "factors of two dtypes",
        _refuse(symmetric_product, torch.ones(1, 2, 3), torch.ones(1, 2, 3).double()),
        TypeError,
        "B is torch.float64",
    ),
)


def _library_calls() -> list[tuple[Any, tuple[Any, ...]]]:
    A, S = _numbers(2, 6, 9, dtype=torch.float32), _numbers(2, 6, 6, dtype=torch.float32)
    return [
        (_symmetric_product, (A, A, None, 1.0, 0.0, "reference")),
        (_symmetric_product, (A, A, S + S.mT, 2.0, -1.0, "reference")),
        (_orthogonalize, (A, FLAT, 1e-7, "auto", torch.bfloat16, "reference")),
        (_orthogonalize, (A.mT, FLAT, 1e-7, "gram", torch.float32, "reference")),
    ]


def _torch_muons(G: torch.Tensor, *ignored: Any) -> torch.Tensor:
    """What torch.optim.Muon runs, one matrix after the other."""
    stack = G.reshape(-1, *G.shape[-2:])
    return torch.stack([_zeropower_via_newtonschulz(each, QUINTIC[0], len(QUINTIC), 1e-7) for each in stack])


def _benchmark(
    matrices: int, rows: int, columns: int, device: str, bar: float | None, form: str = "auto", quick: bool = False
) -> Benchmark:
    def make(target: torch.device) -> tuple[Any, ...]:
        return (torch.randn(matrices, rows, columns, device=target),)

    return Benchmark(
        f"{matrices}x{rows}x{columns} {form}",
        "orthogonalize",
        make,
        ours=lambda implementation, G: orthogonalize(G, form=form, implementation=implementation),
        baseline=_torch_muons,
        baseline_name="torch.optim.Muon's Newton-Schulz, matrix by matrix",
        truth=lambda G: reference.orthogonalize(G.double(), FLAT, 1e-7, "direct", torch.float64),
        traffic=lambda G: 6 * G.numel(),
        bar=bar,
        device=device,
        quick=quick,
    )


CONTRACT = Contract(
    cases=_cases(),
    refusals=_REFUSALS,
    laws={
        "singular values stay below 1.22": _spectrum_stays_bounded,
        "zero stays zero": _zero_stays_zero,
        "a NaN stays in its matrix": _nan_stays_in_its_matrix,
        "a stack is its matrices": _a_stack_is_its_matrices,
        "transposes commute": _transposes_commute,
        "a Gram matrix is symmetric": _result_is_symmetric,
        "every tiling gives the same bits": _tilings_agree,
    },
    library_calls=_library_calls,
    benchmarks=(
        _benchmark(28, 96, 256, "cpu", None, quick=True),
        _benchmark(8, 192, 576, "cpu", None, quick=True),
        _benchmark(4, 576, 576, "cpu", None),
        _benchmark(2, 576, 1536, "cpu", None, form="direct"),
        _benchmark(2, 576, 1536, "cpu", None, form="gram"),
        _benchmark(1, 2048, 2048, "cuda", 1.25, quick=True),
        _benchmark(1, 4096, 4096, "cuda", 1.4),
        _benchmark(1, 8192, 8192, "cuda", 1.4),
        _benchmark(1, 2048, 4096, "cuda", 1.4),
        _benchmark(1, 4096, 14336, "cuda", 1.4),
        _benchmark(64, 1024, 2816, "cuda", 1.4),
    ),
)
