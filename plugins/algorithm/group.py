"""What the algorithms with a group baseline share. B responses, T tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from stackloom.plugins.algorithm.batch import Batch, check_logp
from stackloom.plugins.algorithm.group_config import GroupConfig

LOG_RATIO_LIMIT = 20.0


class GroupAlgorithm(ABC):
    """Advantage over the mean of the prompt's valid responses; a subclass says what a token gains."""

    def __init__(self, config: GroupConfig) -> None:
        self.config = config

    def advantages(self, batch: Batch) -> Tensor:
        """Return float [B]: reward minus the group's mean, over its deviation where the config says so.

        A response counts if its reward is valid and finite and it is no older than `max_age`. Another one gets 0, and
        so does every member of a group whose rewards are equal or of which one member counts.
        """
        counts = self._counts(batch)
        advantages = torch.zeros_like(batch.rewards)
        for group in batch.groups[counts].unique():
            members = counts & (batch.groups == group)
            rewards = batch.rewards[members]
            if rewards.min() == rewards.max():
                continue  # rounding of the mean would otherwise be blown up by the deviation
            centred = rewards - rewards.mean()
            scale = rewards.std(unbiased=False) if self.config.advantage_scale == "std" else 1.0
            advantages[members] = centred / scale
        return advantages

    def loss(self, logp: Tensor, batch: Batch) -> Tensor:
        """Return the scalar to minimise.

        Raises:
            ConfigError: `logp` is not [B, T] or not finite on a sampled token.
        """
        check_logp(logp, batch.mask)
        logp, old, infer = (
            torch.where(batch.mask, values, 0.0) for values in (logp, batch.logp_old, batch.logp_infer)
        )  # what lies outside the mask may be NaN, and NaN times 0 is NaN
        gains = self.gains(logp, old, self.advantages(batch)[:, None], batch.mask)
        if self.config.engine_cap is not None:
            gains = gains * bounded_exp(old - infer).clamp(max=self.config.engine_cap).detach()
        return -self._normalised(torch.where(batch.mask, gains, 0.0), batch)

    @abstractmethod
    def gains(self, logp: Tensor, logp_old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Return what each token adds to the objective, [B, T]; `advantages` is [B, 1]."""

    def _counts(self, batch: Batch) -> Tensor:
        counts = batch.valid & torch.isfinite(batch.rewards)
        return counts if self.config.max_age is None else counts & (batch.ages <= self.config.max_age)

    def _normalised(self, gains: Tensor, batch: Batch) -> Tensor:
        if self.config.normaliser == "constant":
            return gains.sum() / (batch.responses * self.config.max_tokens)
        if self.config.normaliser == "tokens":
            return gains.sum() / max(batch.tokens, 1)
        return (gains.sum(1) / batch.mask.sum(1).clamp(min=1)).sum() / max(batch.responses, 1)


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """Return exp of a log-ratio that is first held within 20 on both sides, so that no weight overflows."""
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
