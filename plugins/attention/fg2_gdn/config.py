"""Options of `attention.fg2-gdn`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from stackloom.core.config import option
from stackloom.plugins.attention.delta_config import DeltaConfig, DeltaTraits


class FG2GDNConfig(DeltaConfig):
    """Doubly fine-grained gated delta network: decays and step sizes per channel.

    Example:
        >>> FG2GDNConfig(variant="plus", beta_rank=64).traits().value_beta
        True
    """

    variant: Literal["shared", "plus"] = option(
        "shared", "one vector of step sizes for keys and values, or plus: one for each", source="paper"
    )
    beta_rank: int | None = option(
        None, "rank of the step sizes' projections; null for full ones", source="inferred", ge=1
    )
    beta_bias: bool = option(True, "biases on the step sizes' logits, from 0", source="inferred")
    value_scale: Literal["sqrt", "linear"] = option(
        "sqrt", "plus scales values by the root of their step size, or by the step size itself", source="inferred"
    )
    init: Literal["random", "kda"] = option(
        "random", "kda starts with equal step sizes within a head, as a KDA layer", source="inferred"
    )
    lower_bound: float | None = option(
        None, "bound of the log decay in its safe form; null leaves it open", source="official code", ge=-5, lt=0
    )
    decay_rank: int | None = option(
        None, "rank of the decay's projection; null takes the value width of a head", source="official code", ge=1
    )

    @model_validator(mode="after")
    def _reads_every_option(self) -> FG2GDNConfig:
        if self.variant == "shared" and self.value_scale != "sqrt":
            raise ValueError("value_scale is for variant: plus; the shared step size scales by its root")
        if self.init == "kda" and self.beta_rank is not None:
            raise ValueError("init: kda repeats a row per channel, which needs beta_rank: null")
        return self

    def traits(self) -> DeltaTraits:
        """Return what the layer is built from."""
        return DeltaTraits(
            decay="channel",
            beta="channel",
            value_beta=self.variant == "plus",
            beta_rank=self.beta_rank,
            beta_bias=self.beta_bias,
            beta_init=self.init,
            value_scale=self.value_scale,
            decay_rank=self.decay_rank,
            max_beta=2 if self.allow_neg_eigval else 1,
            lower_bound=self.lower_bound,
            value_width=self.expand_v,
            conv_size=self.conv_size,
            norm_eps=self.norm_eps,
            implementation=self.implementation,
        )
