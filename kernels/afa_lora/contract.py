"""What every implementation of ``afa_lora`` keeps, and what it is timed against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name

from ..contract import Benchmark, Case, Contract, ContractViolation, Refusal, unit_roundoff
from ..tooling.guard_pages import sparse_rows
from ..tooling.poison import poisoned_view
from . import ACTIVATIONS, _backward, _forward, afa_lora, blend, reference

SINGLE, HALF = torch.float32, torch.bfloat16
View = Callable[[torch.Tensor], torch.Tensor]


def _numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _branch(
    rows: tuple[int, ...],
    k: int,
    rank: int,
    n: int,
    dtype: torch.dtype,
    *,
    beta: float = 0.4,
    activation: str = "relu",
    addend: bool = True,
    view: View = lambda x: x,
) -> Callable[[torch.device], tuple[Any, ...]]:
    """Arguments whose z and y are of size one, so that every activation bends where its numbers lie."""

    def make(device: torch.device) -> tuple[Any, ...]:
        x = view(_numbers(*rows, k, dtype=dtype).to(device))
        A = view((_numbers(rank, k, dtype=SINGLE, seed=1) * k**-0.5).to(device, dtype))
        B = view((_numbers(n, rank, dtype=SINGLE, seed=2) * rank**-0.5).to(device, dtype))
        base = view(_numbers(*rows, n, dtype=dtype, seed=3).to(device)) if addend else None
        return x, A, B, torch.tensor(beta, device=device), activation, 1.5, base

    return make


def _sparse(row_stride: int) -> Callable[[torch.device], tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        x, *rest = _branch((3,), 40, 4, 24, HALF)(device)
        if device.type == "cpu":
            rows = sparse_rows(3, 40, row_stride, HALF)
        else:  # the addresses are real here: a few GB of device memory
            rows = torch.empty(2 * row_stride + 40, dtype=HALF, device=device).as_strided((3, 40), (row_stride, 1))
        return rows.copy_(x), *rest

    return make


def _cases() -> tuple[Case, ...]:
    def case(name: str, make: Callable[[torch.device], tuple[Any, ...]], **marks: bool) -> Case:
        return Case(name, "forward", make, **marks)

    kinds = ((SINGLE, "float32"), (HALF, "bfloat16"), (torch.float16, "float16"))
    return (
        *(
            case(f"70x63 rank 8 {label} {activation}", _branch((70,), 63, 8, 50, dtype, activation=activation))
            for dtype, label in kinds
            for activation in ACTIVATIONS
        ),
        *(
            case(f"41x50 rank 5 {label} beta 0.4", _branch((41,), 50, 5, 70, dtype, activation="silu"), quick=True)
            for dtype, label in kinds
        ),
        *(
            case(f"{activation} at beta {beta:g}", _branch((9,), 40, 4, 33, HALF, beta=beta, activation=activation))
            for activation in ACTIVATIONS
            for beta in (0.0, 1.0)
        ),
        case("float64", _branch((7,), 33, 3, 20, torch.float64, activation="gelu")),
        case("rank 70: two blocks", _branch((20,), 30, 70, 24, HALF, activation="tanh")),
        case("rank 1", _branch((63,), 20, 1, 20, SINGLE, activation="silu")),
        case("1000 in features", _branch((5,), 1000, 4, 24, SINGLE)),
        case("1000 rows: several shares", _branch((1000,), 24, 4, 20, HALF)),
        case("2200 rows: shares of two tiles", _branch((2200,), 18, 3, 17, SINGLE)),
        case("leading dimensions of 1, 63 and 2 rows", _branch((1, 63, 2), 24, 4, 20, HALF)),
        case("one vector", _branch((), 64, 8, 70, SINGLE)),
        case("no rows", _branch((0,), 16, 4, 16, SINGLE)),
        case("without addend", _branch((33,), 40, 8, 36, HALF, addend=False), quick=True),
        case("everything strided amid NaN", _branch((9,), 70, 6, 40, HALF, view=poisoned_view), quick=True),
        case("everything transposed", _branch((9,), 50, 6, 40, torch.float16, view=_column_major)),
        case("row * stride beyond 2^31", _sparse(2**30 + 16), sparse=True),
    )


def _column_major(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mT.contiguous().mT


def _expect(holds: bool, law: str) -> None:
    if not holds:
        raise ContractViolation(law)


def _with_beta(args: tuple[Any, ...], beta: float, activation: str) -> tuple[Any, ...]:
    x, A, B, _, _, scaling, addend = args
    return x, A, B, torch.tensor(beta, device=x.device), activation, scaling, addend


def _at_beta_0_no_activation_leaves_a_trace(device: torch.device, implementation: str) -> None:
    """Outputs and gradients, bit by bit: the four activations give one plain low-rank product."""
    for dtype in (SINGLE, HALF):
        args = _branch((20,), 40, 8, 36, dtype)(device)
        seen = []
        for activation in ACTIVATIONS:
            x, A, B, beta, _, scaling, addend = _with_beta(args, 0.0, activation)
            leaves = [tensor.clone().requires_grad_() for tensor in (x, A, B)]
            y = afa_lora(*leaves, beta, activation, scaling, addend, implementation=implementation)
            seen.append([y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))])
        for other in seen[1:]:
            same = all(map(torch.equal, seen[0], other))
            _expect(same, f"at beta 0 every activation gives the same bits in {dtype}")


def _at_beta_1_it_is_the_activation(device: torch.device, implementation: str) -> None:
    """With A and B the identity and beta 1, y is sigma(x) to a few roundings of float32."""
    x = _numbers(40, 8, dtype=SINGLE).to(device)
    eye, one = torch.eye(8, device=device), torch.tensor(1.0, device=device)
    plain = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "tanh": torch.tanh}
    for activation in ACTIVATIONS:
        y = afa_lora(x, eye, eye, one, activation, implementation=implementation)
        near = torch.allclose(y, plain[activation](x), rtol=0, atol=8 * torch.finfo(SINGLE).eps)
        _expect(near, f"at beta 1 it is {activation}")


def _relu_is_a_leaky_relu(device: torch.device, implementation: str) -> None:
    x = _numbers(40, 8, dtype=SINGLE).to(device)
    eye = torch.eye(8, device=device)
    for beta in (0.25, 0.5, 1.0):  # 1 - beta is exact
        y = afa_lora(x, eye, eye, torch.tensor(beta, device=device), implementation=implementation)
        _expect(torch.equal(y, F.leaky_relu(x, 1 - beta)), "ReLU's blend is a leaky ReLU of slope 1 - beta")


def _a_zero_B_leaves_the_addend(device: torch.device, implementation: str) -> None:
    for activation in ACTIVATIONS:
        for beta in (0.0, 0.3, 1.0):
            x, A, B, *rest = _with_beta(_branch((20,), 40, 8, 36, HALF)(device), beta, activation)
            y = afa_lora(x, A, torch.zeros_like(B), *rest, implementation=implementation)
            _expect(torch.equal(y, rest[-1]), "with B zero, y is the addend, bit by bit")


def _drift_with_beta_is_what_the_gradient_says(device: torch.device, implementation: str) -> None:
    """y is linear in beta, so its difference quotient over any distance is the gradient."""
    args = _branch((20,), 40, 8, 36, SINGLE, activation="silu")(device)
    low, high = (
        afa_lora(*_with_beta(args, beta, "silu"), implementation=implementation).double().sum() for beta in (0.25, 0.75)
    )
    beta = torch.tensor(0.5, device=device, requires_grad=True)
    y = afa_lora(*args[:3], beta, *args[4:], implementation=implementation)
    slope = torch.autograd.grad(y, beta, torch.ones_like(y))[0].double()
    size = float(y.detach().double().abs().sum())
    _expect(abs(float(slope - 2 * (high - low))) < 16 * unit_roundoff(SINGLE) * size, "dbeta is the drift with beta")


def _refuse(**changed: Any) -> Callable[[torch.device, str], Any]:
    def refused(device: torch.device, implementation: str) -> Any:
        names = ("x", "A", "B", "beta", "activation", "scaling", "addend")
        arguments = dict(zip(names, _branch((2,), 4, 3, 5, SINGLE)(torch.device("cpu")), strict=True)) | changed
        moved = (value.to(device) if isinstance(value, torch.Tensor) else value for value in arguments.values())
        return afa_lora(*moved, implementation=implementation)

    return refused


_REFUSALS = (
    Refusal("integer x", _refuse(x=torch.ones(2, 4, dtype=torch.int64)), TypeError, "x must be.*int64"),
    Refusal("another dtype", _refuse(A=torch.ones(3, 4, dtype=HALF)), TypeError, "A is torch.bfloat16, x is"),
    Refusal("a number for beta", _refuse(beta=0.5), TypeError, "beta must be a float32.*got float"),
    Refusal("a rounded beta", _refuse(beta=torch.tensor(0.5, dtype=HALF)), TypeError, "no schedule is rounded"),
    Refusal("a beta per feature", _refuse(beta=torch.ones(3)), ValueError, r"beta must be 0-d, got shape \(3,\)"),
    Refusal("A of other features", _refuse(A=torch.ones(3, 5)), ValueError, r"\(R, K\).*\(2, 4\), \(3, 5\)"),
    Refusal("B of another rank", _refuse(B=torch.ones(5, 2)), ValueError, r"\(N, R\)"),
    Refusal("rank 0", _refuse(A=torch.ones(0, 4), B=torch.ones(5, 0)), ValueError, "none of K, R, N zero"),
    Refusal("an addend of another shape", _refuse(addend=torch.ones(2, 4)), ValueError, r"addend must be \(2, 5\)"),
    Refusal("an unknown activation", _refuse(activation="elu"), ValueError, "one of relu, silu, gelu, tanh, got 'elu'"),
    Refusal("infinite scaling", _refuse(scaling=float("inf")), ValueError, "scaling must be finite"),
)


def _library_calls() -> list[tuple[Any, tuple[Any, ...]]]:
    x, A, B, beta, activation, scaling, addend = _branch((6,), 20, 3, 12, SINGLE, activation="silu")(
        torch.device("cpu")
    )
    leaves = tuple(tensor.clone().requires_grad_() for tensor in (x, A, B))
    z = reference.forward(x, A, B, beta, activation, scaling, None)[1]
    return [
        (_forward, (*leaves, beta, activation, scaling, addend.clone().requires_grad_(), "reference")),
        (_forward, (x.mT.contiguous().mT, A, B, beta, activation, scaling, None, "reference")),
        (_backward, (torch.ones_like(addend), x, A, B, beta, z, activation, scaling, "reference")),
    ]


def _smooth_calls() -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """At beta 0, 0.3 and 1, in every tensor and beta itself; no z lies within a probe's reach of ReLU's kink."""
    calls = []
    for activation in ACTIVATIONS:
        for beta in (0.0, 0.3, 1.0):
            x, A, B, _, _, scaling, addend = _branch((4,), 7, 3, 5, torch.float64)(torch.device("cpu"))
            leaves = [tensor.requires_grad_() for tensor in (x, A, B, torch.tensor(beta, dtype=torch.float64))]
            calls.append((afa_lora, (*leaves, activation, scaling, addend.requires_grad_())))
    return calls


def _autograd(implementation: str | None) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Forward and backward: (y, dx, dA, dB). None takes torch, operation by operation, as PEFT would spell it."""

    def run(x: Any, A: Any, B: Any, beta: Any, activation: str, scaling: float, addend: Any, grad: Any) -> Any:
        x, A, B = (tensor.detach().requires_grad_() for tensor in (x, A, B))
        if implementation is None:
            phi = blend(F.linear(x, A), beta, activation)
            y = addend + F.linear(phi, B) * scaling
        else:
            y = afa_lora(x, A, B, beta, activation, scaling, addend, implementation=implementation)
        return y.detach(), *torch.autograd.grad(y, (x, A, B), grad)

    return run


def _benchmark(rows: int, k: int, rank: int, n: int, dtype: torch.dtype, device: str, quick: bool = False) -> Benchmark:
    def make(target: torch.device) -> tuple[Any, ...]:
        x, grad, addend = (torch.randn(rows, c, device=target).to(dtype) for c in (k, n, n))
        A = (torch.randn(rank, k, device=target) * k**-0.5).to(dtype)
        B = (torch.randn(n, rank, device=target) * rank**-0.5).to(dtype)
        return x, A, B, torch.tensor(0.4, device=target), "silu", 2.0, addend, grad

    element = dtype.itemsize
    return Benchmark(
        f"forward+backward {rows}x{k}x{n} rank {rank} {str(dtype).removeprefix('torch.')}",
        "backward",
        make,
        ours=lambda implementation, *args: _autograd(implementation)(*args),
        baseline=_autograd(None),
        baseline_name="torch, operation by operation, with autograd",
        truth=lambda *args: _autograd("reference")(*(a.double() if isinstance(a, torch.Tensor) else a for a in args)),
        # x, addend, y; then grad and x again, dx; z and the thin matrices with their gradients
        traffic=lambda *args: element * (3 * rows * k + 3 * rows * n + 2 * rows * rank + 3 * rank * (k + n)),
        device=device,
        quick=quick,
    )


CONTRACT = Contract(
    cases=_cases(),
    refusals=_REFUSALS,
    laws={
        "at beta 0 no activation leaves a trace": _at_beta_0_no_activation_leaves_a_trace,
        "at beta 1 it is the activation": _at_beta_1_it_is_the_activation,
        "relu is a leaky relu": _relu_is_a_leaky_relu,
        "a zero B leaves the addend": _a_zero_B_leaves_the_addend,
        "drift with beta is what the gradient says": _drift_with_beta_is_what_the_gradient_says,
    },
    library_calls=_library_calls,
    smooth_calls=_smooth_calls,
    benchmarks=(
        _benchmark(512, 576, 8, 1536, SINGLE, "cpu", quick=True),
        _benchmark(2048, 576, 16, 576, SINGLE, "cpu"),
        _benchmark(4096, 4096, 16, 4096, HALF, "cuda", quick=True),
        _benchmark(8192, 4096, 64, 14336, HALF, "cuda"),
    ),
)
