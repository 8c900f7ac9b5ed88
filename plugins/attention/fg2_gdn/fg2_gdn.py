"""FG2-GDN and FG2-GDN+: decays and step sizes per channel. The layer is `plugins/attention/delta_layer.py`."""

from __future__ import annotations

from stackloom.core.slots.attention import LayerShape
from stackloom.plugins.attention.delta_layer import DeltaLayer
from stackloom.plugins.attention.fg2_gdn.config import FG2GDNConfig


class FG2GDN(DeltaLayer):
    """A token mixer of constant state: decays and step sizes per channel.

    Args:
        config: the plugin's options.
        layer: sizes of the layer.

    Raises:
        FitError: `heads` is no multiple of `kv_heads`, or a head's width does not fit.

    Example:
        >>> mixer = FG2GDN(FG2GDNConfig(), LayerShape(hidden=64, heads=2, kv_heads=2, head_dim=32))
        >>> mixer(torch.randn(2, 63, 64)).shape
        torch.Size([2, 63, 64])
    """

    def __init__(self, config: FG2GDNConfig, layer: LayerShape) -> None:
        super().__init__(config.traits(), layer, where="attention.fg2-gdn")
        self.config = config
