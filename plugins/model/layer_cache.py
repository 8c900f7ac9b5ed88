"""`LayerCache`: one layer of transformers' `Cache`, seen by an attention plugin as core's `CacheView`.

Plain HF generation owns its cache as a list of layers. A model plugin whose layers run attention plugins puts one
`LayerCache` into that list per layer, so that `generate`, beam search and cropping work.

Shape legend: B sequences, T new tokens, S cached tokens. All sequences of an HF cache have one length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from stackloom.core.cache import CacheSpec
from stackloom.core.errors import ConfigError, EngineError


class LayerCache(CacheLayerMixin):
    """Pages and fixed state of one layer. Holds no gradients.

    Args:
        spec: what the attention plugin declared.
        batch: number of sequences B.
        dtype: what "compute" stands for in the spec.
        device: where the tensors live.
    """

    def __init__(self, spec: CacheSpec, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.spec, self.dtype, self.device = spec, dtype, device
        self.is_croppable = not spec.state
        self.is_initialized = True
        self._length = 0
        self._pages = {
            name: torch.empty((batch, 0, *buffer.shape), dtype=self._dtype(buffer.dtype), device=device)
            for name, buffer in spec.pages.items()
        }
        self._states = {
            name: torch.zeros((batch, *buffer.shape), dtype=self._dtype(buffer.dtype), device=device)
            for name, buffer in spec.state.items()
        }
        self._batch = batch

    # --- core's CacheView -------------------------------------------------------------------------------------------

    @property
    def lengths_B(self) -> Tensor:
        """Tokens cached per sequence, int64 (B,)."""
        return torch.full((self._batch,), self._length, dtype=torch.int64, device=self.device)

    def append(self, tokens: int, /, **entries: Tensor) -> None:
        """Append `tokens` tokens to every sequence; each entry is (B, tokens, *page shape)."""
        self._pages = {name: torch.cat((page, entries[name].detach()), dim=1) for name, page in self._pages.items()}
        self._length += tokens

    def read(self, name: str) -> Tensor:
        """Return page `name`, (B, S, *page shape)."""
        return self._pages[name]

    def state(self, name: str) -> Tensor:
        """Return state `name`, (B, *state shape)."""
        return self._states[name]

    def write(self, **states: Tensor) -> None:
        """Replace states, each (B, *state shape)."""
        self._states |= {name: value.detach() for name, value in states.items()}

    def snapshot(self) -> None:
        """Do nothing: HF generation never rolls fixed state back."""

    def rollback(self, n: int) -> int:
        """Forget the last `n` tokens; returns 0.

        Raises:
            EngineError: fewer than n tokens are cached, or the layer keeps fixed state.
        """
        if n and self._states:
            raise EngineError("an HF cache keeps no snapshots of fixed state; use the generation engine to roll back")
        if not 0 <= n <= self._length:
            raise EngineError(f"cannot roll {n} tokens back, {self._length} are cached")
        self._length -= n
        self._pages = {name: page[:, : self._length] for name, page in self._pages.items()}
        return 0

    # --- transformers' cache layer ----------------------------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Refuse: the attention plugin declares its own tensors."""
        raise EngineError("this cache layer belongs to an attention plugin, not to transformers' own attention")

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Refuse: the attention plugin appends through the view."""
        raise EngineError("this cache layer belongs to an attention plugin, not to transformers' own attention")

    def get_seq_length(self) -> int:
        """Return the number of cached tokens."""
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (keys after `query_length` more tokens, offset of the first key)."""
        return self._length + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: the layer grows without limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; transformers gives their number as a negative one."""
        self.rollback(-tokens_to_remove)

    def reset(self) -> None:
        """Forget everything."""
        self._length = 0
        self._pages = {name: page[:, :0] for name, page in self._pages.items()}
        self._states = {name: torch.zeros_like(state) for name, state in self._states.items()}

    def offload(self) -> None:
        """Do nothing: the layer stays on its device."""

    def prefetch(self) -> None:
        """Do nothing: the layer stays on its device."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence i continue sequence `beam_idx[i]`."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences `indices`, in that order."""
        indices = indices.to(self.device)
        self._pages = {name: page.index_select(0, indices) for name, page in self._pages.items()}
        self._states = {name: state.index_select(0, indices) for name, state in self._states.items()}
        self._batch = len(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence `repeats` times in place."""
        self.batch_select_indices(torch.arange(self._batch, device=self.device).repeat_interleave(repeats))

    @property
    def batch_size(self) -> int:
        """Number of sequences."""
        return self._batch

    def _dtype(self, name: str) -> torch.dtype:
        return self.dtype if name == "compute" else getattr(torch, name)


def layer_cache(cache: Cache, index: int, spec: CacheSpec, x_BTD: Tensor) -> LayerCache:
    """Return layer `index` of `cache` as a `LayerCache`, putting it there the first time.

    Args:
        cache: what transformers hands to the layers.
        index: number of the layer.
        spec: what the attention plugin declared.
        x_BTD: the layer's input, for batch size, dtype and device.

    Raises:
        ConfigError: the cache was filled by a model without the plugin.
    """
    layer = cache.layers[index] if index < len(cache.layers) else None
    if isinstance(layer, LayerCache):
        return layer
    if index > len(cache.layers) or (layer is not None and layer.get_seq_length()):
        raise ConfigError(
            f"layer {index} of past_key_values was filled by another model",
            where="past_key_values",
            fix="start with an empty cache, or leave it out",
        )
    made = LayerCache(spec, x_BTD.shape[0], x_BTD.dtype, x_BTD.device)
    cache.layers[index : index + 1] = [made]
    return made
