"""Kimi Delta Attention, a decay per key channel and a step size per head; the layer is `delta_layer.py` above."""

from __future__ import annotations

from stackloom.core.slots.attention import LayerShape
from stackloom.plugins.attention.delta_layer import DeltaLayer
from stackloom.plugins.attention.kda.config import KDAConfig


class KDA(DeltaLayer):
    """A token mixer of constant state: a decay per key channel, a step size per head.

    Args:
        config: the plugin's options.
        layer: sizes of the layer.

    Raises:
        FitError: `heads` is no multiple of `kv_heads`, or a head's width does not fit.

    Example:
        >>> mixer = KDA(KDAConfig(), LayerShape(hidden=64, heads=2, kv_heads=2, head_dim=32))
        >>> mixer(torch.randn(2, 63, 64)).shape
        torch.Size([2, 63, 64])
    """

    def __init__(self, config: KDAConfig, layer: LayerShape) -> None:
        super().__init__(config.traits(), layer, where="attention.kda")
        self.config = config
