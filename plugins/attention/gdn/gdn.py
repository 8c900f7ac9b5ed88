"""Gated DeltaNet: one decay and one step size per head and token. The layer is `plugins/attention/delta_layer.py`."""

from __future__ import annotations

from stackloom.core.slots.attention import LayerShape
from stackloom.plugins.attention.delta_layer import DeltaLayer
from stackloom.plugins.attention.gdn.config import GDNConfig


class GDN(DeltaLayer):
    """A token mixer of constant state: one decay and one step size per head and token.

    Args:
        config: the plugin's options.
        layer: sizes of the layer.

    Raises:
        FitError: `heads` is no multiple of `kv_heads`, or a head's width does not fit.

    Example:
        >>> mixer = GDN(GDNConfig(), LayerShape(hidden=64, heads=2, kv_heads=2, head_dim=32))
        >>> mixer(torch.randn(2, 63, 64)).shape
        torch.Size([2, 63, 64])
    """

    def __init__(self, config: GDNConfig, layer: LayerShape) -> None:
        super().__init__(config.traits(), layer, where="attention.gdn")
        self.config = config
