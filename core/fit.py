"""Whether a component works in a given place, with a reason that a user can act on."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from stackloom.core.devices import Device
from stackloom.core.shapes import ModelShape

Severity: TypeAlias = Literal["info", "warning", "error"]


class Fit(BaseModel):
    """The answer of `config.fit(ctx)`.

    Attributes:
        ok: False stops the plan.
        reason: what was checked, or what is missing: "needs head_dim 128, got 96".
        severity: "error" exactly when not ok; "warning" for a fit that the user should know about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ok: bool
    reason: str = ""
    severity: Severity = "info"

    @classmethod
    def yes(cls, reason: str = "") -> Fit:
        """A fit without reservation."""
        return cls(ok=True, reason=reason)

    @classmethod
    def warn(cls, reason: str) -> Fit:
        """A fit with a reservation that the plan shows."""
        return cls(ok=True, reason=reason, severity="warning")

    @classmethod
    def no(cls, reason: str) -> Fit:
        """A misfit; `reason` says what would have to change."""
        return cls(ok=False, reason=reason, severity="error")


class FitContext(BaseModel):
    """What a component may look at when it judges whether it fits. No tensors, no files, no torch.

    Attributes:
        model: the shape of the model that reaches this stage.
        device: where the stage runs.
        dtype: compute dtype, a torch dtype name ("bfloat16").
        stage: "model" while the model is built, else the stage's kind ("train").
        stage_options: the stage's own resolved options, without its components.
        neighbours: ids of the other components of the same stage.
        workers: number of worker processes.
        shard: how they hold the model: "none" for whole copies, "fsdp" for parameter shards.
    """

    model_config = ConfigDict(frozen=True)

    model: ModelShape
    device: Device
    dtype: str
    stage: str
    stage_options: dict[str, object] = Field(default_factory=dict)
    neighbours: tuple[str, ...] = ()
    workers: int = 1
    shard: str = "none"
