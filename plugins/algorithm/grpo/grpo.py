"""GRPO: PPO's clipped ratio over a group baseline. B responses, T tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from stackloom.plugins.algorithm.group import GroupAlgorithm, bounded_exp
from stackloom.plugins.algorithm.grpo.config import GrpoConfig


class Grpo(GroupAlgorithm):
    """The smaller of the plain and the clipped gain, per token."""

    config: GrpoConfig

    def gains(self, logp: Tensor, logp_old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Return min(r A, clip(r) A), for A < 0 not under dual_clip A."""
        ratio = bounded_exp(logp - logp_old)
        clipped = ratio.clamp(1 - self.config.clip_low, 1 + self.config.clip_high)
        gains = torch.minimum(ratio * advantages, clipped * advantages)
        if self.config.dual_clip is None:
            return gains
        return torch.where(advantages < 0, torch.maximum(gains, self.config.dual_clip * advantages), gains)
