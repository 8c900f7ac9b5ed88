"""What every implementation of ``rms_norm`` keeps, and what it is timed against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..contract import Benchmark, Case, Contract, ContractViolation, Refusal
from ..tooling.guard_pages import sparse_rows
from ..tooling.poison import poisoned_view
from . import _backward, _forward, reference, rms_norm


def _numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _plain(
    *shape: int, dtype: torch.dtype, weight_dtype: torch.dtype | None = None, eps: float = 1e-6
) -> Callable[..., tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        weight = _numbers(shape[-1], dtype=weight_dtype or dtype, seed=1)
        return _numbers(*shape, dtype=dtype).to(device), weight.to(device), eps

    return make


def _viewed(
    view: Callable[[torch.Tensor], torch.Tensor], *shape: int, dtype: torch.dtype
) -> Callable[..., tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        x = view(_numbers(*shape, dtype=dtype).to(device))
        return x, poisoned_view(_numbers(x.shape[-1], dtype=dtype, seed=1).to(device)), 1e-6

    return make


def _sparse(rows: int, columns: int, row_stride: int) -> Callable[..., tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        if device.type == "cpu":
            x = sparse_rows(rows, columns, row_stride, torch.bfloat16)
        else:  # the addresses are real here: a few GB of device memory
            count = (rows - 1) * row_stride + columns
            x = torch.empty(count, dtype=torch.bfloat16, device=device).as_strided((rows, columns), (row_stride, 1))
        x.copy_(_numbers(rows, columns, dtype=torch.bfloat16))
        return x, _numbers(columns, dtype=torch.bfloat16, seed=1).to(device), 1e-6

    return make


def _cases() -> tuple[Case, ...]:
    cases = [
        Case(
            f"{length} columns {str(dtype).removeprefix('torch.')}",
            "forward",
            _plain(5, length, dtype=dtype),
            quick=length == 63,
        )
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for length in (63, 1000)
    ]
    return (
        *cases,
        # With one column dx = rstd * g * eps / (x^2 + eps): a small eps would ask for a difference of equals.
        Case("1 column float32", "forward", _plain(7, 1, dtype=torch.float32, eps=1.0)),
        Case("float64", "forward", _plain(3, 65, dtype=torch.float64)),
        Case(
            "bfloat16 x with float32 weight",
            "forward",
            _plain(6, 128, dtype=torch.bfloat16, weight_dtype=torch.float32),
            quick=True,
        ),
        Case("one vector", "forward", _plain(64, dtype=torch.float32)),
        Case("no rows", "forward", _plain(0, 64, dtype=torch.float32)),
        Case("leading dimensions of 1, 63 and 1000 rows", "forward", _plain(1, 63, 2, 24, dtype=torch.bfloat16)),
        Case("1000 short rows: several tiles", "forward", _plain(1000, 24, dtype=torch.float32)),
        Case("more rows than programs", "forward", _plain(260, 1025, dtype=torch.bfloat16)),
        Case("longer than one block", "forward", _plain(3, 9001, dtype=torch.float32)),
        Case(
            "rows and columns strided amid NaN",
            "forward",
            _viewed(poisoned_view, 9, 70, dtype=torch.bfloat16),
            quick=True,
        ),
        Case("transposed", "forward", _viewed(lambda x: x.t(), 70, 9, dtype=torch.float16)),
        Case(
            "leading dimensions that do not collapse",
            "forward",
            _viewed(lambda x: x.transpose(0, 1), 3, 5, 40, dtype=torch.float32),
        ),
        Case("one row expanded", "forward", _viewed(lambda x: x.expand(6, 50), 1, 50, dtype=torch.float32)),
        Case("row * stride beyond 2^31", "forward", _sparse(3, 40, 2**30), sparse=True),
        Case("stride beyond 2^31", "forward", _sparse(2, 40, 2**31 + 8), sparse=True),
    )


def _rows_do_not_see_each_other(device: torch.device, implementation: str) -> None:
    """Sequences of 1, 7 and 63 tokens give the same bits packed together and each alone."""
    lengths = (1, 7, 63)
    x, weight, eps = _plain(sum(lengths), 96, dtype=torch.bfloat16)(device)
    packed = rms_norm(x, weight, eps, implementation=implementation)
    alone = torch.cat([rms_norm(part, weight, eps, implementation=implementation) for part in x.split(lengths)])
    if not torch.equal(packed, alone):
        raise ContractViolation("a row's result depends on the rows that share its batch")


def _scale_of_x_cancels(device: torch.device, implementation: str) -> None:
    """Doubling x (exact in binary) with eps quadrupled leaves y as it was, to the roundoff of rsqrt."""
    x, weight, eps = _plain(8, 96, dtype=torch.float32)(device)
    y = rms_norm(x, weight, eps, implementation=implementation)
    doubled = rms_norm(2 * x, weight, 4 * eps, implementation=implementation)
    if not torch.allclose(y, doubled, rtol=4 * torch.finfo(torch.float32).eps, atol=0):
        raise ContractViolation("rms_norm(2x, 4 eps) is not rms_norm(x, eps)")


def _refuse(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> Callable[[torch.device, str], Any]:
    return lambda device, implementation: rms_norm(x.to(device), weight.to(device), eps, implementation=implementation)


_REFUSALS = (
    Refusal(
        "integer x",
        _refuse(torch.ones(2, 4, dtype=torch.int64), torch.ones(4)),
        TypeError,
        "x must be a float64.*int64",
    ),
    Refusal("integer weight", _refuse(torch.ones(2, 4), torch.ones(4, dtype=torch.int8)), TypeError, "weight must be"),
    Refusal(
        "weight of another length",
        _refuse(torch.ones(2, 4), torch.ones(5)),
        ValueError,
        r"weight must have shape \(4,\).*\(5,\)",
    ),
    Refusal(
        "weight with two dimensions",
        _refuse(torch.ones(2, 4), torch.ones(1, 4)),
        ValueError,
        r"weight must have shape \(4,\)",
    ),
    Refusal("no columns", _refuse(torch.ones(2, 0), torch.ones(0)), ValueError, "D >= 1"),
    Refusal("a scalar", _refuse(torch.tensor(1.0), torch.ones(1)), ValueError, "D >= 1"),
    Refusal("eps of zero", _refuse(torch.ones(2, 4), torch.ones(4), 0.0), ValueError, "eps must be positive"),
    Refusal(
        "eps that is NaN",
        _refuse(torch.ones(2, 4), torch.ones(4), float("nan")),
        ValueError,
        "eps must be positive and finite",
    ),
)


def _library_calls() -> list[tuple[Any, tuple[Any, ...]]]:
    x, weight, eps = _plain(3, 20, dtype=torch.float32)(torch.device("cpu"))
    rstd = reference.forward(x, weight, eps)[1]
    transposed = torch.randn(20, 3).t()
    return [
        (_forward, (x.clone().requires_grad_(), weight.clone().requires_grad_(), eps, "reference")),
        (_forward, (transposed, weight, eps, "reference")),
        (_backward, (torch.ones_like(x), x, weight, rstd, "reference")),
    ]


def _smooth_calls() -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
    x, weight, _ = _plain(4, 7, dtype=torch.float64)(torch.device("cpu"))
    return [(rms_norm, (x.requires_grad_(), weight.requires_grad_(), 1e-3))]


def _step(norm: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Forward and backward: (y, dx, dweight)."""

    def run(x: torch.Tensor, weight: torch.Tensor, eps: float, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        y = norm(x, weight, eps)
        return y.detach(), *torch.autograd.grad(y, (x, weight), grad)

    return run


def _torch_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


def _benchmarks(rows: int, columns: int, dtype: torch.dtype, device: str, quick: bool) -> tuple[Benchmark, Benchmark]:
    def make(target: torch.device) -> tuple[Any, ...]:
        return torch.randn(rows, columns, device=target).to(dtype), torch.randn(columns, device=target).to(dtype), 1e-6

    def make_step(target: torch.device) -> tuple[Any, ...]:
        return *make(target), torch.randn(rows, columns, device=target).to(dtype)

    element = dtype.itemsize
    size = f"{rows}x{columns} {str(dtype).removeprefix('torch.')}"
    return (
        Benchmark(
            f"forward {size}",
            "forward",
            make,
            ours=lambda implementation, *args: rms_norm(*args, implementation=implementation),
            baseline=_torch_rms_norm,
            baseline_name="torch.nn.functional.rms_norm",
            truth=lambda x, weight, eps: reference.forward(x.double(), weight.double(), eps)[0],
            traffic=lambda *args: 2 * rows * columns * element + columns * element + 4 * rows,
            device=device,
            quick=quick,
        ),
        Benchmark(
            f"forward+backward {size}",
            "backward",
            make_step,
            ours=lambda implementation, *args: _step(lambda *a: rms_norm(*a, implementation=implementation))(*args),
            baseline=_step(_torch_rms_norm),
            baseline_name="torch.nn.functional.rms_norm with autograd",
            truth=lambda x, weight, eps, grad: _step(lambda *a: reference.forward(*a)[0])(
                x.double(), weight.double(), eps, grad.double()
            ),
            traffic=lambda *args: 5 * rows * columns * element + 3 * columns * element + 8 * rows,
            device=device,
            quick=quick,
        ),
    )


CONTRACT = Contract(
    cases=_cases(),
    refusals=_REFUSALS,
    laws={"rows do not see each other": _rows_do_not_see_each_other, "the scale of x cancels": _scale_of_x_cancels},
    library_calls=_library_calls,
    smooth_calls=_smooth_calls,
    benchmarks=(
        *_benchmarks(1024, 576, torch.bfloat16, "cpu", quick=True),
        *_benchmarks(4096, 1024, torch.float32, "cpu", quick=False),
        *_benchmarks(8192, 4096, torch.bfloat16, "cuda", quick=True),
        *_benchmarks(262144, 128, torch.bfloat16, "cuda", quick=False),
        *_benchmarks(2048, 16384, torch.bfloat16, "cuda", quick=False),
    ),
)
