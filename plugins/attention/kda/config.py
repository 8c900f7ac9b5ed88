"""Options of `attention.kda`."""

from __future__ import annotations

from stackloom.core.config import option
from stackloom.plugins.attention.delta_config import DeltaConfig, DeltaTraits


class KDAConfig(DeltaConfig):
    """Kimi Delta Attention: one decay per key channel, one step size per head.

    Example:
        >>> KDAConfig(lower_bound=-5.0).traits().lower_bound
        -5.0
    """

    lower_bound: float | None = option(
        None, "bound of the log decay in its safe form; null leaves it open", source="official code", ge=-5, lt=0
    )
    decay_rank: int | None = option(
        None, "rank of the decay's projection; null takes the value width of a head", source="official code", ge=1
    )

    def traits(self) -> DeltaTraits:
        """Return what the layer is built from."""
        return DeltaTraits(
            decay="channel",
            decay_rank=self.decay_rank,
            max_beta=2 if self.allow_neg_eigval else 1,
            lower_bound=self.lower_bound,
            value_width=self.expand_v,
            conv_size=self.conv_size,
            norm_eps=self.norm_eps,
            implementation=self.implementation,
        )
