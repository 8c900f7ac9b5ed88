"""What every implementation of ``gated_delta`` keeps, and what it is timed against."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..contract import Benchmark, Case, Contract, ContractViolation, Refusal, accumulation_dtype
from ..selection import disagreement
from ..tooling.poison import poisoned_view
from . import _backward, _forward, _prepare, _prepare_backward, chunk, gated_delta, normalize, prepare, recurrent
from . import _budget as budget

HALF, SINGLE, CPU = torch.bfloat16, torch.float32, torch.device("cpu")


def _draw(*shape: int, seed: int, device: torch.device = CPU) -> Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def inputs(
    B: int, T: int, H: int, K: int, V: int, *, dtype: torch.dtype = SINGLE, gates: str = "channel", sequences: int = 0,
    device: torch.device = CPU,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Unit queries, gated keys, values, log decay and a state, as a layer makes them.

    ``gates``: ``"channel"``, ``"head"`` for one decay per head, ``"closing"``: one in ten is -269, or ``"begin"``: -30
    in the first channels of the first 20 tokens.
    """
    draw = functools.partial(_draw, device=device)
    q, k = (normalize(draw(B, T, H, K, seed=seed)) for seed in (0, 1))
    k = k * draw(B, T, H, K, seed=2).sigmoid().sqrt()
    g = -0.3 * draw(*(B, T, H, K)[: 3 if gates == "head" else 4], seed=3).abs()
    if gates == "closing":
        g = torch.where(draw(B, T, H, K, seed=6) > 1.28, -269.0, g)
    if gates == "begin":
        g[:, :20, :, :8] = -30.0
    precise = accumulation_dtype(dtype)
    state = draw(sequences or B, H, K, V, seed=4).to(precise)
    return q.to(dtype), k.to(dtype), draw(B, T, H, V, seed=5).to(dtype), g.to(precise), state


def _rule(
    *sizes: int,
    edges: tuple[int, ...] | None = None,
    state: bool = True,
    view: Callable[[Tensor], Tensor] = lambda x: x,
    **options: Any,
) -> Callable[..., tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        tensors = inputs(*sizes, sequences=len(edges) - 1 if edges else 0, **options)
        q, k, v, g, initial = (view(x).to(device) for x in tensors)
        cu_seqlens = None if edges is None else torch.tensor(edges, device=device)
        return q, k, v, g, initial if state else None, cu_seqlens, sizes[3] ** -0.5

    return make


def _gates(
    *sizes: int, dtype: torch.dtype = SINGLE, scalar: bool = False, safe: bool = False, gain: float = 1.0
) -> Callable[..., tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        B, T, H, K, V = sizes
        wide = {"k": (B, T, H, K), "v": (B, T, H, V)}
        q, k, v = (_draw(*wide[name], seed=seed).to(dtype) for seed, name in ((0, "k"), (1, "k"), (2, "v")))
        cut = 3 if scalar else 4
        gates = ((3, "k"), (4, "v"), (5, "k"))
        k_gate, v_gate, decay = (3 * _draw(*wide[name][:cut], seed=seed).to(dtype) for seed, name in gates)
        tensors = q, k, v, k_gate, v_gate, decay, _draw(H, seed=6), _draw(*(H, K)[: cut - 2], seed=7)
        return *(x.to(device) for x in tensors), 1e-6, gain, 0.5 if gain == 1.0 else 1.0, -5.0 if safe else None

    return make


def _cases() -> tuple[Case, ...]:
    return (
        Case("1 token float32", "chunk", _rule(2, 1, 1, 16, 16)),
        Case("63 tokens float32", "chunk", _rule(1, 63, 1, 16, 20), quick=True),
        Case("67 tokens bfloat16", "chunk", _rule(1, 67, 1, 16, 16, dtype=HALF), quick=True),
        Case("17 tokens float64", "chunk", _rule(2, 17, 2, 8, 5, dtype=torch.float64)),
        Case("one decay per head, no state", "chunk", _rule(1, 70, 1, 16, 16, gates="head", state=False)),
        Case("gates of -269", "chunk", _rule(1, 66, 1, 16, 16, gates="closing")),
        Case("steep decay in some blocks", "chunk", _rule(1, 50, 1, 20, 16, gates="begin")),
        Case("steep decay in some channels", "chunk", _rule(1, 40, 1, 80, 16, dtype=HALF, gates="begin")),
        Case("packed sequences of 5, 66 and 1 tokens", "chunk", _rule(1, 72, 1, 16, 16, edges=(0, 5, 71, 72))),
        Case("strided amid NaN", "chunk", _rule(1, 33, 1, 16, 16, view=poisoned_view)),
        Case("recurrent float32", "recurrent", _rule(2, 9, 1, 20, 24), quick=True),
        Case("recurrent bfloat16, one decay per head", "recurrent", _rule(1, 5, 2, 16, 40, dtype=HALF, gates="head")),
        Case("recurrent on packed sequences", "recurrent", _rule(1, 9, 1, 16, 16, edges=(0, 2, 9))),
        Case("prologue float32", "prepare", _gates(1, 63, 2, 20, 24), quick=True),
        Case("prologue bfloat16", "prepare", _gates(2, 7, 3, 16, 16, dtype=HALF), quick=True),
        Case("safe prologue with step sizes up to 2", "prepare", _gates(1, 17, 2, 16, 8, safe=True, gain=2.0)),
    )


def _close(function: str, output: Tensor, truth: Tensor, like: Tensor, law: str) -> None:
    error, bar = disagreement(output, truth), 2 * budget(function, output, like)  # both sides were rounded
    if not error <= bar:
        raise ContractViolation(f"{law}: relative RMS error {error:.3g}, allowed {bar:.3g}")


def _a_split_hands_its_state_over(device: torch.device, implementation: str) -> None:
    q, k, v, g, state, _, scale = _rule(1, 70, 1, 16, 16)(device)
    whole, final = chunk(q, k, v, g, state, None, scale, implementation=implementation)
    parts, cuts = [], (slice(0, 33), slice(33, 37), slice(37, 70))
    for cut, rule in zip(cuts, (chunk, recurrent, chunk), strict=True):
        pieces = (x[:, cut] for x in (q, k, v, g))
        o, state = rule(*pieces, state, None, scale, implementation=implementation)
        parts.append(o)
    _close("chunk", torch.cat(parts, 1), whole, q, "outputs of a split sequence")
    _close("chunk", state, final, q, "last state of a split sequence")


def _packed_sequences_are_alone(device: torch.device, implementation: str) -> None:
    edges = (0, 3, 40, 41)
    q, k, v, g, states, cu_seqlens, scale = _rule(1, 41, 1, 16, 16, edges=edges)(device)
    packed, finals = chunk(q, k, v, g, states, cu_seqlens, scale, implementation=implementation)
    for row, (start, stop) in enumerate(pairwise(edges)):
        pieces = (x[:, start:stop] for x in (q, k, v, g))
        o, final = chunk(*pieces, states[row : row + 1], None, scale, implementation=implementation)
        if implementation == "reference" and device.type == "cuda":  # cuBLAS chooses by the size of a batch
            _close("chunk", packed[:, start:stop], o, q, f"packed sequence {row} against itself alone")
            _close("chunk", finals[row], final[0], q, f"last state of packed sequence {row}")
        elif not (torch.equal(o, packed[:, start:stop]) and torch.equal(final[0], finals[row])):
            raise ContractViolation(f"packed sequence {row} differs from the same sequence alone")


def _closed_gates_only_decay(device: torch.device, implementation: str) -> None:
    """Keys of zero neither erase nor write; a decay of -100 on top clears the state without a NaN."""
    q, k, v, g, state, _, scale = _rule(1, 20, 1, 16, 16)(device)
    _, final = chunk(q, 0 * k, v, g, state, None, scale, implementation=implementation)
    _close("chunk", final, g.sum(1).exp()[..., None] * state, q, "a state behind closed gates")
    _, final = chunk(q, 0 * k, v, g - 100, state, None, scale, implementation=implementation)
    if final.abs().max().item() != 0:
        raise ContractViolation("20 decays of e^-100 leave something of the state")


def _the_wrong_order_is_detected(device: torch.device, implementation: str) -> None:
    """Normalising after scaling would delete a gate that is the same on all channels; ours keeps it, to the budget."""
    q, k, v, k_gate, *rest = _gates(1, 33, 2, 16, 24, scalar=True)(device)
    scaled = prepare(q, k, v, k_gate, *rest, implementation=implementation)[1]
    right = k_gate.double().sigmoid().sqrt()[..., None] * normalize(k.double())
    wrong = normalize(k_gate.double().sigmoid().sqrt()[..., None] * k.double())
    _close("prepare", scaled, right, k, "scaled keys")
    if disagreement(wrong, right) < 100 * budget("prepare", scaled, k):
        raise ContractViolation("this law could not tell the wrong order from the right one")


def _a_scalar_gate_is_a_vector_of_equal_gates(device: torch.device, implementation: str) -> None:
    scalar = _gates(1, 7, 2, 16, 24, scalar=True)(device)
    q, k, v, *gates, a_log, dt_bias = scalar[:8]
    widths = (16, 24, 16)
    wide = [gate[..., None].expand(*gate.shape, width) for gate, width in zip(gates, widths, strict=True)]
    vector = (q, k, v, *wide, a_log, dt_bias[:, None].expand(2, 16), *scalar[8:])
    one = prepare(*scalar, implementation=implementation)
    two = prepare(*vector, implementation=implementation)
    for scaled, expected in zip(one, (*two[:3], two[3][..., 0]), strict=True):
        _close("prepare", scaled, expected, q, "a scalar gate against a vector of equal gates")


def _values(on_cpu: bool = False, **changes: Any) -> Callable[[torch.device, str], Any]:
    """A call of ``gated_delta`` with something wrong in it; values are looked at on a CPU only."""

    def call(device: torch.device, implementation: str) -> Any:
        device = CPU if on_cpu else device
        q, k, v, g, state = inputs(1, 4, 1, 16, 16)
        given = {"q": q, "k": k, "v": v, "g": g, "beta": torch.full((1, 4, 1, 16), 0.5), "initial_state": state}
        given |= {name: value(given) if callable(value) else value for name, value in changes.items()}
        on_device = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in given.items()}
        return gated_delta(**on_device, implementation=implementation)

    return call


def _packed(*edges: float, dtype: torch.dtype = torch.int64) -> Callable[[torch.device, str], Any]:
    return _values(cu_seqlens=torch.tensor(edges, dtype=dtype), initial_state=None)


def _prologue(index: int, value: Any) -> Callable[[torch.device, str], Any]:
    def call(device: torch.device, implementation: str) -> Any:
        arguments = list(_gates(1, 3, 2, 16, 16)(device))
        arguments[index] = value.to(device) if isinstance(value, Tensor) else value
        return prepare(*arguments, implementation=implementation)

    return call


_REFUSALS = (
    Refusal(
        "a shared vector beta with K != V",
        _values(v=torch.ones(1, 4, 1, 8), initial_state=None),
        ValueError,
        "needs K = V, got 16 and 8; give a beta_v",
    ),
    Refusal(
        "beta above 1",
        _values(True, beta=torch.full((1, 4, 1), 1.5)),
        ValueError,
        r"beta must lie in \(0, 1\), got 1.5",
    ),
    Refusal("negative beta", _values(True, beta_v=torch.full((1, 4, 1), -0.1)), ValueError, "beta_v must lie in"),
    Refusal("beta of NaN", _values(True, beta=torch.full((1, 4, 1), float("nan"))), ValueError, "beta must lie in"),
    Refusal(
        "growth instead of decay", _values(True, g=lambda x: -x["g"]), ValueError, "log decay and must be at most 0"
    ),
    Refusal("no tokens", _values(**dict.fromkeys("qkv", torch.ones(1, 0, 1, 16))), ValueError, "without empty dim"),
    Refusal("keys of another dtype", _values(k=lambda x: x["k"].double()), TypeError, "share a dtype.*float64"),
    Refusal("integer values", _values(v=torch.ones(1, 4, 1, 16, dtype=torch.int64)), TypeError, "v must be a float64"),
    Refusal("keys of another shape", _values(k=torch.ones(1, 4, 1, 8)), ValueError, "k must have q's shape"),
    Refusal(
        "values of another length", _values(v=torch.ones(1, 5, 1, 16)), ValueError, r"v must begin with \(1, 4, 1\)"
    ),
    Refusal(
        "heads too wide",
        _values(**dict.fromkeys("qkv", torch.ones(1, 4, 1, 300)), beta=torch.ones(1, 4, 1), g=None, initial_state=None),
        ValueError,
        "at most 256 channels",
    ),
    Refusal("beta of another shape", _values(beta=torch.ones(1, 4, 2)), ValueError, r"beta must be \(1, 4, 1\) or"),
    Refusal("edges that do not increase", _packed(0, 3, 3, 4), ValueError, r"increase from 0 to 4, got \[0, 3, 3, 4\]"),
    Refusal("edges past the end", _packed(0, 2, 5), ValueError, "increase from 0 to 4"),
    Refusal("edges that are no integers", _packed(0, 4, dtype=SINGLE), ValueError, "cu_seqlens must be"),
    Refusal(
        "a state of another shape",
        _values(initial_state=torch.ones(1, 1, 16, 8)),
        ValueError,
        r"initial_state must be \(N, H, K, V\) = \(1, 1, 16, 16\)",
    ),
    Refusal(
        "a state in bfloat16",
        _values(initial_state=lambda x: x["initial_state"].bfloat16()),
        TypeError,
        "must be torch.float32",
    ),
    Refusal("a scale of NaN", _values(scale=float("nan")), ValueError, "scale must be finite"),
    Refusal("an unknown value scale", _values(value_scale="cube"), ValueError, "value_scale must be"),
    Refusal("a linear scale of the shared beta", _values(value_scale="linear"), ValueError, "for a beta_v of its own"),
    Refusal("an unknown form", _values(form="parallel"), ValueError, "form must be"),
    Refusal("a bound of 3", _values(max_beta=3.0), ValueError, "max_beta must be 1 or 2"),
    Refusal("a positive lower bound", _prologue(11, 1.0), ValueError, "lower_bound must be negative"),
    Refusal("an eps of zero", _prologue(8, 0.0), ValueError, "eps must be positive"),
    Refusal("a rate for every channel", _prologue(6, torch.ones(2, 16)), ValueError, r"a_log must have shape \(2,\)"),
)


def _library_calls() -> list[tuple[Any, tuple[Any, ...]]]:
    cpu = torch.device("cpu")
    call = _rule(1, 5, 1, 3, 4)(cpu)
    leaves = tuple(x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in call)
    gates = _gates(1, 5, 1, 3, 4)(cpu)
    gate_leaves = tuple(x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in gates)
    return [
        (_forward, (*leaves, "chunk", "reference")),
        (_forward, (*call, "recurrent", "reference")),
        (_backward, (call[2], call[4], *call, "reference")),
        (_prepare, (*gate_leaves, "reference")),
        (_prepare_backward, (*(gates[i] for i in (0, 1, 2, 5)), *gates, "reference")),
    ]


def _smooth_calls() -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
    cpu, double = torch.device("cpu"), torch.float64

    def leaves(call: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            x.double().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in call
        )

    return [
        (chunk, leaves(_rule(1, 4, 1, 2, 3, dtype=double)(cpu))),
        (chunk, leaves(_rule(1, 4, 1, 2, 2, dtype=double, gates="head", edges=(0, 1, 4))(cpu))),
        (recurrent, leaves(_rule(1, 3, 1, 2, 2, dtype=double)(cpu))),
        (prepare, leaves(_gates(1, 2, 2, 3, 2, dtype=double)(cpu))),
        (prepare, leaves(_gates(1, 2, 1, 3, 2, dtype=double, scalar=True, safe=True, gain=2.0)(cpu))),
    ]


def _trained(rule: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
    """Forward and backward: o and the gradients of q, k, v and g."""

    def run(*args: Any) -> tuple[Tensor, ...]:
        *call, do = args
        leaves = [x.detach().requires_grad_() for x in call[:4]]
        o = rule(*leaves, *call[4:])[0]
        return o.detach(), *torch.autograd.grad(o, leaves, do)

    return run


def _benchmark(
    T: int, *, train: bool, device: str, baseline: Callable[..., Any], name: str, B: int = 1, H: int = 4, D: int = 32,
    dtype: torch.dtype = SINGLE, quick: bool = False, bar: float | None = None, form: str = "chunk",
    gates: str = "channel",
) -> Benchmark:  # fmt: skip
    from . import chunkwise

    def make(target: torch.device) -> tuple[Any, ...]:
        *call, state = inputs(B, T, H, D, D, dtype=dtype, gates=gates, device=target)
        rest = state if form == "recurrent" else None, None, D**-0.5
        return (*call, *rest, torch.randn(B, T, H, D, device=target).to(dtype)) if train else (*call, *rest)

    def ours(implementation: str, *args: Any) -> Any:
        rule = chunk if form == "chunk" else recurrent
        bound = lambda *call: rule(*call, implementation=implementation)  # noqa: E731 - one line for both uses
        return _trained(bound)(*args) if train else bound(*args)

    def truth(*args: Any) -> tuple[Tensor, ...]:
        """Head by head, so that float64 fits the device."""
        q, k, v, g, state, _, scale, *do = args
        rule, axes = (_trained(chunkwise.forward), (2,) * 5) if train else (chunkwise.forward, (2, 1))
        heads = []
        for h in range(H):
            call = [x[:, :, h : h + 1].double() for x in (q, k, v, g, *do)]
            rest = None if state is None else state[:, h : h + 1].double(), None, scale
            heads.append(rule(*call[:4], *rest, *call[4:]))
        return tuple(torch.cat(parts, axis) for parts, axis in zip(zip(*heads, strict=True), axes, strict=True))

    def traffic(*args: Any) -> int:
        each = B * T * H * (D * 4 * dtype.itemsize + (D if gates == "channel" else 1) * 4)
        return (2 if train else 1) * each + (2 * B * H * D * D * 4 if form == "recurrent" else 0)

    step = "forward+backward" if train else "decode" if form == "recurrent" else "forward"
    kind = str(dtype).removeprefix("torch.") + ("" if gates == "channel" else ", one decay per head")
    return Benchmark(
        f"{step} {B}x{T}x{H}x{D} {kind}",
        "backward" if train else form,
        make,
        ours,
        _trained(baseline) if train else baseline,
        name,
        truth,
        traffic,
        bar,
        device,
        quick,
    )


def _fla(module: str, function: str) -> Callable[..., Any]:
    """flash-linear-attention's kernel on what ours takes: scaled keys and values, beta = 1, its own norm off."""

    def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor | None, _: None, scale: float) -> Any:
        kernel = getattr(importlib.import_module(f"fla.ops.{module}"), function)
        beta = q.new_ones(q.shape[:3])
        return kernel(q, k, v, g, beta, scale=scale, initial_state=state, output_final_state=True)

    return run


def _benchmarks() -> tuple[Benchmark, ...]:
    from . import reference

    on_cpu = [
        _benchmark(T, train=train, device="cpu", baseline=reference.recurrent, name="the recurrence", quick=T == 64)
        for T in (64, 256, 1024)
        for train in (False, True)
    ]
    shapes = ((16, 2048, 16), (4, 8192, 16), (1, 32768, 16))
    theirs = (
        ("channel", "kda", "chunk_kda", "fused_recurrent_kda", 0.95),
        ("head", "gated_delta_rule", "chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule", None),
    )
    on_cuda = [
        _benchmark(
            T, B=B, H=H, D=128, dtype=HALF, train=train, device="cuda", baseline=_fla(module, function),
            name=f"fla {function}", bar=bar, gates=gates,
        )
        for gates, module, function, _, bar in theirs
        for B, T, H in shapes
        for train in (False, True)
        if gates == "channel" or not train  # with triton 3.6 fla refuses its scalar rule's backward on Hopper
    ]  # fmt: skip
    decode = [
        _benchmark(
            1, B=64, H=16, D=128, dtype=HALF, train=False, device="cuda", baseline=_fla(module, function),
            name=f"fla {function}", form="recurrent", gates=gates,
        )
        for gates, module, _, function, _ in theirs
    ]  # fmt: skip
    return (*on_cpu, *on_cuda, *decode)


CONTRACT = Contract(
    cases=_cases(),
    refusals=_REFUSALS,
    laws={
        "a split hands its state over": _a_split_hands_its_state_over,
        "packed sequences are alone": _packed_sequences_are_alone,
        "closed gates only decay": _closed_gates_only_decay,
        "a scalar gate is a vector of equal gates": _a_scalar_gate_is_a_vector_of_equal_gates,
        "the wrong order is detected": _the_wrong_order_is_detected,
    },
    library_calls=_library_calls,
    smooth_calls=_smooth_calls,
    benchmarks=_benchmarks(),
)
