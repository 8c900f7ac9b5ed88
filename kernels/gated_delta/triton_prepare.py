"""The prologue in one pass: norms of q and k, gates, log decay; and its gradients (paper page 2.8, steps 8 and 9).

Shape legend: rows are (token, head) pairs, K key width, V value width, D decays per head (K or 1).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _softplus(x):
    """log(1 + e^x) without overflow, and to the last digit where e^x is small (Kahan's log1p)."""
    y = tl.exp(-tl.abs(x))
    w = 1.0 + y
    return tl.maximum(x, 0.0) + tl.where(w == 1.0, y, tl.log(w) * (y / tl.where(w == 1.0, 1.0, w - 1.0)))


@triton.jit
def _sigmoid(x):
    y = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, y) / (1.0 + y)


@triton.jit
def _row(pointer, rows, N, W, columns):
    keep = (rows < N) & (columns < W)
    return tl.load(pointer + rows * W + columns, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def _put(pointer, rows, N, W, columns, values):
    keep = (rows < N) & (columns < W)
    tl.store(pointer + rows * W + columns, values.to(pointer.dtype.element_ty), mask=keep)


@triton.jit
def prepare_kernel(
    q_ptr, k_ptr, v_ptr, k_gate_ptr, v_gate_ptr, decay_ptr, a_log_ptr, dt_bias_ptr,
    unit_q_ptr, scaled_k_ptr, scaled_v_ptr, g_ptr, N, H, K, V, D, eps, root_gain, value_gain, value_power, lower_bound,
    SAFE: tl.constexpr, ROWS: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """As ``reference.prepare``: normalise first, scale after."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, KP)[None, :]
    q = _row(q_ptr, rows, N, K, columns)
    _put(unit_q_ptr, rows, N, K, columns, q * tl.rsqrt(tl.sum(q * q, 1) + eps)[:, None])
    k = _row(k_ptr, rows, N, K, columns)
    root = root_gain * tl.exp(-0.5 * _softplus(-_row(k_gate_ptr, rows, N, K, columns)))
    _put(scaled_k_ptr, rows, N, K, columns, root * (k * tl.rsqrt(tl.sum(k * k, 1) + eps)[:, None]))
    values = tl.arange(0, VP)[None, :]
    write = value_gain * tl.exp(-value_power * _softplus(-_row(v_gate_ptr, rows, N, V, values)))
    _put(scaled_v_ptr, rows, N, V, values, write * _row(v_ptr, rows, N, V, values))
    channels = tl.arange(0, DP)[None, :]
    head = rows % H
    rate = tl.exp(tl.load(a_log_ptr + head).to(tl.float32))
    x = _row(decay_ptr, rows, N, D, channels) + _row(dt_bias_ptr, head, H, D, channels)
    _put(g_ptr, rows, N, D, channels, lower_bound * _sigmoid(rate * x) if SAFE else -rate * _softplus(x))


@triton.jit
def _norm_backward(x, d_unit, eps):
    inverse = tl.rsqrt(tl.sum(x * x, 1) + eps)[:, None]
    unit = x * inverse
    return (d_unit - unit * tl.sum(unit * d_unit, 1)[:, None]) * inverse


@triton.jit
def prepare_backward_kernel(
    d_unit_q_ptr, d_scaled_k_ptr, d_scaled_v_ptr, dg_ptr,
    q_ptr, k_ptr, v_ptr, k_gate_ptr, v_gate_ptr, decay_ptr, a_log_ptr, dt_bias_ptr,
    dq_ptr, dk_ptr, dv_ptr, dk_gate_ptr, dv_gate_ptr, d_decay_ptr, d_a_log_ptr,
    N, H, K, V, D, eps, root_gain, value_gain, value_power, lower_bound,
    SAFE: tl.constexpr, ROWS: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """As ``reference.prepare_backward``, except that d_a_log is left as one number per row."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, KP)[None, :]
    q = _row(q_ptr, rows, N, K, columns)
    _put(dq_ptr, rows, N, K, columns, _norm_backward(q, _row(d_unit_q_ptr, rows, N, K, columns), eps))
    k = _row(k_ptr, rows, N, K, columns)
    z = _row(k_gate_ptr, rows, N, K, columns)
    root = root_gain * tl.exp(-0.5 * _softplus(-z))
    d_scaled = _row(d_scaled_k_ptr, rows, N, K, columns)
    _put(dk_ptr, rows, N, K, columns, _norm_backward(k, root * d_scaled, eps))
    unit = k * tl.rsqrt(tl.sum(k * k, 1) + eps)[:, None]
    _put(dk_gate_ptr, rows, N, K, columns, 0.5 * _sigmoid(-z) * root * unit * d_scaled)
    values = tl.arange(0, VP)[None, :]
    z = _row(v_gate_ptr, rows, N, V, values)
    write = value_gain * tl.exp(-value_power * _softplus(-z))
    d_scaled = _row(d_scaled_v_ptr, rows, N, V, values)
    _put(dv_ptr, rows, N, V, values, write * d_scaled)
    _put(
        dv_gate_ptr, rows, N, V, values,
        value_power * _sigmoid(-z) * write * _row(v_ptr, rows, N, V, values) * d_scaled,
    )  # fmt: skip
    channels = tl.arange(0, DP)[None, :]
    head = rows % H
    rate = tl.exp(tl.load(a_log_ptr + head).to(tl.float32))
    x = _row(decay_ptr, rows, N, D, channels) + _row(dt_bias_ptr, head, H, D, channels)
    dg = _row(dg_ptr, rows, N, D, channels)
    if SAFE:
        bend = _sigmoid(rate * x)
        d_decay = lower_bound * bend * _sigmoid(-rate * x) * rate * dg
        d_a_log = d_decay * x
    else:
        d_decay = -rate * _sigmoid(x) * dg
        d_a_log = -rate * _softplus(x) * dg
    _put(d_decay_ptr, rows, N, D, channels, d_decay)
    d_a_log = tl.sum(tl.where(channels < D, d_a_log, 0.0), 1)
    _put(d_a_log_ptr, rows, N, 1, tl.zeros((1, 1), dtype=tl.int32), d_a_log[:, None])
