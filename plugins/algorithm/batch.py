"""The responses of a step as tensors, and their checks. B responses, T tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stackloom.core.errors import ConfigError


@dataclass(frozen=True)
class Batch:
    """A micro-batch of whole groups.

    Attributes:
        logp_old: log-probabilities under the weights that sampled, by the training engine, float [B, T].
        logp_infer: the same by the engine that sampled, float [B, T].
        mask: true on sampled tokens; false on padding and on what a tool or the user wrote, bool [B, T].
        rewards: float [B].
        valid: false where a grader failed, bool [B].
        groups: one number per prompt, integer [B].
        ages: versions between the weights that sampled and the newest, integer [B].
        responses, tokens: of the whole step, all micro-batches and workers together.

    Raises:
        ConfigError: shapes or dtypes do not go together, a log-probability of a sampled token is not finite, an age is
            negative, or the step's counts are smaller than this micro-batch's.
    """

    logp_old: Tensor
    logp_infer: Tensor
    mask: Tensor
    rewards: Tensor
    valid: Tensor
    groups: Tensor
    ages: Tensor
    responses: int
    tokens: int

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != torch.bool:
            raise ConfigError("mask is not a bool matrix", where="batch.mask", fix="give bool [B, T]")
        for name in ("logp_old", "logp_infer"):
            check_logp(getattr(self, name), self.mask, name)
        for name in ("rewards", "valid", "groups", "ages"):
            if (shape := tuple(getattr(self, name).shape)) != (len(self.mask),):
                raise ConfigError(f"shape {shape}, not ({len(self.mask)},)", where=f"batch.{name}")
        if not self.rewards.is_floating_point():
            raise ConfigError(f"dtype {self.rewards.dtype}, not float", where="batch.rewards")
        if self.valid.dtype != torch.bool:
            raise ConfigError(f"dtype {self.valid.dtype}, not bool", where="batch.valid")
        if (self.ages < 0).any():
            raise ConfigError("an age is negative: no version is newer than the newest", where="batch.ages")
        if self.responses < len(self.mask) or self.tokens < int(self.mask.sum()):
            raise ConfigError(
                "the step has fewer responses or tokens than this micro-batch",
                where="batch.responses, batch.tokens",
                fix="count them over all micro-batches and workers",
            )


def check_logp(logp: Tensor, mask: Tensor, name: str = "logp") -> None:
    """Refuse log-probabilities [B, T] of another shape than `mask`, or not finite where it is true.

    Raises:
        ConfigError: as said.
    """
    if logp.shape != mask.shape or not logp.is_floating_point():
        raise ConfigError(f"{logp.dtype} {tuple(logp.shape)}, not float {tuple(mask.shape)}", where=name)
    if not torch.isfinite(logp[mask]).all():
        raise ConfigError("the log-probability of a sampled token is not finite", where=name)
