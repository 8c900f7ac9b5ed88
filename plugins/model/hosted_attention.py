"""An attention plugin inside a transformers model: calling convention, cache, and what its inputs must be.

Shape legend: B sequences, T tokens, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stackloom.core.errors import ConfigError, EngineError
from stackloom.plugins.model.layer_cache import layer_cache


class HostedAttention(nn.Module):
    """An attention plugin with the calling convention of transformers' decoder layers.

    Args:
        mixer: the plugin's component.
        index: number of the layer.

    Attributes:
        copied: names of the mixer's parameters that took the checkpoint's weights.
    """

    def __init__(self, mixer: nn.Module, index: int) -> None:
        super().__init__()
        self.mixer, self.layer_idx = mixer, index
        self.copied: tuple[str, ...] = ()

    def forward(
        self, hidden_states: Tensor, past_key_values: Any = None, position_ids: Tensor | None = None, **ignored: Any
    ) -> tuple[Tensor, None]:
        """Mix (B, T, D) on top of the cache, if there is one. The model's mask and rotations are not used: see `guard`.

        Raises:
            EngineError: a cached forward pass that needs gradients on top of earlier tokens.
            ConfigError: the cache was filled by another model.
        """
        if position_ids is not None and len(hidden_states) == 1 and hasattr(self.mixer, "packed"):
            starts = (position_ids[0] == 0).nonzero().flatten()
            if len(starts) > 1:  # `guard` saw to one row, and no cache
                return self.mixer.packed(hidden_states, starts), None
        if past_key_values is None:
            return self.mixer(hidden_states), None
        view = layer_cache(past_key_values, self.layer_idx, self.mixer.cache_spec, hidden_states)
        if not torch.is_grad_enabled():
            return self.mixer.prefill(hidden_states, view), None
        if view.get_seq_length():
            raise EngineError(
                "gradients do not flow through cached tokens",
                where=f"model.layers.{self.layer_idx}.self_attn",
                fix="pass use_cache=False to train, or generate under torch.no_grad()",
            )
        with torch.no_grad():  # transformers makes a cache in training as well; a later call may continue on it
            self.mixer.prefill(hidden_states, view)
        return self.mixer(hidden_states), None


def guard(decoder: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Refuse inputs that an attention plugin does not see: padding, and positions that do not simply count on.

    Sequences packed into one row, whose positions start anew, are for mixers that offer `packed`.

    Raises:
        ConfigError: a mask with zeros, a mask that is not (B, tokens), or positions other than 0, 1, 2, ...
    """
    mask, positions, past = named.get("attention_mask"), named.get("position_ids"), named.get("past_key_values")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2 and bool(mask.all())):
        raise ConfigError(
            "a model with an attention plugin takes no padding and no mask of your own",
            where="attention_mask",
            fix="pack the sequences, or group them by length; an all-ones mask is fine",
        )
    if positions is None:
        return
    start = past.get_seq_length() if past is not None else 0
    counted = torch.arange(positions.shape[-1], device=positions.device)
    if torch.equal(positions, (counted + start).expand_as(positions)):
        return
    if not (start == 0 and _is_packed(positions, counted)):
        raise ConfigError(
            "a model with an attention plugin counts positions itself, from 0",
            where="position_ids",
            fix="leave position_ids out; packed sequences go into one row, without a cache",
        )
    mixers = [layer.self_attn.mixer for layer in decoder.layers if isinstance(layer.self_attn, HostedAttention)]
    if not all(hasattr(mixer, "packed") for mixer in mixers):
        raise ConfigError(
            "this attention plugin does not keep sequences apart that are packed into one row",
            where="position_ids",
            fix="give one sequence per row, or take a plugin that offers `packed`",
        )


def _is_packed(positions: Tensor, counted: Tensor) -> bool:
    """Whether one row's positions count from 0, and from 0 anew at each further sequence."""
    if positions.shape[0] != 1 or positions[0, 0] != 0:
        return False
    starts = torch.where(positions[0] == 0, counted, 0).cummax(0).values
    return torch.equal(positions[0], counted - starts)
