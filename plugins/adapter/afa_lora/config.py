"""Options of `adapter.afa-lora`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from stackloom.core.config import option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext
from stackloom.plugins.adapter.afa_lora.schedule import Schedule, Shape
from stackloom.plugins.adapter.low_rank_config import LowRankConfig
from stackloom.plugins.adapter.targets import planned_targets

BLEND_FLOPS = 4  # per element of the inner activation and pass


class AfaLoRAConfig(LowRankConfig):
    """A LoRA with an activation between its matrices that is annealed to the identity while it trains.

    Example:
        >>> AfaLoRAConfig(rho=0.5).schedule_of_beta.span(100)
        (0, 50)
    """

    activation: Literal["relu", "silu", "gelu", "tanh"] = option(
        "relu", "what lies between the matrices at beta 1; the paper names the first three", source="inferred"
    )
    schedule: Shape = option(
        "linear",
        "how beta falls: linear or cosine over rho; warmup_cosine_patient rises over warmup, falls, and is 0 over "
        "patience; exponential decays until cutoff_step",
        source="inferred",
    )
    rho: float = option(
        0.3, "share of the steps over which linear and cosine fall to 0", unit="fraction", source="inferred", ge=0, le=1
    )
    hold: float = option(
        0.0,
        "share of the steps at beta 1 before linear and cosine fall",
        unit="fraction",
        source="inferred",
        ge=0,
        le=1,
    )
    warmup: float = option(
        0.01,
        "share of the steps over which warmup_cosine_patient rises from 0",
        unit="fraction",
        source="inferred",
        ge=0,
        le=1,
    )
    patience: float = option(
        0.20,
        "share of the steps at the end at which warmup_cosine_patient is 0",
        unit="fraction",
        source="inferred",
        ge=0,
        le=1,
    )
    decay: float = option(
        0.05, "rate of exponential: beta is exp(-decay step)", unit="per step", source="inferred", gt=0
    )
    cutoff_step: int | None = option(
        None, "step from which exponential is exactly 0; it has none of its own", unit="steps", source="inferred", ge=1
    )
    rollout: Literal["refuse", "off-policy"] = option(
        "refuse",
        "whether rollout_weights folds while beta is above 0: off-policy does, for a trainer that recomputes the old "
        "log-probabilities and weighs by their ratio",
        source="inferred",
    )
    implementation: Literal["auto", "reference", "triton"] = option(
        "auto", "which kernel runs the branch while beta is above 0; under torch.compile the compiler makes one"
    )

    @model_validator(mode="after")
    def _ends(self) -> AfaLoRAConfig:
        if self.schedule == "exponential" and self.cutoff_step is None:
            raise ValueError("an exponential schedule never reaches 0, so nothing could be merged; set cutoff_step")
        if self.schedule in ("linear", "cosine") and self.hold + self.rho > 1:
            raise ValueError(f"hold {self.hold:g} and rho {self.rho:g} are more than the whole training")
        if self.schedule == "warmup_cosine_patient" and self.warmup + self.patience > 1:
            raise ValueError(f"warmup {self.warmup:g} and patience {self.patience:g} are more than the whole training")
        return self

    @property
    def schedule_of_beta(self) -> Schedule:
        """Beta as a function of the step."""
        return Schedule(
            self.schedule, self.rho, self.hold, self.warmup, self.patience, self.decay, self.cutoff_step or 0
        )

    def fit(self, ctx: FitContext) -> list[Fit]:
        """As LoRA; a schedule that is over before it begins, or is cut short by the last step, is a warning."""
        answers = super().fit(ctx)
        steps = ctx.stage_options.get("steps")
        if isinstance(steps, int) and steps >= 1:
            schedule = self.schedule_of_beta
            _, end = schedule.span(steps)
            if end == 0:
                answers.append(Fit.warn(f"beta is 0 from the first of {steps} steps: this is plain LoRA"))
            elif self.schedule == "exponential" and self.cutoff_step != end:
                answers.append(Fit.warn(f"{steps} steps end before cutoff_step: beta is 0 in the last alone"))
            else:
                answers.append(Fit.yes(f"beta is 0 from step {end} of {steps}"))
        return answers

    def cost(self, work: Work) -> Cost:
        """As LoRA, and the blend of the inner activations."""
        cost = super().cost(work)
        passes = 4 if work.activation_checkpointing else 3
        inner = self.rank * len(planned_targets(work.model, self.targets)) * work.tokens * work.micro_batches
        return cost.model_copy(update={"flops": cost.flops + float(BLEND_FLOPS * passes * inner)})
