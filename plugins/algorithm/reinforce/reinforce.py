"""REINFORCE with the group's mean as baseline. B responses, T tokens."""

from __future__ import annotations

from torch import Tensor

from stackloom.plugins.algorithm.group import GroupAlgorithm


class Reinforce(GroupAlgorithm):
    """The gradient of expected reward for samples of the weights being trained."""

    def gains(self, logp: Tensor, logp_old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Return A log pi."""
        return advantages * logp
