"""Attention over sequences that are packed into one row: each for itself, instead of one large mask for all.

A mask makes the cost quadratic in the row's length; on two CPU cores it took more than half of an adapter's step.

Shape legend: T tokens of the row, H query heads, G key/value heads, K head width.
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
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Have a model attend sequence by sequence inside; its inputs are one row, positions count from 0 in each sequence.

    Models with sliding windows or without transformers' attention interface keep what they have, and so does a GPU,
    where the starts of the sequences would have to be read back in every layer.
    """
    config: Any = model.config
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    before = config._attn_implementation
    if before != "sdpa" or kinds or windowed or config.sub_configs or model.device.type != "cpu":
        yield
        return
    model.set_attn_implementation(NAME)
    try:
        yield
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
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    sizes = [stop - start for start, stop in zip(starts, [*starts[1:], query_1HTK.shape[2]], strict=True)]
    mixed = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=True)
        for q, k, v in zip(
            *(torch.split(part, sizes, dim=2) for part in (query_1HTK, key_1GTK, value_1GTK)), strict=True
        )
    ]
    return torch.cat(mixed, dim=2).transpose(1, 2), None


def _no_mask(*arguments: Any, **named: Any) -> None:
    """Sequences are kept apart by `attend` itself."""


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _no_mask)
