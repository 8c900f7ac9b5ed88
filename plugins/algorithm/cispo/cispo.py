"""CISPO: clipped importance weights. B responses, T tokens."""

from __future__ import annotations

from torch import Tensor

from stackloom.plugins.algorithm.cispo.config import CispoConfig
from stackloom.plugins.algorithm.group import GroupAlgorithm, bounded_exp


class Cispo(GroupAlgorithm):
    """A clipped token's gradient is bounded, not dropped."""

    config: CispoConfig

    def gains(self, logp: Tensor, logp_old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Return sg(clip(r)) A log pi."""
        weights = bounded_exp(logp - logp_old).clamp(self.config.weight_low, self.config.weight_high).detach()
        return weights * advantages * logp
