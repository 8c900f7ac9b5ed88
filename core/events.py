"""What hooks are told: small frozen records, safe to keep and to write as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageEvent:
    """A stage begins or ends.

    Attributes:
        run: id of the run.
        index, kind: which stage of the plan.
        artifact: path of the stage's output once it has ended, else "".
        seconds: time spent, 0 at the start.
    """

    run: str
    index: int
    kind: str
    artifact: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Metric:
    """One measured value.

    Attributes:
        name: "loss", "tokens_per_second", ...
        value: finite or not; a NaN loss is reported as such.
        step: the stage's step it belongs to.
    """

    run: str
    stage: int
    step: int
    name: str
    value: float


@dataclass(frozen=True)
class Failure:
    """A run stops.

    Attributes:
        error: class name of the error.
        message: what the user is shown.
        acts: who should act (see core.errors).
    """

    run: str
    stage: int
    error: str
    message: str
    acts: str
    details: dict[str, Any] = field(default_factory=dict)
