"""Forward kernels of the chunkwise gated delta rule (paper page 2.7; the plan is 3.3, steps 2 to 4).

Shape legend: C tokens of a chunk, K key width, V value width, H heads. `starts` and `lengths` give each chunk's first
token and size, `offsets` each sequence's first chunk. Every grid runs over chunks or sequences, and heads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tiles import about, is_mild, load, load_lower, load_state, middle, product, shrink, store, store_state


@triton.jit
def cumulative_kernel(
    g_ptr, G_ptr, starts, lengths, H, K, SCALAR: tl.constexpr, REVERSE: tl.constexpr, BK: tl.constexpr, C: tl.constexpr
):
    """G = running sum of the log decay within a chunk; or, reversed, its gradient. One decay per head is spread out."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    start, length = tl.load(starts + chunk), tl.load(lengths + chunk)
    rows = tl.arange(0, C)[:, None]
    columns = tl.program_id(2) * BK + tl.arange(0, BK)[None, :]
    at = (start + rows) * H + h
    keep = (rows < length) & (columns < K)
    at_g = at + columns * 0 if SCALAR else at * K + columns
    g = tl.load(g_ptr + at_g, mask=keep, other=0.0).to(tl.float32)
    tl.store(G_ptr + at * K + columns, tl.cumsum(g, 0, reverse=REVERSE), mask=keep)


@triton.jit
def pairs_kernel(
    q_ptr, k_ptr, G_ptr, A_ptr, L_ptr, starts, lengths, H, K, scale,
    PRECISE: tl.constexpr, KP: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """R rows of A = scale tril(P(q, k)) and of L = tril(P(k, k), -1), where every channel's decay in them is mild.

    Exponents are taken about the middle of the rows, and one product with all columns remains.
    """
    chunk, a, h = tl.program_id(0) // (C // R), tl.program_id(0) % (C // R), tl.program_id(1)
    start, length, first = tl.load(starts + chunk), tl.load(lengths + chunk), a * R
    last = tl.minimum(first + R, length) - 1
    if first >= length or not is_mild(G_ptr, start, h, H, K, first, last, tl.arange(0, KP)[None, :], length):
        return
    rows, columns = first + tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    A = tl.zeros((R, C), dtype=tl.float32)
    L = tl.zeros((R, C), dtype=tl.float32)
    for c0 in range(0, K, BK):
        across, along = c0 + tl.arange(0, BK)[None, :], c0 + tl.arange(0, BK)[:, None]
        beside = middle(G_ptr, start, h, H, K, first, last, across, length)
        down = about(load(G_ptr, start, h, H, K, rows, across, length) - beside)
        below = middle(G_ptr, start, h, H, K, first, last, along, length)
        up = about(below - load(G_ptr, start, h, H, K, columns, along, last + 1))
        far = load(k_ptr, start, h, H, K, columns, along, last + 1) * up
        A += product(load(q_ptr, start, h, H, K, rows, across, length) * down, far, PRECISE)
        L += product(load(k_ptr, start, h, H, K, rows, across, length) * down, far, PRECISE)
    _store_pairs(A_ptr, L_ptr, start, h, H, rows, columns, length, scale * A, L, C)


@triton.jit
def steep_pairs_kernel(
    q_ptr, k_ptr, G_ptr, A_ptr, L_ptr, starts, lengths, H, K, scale,
    PRECISE: tl.constexpr, KP: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """The rows that ``pairs_kernel`` leaves, in blocks of R columns.

    Earlier blocks meet at the last row before ours, so that both exponents are <= 0 and two plain products remain; the
    block on the diagonal forms its pairwise exponents (3.2).
    """
    chunk, a, h = tl.program_id(0) // (C // R), tl.program_id(0) % (C // R), tl.program_id(1)
    start, length, first = tl.load(starts + chunk), tl.load(lengths + chunk), a * R
    last = tl.minimum(first + R, length) - 1
    if first >= length or is_mild(G_ptr, start, h, H, K, first, last, tl.arange(0, KP)[None, :], length):
        return
    within = tl.arange(0, R)
    rows = first + within[:, None]
    for b in range(a):
        earlier = b * R + within[None, :]
        A = tl.zeros((R, R), dtype=tl.float32)
        L = tl.zeros((R, R), dtype=tl.float32)
        for c0 in range(0, K, BK):
            across = c0 + tl.arange(0, BK)[None, :]
            down = shrink(
                load(G_ptr, start, h, H, K, rows, across, length)
                - load(G_ptr, start, h, H, K, first - 1, across, length)
            )
            along = c0 + tl.arange(0, BK)[:, None]
            up = shrink(
                load(G_ptr, start, h, H, K, first - 1, along, length)
                - load(G_ptr, start, h, H, K, earlier, along, length)
            )
            far = load(k_ptr, start, h, H, K, earlier, along, length) * up
            A += product(load(q_ptr, start, h, H, K, rows, across, length) * down, far, PRECISE)
            L += product(load(k_ptr, start, h, H, K, rows, across, length) * down, far, PRECISE)
        _store_pairs(A_ptr, L_ptr, start, h, H, rows, earlier, length, scale * A, L, C)
    A = tl.zeros((R, R), dtype=tl.float32)
    L = tl.zeros((R, R), dtype=tl.float32)
    for c0 in range(0, K, BK):
        across = c0 + tl.arange(0, BK)[None, :]
        q = load(q_ptr, start, h, H, K, rows, across, length)
        k = load(k_ptr, start, h, H, K, rows, across, length)
        G = load(G_ptr, start, h, H, K, rows, across, length)
        near = shrink(G[:, None, :] - G[None, :, :]) * k[None, :, :]
        A += tl.sum(near * q[:, None, :], 2)
        L += tl.sum(near * k[:, None, :], 2)
    _store_pairs(A_ptr, L_ptr, start, h, H, rows, first + within[None, :], length, scale * A, L, C)


@triton.jit
def _store_pairs(A_ptr, L_ptr, start, h, H, rows, columns, length, A, L, C: tl.constexpr):
    """Write A on and below the diagonal, and L with zeros on it."""
    at = ((start + rows) * H + h) * C + columns
    keep = (rows < length) & (columns <= rows)
    tl.store(A_ptr + at, A.to(A_ptr.dtype.element_ty), mask=keep)
    tl.store(L_ptr + at, tl.where(columns < rows, L, 0.0), mask=keep)


@triton.jit
def _inverse_of_block(L_ptr, start, h, H, block, length, C: tl.constexpr, R: tl.constexpr):
    """(I + L)^-1 of one block on the diagonal, row by row: X_i = -L_i - sum over j < i of L_ij X_j."""
    within = tl.arange(0, R)
    rows, columns = block * R + within[:, None], block * R + within[None, :]
    X = -load_lower(L_ptr, start, h, H, rows, columns, length, C)
    for i in range(1, tl.minimum(R, length - block * R)):  # rows past the end stay zero
        row = tl.sum(tl.where(within[:, None] == i, X, 0.0), 0)
        row += tl.sum(row[:, None] * X, 0)
        X = tl.where(within[:, None] == i, row[None, :], X)
    return tl.where(within[:, None] == within[None, :], 1.0, X)


@triton.jit
def inverse_kernel(L_ptr, T_ptr, starts, lengths, H, C: tl.constexpr, R: tl.constexpr):
    """T = (I + L)^-1 of a chunk: four blocks by substitution, the six below them by -X_aa (L X)_ab. In float32."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    start, length = tl.load(starts + chunk), tl.load(lengths + chunk)
    r, c = tl.arange(0, R)[:, None], tl.arange(0, R)[None, :]
    X00 = _inverse_of_block(L_ptr, start, h, H, 0, length, C, R)
    X11 = _inverse_of_block(L_ptr, start, h, H, 1, length, C, R)
    X22 = _inverse_of_block(L_ptr, start, h, H, 2, length, C, R)
    X33 = _inverse_of_block(L_ptr, start, h, H, 3, length, C, R)
    L10 = load_lower(L_ptr, start, h, H, R + r, c, length, C)
    L20 = load_lower(L_ptr, start, h, H, 2 * R + r, c, length, C)
    L21 = load_lower(L_ptr, start, h, H, 2 * R + r, R + c, length, C)
    X10 = -product(product(X11, L10, True), X00, True)
    X21 = -product(product(X22, L21, True), X11, True)
    X20 = -product(X22, product(L20, X00, True) + product(L21, X10, True), True)
    L30 = load_lower(L_ptr, start, h, H, 3 * R + r, c, length, C)
    L31 = load_lower(L_ptr, start, h, H, 3 * R + r, R + c, length, C)
    L32 = load_lower(L_ptr, start, h, H, 3 * R + r, 2 * R + c, length, C)
    X32 = -product(product(X33, L32, True), X22, True)
    X31 = -product(X33, product(L31, X11, True) + product(L32, X21, True), True)
    X30 = -product(X33, product(L30, X00, True) + product(L31, X10, True) + product(L32, X20, True), True)
    store(T_ptr, start, h, H, C, r, c, length, X00)
    store(T_ptr, start, h, H, C, R + r, c, length, X10)
    store(T_ptr, start, h, H, C, R + r, R + c, length, X11)
    store(T_ptr, start, h, H, C, 2 * R + r, c, length, X20)
    store(T_ptr, start, h, H, C, 2 * R + r, R + c, length, X21)
    store(T_ptr, start, h, H, C, 2 * R + r, 2 * R + c, length, X22)
    store(T_ptr, start, h, H, C, 3 * R + r, c, length, X30)
    store(T_ptr, start, h, H, C, 3 * R + r, R + c, length, X31)
    store(T_ptr, start, h, H, C, 3 * R + r, 2 * R + c, length, X32)
    store(T_ptr, start, h, H, C, 3 * R + r, 3 * R + c, length, X33)


@triton.jit
def wy_kernel(
    k_ptr, v_ptr, G_ptr, T_ptr, W_ptr, U_ptr, starts, lengths, H, K, V,
    PRECISE: tl.constexpr, BLOCK: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """W = T (k e^G) and U = T v."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    start, length = tl.load(starts + chunk), tl.load(lengths + chunk)
    rows = tl.arange(0, C)[:, None]
    T = load_lower(T_ptr, start, h, H, rows, tl.arange(0, C)[None, :], length, C)
    for c0 in range(0, V, BLOCK):
        columns = c0 + tl.arange(0, BLOCK)[None, :]
        v = load(v_ptr, start, h, H, V, rows, columns, length)
        store(U_ptr, start, h, H, V, rows, columns, length, product(T, v, PRECISE))
    for c0 in range(0, K, BLOCK):
        columns = c0 + tl.arange(0, BLOCK)[None, :]
        k = load(k_ptr, start, h, H, K, rows, columns, length)
        k *= tl.exp(load(G_ptr, start, h, H, K, rows, columns, length))
        store(W_ptr, start, h, H, K, rows, columns, length, product(T, k, PRECISE))


@triton.jit
def states_kernel(
    k_ptr, G_ptr, W_ptr, U_ptr, initial_ptr, states_ptr, final_ptr, starts, lengths, offsets, H, K, V,
    PRECISE: tl.constexpr, INITIAL: tl.constexpr, KP: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Chunk after chunk: keep S, U -= W S in place, S = e^G_C S + (k e^(G_C - G))^T U. Columns of S are independent."""
    sequence, h = tl.program_id(1) // H, tl.program_id(1) % H
    channels = tl.arange(0, KP)
    columns = tl.program_id(0) * BV + tl.arange(0, BV)[None, :]
    rows = tl.arange(0, C)
    base = tl.program_id(1).to(tl.int64) * K * V
    S = tl.zeros((KP, BV), dtype=tl.float32)
    if INITIAL:
        S = load_state(initial_ptr, base, K, V, channels[:, None], columns)
    for chunk in range(tl.load(offsets + sequence), tl.load(offsets + sequence + 1)):
        start, length = tl.load(starts + chunk), tl.load(lengths + chunk)
        store_state(states_ptr, (chunk * H + h) * K * V, K, V, channels[:, None], columns, S)
        W = load(W_ptr, start, h, H, K, rows[:, None], channels[None, :], length)
        U = load(U_ptr, start, h, H, V, rows[:, None], columns, length) - product(W, S, PRECISE)
        store(U_ptr, start, h, H, V, rows[:, None], columns, length, U)
        last = load(G_ptr, start, h, H, K, length - 1, channels[:, None], length)
        G = load(G_ptr, start, h, H, K, rows[None, :], channels[:, None], length)
        k = load(k_ptr, start, h, H, K, rows[None, :], channels[:, None], length) * shrink(last - G)
        S = tl.exp(last) * S + product(k, U, PRECISE)
    store_state(final_ptr, base, K, V, channels[:, None], columns, S)


@triton.jit
def output_kernel(
    q_ptr, G_ptr, A_ptr, U_ptr, states_ptr, o_ptr, starts, lengths, H, K, V, scale,
    PRECISE: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """o = scale (q e^G) S + A U."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    start, length = tl.load(starts + chunk), tl.load(lengths + chunk)
    rows = tl.arange(0, C)[:, None]
    columns = tl.program_id(2) * BV + tl.arange(0, BV)[None, :]
    base = (chunk.to(tl.int64) * H + h) * K * V
    o = tl.zeros((C, BV), dtype=tl.float32)
    for c0 in range(0, K, BK):
        across, along = c0 + tl.arange(0, BK)[None, :], c0 + tl.arange(0, BK)[:, None]
        q = load(q_ptr, start, h, H, K, rows, across, length) * scale
        q *= tl.exp(load(G_ptr, start, h, H, K, rows, across, length))
        o += product(q, load_state(states_ptr, base, K, V, along, columns), PRECISE)
    A = load_lower(A_ptr, start, h, H, rows, tl.arange(0, C)[None, :], length, C)
    o += product(A, load(U_ptr, start, h, H, V, rows, columns, length), PRECISE)
    store(o_ptr, start, h, H, V, rows, columns, length, o)


@triton.jit
def recurrent_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, initial_ptr, o_ptr, final_ptr, edges, H, K, V, scale,
    SCALAR: tl.constexpr, INITIAL: tl.constexpr, KP: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One token after the other, for decoding and short prompts: the state crosses memory once a call."""
    sequence, h = tl.program_id(1) // H, tl.program_id(1) % H
    channels = tl.arange(0, KP)
    columns = tl.program_id(0) * BV + tl.arange(0, BV)
    base = tl.program_id(1).to(tl.int64) * K * V
    S = tl.zeros((KP, BV), dtype=tl.float32)
    if INITIAL:
        S = load_state(initial_ptr, base, K, V, channels[:, None], columns[None, :])
    for t in range(tl.load(edges + sequence), tl.load(edges + sequence + 1)):
        at = t * H + h
        q = tl.load(q_ptr + at * K + channels, mask=channels < K, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + at * K + channels, mask=channels < K, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + at * V + columns, mask=columns < V, other=0.0).to(tl.float32)
        if SCALAR:
            S *= tl.exp(tl.load(g_ptr + at).to(tl.float32))
        else:
            g = tl.load(g_ptr + at * K + channels, mask=channels < K, other=0.0).to(tl.float32)
            S *= tl.exp(g)[:, None]
        u = v - tl.sum(S * k[:, None], 0)
        S += k[:, None] * u[None, :]
        o = scale * tl.sum(S * q[:, None], 0)
        tl.store(o_ptr + at * V + columns, o.to(o_ptr.dtype.element_ty), mask=columns < V)
    store_state(final_ptr, base, K, V, channels[:, None], columns[None, :], S)
