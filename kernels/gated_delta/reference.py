"""The gated delta rule token by token, and its prologue, in plain torch: the truth.

Shape legend: B batch, T tokens, H heads, K key width, V value width, N sequences (B, or those packed into one row).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ..contract import accumulation_dtype

GRADED = 8  # prepare's tensor arguments, each of which gets a gradient


def bounds(cu_seqlens: Tensor | None, batch: int, tokens: int) -> list[tuple[int, int]]:
    """(first, past the last) token of every sequence in the batch flattened to B * T tokens."""
    if cu_seqlens is None:
        return [(row * tokens, (row + 1) * tokens) for row in range(batch)]
    edges = cu_seqlens.tolist()
    return list(pairwise(edges))


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """S' = Diag(e^g) S; u = v - S'^T k; S = S' + k u^T; o = scale S^T q, one token after the other.

    The residual form of equation 2.5 of the paper page: k and v come scaled by the root of beta, so beta is gone.

    Args:
        q, k: (B, T, H, K).
        v: (B, T, H, V).
        g: log decay, at most 0; (B, T, H, K) per channel or (B, T, H) per head.
        initial_state: (N, H, K, V), or None for zeros.
        cu_seqlens: (N + 1,), edges of the sequences that are packed into the one row of B = 1.
        scale: factor on the outputs.

    Returns:
        o (B, T, H, V) in v's dtype; the last states (N, H, K, V) in float32 (float64 for float64).
    """
    precise = accumulation_dtype(q.dtype)
    q_, k_, v_, g_ = (x.to(precise).flatten(0, 1) for x in (q, k, v, g))
    decay = g_.exp() if g.dim() == 4 else g_.exp()[..., None]
    edges = bounds(cu_seqlens, q.shape[0], q.shape[1])
    groups = [edges] if cu_seqlens is None else [[edge] for edge in edges]
    outputs, finals = [], []
    for number, group in enumerate(groups):
        tokens = group[0][1] - group[0][0]
        rows = torch.tensor([first for first, _ in group], device=q.device)
        if initial_state is None:
            S = q_.new_zeros(len(group), *q.shape[2:], v.shape[-1])
        else:
            S = initial_state.to(precise) if cu_seqlens is None else initial_state[number : number + 1].to(precise)
        steps = []
        for t in range(tokens):
            q_t, k_t, v_t, decay_t = (x[rows + t] for x in (q_, k_, v_, decay))
            S = S * decay_t[..., None]
            u = v_t - (k_t[..., None, :] @ S).squeeze(-2)
            S = S + k_t[..., None] * u[..., None, :]
            steps.append(scale * (q_t[..., None, :] @ S).squeeze(-2))
        outputs.append(torch.stack(steps, 1))
        finals.append(S)
    o = outputs[0] if cu_seqlens is None else torch.cat(outputs, 1)
    return o.to(v.dtype), torch.cat(finals)


def prepare(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise q and k, then scale k and v by their gates, and turn the decay's input into log decay.

    Normalise first, scale after: the other order deletes the gate (equation 2.7, consequence 1). The root of a sigmoid
    is the exponential of half its logarithm: exact, and of finite slope when the gate closes (2.8, step 8).

    Args:
        q, k: (B, T, H, K).
        v: (B, T, H, V).
        k_gate, v_gate: logits of beta, (B, T, H, K) and (B, T, H, V).
        decay: (B, T, H, D), D being K, or 1 for one decay per head.
        a_log: (H,).
        dt_bias: (H, D).
        eps: inside the norm's root.
        gain: beta is gain * sigmoid(logit).
        value_power: 0.5 scales v by the root of its beta, 1.0 by beta itself.
        lower_bound: None, or the log decay's bound of the safe form (page 2.10, step 4).

    Returns:
        normalised q, scaled k, scaled v in their dtypes; log decay (B, T, H, D) in float32 (float64 for float64).
    """
    precise = accumulation_dtype(q.dtype)
    q_, k_, v_, k_gate_, v_gate_, decay_, a_log_, dt_bias_ = (
        x.to(precise) for x in (q, k, v, k_gate, v_gate, decay, a_log, dt_bias)
    )
    unit_q = q_ * (q_.square().sum(-1, keepdim=True) + eps).rsqrt()
    unit_k = k_ * (k_.square().sum(-1, keepdim=True) + eps).rsqrt()
    root = gain**0.5 * (0.5 * logsigmoid(k_gate_)).exp()
    write = gain**value_power * (value_power * logsigmoid(v_gate_)).exp()
    return (
        unit_q.to(q.dtype),
        (root * unit_k).to(k.dtype),
        (write * v_).to(v.dtype),
        log_decay(decay_, a_log_, dt_bias_, lower_bound),
    )


def log_decay(decay: Tensor, a_log: Tensor, dt_bias: Tensor, lower_bound: float | None) -> Tensor:
    """-e^a softplus(decay + dt_bias), or lower_bound * sigmoid(e^a (decay + dt_bias)); shapes as in :func:`prepare`."""
    rate, x = a_log.exp()[:, None], decay + dt_bias
    return -rate * softplus(x) if lower_bound is None else lower_bound * (rate * x).sigmoid()


def prepare_backward(
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
) -> tuple[Tensor, ...]:
    """Gradients of :func:`prepare`'s eight tensors; no step divides by beta (2.8, steps 8 and 9)."""
    precise = accumulation_dtype(q.dtype)
    tensors = (q, k, v, k_gate, v_gate, decay, a_log, dt_bias)
    q_, k_, v_, k_gate_, v_gate_, decay_, a_log_, dt_bias_ = (x.to(precise) for x in tensors)
    dq_, dk_, dv_, dg_ = (x.to(precise) for x in (dq, dk, dv, dg))

    def norm_backward(x: Tensor, d_unit: Tensor) -> Tensor:
        inverse = (x.square().sum(-1, keepdim=True) + eps).rsqrt()
        unit = x * inverse
        return (d_unit - unit * (unit * d_unit).sum(-1, keepdim=True)) * inverse

    inverse_k = (k_.square().sum(-1, keepdim=True) + eps).rsqrt()
    root = gain**0.5 * (0.5 * logsigmoid(k_gate_)).exp()
    write = gain**value_power * (value_power * logsigmoid(v_gate_)).exp()
    rate, x = a_log_.exp()[:, None], decay_ + dt_bias_
    if lower_bound is None:
        d_decay = -rate * x.sigmoid() * dg_
        d_a_log = (-rate * softplus(x) * dg_).sum((0, 1, 3))
    else:
        bend = (rate * x).sigmoid()
        d_decay = lower_bound * bend * (1 - bend) * rate * dg_
        d_a_log = (d_decay * x).sum((0, 1, 3))
    found = (
        norm_backward(q_, dq_),
        norm_backward(k_, root * dk_),
        write * dv_,
        0.5 * (-k_gate_).sigmoid() * (root * k_ * inverse_k) * dk_,
        value_power * (-v_gate_).sigmoid() * (write * v_) * dv_,
        d_decay,
        d_a_log,
        d_decay.sum((0, 1)),
    )
    return tuple(gradient.to(tensor.dtype) for gradient, tensor in zip(found, tensors, strict=True))
