"""Options of `attention.gdn`."""

from __future__ import annotations

from stackloom.plugins.attention.delta_config import DeltaConfig, DeltaTraits


class GDNConfig(DeltaConfig):
    """Gated DeltaNet: one decay and one step size per head and token.

    Example:
        >>> GDNConfig(expand_v=2.0).traits().decay
        'head'
    """

    def traits(self) -> DeltaTraits:
        """Return what the layer is built from."""
        return DeltaTraits(
            decay="head",
            output_gate="silu",
            max_beta=2 if self.allow_neg_eigval else 1,
            rate_range=(0.0, 16.0),
            value_width=self.expand_v,
            conv_size=self.conv_size,
            norm_eps=self.norm_eps,
            implementation=self.implementation,
        )
