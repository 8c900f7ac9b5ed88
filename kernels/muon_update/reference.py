"""The elementwise halves of a Muon or MONA step in plain torch: the truth that every other implementation answers to.

Shapes: every tensor of a call has the same one. Everything is computed in float32 (float64 for float64); each buffer is
rounded once, as it is stored, and what follows reads the rounded number.
"""

from __future__ import annotations

import torch

from ..contract import accumulation_dtype

NEAREST = -1  # a seed that asks for rounding to nearest
_MASK = 0xFFFFFFFF


def momentum(
    G: torch.Tensor,
    M: torch.Tensor,
    mu: float,
    nesterov: bool,
    dtype: torch.dtype,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """M' = mu M + (1 - mu) G, and U = mu M' + (1 - mu) G with nesterov, else M'.

    Args:
        G: gradient.
        M: momentum.
        mu: its decay.
        nesterov: whether U looks one step ahead.
        dtype: of U.
        out: (U, M') to write into; M' may be M itself.

    Returns:
        U in ``dtype``, M' in M's dtype; fresh and contiguous without ``out``.
    """
    U, M_new = out or _fresh(G, dtype, M)
    _blend(_wide(G), M, mu, nesterov, U, M_new)
    return U, M_new


def accelerated_momentum(
    G: torch.Tensor,
    M: torch.Tensor,
    average: torch.Tensor,
    mu: float,
    nesterov: bool,
    coefficient: float,
    decay: float,
    seed: int,
    offset: int,
    dtype: torch.dtype,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`momentum` of G + c (G - m), where m <- m + (1 - decay) (G - m) is the slow average of past gradients.

    Args:
        G, M, mu, nesterov, dtype: as in :func:`momentum`.
        average: m.
        coefficient: c = alpha (1 - decay).
        decay: beta_a.
        seed: rounds m stochastically from this seed if it is bfloat16; ``NEAREST`` (-1) rounds to nearest.
        offset: index of the first element within the whole matrix, so that a shard rounds as the whole would.
        out: (U, M', m') to write into; M' and m' may be M and m.

    Returns:
        U in ``dtype``, M' in M's dtype, m' in m's dtype.
    """
    U, M_new, average_new = out or _fresh(G, dtype, M, average)
    wide, slow = _wide(G), average.to(accumulation_dtype(G.dtype))
    difference = wide - slow
    augmented = torch.add(wide, difference, alpha=coefficient)
    _store(torch.add(slow, difference, alpha=1 - decay), average_new, seed, offset)
    _blend(augmented, M, mu, nesterov, U, M_new)
    return U, M_new, average_new


def descend(
    W: torch.Tensor, update: torch.Tensor, decay: float, rate: float, out: torch.Tensor | None = None
) -> torch.Tensor:
    """W' = decay W - rate update, rounded once.

    Args:
        W: parameter.
        update: orthogonalised update, any floating dtype.
        decay: 1 - lr * weight decay.
        rate: lr times the scale of the matrix.
        out: to write into; may be W itself.

    Returns:
        W' in W's dtype, contiguous without ``out``.
    """
    target = torch.empty(W.shape, dtype=W.dtype, device=W.device) if out is None else out
    if W.dtype == accumulation_dtype(W.dtype):
        torch.mul(W, decay, out=target)
        return target.add_(update.to(W.dtype), alpha=-rate)
    wide = W.to(accumulation_dtype(W.dtype)).mul_(decay).add_(update.to(accumulation_dtype(W.dtype)), alpha=-rate)
    return target.copy_(wide)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(accumulation_dtype(tensor.dtype))


def _fresh(like: torch.Tensor, dtype: torch.dtype, *buffers: torch.Tensor) -> tuple[torch.Tensor, ...]:
    dtypes = (at_least(like, dtype), *(buffer.dtype for buffer in buffers))
    return tuple(torch.empty(like.shape, dtype=kind, device=like.device) for kind in dtypes)


def at_least(G: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    """float64 input asks for the truth, whatever the dtype of the fast path."""
    return torch.float64 if G.dtype == torch.float64 else dtype


def _blend(G: torch.Tensor, M: torch.Tensor, mu: float, nesterov: bool, U: torch.Tensor, M_new: torch.Tensor) -> None:
    if M.dtype == G.dtype:
        torch.lerp(M, G, 1 - mu, out=M_new)
    else:
        M_new.copy_(torch.lerp(M.to(G.dtype), G, 1 - mu))
    fast = M_new.to(G.dtype)
    U.copy_(torch.lerp(G, fast, mu) if nesterov else fast)


def _store(values: torch.Tensor, target: torch.Tensor, seed: int, offset: int) -> None:
    if seed != NEAREST and target.dtype == torch.bfloat16:
        values = stochastically_rounded(values.float(), seed, offset)
    target.copy_(values)


def stochastically_rounded(values: torch.Tensor, seed: int, offset: int) -> torch.Tensor:
    """Float32 numbers that bfloat16 holds: one of the two neighbours, the nearer one more often, unbiased.

    16 hashed bits per element are added below bfloat16's last bit before the rest is cut off. The hash is MurmurHash3's
    finaliser over (index, seed): the same on every device.

    Args:
        values: float32.
        seed: in [0, 2^31).
        offset: index of the first element.
    """
    index = torch.arange(offset, offset + values.numel(), device=values.device)
    x = (index * 0x9E3779B1 + seed) & _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    noise = ((x ^ (x >> 16)) >> 16).to(torch.int32).view(values.shape)
    bits = values.contiguous().view(torch.int32) + noise
    return (bits & -65536).view(torch.float32)
