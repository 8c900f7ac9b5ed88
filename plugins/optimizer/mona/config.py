"""Options of `optimizer.mona`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from stackloom.core.config import option
from stackloom.core.cost import Work
from stackloom.plugins.optimizer.matrix_config import BF16_BYTES, MatrixConfig

LITE_LIMIT = 0.99  # above, a bfloat16 average rounded to nearest stalls: 12 % off at 0.995, 70 % at 0.999


class MonaConfig(MatrixConfig):
    """Muon fed with the gradient plus alpha times an average of gradient differences.

    Example:
        >>> MonaConfig(beta_a=0.99).acceleration
        -49.99999999999996
    """

    beta_a: float = option(0.975, "decay of the acceleration's average", unit="per step", source="paper", ge=0, lt=1)
    alpha: float | None = option(
        None, "acceleration coefficient; null takes the paper's rule, 1 / (2 (1 - beta_a)) with alpha_sign"
    )
    alpha_sign: Literal["negative", "positive"] = option(
        "negative",
        "sign of the rule: negative leans towards flat minima and long runs of large batches, positive towards fast "
        "descent",
        source="paper",
    )
    alpha_warmup_steps: int = option(0, "steps over which alpha grows from 0", unit="steps", source="inferred", ge=0)
    init_prev: Literal["zero", "first"] = option(
        "zero", "gradient before the first one: zero, or the first one itself", source="official code"
    )
    buffers: Literal["three", "one", "lite"] = option(
        "one",
        "three keeps momentum, acceleration and previous gradient, as printed; one keeps the momentum and an average "
        "of gradients, equal in exact arithmetic; lite is one with that average in bfloat16",
        source="inferred",
    )
    stochastic_rounding: bool = option(False, "round lite's average up or down at random, unbiased", source="inferred")
    seed: int = option(0, "of stochastic_rounding", ge=0, lt=2**31)
    allow_unstable: bool = option(False, "take an alpha at or beyond the stability limit 1 / (1 - beta_a)")
    nesterov: bool = option(True, "look one step of momentum ahead; the paper leaves it open", source="inferred")

    @model_validator(mode="after")
    def _stable(self) -> MonaConfig:
        limit = 1 / (1 - self.beta_a)
        if abs(self.acceleration) >= limit and not self.allow_unstable:
            raise ValueError(
                f"alpha {self.acceleration:g} is at or beyond the stability limit of {limit:g} for beta_a "
                f"{self.beta_a:g}; take a smaller one, or set allow_unstable"
            )
        if self.buffers == "lite" and self.beta_a > LITE_LIMIT and not self.stochastic_rounding:
            raise ValueError(
                f"a bfloat16 average stalls at beta_a {self.beta_a:g}, above {LITE_LIMIT}; set stochastic_rounding, or "
                "buffers: one"
            )
        return self

    @property
    def acceleration(self) -> float:
        """Alpha as it is used: the given one, or the rule's."""
        if self.alpha is not None:
            return self.alpha
        size = 1 / (2 * (1 - self.beta_a))
        return -size if self.alpha_sign == "negative" else size

    def matrix_state_bytes(self, work: Work) -> float:
        """Momentum, and an average in float32 (one) or bfloat16 (lite), or acceleration and gradient (three)."""
        wide = max(4.0, work.element_bytes)
        extra = {"one": wide, "lite": float(BF16_BYTES), "three": wide + work.element_bytes}[self.buffers]
        return super().matrix_state_bytes(work) + extra
