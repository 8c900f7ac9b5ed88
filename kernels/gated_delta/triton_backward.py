"""Backward kernels of the chunkwise gated delta rule: paper page 2.8, steps 1 to 7.

Shape legend: as in triton_forward.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tiles import about, is_mild, load, load_lower, load_state, middle, product, shrink, store, store_state


@triton.jit
def d_states_kernel(
    q_ptr, k_ptr, G_ptr, A_ptr, W_ptr, do_ptr, d_final_ptr, dU_ptr, dS_ptr, d_initial_ptr,
    starts, lengths, offsets, H, K, V, scale,
    PRECISE: tl.constexpr, FINAL: tl.constexpr, KP: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Chunks in reverse: dU = A^T dO + Kt dS, then dS = Qd^T dO + e^G_C dS - W^T dU (W^T = Kd^T T^T)."""
    sequence, h = tl.program_id(1) // H, tl.program_id(1) % H
    channels = tl.arange(0, KP)
    columns = tl.program_id(0) * BV + tl.arange(0, BV)[None, :]
    rows = tl.arange(0, C)
    base = tl.program_id(1).to(tl.int64) * K * V
    dS = tl.zeros((KP, BV), dtype=tl.float32)
    if FINAL:
        dS = load_state(d_final_ptr, base, K, V, channels[:, None], columns)
    first, last_chunk = tl.load(offsets + sequence), tl.load(offsets + sequence + 1)
    for reverse in range(last_chunk - first):
        chunk = last_chunk - 1 - reverse
        start, length = tl.load(starts + chunk), tl.load(lengths + chunk)
        store_state(dS_ptr, (chunk * H + h) * K * V, K, V, channels[:, None], columns, dS)
        dO = load(do_ptr, start, h, H, V, rows[:, None], columns, length)
        A = load_lower(A_ptr, start, h, H, rows[None, :], rows[:, None], length, C)  # transposed
        dU = product(A, dO, PRECISE)
        ending = load(G_ptr, start, h, H, K, length - 1, channels[None, :], length)
        G = load(G_ptr, start, h, H, K, rows[:, None], channels[None, :], length)
        k = load(k_ptr, start, h, H, K, rows[:, None], channels[None, :], length) * shrink(ending - G)
        dU += product(k, dS, PRECISE)
        store(dU_ptr, start, h, H, V, rows[:, None], columns, length, dU)
        ending = load(G_ptr, start, h, H, K, length - 1, channels[:, None], length)
        G = load(G_ptr, start, h, H, K, rows[None, :], channels[:, None], length)
        q = load(q_ptr, start, h, H, K, rows[None, :], channels[:, None], length) * (scale * tl.exp(G))
        W = load(W_ptr, start, h, H, K, rows[None, :], channels[:, None], length)
        dS = tl.exp(ending) * dS + product(q, dO, PRECISE) - product(W, dU, PRECISE)
    store_state(d_initial_ptr, base, K, V, channels[:, None], columns, dS)


@triton.jit
def d_values_kernel(
    T_ptr, dU_ptr, dR_ptr, starts, lengths, H, V, PRECISE: tl.constexpr, BV: tl.constexpr, C: tl.constexpr
):
    """dR = T^T dU, which is the gradient of v: a transposed solve, no gradient of the inverse."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    start, length = tl.load(starts + chunk), tl.load(lengths + chunk)
    rows = tl.arange(0, C)
    columns = tl.program_id(2) * BV + tl.arange(0, BV)[None, :]
    T = load_lower(T_ptr, start, h, H, rows[None, :], rows[:, None], length, C)  # transposed
    dU = load(dU_ptr, start, h, H, V, rows[:, None], columns, length)
    store(dR_ptr, start, h, H, V, rows[:, None], columns, length, product(T, dU, PRECISE))


@triton.jit
def d_pairs_kernel(
    do_ptr, dR_ptr, U_ptr, dA_ptr, dL_ptr, starts, lengths, H, V,
    PRECISE: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dA = tril(dO U^T) and dL = -tril(dR U^T, -1)."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    start, length = tl.load(starts + chunk), tl.load(lengths + chunk)
    rows, columns = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    dA = tl.zeros((C, C), dtype=tl.float32)
    dL = tl.zeros((C, C), dtype=tl.float32)
    for c0 in range(0, V, BV):
        across, along = c0 + tl.arange(0, BV)[None, :], c0 + tl.arange(0, BV)[:, None]
        U = load(U_ptr, start, h, H, V, columns, along, length)  # transposed
        dA += product(load(do_ptr, start, h, H, V, rows, across, length), U, PRECISE)
        dL -= product(load(dR_ptr, start, h, H, V, rows, across, length), U, PRECISE)
    at = ((start + rows) * H + h) * C + columns
    keep = (rows < length) & (columns <= rows)
    tl.store(dA_ptr + at, dA.to(dA_ptr.dtype.element_ty), mask=keep)
    tl.store(dL_ptr + at, tl.where(columns < rows, dL, 0.0).to(dL_ptr.dtype.element_ty), mask=keep)


@triton.jit
def d_carried_kernel(
    q_ptr, k_ptr, G_ptr, do_ptr, dR_ptr, U_ptr, states_ptr, dS_ptr, dq_ptr, dk_ptr, dG_ptr, starts, lengths,
    H, K, V, scale, PRECISE: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """What reaches q, k and G through the states at both ends of the chunk, in float32 (2.8, steps 3, 6 and 7)."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    start, length = tl.load(starts + chunk), tl.load(lengths + chunk)
    rows = tl.arange(0, C)[:, None]
    columns = tl.program_id(2) * BK + tl.arange(0, BK)[None, :]
    base = (chunk.to(tl.int64) * H + h) * K * V
    dQd = tl.zeros((C, BK), dtype=tl.float32)
    dKd = tl.zeros((C, BK), dtype=tl.float32)
    dKt = tl.zeros((C, BK), dtype=tl.float32)
    kept = tl.zeros((BK,), dtype=tl.float32)
    for c0 in range(0, V, BV):
        across, along = c0 + tl.arange(0, BV)[None, :], c0 + tl.arange(0, BV)[:, None]
        S = load_state(states_ptr, base, K, V, columns, along)  # transposed
        dS = load_state(dS_ptr, base, K, V, columns, along)
        dQd += product(load(do_ptr, start, h, H, V, rows, across, length), S, PRECISE)
        dKd -= product(load(dR_ptr, start, h, H, V, rows, across, length), S, PRECISE)
        dKt += product(load(U_ptr, start, h, H, V, rows, across, length), dS, PRECISE)
        kept += tl.sum(S * dS, 0)
    q = load(q_ptr, start, h, H, K, rows, columns, length)
    k = load(k_ptr, start, h, H, K, rows, columns, length)
    G = load(G_ptr, start, h, H, K, rows, columns, length)
    ending = load(G_ptr, start, h, H, K, length - 1, columns, length)
    dq = scale * tl.exp(G) * dQd
    dk_row = tl.exp(G) * dKd
    dk_column = shrink(ending - G) * dKt
    ended = tl.sum(k * dk_column, 0) + tl.sum(tl.exp(ending), 0) * kept
    dG = q * dq + k * (dk_row - dk_column) + tl.where(rows == length - 1, ended[None, :], 0.0)
    store(dq_ptr, start, h, H, K, rows, columns, length, dq)
    store(dk_ptr, start, h, H, K, rows, columns, length, dk_row + dk_column)
    store(dG_ptr, start, h, H, K, rows, columns, length, dG)


@triton.jit
def d_inputs_kernel(
    q_ptr, k_ptr, G_ptr, dA_ptr, dL_ptr, carried_q_ptr, carried_k_ptr, dG_ptr, dq_ptr, dk_ptr, starts, lengths,
    H, K, scale, PRECISE: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Add what reaches R rows through A and L, as rows and as columns (2.8, step 5), and finish dq, dk and dG.

    As in ``pairs_kernel``: this is for channels of mild decay.
    """
    chunk, a, h = tl.program_id(0) // (C // R), tl.program_id(0) % (C // R), tl.program_id(1)
    start, length, first = tl.load(starts + chunk), tl.load(lengths + chunk), a * R
    last = tl.minimum(first + R, length) - 1
    across = tl.program_id(2) * BK + tl.arange(0, BK)[None, :]
    if first >= length or not is_mild(G_ptr, start, h, H, K, first, last, across, length):
        return
    rows, every = first + tl.arange(0, R)[:, None], tl.arange(0, C)
    beside = middle(G_ptr, start, h, H, K, first, last, across, length)
    G = load(G_ptr, start, h, H, K, every[:, None], across, length)
    k = load(k_ptr, start, h, H, K, every[:, None], across, length)
    far = k * about(beside - G)
    dA = load_lower(dA_ptr, start, h, H, rows, every[None, :], length, C)
    own = scale * tl.sum(tl.where(rows == every[None, :], dA, 0.0), 1)[:, None]
    row_q = product(tl.where(rows == every[None, :], 0.0, dA), far, PRECISE)
    row_k = product(load_lower(dL_ptr, start, h, H, rows, every[None, :], length, C), far, PRECISE)
    down = about(G - beside)
    dA = load_lower(dA_ptr, start, h, H, every[None, :], rows, length, C)  # transposed
    dA = tl.where(rows == every[None, :], 0.0, dA)
    column = scale * product(dA, load(q_ptr, start, h, H, K, every[:, None], across, length) * down, PRECISE)
    dL = load_lower(dL_ptr, start, h, H, every[None, :], rows, length, C)
    column += product(dL, k * down, PRECISE)
    G = load(G_ptr, start, h, H, K, rows, across, length)
    down = about(G - beside)
    _finish_inputs(
        q_ptr, k_ptr, carried_q_ptr, carried_k_ptr, dG_ptr, dq_ptr, dk_ptr, start, h, H, K, rows, across, length,
        own, scale * row_q * down, row_k * down, column * about(beside - G),
    )  # fmt: skip


@triton.jit
def steep_inputs_kernel(
    q_ptr, k_ptr, G_ptr, dA_ptr, dL_ptr, carried_q_ptr, carried_k_ptr, dG_ptr, dq_ptr, dk_ptr, starts, lengths,
    H, K, scale,
    PRECISE: tl.constexpr, GROUP: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """What ``d_inputs_kernel`` leaves, block by block; it judged GROUP channels at a time."""
    chunk, a, h = tl.program_id(0) // (C // R), tl.program_id(0) % (C // R), tl.program_id(1)
    start, length, first = tl.load(starts + chunk), tl.load(lengths + chunk), a * R
    last = tl.minimum(first + R, length) - 1
    group = (tl.program_id(2) * BK) // GROUP * GROUP + tl.arange(0, GROUP)[None, :]
    if first >= length or is_mild(G_ptr, start, h, H, K, first, last, group, length):
        return
    within = tl.arange(0, R)
    rows = first + within[:, None]
    across = tl.program_id(2) * BK + tl.arange(0, BK)[None, :]
    q = load(q_ptr, start, h, H, K, rows, across, length)
    k = load(k_ptr, start, h, H, K, rows, across, length)
    G = load(G_ptr, start, h, H, K, rows, across, length)
    row_q = tl.zeros((R, BK), dtype=tl.float32)
    row_k = tl.zeros((R, BK), dtype=tl.float32)
    for b in range(a):
        earlier = b * R + within
        reference = load(G_ptr, start, h, H, K, first - 1, across, length)
        up = shrink(reference - load(G_ptr, start, h, H, K, earlier[:, None], across, length))
        far = load(k_ptr, start, h, H, K, earlier[:, None], across, length) * up
        down = shrink(G - reference)
        dA = load_lower(dA_ptr, start, h, H, rows, earlier[None, :], length, C)
        dL = load_lower(dL_ptr, start, h, H, rows, earlier[None, :], length, C)
        row_q += product(dA, far, PRECISE) * down
        row_k += product(dL, far, PRECISE) * down
    column = tl.zeros((R, BK), dtype=tl.float32)
    for b in range(a + 1, tl.cdiv(length, R)):
        later = b * R + within
        reference = load(G_ptr, start, h, H, K, b * R - 1, across, length)
        down = shrink(load(G_ptr, start, h, H, K, later[:, None], across, length) - reference)
        up = shrink(reference - G)
        dA = load_lower(dA_ptr, start, h, H, later[None, :], first + within[:, None], length, C)  # transposed
        dL = load_lower(dL_ptr, start, h, H, later[None, :], first + within[:, None], length, C)
        back = scale * product(dA, load(q_ptr, start, h, H, K, later[:, None], across, length) * down, PRECISE)
        back += product(dL, load(k_ptr, start, h, H, K, later[:, None], across, length) * down, PRECISE)
        column += back * up
    dA = load_lower(dA_ptr, start, h, H, rows, first + within[None, :], length, C)
    dL = load_lower(dL_ptr, start, h, H, rows, first + within[None, :], length, C)
    own = scale * tl.sum(tl.where(within[:, None] == within[None, :], dA, 0.0), 1)[:, None]
    dA = tl.where(within[:, None] == within[None, :], 0.0, dA)
    near = shrink(G[:, None, :] - G[None, :, :])
    row_q += tl.sum(dA[:, :, None] * near * k[None, :, :], 1)
    row_k += tl.sum(dL[:, :, None] * near * k[None, :, :], 1)
    column += tl.sum(near * (scale * dA[:, :, None] * q[:, None, :] + dL[:, :, None] * k[:, None, :]), 0)
    _finish_inputs(
        q_ptr, k_ptr, carried_q_ptr, carried_k_ptr, dG_ptr, dq_ptr, dk_ptr, start, h, H, K, rows, across, length,
        own, scale * row_q, row_k, column,
    )  # fmt: skip


@triton.jit
def _finish_inputs(
    q_ptr, k_ptr, carried_q_ptr, carried_k_ptr, dG_ptr, dq_ptr, dk_ptr, start, h, H, K, rows, across, length,
    own, row_q, row_k, column,
):  # fmt: skip
    """Store dq, dk and dG.

    A token's pair with itself (``own``) feels no decay: its two terms in dG are equal and opposite, and would drown the
    others.
    """
    q = load(q_ptr, start, h, H, K, rows, across, length)
    k = load(k_ptr, start, h, H, K, rows, across, length)
    dq = load(carried_q_ptr, start, h, H, K, rows, across, length) + row_q + own * k
    dk = load(carried_k_ptr, start, h, H, K, rows, across, length) + row_k + column + own * q
    dG = load(dG_ptr, start, h, H, K, rows, across, length) + q * row_q + k * (row_k - column)
    store(dq_ptr, start, h, H, K, rows, across, length, dq)
    store(dk_ptr, start, h, H, K, rows, across, length, dk)
    store(dG_ptr, start, h, H, K, rows, across, length, dG)
