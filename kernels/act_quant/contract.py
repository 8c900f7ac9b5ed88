"""What every implementation of ``act_quant`` keeps, and what it is timed against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..contract import Benchmark, Case, Contract, ContractViolation, Refusal
from ..tooling.guard_pages import sparse_rows
from ..tooling.poison import poisoned_view
from . import _norm_quantize, _quantize, add_rms_norm_quantize, quantize_activations, reference, rms_norm_quantize

TINY = reference.SMALLEST_SCALE


def _numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _eighths(*shape: int, seed: int) -> torch.Tensor:
    """Multiples of 1/8 whose sums every float holds: h is the same number in float64."""
    return torch.randint(-24, 25, shape, generator=torch.Generator().manual_seed(seed)) / 8


def _plain(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    scale: float | None = None,
    view: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> Callable[[torch.device], tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        x = view(_numbers(*shape, dtype=dtype).to(device))
        return x, None if scale is None else torch.tensor([scale], device=device)

    return make


def _normed(
    *shape: int, dtype: torch.dtype = torch.float32, scale: float | None = None, residual: bool = False
) -> Callable[[torch.device], tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        given = None if scale is None else torch.tensor([scale], device=device)
        weight = _numbers(shape[-1], dtype=dtype, seed=1).to(device)
        if residual:
            x, other = (_eighths(*shape, seed=seed).to(device, dtype) for seed in (2, 3))
            return x, other, weight, 1e-6, given
        return _numbers(*shape, dtype=dtype).to(device), weight, 1e-6, given

    return make


def _sparse(device: torch.device) -> tuple[Any, ...]:
    rows, columns, stride = 3, 40, 2**30
    if device.type == "cpu":
        x = sparse_rows(rows, columns, stride, torch.bfloat16)
    else:  # the addresses are real here: a few GB of device memory
        count = (rows - 1) * stride + columns
        x = torch.empty(count, dtype=torch.bfloat16, device=device).as_strided((rows, columns), (stride, 1))
    return x.copy_(_numbers(rows, columns, dtype=torch.bfloat16)), None


def _cases() -> tuple[Case, ...]:
    plain, norm, add = "quantize", "norm_quantize", "add_norm_quantize"
    cases = [
        Case(f"{length} columns {dtype}".replace("torch.", ""), plain, _plain(5, length, dtype=dtype), length == 63)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for length in (1, 63, 1000)
    ]
    return (
        *cases,
        Case("static", plain, _plain(5, 63, dtype=torch.bfloat16, scale=0.02), quick=True),
        Case("static that saturates", plain, _plain(5, 63, scale=1e-3)),
        Case("no rows", plain, _plain(0, 64)),
        Case("one vector", plain, _plain(64)),
        Case("leading dimensions", plain, _plain(2, 3, 24, dtype=torch.bfloat16)),
        Case("1000 short rows", plain, _plain(1000, 24)),
        Case("longer than one block", plain, _plain(2, 9001, dtype=torch.bfloat16)),
        Case("strided amid NaN", plain, _plain(9, 70, dtype=torch.bfloat16, view=poisoned_view), quick=True),
        Case("transposed", plain, _plain(70, 9, view=lambda tensor: tensor.t())),
        Case("row * stride beyond 2^31", plain, _sparse, sparse=True),
        Case("norm, 63 columns bfloat16", norm, _normed(5, 63, dtype=torch.bfloat16), quick=True),
        Case("norm, 1000 columns float32", norm, _normed(4, 1000)),
        Case("norm, static", norm, _normed(4, 576, dtype=torch.bfloat16, scale=0.03)),
        Case("norm, longer than one block", norm, _normed(2, 9001, dtype=torch.bfloat16)),
        Case("add and norm, 63 columns bfloat16", add, _normed(5, 63, dtype=torch.bfloat16, residual=True), quick=True),
        Case("add and norm, 1000 columns float16", add, _normed(4, 1000, dtype=torch.float16, residual=True)),
        Case("add and norm, longer than one block", add, _normed(2, 9001, residual=True)),
        Case("add and norm, no rows", add, _normed(0, 24, residual=True)),
    )


def _expect(holds: bool, law: str) -> None:
    if not holds:
        raise ContractViolation(law)


def _faults_stay_in_their_token(device: torch.device, implementation: str) -> None:
    """A token with NaN or infinity is zero codes at a scale of NaN, in every mode; its neighbours do not notice."""
    x = _numbers(5, 70).to(device)
    clean, weight = x.clone(), _numbers(70, seed=1).to(device)
    x[1, 3], x[2, 0], x[4, 69] = torch.nan, torch.inf, -torch.inf
    fine = torch.tensor([0, 3], device=device)
    for scale in (None, torch.tensor([0.02], device=device)):
        for function, rest in ((quantize_activations, ()), (rms_norm_quantize, (weight, 1e-6))):
            codes, steps = function(x, *rest, scale, implementation=implementation)
            expected = function(clean, *rest, scale, implementation=implementation)
            for faulty in (1, 2, 4):
                _expect(
                    not codes[faulty].any() and bool(steps[faulty].isnan()), "a faulty token is 0 at a scale of NaN"
                )
            _expect(torch.equal(codes[fine], expected[0][fine]), "the codes of other tokens are unaffected")
            _expect(torch.equal(steps[fine], expected[1][fine]), "the scales of other tokens are unaffected")


def _zero_and_subnormal_tokens_are_zero(device: torch.device, implementation: str) -> None:
    x = torch.zeros(2, 40, device=device)
    x[1] = TINY / 4
    codes, steps = quantize_activations(x, implementation=implementation)
    _expect(not codes.any(), "zero and subnormal tokens have zero codes")
    _expect(bool((steps == TINY).all()), "and the smallest normal scale")


def _ties_go_to_even_and_minus_128_never_comes(device: torch.device, implementation: str) -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -127.0]], device=device)
    codes, steps = quantize_activations(x, implementation=implementation)
    _expect(codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126, -127]], "ties go to the even code")
    _expect(steps.item() == 1.0, "the scale of a token is its largest magnitude / 127")
    codes, _ = quantize_activations(4 * x, torch.ones(1, device=device), implementation=implementation)
    _expect((codes.min().item(), codes.max().item()) == (-127, 127), "what lies beyond a given grid saturates at 127")


def _the_error_is_half_a_step(device: torch.device, implementation: str) -> None:
    x = _numbers(6, 200).to(device)
    codes, steps = quantize_activations(x, implementation=implementation)
    distance = (codes.double() * steps.double() - x.double()).abs() / steps.double()
    _expect(distance.max().item() <= 0.5 + 127 * 2**-23, "no value is further from its code than half a step")


def _moved_codes_move_by_one(device: torch.device, implementation: str) -> None:
    x, weight, eps, _ = _normed(16, 576, dtype=torch.bfloat16)(device)
    codes, _ = rms_norm_quantize(x, weight, eps, implementation=implementation)
    truth, _ = rms_norm_quantize(x.double(), weight.double(), eps)
    _expect(int((codes.int() - truth.int()).abs().max()) <= 1, "a code that differs from float64's differs by one")


def _refuse(call: Callable[..., Any], *args: Any) -> Callable[[torch.device, str], Any]:
    def refused(device: torch.device, implementation: str) -> Any:
        moved = (arg.to(device) if isinstance(arg, torch.Tensor) else arg for arg in args)
        return call(*moved, implementation=implementation)

    return refused


_X, _ONE = torch.ones(2, 4), torch.ones(1)
_REFUSALS = (
    Refusal("integer x", _refuse(quantize_activations, _X.int()), TypeError, "x must be a float64.*int32"),
    Refusal("a scalar", _refuse(quantize_activations, _X[0, 0]), ValueError, "K >= 1"),
    Refusal("no columns", _refuse(quantize_activations, _X[:, :0]), ValueError, "K >= 1"),
    Refusal("a number as scale", _refuse(quantize_activations, _X, 0.1), TypeError, "scale must be a float32.*float"),
    Refusal("a scale per token", _refuse(quantize_activations, _X, _X[:, 0]), ValueError, "scale must be one element"),
    Refusal("integer weight", _refuse(rms_norm_quantize, _X, _X[0].int()), TypeError, "weight must be"),
    Refusal("short weight", _refuse(rms_norm_quantize, _X, _ONE), ValueError, r"weight must have shape \(4,\)"),
    Refusal("eps of zero", _refuse(rms_norm_quantize, _X, _X[0], 0.0), ValueError, "eps must be positive"),
    Refusal(
        "short residual", _refuse(add_rms_norm_quantize, _X, _X[:1], _X[0]), ValueError, r"residual must be \(2, 4\)"
    ),
    Refusal(
        "half residual",
        _refuse(add_rms_norm_quantize, _X, _X.half(), _X[0]),
        TypeError,
        "residual must be a torch.float32",
    ),
)


def _library_calls() -> list[tuple[Any, tuple[Any, ...]]]:
    x, residual, weight, eps, _ = _normed(3, 20, residual=True)(torch.device("cpu"))
    return [
        (_quantize, (x, None, "reference")),
        (_quantize, (x.t(), torch.ones(1), "reference")),
        (_norm_quantize, (x, residual, weight, eps, None, "reference")),
        (_norm_quantize, (x, None, weight, eps, torch.ones(1), "reference")),
    ]


def _torch_norm_then_quantize(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps).float()
    steps = (y.abs().amax(-1, keepdim=True) / reference.LARGEST).clamp_min(TINY)
    return torch.round(y / steps).to(torch.int8), steps


def _benchmark(rows: int, columns: int, device: str, quick: bool = False) -> Benchmark:
    def make(target: torch.device) -> tuple[Any, ...]:
        return (
            torch.randn(rows, columns, device=target).bfloat16(),
            torch.randn(columns, device=target).bfloat16(),
            1e-6,
        )

    def truth(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
        return reference.norm_quantize(x.double(), None, weight.double(), eps, None)[:2]

    return Benchmark(
        f"norm and quantise {rows}x{columns} bfloat16",
        "norm_quantize",
        make,
        ours=lambda implementation, *args: rms_norm_quantize(*args, implementation=implementation),
        baseline=_torch_norm_then_quantize,
        baseline_name="F.rms_norm, then rounding in plain torch",
        truth=truth,
        traffic=lambda *args: 3 * rows * columns + 2 * columns + 4 * rows,
        device=device,
        quick=quick,
    )


CONTRACT = Contract(
    cases=_cases(),
    refusals=_REFUSALS,
    laws={
        "faults stay in their token": _faults_stay_in_their_token,
        "zero and subnormal tokens are zero": _zero_and_subnormal_tokens_are_zero,
        "ties go to even and -128 never comes": _ties_go_to_even_and_minus_128_never_comes,
        "the error is half a step": _the_error_is_half_a_step,
        "moved codes move by one": _moved_codes_move_by_one,
    },
    library_calls=_library_calls,
    benchmarks=(
        _benchmark(16, 576, "cpu", quick=True),
        _benchmark(1024, 576, "cpu"),
        _benchmark(16, 4096, "cuda", quick=True),
        _benchmark(4096, 8192, "cuda"),
    ),
)
