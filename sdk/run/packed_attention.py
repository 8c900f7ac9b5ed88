"""Attention over sequences that are packed into one row: each for itself, instead of one large mask for all.

A mask makes the cost quadratic in the row's length; on two CPU cores it took more than half of an adapter's step.

A sequence whose positions begin at P > 0 goes on from the first P tokens of the last one that began at 0: what examples
share (a system message, the tools) is computed once, with the same losses and gradients; see `share_beginnings`.

Shape legend: T tokens of the row, S tokens of a sequence, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

NAME = "stackloom-packed"


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[bool]:
    """Have a model attend sequence by sequence inside; its inputs are one row. Yields whether it does.

    Models with sliding windows, with attention plugins (a state cannot go on from another sequence's beginning) or
    without transformers' attention interface keep what they have, and so does a GPU, where the starts of the sequences
    would have to be read back in every layer.
    """
    config: Any = model.config
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    before = config._attn_implementation
    hosted = any(hasattr(module, "cache_spec") for module in model.modules())
    if before != "sdpa" or hosted or kinds or windowed or config.sub_configs or model.device.type != "cpu":
        yield False
        return
    model.set_attn_implementation(NAME)
    try:
        yield True
    finally:
        model.set_attn_implementation(before)


def attend(
    module: nn.Module,
    query_1HTK: Tensor,
    key_1GTK: Tensor,
    value_1GTK: Tensor,
    attention_mask: None = None,
    *,
    position_ids: Tensor,
    scaling: float,
    dropout: float = 0.0,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """Return ((1, T, H, K), None), as transformers' attention functions do."""
    places = sequences(position_ids[0])
    sizes = [size for _, size in places]
    options: Any = {"scale": scaling, "dropout_p": dropout, "enable_gqa": True}
    mixed: list[Tensor] = []
    first_k = first_v = key_1GTK
    parts = (torch.split(part, sizes, dim=2) for part in (query_1HTK, key_1GTK, value_1GTK))
    for (shared, size), q_1HSK, k_1GSK, v_1GSK in zip(places, *parts, strict=True):
        if not shared:
            first_k, first_v = k_1GSK, v_1GSK
            mixed.append(scaled_dot_product_attention(q_1HSK, k_1GSK, v_1GSK, is_causal=True, **options))
            continue
        k = torch.cat([first_k[:, :, :shared], k_1GSK], dim=2)
        v = torch.cat([first_v[:, :, :shared], v_1GSK], dim=2)
        causal = torch.ones(size, shared + size, dtype=torch.bool, device=k.device).tril(shared)
        mixed.append(scaled_dot_product_attention(q_1HSK, k, v, attn_mask=causal, **options))
    return torch.cat(mixed, dim=2).transpose(1, 2), None


def sequences(position_T: Tensor) -> list[tuple[int, int]]:
    """Return (first position, tokens) of each sequence of a row; one begins where positions do not count on.

    Example:
        >>> sequences(torch.tensor([0, 1, 2, 3, 2, 3, 0, 1]))
        [(0, 4), (2, 2), (0, 2)]
    """
    begins = [0, *((position_T.diff() != 1).nonzero().flatten() + 1).tolist()]
    stops = [*begins[1:], len(position_T)]
    return [(int(position_T[begin]), stop - begin) for begin, stop in zip(begins, stops, strict=True)]


def _no_mask(*arguments: Any, **named: Any) -> None:
    """Sequences are kept apart by `attend` itself."""


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _no_mask)
