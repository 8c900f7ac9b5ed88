"""GSPO: one clipped ratio per response. B responses, T tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from stackloom.plugins.algorithm.group import GroupAlgorithm, bounded_exp
from stackloom.plugins.algorithm.gspo.config import GspoConfig


class Gspo(GroupAlgorithm):
    """Every token of a response gains what the response does; with `normaliser: response` it is the paper's."""

    config: GspoConfig

    def gains(self, logp: Tensor, logp_old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Return min(s A, clip(s) A) with s the geometric mean of the response's ratios."""
        lengths = mask.sum(1, keepdim=True).clamp(min=1)
        ratio = bounded_exp((logp - logp_old).sum(1, keepdim=True) / lengths)
        clipped = ratio.clamp(1 - self.config.clip_low, 1 + self.config.clip_high)
        return torch.minimum(ratio * advantages, clipped * advantages).expand_as(logp)
