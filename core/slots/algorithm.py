"""Slot `algorithm`: what rewards are worth to each response, and the loss of its tokens."""

from __future__ import annotations

from typing import Any, Protocol

from stackloom.core.config import ComponentConfig
from stackloom.core.slot import Slot


class Algorithm(Protocol):
    """The component: constructed as `Component(config)`; it holds no state and draws no random number.

    A batch has `logp_old`, `logp_infer` (float [B, T]), `mask` (bool [B, T], true on sampled tokens), `rewards`
    (float [B]), `valid` (bool [B], false where a reward could not be told), `groups` (integer [B], one number per
    prompt), `ages` (integer [B], versions behind the newest) and `responses`, `tokens` (integers): how many responses
    and sampled tokens the whole optimizer step has, over all micro-batches and workers.
    """

    def advantages(self, batch: Any) -> Any:
        """Return the advantage of each response, [B], without gradient; 0 for one that is not trained on."""
        ...

    def loss(self, logp: Any, batch: Any) -> Any:
        """Return the loss, a scalar to minimise; losses of micro-batches of whole groups add up to the step's.

        Args:
            logp: natural log-probability of each token under the weights being trained, [B, T].
            batch: see the class; what lies where `mask` is false changes neither the loss nor a gradient.

        Raises:
            ConfigError: shapes or dtypes that do not go together, or a log-probability that is not finite.
        """
        ...


SLOT = Slot(
    name="algorithm",
    version=1,
    sits_in=("reinforce",),
    protocol=Algorithm,
    config=ComponentConfig,
    summary="turns rewards into advantages and a loss",
    features={
        "group-baseline": "compares a response with others of its prompt",
        "ratio": "corrects for samples of older weights",
        "sequence": "one ratio per response instead of one per token",
    },
)
