"""Full causal attention with grouped queries and rotary positions.

Shape legend: B sequences, T new tokens, S cached tokens, D model width, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from stackloom.core.cache import Buffer, CacheSpec, CacheView
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.attention import LayerShape
from stackloom.plugins.attention.full.config import FullAttentionConfig


class FullAttention(nn.Module):
    """Softmax attention of each token over itself and every earlier token, in HF Llama's parameter layout.

    Args:
        config: the plugin's options.
        layer: sizes of the layer.

    Raises:
        FitError: `heads` is no multiple of `kv_heads`, or `head_dim` is odd.

    Example:
        >>> mixer = FullAttention(FullAttentionConfig(), LayerShape(hidden=576, heads=9, kv_heads=3, head_dim=64))
        >>> mixer(torch.randn(2, 63, 576)).shape
        torch.Size([2, 63, 576])
    """

    def __init__(self, config: FullAttentionConfig, layer: LayerShape) -> None:
        super().__init__()
        if layer.heads % layer.kv_heads or layer.head_dim % 2:
            raise FitError(
                f"heads {layer.heads}, kv_heads {layer.kv_heads}, head_dim {layer.head_dim}",
                where="attention.full",
                fix="heads must be a multiple of kv_heads, and head_dim even",
            )
        self.config, self.layer = config, layer
        self.cache_spec = CacheSpec(pages={name: Buffer(shape=(layer.kv_heads, layer.head_dim)) for name in ("k", "v")})
        query, key_value = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        self.q_proj = nn.Linear(layer.hidden, query, bias=layer.bias)
        self.k_proj = nn.Linear(layer.hidden, key_value, bias=layer.bias)
        self.v_proj = nn.Linear(layer.hidden, key_value, bias=layer.bias)
        self.o_proj = nn.Linear(query, layer.hidden, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Mix whole sequences from position 0, (B, T, D) to (B, T, D).

        Raises:
            ConfigError: more tokens than the layer has positions.
        """
        self._check_positions(x_BTD.shape[1])
        q_BHTK, k_BGTK, v_BGTK = self._project(x_BTD, torch.arange(x_BTD.shape[1], device=x_BTD.device)[None])
        return self._output(scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=True))

    def prefill(self, x_BTD: Tensor, view: CacheView) -> Tensor:
        """Mix T more tokens of each sequence on top of `view` and append them to it, (B, T, D) to (B, T, D).

        Raises:
            ConfigError: a sequence outgrows the layer's positions.
        """
        tokens = x_BTD.shape[1]
        positions_BT = view.lengths_B[:, None] + torch.arange(tokens, device=x_BTD.device)
        q_BHTK, k_BGTK, v_BGTK = self._project(x_BTD, positions_BT)
        view.append(tokens, k=k_BGTK.transpose(1, 2), v=v_BGTK.transpose(1, 2))
        k_BSGK, v_BSGK = view.read("k"), view.read("v")
        self._check_positions(k_BSGK.shape[1])
        # Entries past a sequence's length are undefined: a mask alone lets 0 * NaN through, so they are zeroed as well.
        cached_S = torch.arange(k_BSGK.shape[1], device=x_BTD.device)
        undefined_BS11 = (cached_S >= view.lengths_B[:, None])[:, :, None, None]
        k_BGSK = k_BSGK.masked_fill(undefined_BS11, 0).transpose(1, 2)
        v_BGSK = v_BSGK.masked_fill(undefined_BS11, 0).transpose(1, 2)
        visible_B1TS = (cached_S <= positions_BT[:, :, None])[:, None]
        return self._output(
            scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, attn_mask=visible_B1TS, enable_gqa=True)
        )

    def step(self, x_BD: Tensor, view: CacheView) -> Tensor:
        """Mix one more token of each sequence, (B, D) to (B, D)."""
        return self.prefill(x_BD[:, None], view)[:, 0]

    def _project(self, x_BTD: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries (B, H, T, K), rotated keys and values (B, G, T, K)."""
        q, k, v = (
            proj(x_BTD).unflatten(-1, (-1, self.layer.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = _rotation(positions_BT, self.layer.head_dim, self.layer.rope_theta, x_BTD.dtype)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v

    def _output(self, mixed_BHTK: Tensor) -> Tensor:
        return self.o_proj(mixed_BHTK.transpose(1, 2).flatten(2))

    def _check_positions(self, tokens: int) -> None:
        if tokens > self.layer.max_positions:
            raise ConfigError(
                f"a sequence of {tokens} tokens, but the layer has {self.layer.max_positions} positions",
                where="attention.full",
                fix="shorten the sequences, or use a model made for longer ones",
            )


def _rotation(positions_BT: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin, (B, 1, T, K) in `dtype`; angles in fp32 at least: bf16 cannot hold position 257."""
    exact = torch.promote_types(dtype, torch.float32)
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2, device=positions_BT.device).to(exact) / width)
    angles = positions_BT[:, None, :, None].to(exact) * frequencies.repeat(2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + K/2) by its angle: HF Llama's rotate-half convention, not the interleaved one."""
    low, high = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos + torch.cat((-high, low), dim=-1) * sin
