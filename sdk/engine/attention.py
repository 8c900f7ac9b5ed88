"""Attention of one layer over the engine's memory: transformers' own kind, and attention plugins.

Shape legend: N rows of the batch, R rows computed (N, or more in a padded batch), T tokens of all prompts together,
D model width, H query heads (in memory: heads of keys, then of values), G key/value heads, K head width, P pages,
S tokens of a page or of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from stackloom.core.cache import SNAPSHOT_EVERY
from stackloom.core.errors import EngineError
from stackloom.engine.cache import DenseView
from stackloom.engine.linear import project
from stackloom.engine.pages import BLOCK
from stackloom.engine.runner import check_rollback
from stackloom.kernels.paged_attention import paged_attention

ONE_BY_ONE = 2  # up to here a call of fused attention per row beats one batched matmul over all rows


@dataclass(frozen=True)
class Step:
    """What all layers of one pass share.

    Attributes:
        cos, sin: rotary factors per token, (T, 1, K) in the model's dtype; the first half of `sin` is negated.
        lengths: cached tokens per sequence once this pass is done.
        slots: where each head of each new token lies in a layer's memory, int64 (T * H,); (N * H,) for single steps.
        spans: rows of T that belong to each sequence, for prompts; None for single steps.
        tables: for prompts, where the pages of each sequence's heads lie, int64 (H * P,), None for one that begins
            here; for single steps one table of all, (2 * N * G * P,).
        gathered: for single steps, memory for what the table names, (2 * N * G * P, S * K).
        mask: (N, 1, S), 0 where a sequence has a token, -inf elsewhere; None where all lengths agree.
        pages: for single steps that attend over pages where they lie, each row's pages (R, P) and lengths (R,).
    """

    cos: Tensor
    sin: Tensor
    lengths: list[int]
    slots: Tensor
    spans: list[slice] | None = None
    tables: Sequence[Tensor | None] = ()
    gathered: Tensor | None = None
    mask: Tensor | None = None
    pages: tuple[Tensor, Tensor] | None = None


class OwnAttention:
    """Softmax attention with grouped queries and rotary positions, as Llama and Qwen have it.

    Args:
        attention: transformers' module; weights are copied.
        one_by_one: compute each row alone, so that no row's result depends on the batch.
    """

    def __init__(self, attention: Any, *, one_by_one: bool) -> None:
        self.width = attention.head_dim
        self.scale = attention.scaling
        self.qkv = project([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = project([attention.o_proj])
        self.heads = attention.config.num_attention_heads
        self.kv_heads = attention.config.num_key_value_heads
        self.one_by_one = one_by_one
        self.norm_HK: Tensor | None = None
        if hasattr(attention, "q_norm"):
            weights = (attention.q_norm.weight, attention.k_norm.weight)
            counts = (self.heads, self.kv_heads)
            self.norm_HK = torch.cat([w.detach().expand(n, -1) for w, n in zip(weights, counts, strict=True)])
            self.norm_eps = attention.q_norm.variance_epsilon

    def prefill(self, x_TD: Tensor, memory_PHSK: Tensor, step: Step) -> Tensor:
        """Mix prompts, or what is not cached of them, and keep their keys and values, (T, D) to (T, D)."""
        q_THK, k_TGK, v_TGK = self._project(x_TD, step)
        self._keep(k_TGK, v_TGK, memory_PHSK, step)
        mixed_THK = torch.empty_like(q_THK)
        assert step.spans is not None
        for span, stop, table in zip(step.spans, step.lengths, step.tables, strict=True):
            tokens, mask_TS = span.stop - span.start, None
            k_GSK, v_GSK = k_TGK[span].transpose(0, 1), v_TGK[span].transpose(0, 1)
            if table is not None:
                pages = memory_PHSK.view(-1, BLOCK * self.width)[table].view(2, self.kv_heads, -1, self.width)
                k_GSK, v_GSK = pages[0, :, :stop], pages[1, :, :stop]
                mask_TS = torch.ones(tokens, stop, dtype=torch.bool, device=x_TD.device).tril(stop - tokens)
            mixed_THK[span] = scaled_dot_product_attention(
                q_THK[span].transpose(0, 1)[None],
                k_GSK[None],
                v_GSK[None],
                attn_mask=mask_TS,
                is_causal=mask_TS is None,
                scale=self.scale,
                enable_gqa=self.heads != self.kv_heads,
            )[0].transpose(0, 1)
        return self.out(mixed_THK.flatten(1))

    def step(self, x_RD: Tensor, memory_PHSK: Tensor, step: Step) -> Tensor:
        """Mix one more token of each sequence and keep its key and value, (R, D) to (R, D); rows past N are zeros."""
        q_RHK, k_RGK, v_RGK = self._project(x_RD, step)
        if step.pages is not None:
            self._keep(k_RGK, v_RGK, memory_PHSK, step)
            return self.out(
                paged_attention(q_RHK, memory_PHSK, *step.pages, self.scale, implementation="auto").flatten(1)
            )
        rows, longest = len(step.lengths), max(step.lengths)
        self._keep(k_RGK[:rows], v_RGK[:rows], memory_PHSK, step)
        (table,), gathered = step.tables, step.gathered
        assert table is not None
        assert gathered is not None
        torch.index_select(memory_PHSK.view(-1, BLOCK * self.width), 0, table, out=gathered)
        k_NGSK, v_NGSK = gathered.view(2, rows, self.kv_heads, -1, self.width)
        if self.one_by_one or rows <= ONE_BY_ONE:
            mixed = self._each(q_RHK, k_NGSK, v_NGSK, step.lengths)
        else:
            mixed = self._together(q_RHK, k_NGSK[:, :, :longest], v_NGSK[:, :, :longest], step.mask)
        return self.out(mixed)

    def _keep(self, k_TGK: Tensor, v_TGK: Tensor, memory_PHSK: Tensor, step: Step) -> None:
        new_THK = torch.cat((k_TGK, v_TGK), dim=1)
        memory_PHSK.view(-1, self.width).index_copy_(0, step.slots, new_THK.view(-1, self.width))

    def _each(self, q_RHK: Tensor, k_NGSK: Tensor, v_NGSK: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return (R, H * K). The query heads of a group are handed over as if they were its positions."""
        q_RGPK = q_RHK.reshape(q_RHK.shape[0], self.kv_heads, -1, self.width)
        if len(lengths) == q_RHK.shape[0] == 1:
            one = scaled_dot_product_attention(
                q_RGPK, k_NGSK[:1, :, : lengths[0]], v_NGSK[:1, :, : lengths[0]], scale=self.scale
            )
            return one.reshape(1, -1)
        mixed_RGPK = torch.zeros_like(q_RGPK)
        for row, length in enumerate(lengths):
            here = slice(row, row + 1)
            mixed_RGPK[here] = scaled_dot_product_attention(
                q_RGPK[here], k_NGSK[here, :, :length], v_NGSK[here, :, :length], scale=self.scale
            )
        return mixed_RGPK.flatten(1)

    def _together(self, q_NHK: Tensor, k_NGSK: Tensor, v_NGSK: Tensor, mask_N1S: Tensor | None) -> Tensor:
        rows, longest = q_NHK.shape[0], k_NGSK.shape[2]
        groups = rows * self.kv_heads
        q_GPK = (q_NHK * self.scale).reshape(groups, -1, self.width)
        score_GPS = torch.bmm(q_GPK, k_NGSK.flatten(0, 1).transpose(1, 2))
        if mask_N1S is not None:
            score_GPS.view(rows, self.heads, longest).add_(mask_N1S)
        weight_GPS = score_GPS.softmax(-1, dtype=torch.float32).to(q_NHK.dtype)
        return torch.bmm(weight_GPS, v_NGSK.flatten(0, 1)).view(rows, -1)

    def _project(self, x_TD: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries (T, H, K), rotated keys and values (T, G, K)."""
        qkv_THK = self.qkv(x_TD).view(x_TD.shape[0], -1, self.width)
        rotated = self.heads + self.kv_heads
        qk_THK, v_TGK = qkv_THK[:, :rotated], qkv_THK[:, rotated:]
        if self.norm_HK is not None:
            qk_THK = rms_norm(qk_THK, (self.width,), None, self.norm_eps) * self.norm_HK
        turned_THK = torch.addcmul(qk_THK * step.cos, qk_THK.roll(self.width // 2, -1), step.sin)
        return turned_THK[:, : self.heads], turned_THK[:, self.heads :], v_TGK


class HostedRows:
    """An attention plugin and the views that it works on.

    Args:
        mixer: the plugin's component.
        dtype, device: of its input.
        one_by_one: keep a view per row and step each alone, so that no row's result depends on the batch.
    """

    def __init__(self, mixer: Any, dtype: torch.dtype, device: torch.device, *, one_by_one: bool) -> None:
        self.mixer, self.dtype, self.device, self.one_by_one = mixer, dtype, device, one_by_one
        self.views: list[DenseView] = []
        self._steps = 0

    def prefill(self, x_TD: Tensor, step: Step) -> Tensor:
        """Mix whole prompts on fresh views, (T, D) to (T, D); the views become the last rows."""
        assert step.spans is not None
        mixed, fresh = [], []
        for span in step.spans:
            tokens = span.stop - span.start
            view = DenseView(self.mixer.cache_spec, 1, dtype=self.dtype, device=self.device, capacity=tokens + 16)
            mixed.append(self.mixer.prefill(x_TD[span][None], view)[0])
            view.snapshot()
            fresh.append(view)
        self.views += fresh
        if not self.one_by_one and len(self.views) > 1:
            self.views = [DenseView.merge(self.views)]
        return torch.cat(mixed)

    def step(self, x_RD: Tensor, rows: int) -> Tensor:
        """Mix one more token of each row, (R, D) to (R, D); rows past `rows` are zeros."""
        if self.one_by_one:
            mixed = [self.mixer.step(x_RD[row : row + 1], view) for row, view in enumerate(self.views)]
        else:
            mixed = [self.mixer.step(x_RD[:rows], self.views[0])]
        self._steps += 1
        if self._steps % SNAPSHOT_EVERY == 0:
            for view in self.views:
                view.snapshot()
        if rows < x_RD.shape[0]:
            mixed.append(x_RD.new_zeros(x_RD.shape[0] - rows, x_RD.shape[1]))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def leave(self, row: int) -> None:
        """Forget a row; the last row takes its place."""
        if self.one_by_one:
            self.views[row] = self.views[-1]
            self.views.pop()
            return
        order = list(range(len(self.views[0].lengths_B)))
        order[row] = order[-1]
        self.views = [self.views[0].select(order[:-1])] if len(order) > 1 else []

    def rollback(self, n: int) -> int:
        """Forget the last n tokens of every row and return how many must be fed again.

        Raises:
            EngineError: no snapshot reaches back that far, or rows would have to feed different numbers again.
        """
        replays = {view.rollback(n) for view in self.views}
        if len(replays) > 1:
            raise EngineError("the rows' snapshots lie at different distances")
        return replays.pop() if replays else 0

    def clear(self) -> None:
        """Forget every row."""
        self.views, self._steps = [], 0


def hosted_mixer(attention: nn.Module) -> Any | None:
    """Return the attention plugin's component inside a layer's attention, or None for transformers' own."""
    mixer = getattr(attention, "mixer", None)
    return mixer if hasattr(mixer, "cache_spec") else None


def rollback_together(layers: Sequence[HostedRows], n: int, lengths: Sequence[int]) -> int:
    """Roll every plugin layer back to one common point and return the tokens to feed again.

    Raises:
        EngineError: fewer than n tokens are cached, or a layer cannot go back that far.
    """
    check_rollback(n, lengths)
    replays = [layer.rollback(n) for layer in layers]
    farthest = max(replays, default=0)
    for layer, replay in zip(layers, replays, strict=True):
        if farthest > replay and layer.rollback(farthest - replay):
            raise EngineError("the layers' snapshots do not share a point to return to")
    return farthest
