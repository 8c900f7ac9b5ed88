"""LongCat's objective: three clips, gated on the sign of the advantage. B responses, T tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from stackloom.plugins.algorithm.group import GroupAlgorithm, bounded_exp
from stackloom.plugins.algorithm.grpo_longcat.config import GrpoLongcatConfig


class GrpoLongcat(GroupAlgorithm):
    """Equation 4 as its prose says: the outer bound holds for negative advantages alone."""

    config: GrpoLongcatConfig

    def gains(self, logp: Tensor, logp_old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Return min(r, 1 + positive_high) A for A > 0, clip(r, 1 - negative_low, negative_high) A for A < 0."""
        ratio = bounded_exp(logp - logp_old)
        positive = ratio.clamp(max=1 + self.config.positive_high)
        negative = ratio.clamp(1 - self.config.negative_low, self.config.negative_high)
        return torch.where(advantages > 0, positive, negative) * advantages
