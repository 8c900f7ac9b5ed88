"""Loads, stores and products that all kernels of this op share.

A tensor (B, T, H, D) is contiguous, so element d of head h of token t lies at ((t * H) + h) * D + d with the batch
flattened into t. The chunk's first token is a 64-bit offset of the whole tile; within a tile offsets take 32 bits,
because 64-bit ones would fill the registers. Tiles are addressed by `rows` (tokens within the chunk) and `columns`
(channels), one of them shaped (n, 1) and the other (1, m): swapping the shapes loads the transposed tile, without a
transposition of registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load(pointer, start, h, H, D, rows, columns, length):
    """Tile in float32, zero where there is no token or no channel."""
    at = rows * (H * D) + columns
    return tl.load(pointer + (start * H + h) * D + at, mask=(rows < length) & (columns < D), other=0.0).to(tl.float32)


@triton.jit
def store(pointer, start, h, H, D, rows, columns, length, values):
    """Write a tile in the pointer's dtype, where there are tokens and channels."""
    at = rows * (H * D) + columns
    tl.store(
        pointer + (start * H + h) * D + at,
        values.to(pointer.dtype.element_ty),
        mask=(rows < length) & (columns < D),
    )


@triton.jit
def load_lower(pointer, start, h, H, rows, columns, length, C: tl.constexpr):
    """Part of a (T, H, C) matrix of token pairs, zero above the diagonal, where nothing was ever written."""
    at = rows * (H * C) + columns
    return tl.load(pointer + (start * H + h) * C + at, mask=(rows < length) & (columns <= rows), other=0.0).to(
        tl.float32
    )


@triton.jit
def load_state(pointer, base, K, V, channels, columns):
    """Tile of a state (K, V) at offset `base`, in float32."""
    at = channels * V + columns
    return tl.load(pointer + base + at, mask=(channels < K) & (columns < V), other=0.0).to(tl.float32)


@triton.jit
def store_state(pointer, base, K, V, channels, columns, values):
    """Write a tile of a state (K, V) in the pointer's dtype."""
    at = channels * V + columns
    tl.store(pointer + base + at, values.to(pointer.dtype.element_ty), mask=(channels < K) & (columns < V))


@triton.jit
def product(a, b, PRECISE: tl.constexpr):
    """a @ b with float32 sums: bfloat16 factors, or float32 ones in three tf32 products each."""
    if PRECISE:
        return tl.dot(a, b, input_precision="tf32x3")
    return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))


MILD = tl.constexpr(40.0)  # nats that a channel may decay by within a block of rows: see `about`


@triton.jit
def about(exponent):
    """e^x for |x| <= MILD / 2, which x is for a block's own rows; beyond, no infinity: a factor of 0 follows."""
    return tl.exp(tl.minimum(exponent, MILD / 2))


@triton.jit
def is_mild(G_ptr, start, h, H, K, first, last, channels, length):
    """Whether no channel decays by more than MILD between two rows of G."""
    begun = load(G_ptr, start, h, H, K, first, channels, length)
    fall = begun - load(G_ptr, start, h, H, K, last, channels, length)
    return tl.max(tl.max(fall, 1), 0) <= MILD


@triton.jit
def middle(G_ptr, start, h, H, K, first, last, channels, length):
    """Half way between two rows of G."""
    begun = load(G_ptr, start, h, H, K, first, channels, length)
    return 0.5 * (begun + load(G_ptr, start, h, H, K, last, channels, length))


@triton.jit
def shrink(exponent):
    """e^x for x <= 0. Where a row is absent x may be anything; its factor is 0, and must not meet an infinity."""
    return tl.exp(tl.minimum(exponent, 0.0))
