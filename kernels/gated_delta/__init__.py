"""The gated delta rule with vector gates: DeltaNet, GDN, KDA, FG2-GDN and FG2-GDN+ in one op.

Maths, tiling and traffic: this folder's README. ``gated_delta`` takes gate values and does everything; a layer calls
``prepare`` on its logits and then ``chunk`` (training, prefill) or ``recurrent`` (decoding).

Shape legend: B batch, T tokens, H heads, K key width, V value width, N sequences (B, or those packed into one row).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from ..contract import Op, accumulation_dtype, rounding_rms, unit_roundoff
from ..selection import Dispatch, reference_implementation, triton_implementation
from . import chunkwise, reference

__all__ = ["MAX_CHANNELS", "OP", "RECURRENT_TOKENS", "chunk", "gated_delta", "normalize", "prepare", "recurrent"]

MAX_CHANNELS = 256  # widest key or value of a head
RECURRENT_TOKENS = 64  # at inference, up to here one token after the other beats chunks

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def gated_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    beta_v: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    normalized: bool = False,
    value_scale: str = "sqrt",
    max_beta: float = 1.0,
    form: str = "chunk",
    implementation: str = "reference",
) -> tuple[Tensor, Tensor]:
    """S = (I - k~ k~^T) Diag(e^g) S + k~ v~^T with k~ = sqrt(beta) k and v~ = sqrt(beta_v) v; o = scale S^T q.

    Which rule that is depends on the gates (paper page 2.1, 2.5 and 2.6):

    ========================  ===================  =============================================
    beta                      g                    rule
    ========================  ===================  =============================================
    (B, T, H)                 None                 DeltaNet
    (B, T, H)                 (B, T, H)            GDN
    (B, T, H)                 (B, T, H, K)         KDA
    (B, T, H, K)              (B, T, H, K)         FG2-GDN; needs K = V
    and beta_v (B, T, H, V)   (B, T, H, K)         FG2-GDN+; a scalar beta_v (B, T, H) works too
    ========================  ===================  =============================================

    The root's slope is infinite at beta = 0: a layer that trains its gates calls :func:`prepare` on logits instead.

    Args:
        q, k: (B, T, H, K) in one dtype; k is not scaled by beta. Normalised here, unless ``normalized``.
        v: (B, T, H, V).
        g: log decay, natural logarithm, at most 0.
        beta: step size in (0, max_beta) on keys, and on values where ``beta_v`` is None.
        beta_v: step size on values.
        initial_state: (N, H, K, V) in float32 (float64 for float64), or None for zeros.
        cu_seqlens: (N + 1,) integers from 0 to T, increasing: edges of the sequences packed into the one row of B = 1.
        scale: factor on the outputs, K^-0.5 by default.
        normalized: q and k already have unit norm.
        value_scale: ``"sqrt"``, or ``"linear"`` for v~ = beta_v v (the page's open point; with ``beta_v`` only).
        max_beta: 1, or 2 to allow eigenvalues down to -1.
        form: ``"chunk"`` or ``"recurrent"``: the same result, differently rounded.
        implementation: ``"reference"``, ``"triton"`` or ``"auto"``.

    Returns:
        o (B, T, H, V) in v's dtype; last states (N, H, K, V) in float32 (float64 for float64).

    Raises:
        TypeError: an argument has no or another dtype than needed.
        ValueError: shapes, devices, cu_seqlens or options do not fit; on a CPU also values of g and beta out of range.
        UnsupportedImplementation: the named implementation cannot run these arguments.
        KernelMismatch: the named implementation disagrees with the reference on this device.

    Example:
        >>> one = torch.ones(1, 1, 1, 1)
        >>> gated_delta(one, one, 3 * one, None, torch.full((1, 1, 1), 0.5))[0].squeeze()  # half of 3 is written
        tensor(1.5000)
    """
    _tensors(q=q, k=k, v=v, beta=beta, beta_v=beta_v, g=g)
    _heads(q, k, v)
    if value_scale not in ("sqrt", "linear"):
        raise ValueError(f"value_scale must be 'sqrt' or 'linear', got {value_scale!r}")
    if max_beta not in (1.0, 2.0):
        raise ValueError(f"max_beta must be 1 or 2, got {max_beta}")
    if form not in ("chunk", "recurrent"):
        raise ValueError(f"form must be 'chunk' or 'recurrent', got {form!r}")
    if beta_v is None and value_scale == "linear":
        raise ValueError("value_scale='linear' is for a beta_v of its own; the shared beta scales by its root")
    if beta_v is None and beta.dim() == 4 and q.shape[-1] != v.shape[-1]:
        raise ValueError(
            f"one vector beta for keys and values needs K = V, got {q.shape[-1]} and {v.shape[-1]}; give a beta_v"
        )
    beta_v = beta if beta_v is None else beta_v
    _gate("beta", beta, q, max_beta)
    _gate("beta_v", beta_v, v, max_beta)
    q_, k_ = (q, k) if normalized else (normalize(q), normalize(k))
    write = _spread(beta_v).sqrt() if value_scale == "sqrt" else _spread(beta_v)
    rule = chunk if form == "chunk" else recurrent
    return rule(
        q_,
        (_spread(beta).sqrt() * k_).to(q.dtype),
        (write * v).to(v.dtype),
        q.new_zeros(q.shape[:3], dtype=accumulation_dtype(q.dtype)) if g is None else g,
        initial_state,
        cu_seqlens,
        scale,
        implementation=implementation,
    )


def normalize(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(||x||^2 + eps) over the last dimension, in float32 at least, rounded to x's dtype once."""
    wide = x.to(accumulation_dtype(x.dtype))
    return (wide * (wide.square().sum(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)


def chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    *,
    implementation: str = "reference",
) -> tuple[Tensor, Tensor]:
    """The rule on keys and values that are scaled already (beta = 1 in it), in chunks of 64 tokens.

    Nothing here normalises: a norm over scaled keys would delete their gate. Differentiable once in q, k, v, g and
    initial_state, through both outputs. Arguments and errors as in :func:`gated_delta`.

    Example:
        >>> one = torch.ones(1, 2, 1, 1)
        >>> o, state = chunk(one, one, 3 * one, torch.zeros(1, 2, 1))
        >>> o.flatten(), state.squeeze()
        (tensor([3., 3.]), tensor(3.))
    """
    return _call("chunk", q, k, v, g, initial_state, cu_seqlens, scale, implementation)


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    *,
    implementation: str = "reference",
) -> tuple[Tensor, Tensor]:
    """As :func:`chunk`, one token after the other: for decoding and prompts of up to RECURRENT_TOKENS tokens.

    Its gradient is the chunkwise one, since both compute one function.

    Example:
        >>> one = torch.ones(1, 1, 1, 1)
        >>> recurrent(one, one, one, torch.zeros(1, 1, 1), initial_state=one)[1].squeeze()  # known already: no write
        tensor(1.)
    """
    return _call("recurrent", q, k, v, g, initial_state, cu_seqlens, scale, implementation)


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_gate: Tensor,
    v_gate: Tensor,
    decay: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    eps: float = 1e-6,
    gain: float = 1.0,
    value_power: float = 0.5,
    lower_bound: float | None = None,
    *,
    implementation: str = "reference",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The prologue of a layer in one pass: unit q; k normalised, then scaled by its gate's root; scaled v; log decay.

    beta = gain sigmoid(logit); its root is formed as exp(log sigmoid / 2), and no gradient divides by it, so closed
    gates have gradient 0 (paper page 2.8, step 8). Log decay is -e^a_log softplus(decay + dt_bias), or in the safe form
    lower_bound sigmoid(e^a_log (decay + dt_bias)) (page 2.10, step 4). Differentiable once in all eight tensors.

    Args:
        q, k: (B, T, H, K).
        v: (B, T, H, V).
        k_gate, v_gate: logits, (B, T, H, K) and (B, T, H, V), or (B, T, H) for a scalar gate.
        decay: (B, T, H, K), or (B, T, H) for one decay per head.
        a_log: (H,).
        dt_bias: (H, K), or (H,) with one decay per head.
        eps: inside the norm's root.
        gain: 1, or 2 for step sizes up to 2.
        value_power: 0.5, or 1.0 to scale v by beta itself.
        lower_bound: None, or a negative number: no log decay lies below it.
        implementation: ``"reference"``, ``"triton"`` or ``"auto"``.

    Returns:
        q, k, v in their dtypes, and g of decay's shape in float32 (float64 for float64): what :func:`chunk` takes.

    Raises:
        TypeError, ValueError, UnsupportedImplementation, KernelMismatch: as in :func:`gated_delta`.

    Example:
        >>> x = torch.ones(1, 1, 1, 4)
        >>> gate, per_head = torch.zeros(1, 1, 1), torch.zeros(1)
        >>> prepare(x, x, x, gate, gate, gate, per_head, per_head)[1].flatten()  # 0.5 ** 0.5 / 4 ** 0.5
        tensor([0.3536, 0.3536, 0.3536, 0.3536])
    """
    _tensors(q=q, k=k, v=v, k_gate=k_gate, v_gate=v_gate, decay=decay, a_log=a_log, dt_bias=dt_bias)
    _heads(q, k, v)
    for name, value in (("eps", eps), ("gain", gain), ("value_power", value_power)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if lower_bound is not None and not -math.inf < lower_bound < 0:
        raise ValueError(f"lower_bound must be negative and finite, got {lower_bound}")
    _gate("k_gate", k_gate, q, None)
    _gate("v_gate", v_gate, v, None)
    _gate("decay", decay, q, None)
    heads = tuple(q.shape[2:3])
    for name, tensor, shape in (("a_log", a_log, heads), ("dt_bias", dt_bias, heads + tuple(decay.shape[3:]))):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape} to match q and decay, got {tuple(tensor.shape)}")
    per_head = decay.dim() == 3
    unit_q, scaled_k, scaled_v, g = _prepare(
        q,
        k,
        v,
        _spread(k_gate).expand(q.shape),
        _spread(v_gate).expand(v.shape),
        _spread(decay),
        a_log,
        dt_bias[:, None] if per_head else dt_bias,
        eps,
        gain,
        value_power,
        lower_bound,
        implementation,
    )
    return unit_q, scaled_k, scaled_v, g.squeeze(-1) if per_head else g


def _spread(gate: Tensor) -> Tensor:
    return gate[..., None] if gate.dim() == 3 else gate


def _tensors(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None and name in ("beta_v", "g"):
            continue
        if not isinstance(tensor, Tensor) or tensor.dtype not in _DTYPES:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a float64, float32, bfloat16 or float16 tensor, got {got}")
        first = next(iter(tensors.values()))
        if tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device}, q on {first.device}")
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"q, k and v must share a dtype, got {q.dtype}, {k.dtype} and {v.dtype}")


def _heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() != 4 or 0 in q.shape or v.dim() != 4 or 0 in v.shape:
        raise ValueError(
            f"q and v must be (B, T, H, K) and (B, T, H, V) without empty dimensions, got {tuple(q.shape)} and "
            f"{tuple(v.shape)}"
        )
    if k.shape != q.shape:
        raise ValueError(f"k must have q's shape {tuple(q.shape)}, got {tuple(k.shape)}")
    if v.shape[:3] != q.shape[:3]:
        raise ValueError(f"v must begin with {tuple(q.shape[:3])} as q does, got {tuple(v.shape)}")
    if max(q.shape[-1], v.shape[-1]) > MAX_CHANNELS:
        raise ValueError(f"heads hold at most {MAX_CHANNELS} channels, got K={q.shape[-1]} and V={v.shape[-1]}")


def _gate(name: str, gate: Tensor, like: Tensor, most: float | None) -> None:
    """A scalar or vector gate of ``like``; with ``most``, values of it on a CPU lie in [0, most]."""
    if tuple(gate.shape) not in (tuple(like.shape[:3]), tuple(like.shape)):
        raise ValueError(f"{name} must be {tuple(like.shape[:3])} or {tuple(like.shape)}, got {tuple(gate.shape)}")
    if most is not None and gate.device.type == "cpu" and not bool(((gate >= 0) & (gate <= most)).all()):
        raise ValueError(f"{name} must lie in (0, {most:g}), got {gate.min().item():g} to {gate.max().item():g}")


def _call(
    form: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float | None,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    if g is None:
        raise TypeError("g must be a tensor: zeros of (B, T, H) keep everything")
    _tensors(q=q, k=k, v=v, g=g)
    _heads(q, k, v)
    _gate("g", g, q, None)
    sequences = q.shape[0]
    if cu_seqlens is not None:
        if cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
            raise ValueError(
                f"cu_seqlens must be (N + 1,) integers, got {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
            )
        if q.shape[0] != 1:
            raise ValueError(f"cu_seqlens packs sequences into one row, got a batch of {q.shape[0]}")
        sequences = len(cu_seqlens) - 1
    if initial_state is not None:
        shape = (sequences, *q.shape[2:], v.shape[-1])
        if tuple(initial_state.shape) != shape:
            raise ValueError(f"initial_state must be (N, H, K, V) = {shape}, got {tuple(initial_state.shape)}")
        precise = torch.float64 if q.dtype == torch.float64 else torch.float32
        if initial_state.dtype != precise:
            raise TypeError(f"initial_state must be {precise}, got {initial_state.dtype}")
        if initial_state.device != q.device:
            raise ValueError(f"initial_state is on {initial_state.device}, q on {q.device}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _forward(q, k, v, g, initial_state, cu_seqlens, scale, form, implementation)


def _insist_on_values(g: Tensor, cu_seqlens: Tensor | None, tokens: int, scale: float) -> None:
    """Checks of values. A GPU would have to be waited for: there only cu_seqlens, which the launch reads anyway."""
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    if g.device.type == "cpu" and not bool((g <= 0).all()):
        raise ValueError(f"g is a log decay and must be at most 0, got {g.max().item():g}")
    if cu_seqlens is not None:
        edges = cu_seqlens.tolist()
        if edges[0] != 0 or edges[-1] != tokens or any(a >= b for a, b in itertools.pairwise(edges)):
            raise ValueError(f"cu_seqlens must increase from 0 to {tokens}, got {edges}")


def _budget(function: str, output: Tensor, like: Tensor) -> float:
    """Roundings on the way to ``output``, each of the RMS of one rounding in the inputs' dtype or in float32.

    ``prepare`` (and every elementwise result) rounds once. ``chunk`` in bfloat16 rounds the factors of its products:
    the pair matrix, U and the state on the way to o, so 4 roundings in a row bound the error of either output; the
    state itself leaves in float32. Backward doubles the chain. In float32, the cumulative log decay is a number of up
    to some 2,000 nats within a chunk of strong gates, so that its own rounding moves a factor by 2,000 roundoffs.
    """
    narrow = rounding_rms(torch.empty(64, dtype=like.dtype, device="meta"))
    precise = unit_roundoff(accumulation_dtype(like.dtype))
    if function in ("chunk", "backward"):
        roundings = 8 if function == "backward" else 4
        return rounding_rms(output) + roundings * narrow + 2048 * precise
    if function == "recurrent":
        return rounding_rms(output) + 64 * precise
    return rounding_rms(output) + 32 * precise


def _probe(function: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    B, T, H, K, V = 1, 66, 1, 16, 16  # two chunks, several blocks
    q, k, v = normalize(draw(B, T, H, K)), normalize(draw(B, T, H, K)), draw(B, T, H, V)
    gates = draw(B, T, H, K), draw(B, T, H, V), draw(B, T, H, K), draw(H), draw(H, K)
    options = 1e-6, 1.0, 0.5, None
    if function == "prepare":
        return q, k, v, *gates, *options
    if function == "prepare_backward":
        return draw(B, T, H, K), draw(B, T, H, K), draw(B, T, H, V), draw(B, T, H, K).float(), q, k, v, *gates, *options
    precise = accumulation_dtype(dtype)
    g = -draw(B, T, H, K).to(precise).abs()
    state = draw(B, H, K, V).to(precise)
    call = q, k, v, g, state, None, K**-0.5
    return (draw(B, T, H, V), state, *call) if function == "backward" else call


_DISPATCH = Dispatch(
    "gated_delta",
    (
        triton_implementation(__name__, "chunk", "recurrent", "backward", "prepare", "prepare_backward"),
        reference_implementation(
            chunk=chunkwise.forward,
            recurrent=reference.recurrent,
            backward=chunkwise.backward,
            prepare=reference.prepare,
            prepare_backward=reference.prepare_backward,
        ),
    ),
    _probe,
    lambda function, output, like: _budget("backward" if "backward" in function else function, output, like),
)


@torch.library.custom_op("stackloom::gated_delta", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    form: str,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    _insist_on_values(g, cu_seqlens, q.shape[1], scale)
    return _DISPATCH.call(form, q, k, v, g, initial_state, cu_seqlens, scale, implementation=implementation)


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    form: str,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    state = q.new_empty((sequences, *q.shape[2:], v.shape[-1]), dtype=accumulation_dtype(q.dtype))
    return v.new_empty(v.shape), state


@torch.library.custom_op("stackloom::gated_delta_backward", mutates_args=())
def _backward(
    do: Tensor,
    d_final: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _DISPATCH.call(
        "backward", do, d_final, q, k, v, g, initial_state, cu_seqlens, scale, implementation=implementation
    )


@_backward.register_fake
def _(
    do: Tensor,
    d_final: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    state = q.new_empty((sequences, *q.shape[2:], v.shape[-1]), dtype=accumulation_dtype(q.dtype))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), g.new_empty(g.shape), state


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, g, initial_state, cu_seqlens, ctx.scale, _, ctx.implementation = inputs
    ctx.save_for_backward(q, k, v, g, initial_state, cu_seqlens)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, do: Tensor | None, d_final: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, g, initial_state, cu_seqlens = ctx.saved_tensors
    do = torch.zeros_like(v) if do is None else do
    dq, dk, dv, dg, d_state = _backward(
        do, d_final, q, k, v, g, initial_state, cu_seqlens, ctx.scale, ctx.implementation
    )
    return dq, dk, dv, dg, None if initial_state is None else d_state, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save_for_backward)


@torch.library.custom_op("stackloom::gated_delta_prepare", mutates_args=())
def _prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_gate: Tensor,
    v_gate: Tensor,
    decay: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    eps: float,
    gain: float,
    value_power: float,
    lower_bound: float | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = (q, k, v, k_gate, v_gate, decay, a_log, dt_bias)
    return _DISPATCH.call("prepare", *tensors, eps, gain, value_power, lower_bound, implementation=implementation)


@_prepare.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_gate: Tensor,
    v_gate: Tensor,
    decay: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    eps: float,
    gain: float,
    value_power: float,
    lower_bound: float | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = decay.new_empty(decay.shape, dtype=accumulation_dtype(q.dtype))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), g


@torch.library.custom_op("stackloom::gated_delta_prepare_backward", mutates_args=())
def _prepare_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dg: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_gate: Tensor,
    v_gate: Tensor,
    decay: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    eps: float,
    gain: float,
    value_power: float,
    lower_bound: float | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (dq, dk, dv, dg, q, k, v, k_gate, v_gate, decay, a_log, dt_bias)
    return _DISPATCH.call(
        "prepare_backward", *tensors, eps, gain, value_power, lower_bound, implementation=implementation
    )


@_prepare_backward.register_fake
def _(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dg: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_gate: Tensor,
    v_gate: Tensor,
    decay: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    eps: float,
    gain: float,
    value_power: float,
    lower_bound: float | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (q, k, v, k_gate, v_gate, decay, a_log, dt_bias)
    return tuple(x.new_empty(x.shape) for x in tensors)  # type: ignore[return-value]


def _save_prologue(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[: reference.GRADED])
    ctx.options = inputs[reference.GRADED :]


def _differentiate_prologue(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return *_prepare_backward(*grads, *ctx.saved_tensors, *ctx.options), *(None for _ in ctx.options)


_prepare.register_autograd(_differentiate_prologue, setup_context=_save_prologue)

OP = Op(
    name="gated_delta",
    package=__name__,
    public={"chunk": chunk, "recurrent": recurrent, "prepare": prepare},
    dispatch=_DISPATCH,
    budget=_budget,
    has_backward=True,
    can_torch_compile=True,
)
