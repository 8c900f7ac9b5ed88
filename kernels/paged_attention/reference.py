"""Attention over pages in plain torch: the truth that every other implementation answers to.

Shape legend: N sequences, H query heads, G key/value heads, K head width, P pages of memory, B pages of a table's row,
S tokens of a page, T = B S tokens that a row has room for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import accumulation_dtype


def attend(q: Tensor, memory: Tensor, table: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """softmax(scale q k') v over the first tokens of each sequence's pages, in float32 (float64 for float64).

    Args:
        q: (N, H, K).
        memory: (P, 2 G, S, K), heads of keys before heads of values.
        table: (N, B) integers, the pages of each sequence in order.
        lengths: (N,) integers, tokens of each sequence; a sequence of none gives zeros.
        scale: of the scores.

    Returns:
        (N, H, K) in q's dtype.
    """
    (rows, heads, width), (_, both, size, _) = q.shape, memory.shape
    kv_heads, precise = both // 2, accumulation_dtype(q.dtype)
    pages = memory[table.long()].to(precise)  # (N, B, 2 G, S, K)
    k, v = pages.transpose(1, 2).reshape(rows, 2, kv_heads, table.shape[1] * size, width).unbind(1)
    beyond = (torch.arange(k.shape[2], device=q.device) >= lengths.long()[:, None])[:, None]  # (N, 1, T)
    v = v.masked_fill(beyond[..., None], 0)  # whatever lies there must not reach a product
    grouped = q.to(precise).reshape(rows, kv_heads, heads // kv_heads, width)
    scores = (scale * grouped @ k.mT).masked_fill(beyond[:, :, None], -torch.inf)
    weights = scores.softmax(-1).masked_fill((lengths == 0)[:, None, None, None], 0)
    return (weights @ v).reshape(rows, heads, width).to(q.dtype)
