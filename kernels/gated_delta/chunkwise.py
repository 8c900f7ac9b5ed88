"""The gated delta rule chunk by chunk in plain torch, with its explicit backward: the kernels' reference, and what
a CPU trains with.

Equations are those of the paper page: 2.7 forward, 2.8 backward, 3.2 exponents. Where the decay within blocks of 16
tokens is mild, the factors of a block's pairs are formed about its middle, e^(G_r - m) and e^(m - G_i), and its pairs
are products; where it is not, nothing ever forms e^(-G), so no decay overflows. Which it is depends on the chunk alone.

Shape legend: C tokens of a chunk, M = chunks x heads, K key width, V value width, N sequences. Chunks lie in the order
(number within its sequence, sequence), longest sequence first, so that the chunks that can run together are neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..contract import accumulation_dtype
from .reference import bounds

CHUNK = 64
BLOCK = 8  # rows whose pairwise exponents are formed one by one; on a CPU 8 beats the 16 that tensor cores want
MILD_BLOCK, MILD = 16, 40.0  # nats that any channel may decay by within so many tokens: no factor passes e^20
SLAB_BYTES = 4 << 20  # of pairwise exponents at a time: they stay in the cache


@dataclass(frozen=True)
class Layout:
    """Where each chunk's tokens lie.

    Attributes:
        index: (chunks, C) into the B * T tokens; anything where there is no token.
        present: (chunks, C), whether there is a token.
        position: (B * T,) of each token in the flattened chunks.
        order: sequences by length, longest first.
        steps: (first chunk, chunks) for each number within a sequence.
        ragged: whether any chunk has room to spare.
    """

    index: Tensor
    present: Tensor
    position: Tensor
    order: Tensor
    steps: list[tuple[int, int]]
    ragged: bool


def layout(cu_seqlens: Tensor | None, batch: int, tokens: int, device: torch.device) -> Layout:
    """Cut every sequence into chunks of 64 tokens, the last one shorter."""
    edges = bounds(cu_seqlens, batch, tokens)
    order = sorted(range(len(edges)), key=lambda row: edges[row][0] - edges[row][1])
    starts: list[int] = []
    sizes: list[int] = []
    steps: list[tuple[int, int]] = []
    for number in range(-(-(edges[order[0]][1] - edges[order[0]][0]) // CHUNK)):
        first = len(starts)
        for row in order:
            start, stop = edges[row][0] + number * CHUNK, edges[row][1]
            if start >= stop:
                break
            starts.append(start)
            sizes.append(min(CHUNK, stop - start))
        steps.append((first, len(starts) - first))
    within = torch.arange(CHUNK, device=device)
    present = within < torch.tensor(sizes, device=device)[:, None]
    index = (torch.tensor(starts, device=device)[:, None] + within).where(present, 0)
    position = torch.empty(batch * tokens, dtype=torch.int64, device=device)
    position[index[present]] = present.flatten().nonzero().flatten()
    return Layout(index, present, position, torch.tensor(order, device=device), steps, min(sizes) < CHUNK)


def to_chunks(x: Tensor, cut: Layout, dtype: torch.dtype) -> Tensor:
    """(B, T, H, ...) to (chunks * H, C, ...) in ``dtype``; zeros where there is no token."""
    chunks = x.flatten(0, 1)[cut.index].transpose(1, 2).to(dtype)
    if cut.ragged:
        chunks = chunks.masked_fill(~cut.present.view(len(cut.index), 1, CHUNK, *[1] * (x.dim() - 3)), 0)
    return chunks.flatten(0, 1).contiguous()


def from_chunks(x: Tensor, cut: Layout, like: Tensor) -> Tensor:
    """(chunks * H, C, ...) back to (B, T, H, ...) in ``like``'s dtype and leading shape."""
    heads = like.shape[2]
    flat = x.unflatten(0, (-1, heads)).transpose(1, 2).flatten(0, 1)
    return flat[cut.position].to(like.dtype).reshape(*like.shape[:3], *x.shape[2:])


def _below(size: int, device: torch.device, diagonal: int = 0) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).tril(diagonal)


def _in_slabs(function: Callable[..., tuple[Tensor, ...]], width: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Apply ``function`` to a few chunks of every tensor at a time, and put the results together."""
    rows = max(1, SLAB_BYTES // (CHUNK * BLOCK * width * tensors[0].element_size()))
    parts = [function(*part) for part in zip(*(x.split(rows) for x in tensors), strict=True)]
    return parts[0] if len(parts) == 1 else tuple(torch.cat(piece) for piece in zip(*parts, strict=True))


def pair_products(q: Tensor, k: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """P(q, k) and P(k, k): sums over channels of x_r y_i e^(G_r - G_i) for i <= r, else 0; (M, C, C) each.

    Args:
        q, k: (M, C, K).
        G: cumulative log decay, (M, C, K) or (M, C).
    """
    if G.dim() == 2:
        ratio = (G[:, :, None] - G[:, None]).masked_fill(~_below(CHUNK, G.device), -torch.inf).exp()
        return (q @ k.mT) * ratio, (k @ k.mT) * ratio
    return _by_decay(_mild_pair_products, _pair_products, q, k, G)  # type: ignore[return-value]


def _by_decay(
    mild: Callable[..., tuple[Tensor, ...]], any_: Callable[..., tuple[Tensor, ...]], *tensors: Tensor
) -> tuple[Tensor, ...]:
    """Apply ``mild`` to the chunks of mild decay and ``any_`` to the others; the decay is the last tensor."""
    G = tensors[-1]
    chosen = (G[:, ::MILD_BLOCK] - G[:, MILD_BLOCK - 1 :: MILD_BLOCK] <= MILD).all(-1).all(-1)  # False for NaN
    count = int(chosen.sum())
    if count == len(G):
        return mild(*tensors)
    if count == 0:
        return _in_slabs(any_, G.shape[-1], *tensors)
    some = mild(*(x[chosen] for x in tensors))
    others = _in_slabs(any_, G.shape[-1], *(x[~chosen] for x in tensors))
    order = torch.cat((chosen.nonzero(), (~chosen).nonzero())).flatten().argsort()
    return tuple(torch.cat(pair)[order] for pair in zip(some, others, strict=True))


def _middle(G: Tensor, start: int, stop: int) -> Tensor:
    """Half way between the first row of a block and its last, (M, 1, K)."""
    return (G[:, start : start + 1] + G[:, stop - 1 : stop]) / 2


def _mild_pair_products(q: Tensor, k: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    A, L = (q.new_zeros(len(q), CHUNK, CHUNK) for _ in range(2))
    for start in range(0, CHUNK, MILD_BLOCK):
        stop = start + MILD_BLOCK
        middle = _middle(G, start, stop)
        down, columns = (G[:, start:stop] - middle).exp(), (k[:, :stop] * (middle - G[:, :stop]).exp()).mT
        A[:, start:stop, :stop] = (q[:, start:stop] * down) @ columns
        L[:, start:stop, :stop] = (k[:, start:stop] * down) @ columns
    return A.tril(), L.tril()


def _pair_products(q: Tensor, k: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    count, both = CHUNK // BLOCK, torch.cat((q, k), 1)
    blocks = [x.unflatten(1, (count, BLOCK)) for x in (q, k, G)]
    near = _near(blocks[2]) * blocks[1][:, :, None]  # (M, count, r, i, K)
    diagonal = near @ torch.stack(blocks[:2], -1)  # (M, count, r, i, 2)
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for a in range(count):
        start, stop = a * BLOCK, (a + 1) * BLOCK
        parts: list[list[Tensor]] = [[], []]
        if a:
            down, up = _far(G, a)
            far = both[:, [*range(start, stop), *range(CHUNK + start, CHUNK + stop)]] * torch.cat((down, down), 1)
            products = far @ (k[:, :start] * up).mT
            parts = [[products[:, :BLOCK]], [products[:, BLOCK:]]]
        for which in (0, 1):
            ahead = k.new_zeros(len(k), BLOCK, CHUNK - stop)
            rows[which].append(torch.cat([*parts[which], diagonal[:, a, ..., which], ahead], -1))
    return torch.cat(rows[0], 1), torch.cat(rows[1], 1)


def _near(G: Tensor) -> Tensor:
    """e^(G_r - G_i) of the pairs within a block, i <= r; (M, blocks, BLOCK, BLOCK, K). Every exponent is <= 0."""
    ahead = ~_below(BLOCK, G.device)[:, :, None]
    return (G[:, :, :, None] - G[:, :, None]).masked_fill(ahead, -torch.inf).exp()


def _far(G: Tensor, a: int) -> tuple[Tensor, Tensor]:
    """e^(G_r - n) of block a's rows and e^(n - G_i) of all earlier ones, n being the last row before the block."""
    start = a * BLOCK
    reference = G[:, start - 1 : start]
    return (G[:, start : start + BLOCK] - reference).exp(), (reference - G[:, :start]).exp()


def pair_gradients(dA: Tensor, dL: Tensor, q: Tensor, k: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Through P(q, k) and P(k, k): gradients as rows for q and for k, and as columns for k (2.8, step 5); (M, C, K)."""
    if G.dim() == 2:
        ratio = (G[:, :, None] - G[:, None]).masked_fill(~_below(CHUNK, G.device), -torch.inf).exp()
        dA, dL = dA * ratio, dL * ratio
        return dA @ k, dL @ k, dA.mT @ q + dL.mT @ k
    return _by_decay(_mild_pair_gradients, _pair_gradients, dA, dL, q, k, G)  # type: ignore[return-value]


def _mild_pair_gradients(dA: Tensor, dL: Tensor, q: Tensor, k: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    row_q, row_k, column = (torch.empty_like(k) for _ in range(3))
    for start in range(0, CHUNK, MILD_BLOCK):
        stop = start + MILD_BLOCK
        here, middle = slice(start, stop), _middle(G, start, stop)
        down, up = (G[:, start:] - middle).exp(), (middle - G[:, :stop]).exp()
        columns = k[:, :stop] * up
        row_q[:, here] = (dA[:, here, :stop] @ columns) * down[:, :MILD_BLOCK]
        row_k[:, here] = (dL[:, here, :stop] @ columns) * down[:, :MILD_BLOCK]
        back = dA[:, start:, here].mT @ (q[:, start:] * down) + dL[:, start:, here].mT @ (k[:, start:] * down)
        column[:, here] = back * up[:, start:]
    return row_q, row_k, column


def _pair_gradients(dA: Tensor, dL: Tensor, q: Tensor, k: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count = CHUNK // BLOCK
    q_, k_, G_ = (x.unflatten(1, (count, BLOCK)) for x in (q, k, G))
    diagonal = [
        torch.stack([x[:, a * BLOCK : (a + 1) * BLOCK, a * BLOCK : (a + 1) * BLOCK] for a in range(count)], 1)
        for x in (dA, dL)
    ]
    near = _near(G_)
    rows = torch.stack(diagonal, 3) @ (near * k_[:, :, None])  # (M, count, r, 2, i) @ (M, count, r, i, K)
    row_q, row_k = rows[:, :, :, 0].flatten(1, 2).clone(), rows[:, :, :, 1].flatten(1, 2).clone()
    outer = diagonal[0][..., None] * q_[:, :, :, None] + diagonal[1][..., None] * k_[:, :, :, None]
    column = (near * outer).sum(2).flatten(1, 2)
    for a in range(1, count):
        start, stop = a * BLOCK, (a + 1) * BLOCK
        down, up = _far(G, a)
        far = k[:, :start] * up
        row_q[:, start:stop] += (dA[:, start:stop, :start] @ far) * down
        row_k[:, start:stop] += (dL[:, start:stop, :start] @ far) * down
        back = dA[:, start:stop, :start].mT @ (q[:, start:stop] * down)
        back += dL[:, start:stop, :start].mT @ (k[:, start:stop] * down)
        column[:, :start] += back * up
    return row_q, row_k, column


@dataclass(frozen=True)
class _Forward:
    """What forward and backward share, in the accumulation dtype; (M, C, K) where nothing else is said.

    Attributes:
        A, L: (M, C, C).
        into, out: e^G and e^(G_C - G), broadcastable to (M, C, K).
        whole: e^(G_C), (M, K or 1, 1).
        W: (I + L)^-1 (k e^G).
        U: (M, C, V).
        states: at each chunk's start, (M, K, V).
        final: (N, H, K, V).
    """

    q: Tensor
    k: Tensor
    G: Tensor
    A: Tensor
    L: Tensor
    into: Tensor
    out: Tensor
    whole: Tensor
    W: Tensor
    U: Tensor
    states: Tensor
    final: Tensor


def _run(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None, cut: Layout, sequences: int
) -> _Forward:
    precise, heads = accumulation_dtype(q.dtype), q.shape[2]
    q_, k_, v_, g_ = (to_chunks(x, cut, precise) for x in (q, k, v, g))
    G = g_.cumsum(1)
    A, L = pair_products(q_, k_, G)
    L = L.tril(-1)
    wide = G if G.dim() == 3 else G[..., None]
    into, out = wide.exp(), (wide[:, -1:] - wide).exp()
    whole = into[:, -1, :, None]
    identity = torch.eye(CHUNK, dtype=precise, device=q.device)
    solved = torch.linalg.solve_triangular(
        identity + L, torch.cat((v_, k_ * into), -1), upper=False, unitriangular=True
    )
    U0, W = solved.split([v.shape[-1], k.shape[-1]], -1)
    Kt = (k_ * out).mT
    S = (
        q_.new_zeros(sequences, heads, k.shape[-1], v.shape[-1])
        if initial_state is None
        else initial_state.to(precise)[cut.order]
    ).flatten(0, 1)
    U, states, ended = [], [], []
    for first, count in cut.steps:
        ended.append(S[count * heads :])  # these sequences have no chunk of this number
        S = S[: count * heads]
        here = slice(first * heads, (first + count) * heads)
        states.append(S)
        U.append(U0[here] - W[here] @ S)
        S = whole[here] * S + Kt[here] @ U[-1]
    final = torch.cat([S, *reversed(ended)]).unflatten(0, (-1, heads))
    final = final[cut.order.argsort()]
    return _Forward(q_, k_, G, A, L, into, out, whole, W, torch.cat(U), torch.cat(states), final)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """As ``reference.recurrent``, in chunks of 64 tokens."""
    cut = layout(cu_seqlens, q.shape[0], q.shape[1], q.device)
    run = _run(q, k, v, g, initial_state, cut, _sequences(q, cu_seqlens))
    o = scale * ((run.q * run.into) @ run.states + run.A @ run.U)
    return from_chunks(o, cut, v), run.final


def _sequences(q: Tensor, cu_seqlens: Tensor | None) -> int:
    return q.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1


def backward(
    do: Tensor,
    d_final: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g and the initial state: equations 2.8, steps 1 to 7.

    Args:
        do: (B, T, H, V).
        d_final: of the last states (N, H, K, V), or None.
    """
    cut, heads, sequences = layout(cu_seqlens, q.shape[0], q.shape[1], q.device), q.shape[2], _sequences(q, cu_seqlens)
    run = _run(q, k, v, g, initial_state, cut, sequences)
    dO = to_chunks(do, cut, run.q.dtype)
    Qd, Kt = scale * run.q * run.into, run.k * run.out
    dU = scale * (run.A.mT @ dO)
    dS_now = Qd.mT @ dO
    if d_final is None:
        dS = torch.zeros_like(run.final).flatten(0, 1)
    else:
        dS = d_final.to(run.q.dtype)[cut.order].flatten(0, 1)
    dS_after = torch.empty_like(run.states)  # per chunk, of the state at its end
    W = run.W.mT
    for first, count in reversed(cut.steps):
        here, rows = slice(first * heads, (first + count) * heads), count * heads
        dS_after[here] = dS[:rows]
        dU[here] += Kt[here] @ dS[:rows]
        dS = torch.cat((dS_now[here] + run.whole[here] * dS[:rows] - W[here] @ dU[here], dS[rows:]))
    d_initial = dS.unflatten(0, (-1, heads))[cut.order.argsort()]

    identity = torch.eye(CHUNK, dtype=dU.dtype, device=dU.device)
    dR = torch.linalg.solve_triangular((identity + run.L).mT, dU, upper=True, unitriangular=True)
    dA, dL = scale * (dO @ run.U.mT), -(dR @ run.U.mT).tril(-1)
    # A token's pair with itself feels no decay: its two terms in dG are equal and opposite, and would drown the others.
    own = dA.diagonal(dim1=1, dim2=2)[..., None]
    dA = dA.tril(-1)
    dQd, dKd, dKt = dO @ run.states.mT, -dR @ run.states.mT, run.U @ dS_after.mT
    row_q, row_k, column = pair_gradients(dA, dL, run.q, run.k, run.G)

    dq = scale * run.into * dQd + row_q
    out_k = run.out * dKt
    dk_rows = run.into * dKd + row_k
    dk_columns = out_k + column
    dG = run.q * dq + run.k * (dk_rows - dk_columns)
    carried = (run.k * out_k).sum(1) + (run.whole * dS_after * run.states).sum(-1)
    if g.dim() == 3:
        dG, carried = dG.sum(-1), carried.sum(-1)
    dg = dG.flip(1).cumsum(1).flip(1) + carried[:, None]  # the last row's term reaches every row of the chunk
    return (
        from_chunks(dq + own * run.k, cut, q),
        from_chunks(dk_rows + dk_columns + own * run.q, cut, k),
        from_chunks(dR, cut, v),
        from_chunks(dg, cut, g),
        d_initial,
    )
