"""What a run ended with: one number to compare runs by, and all that its last evaluation measured."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from stackloom.report.measured import Estimate
from stackloom.report.page import estimate, number
from stackloom.report.record import RunRecord, StageRecord

LOSS, ABOVE, NLL, PASSED = "final loss", "nats above float", "nats per token", "pass rate"
NOTES = {
    LOSS: "mean training loss over the last tenth of the last train stage's steps",
    ABOVE: "held-out loss per token above that of the float model, 95 % interval",
    NLL: "held-out loss per token",
    PASSED: "share of tasks solved, 95 % interval",
}


@dataclass(frozen=True)
class Ending:
    """The number that runs of one stack are compared by.

    Attributes:
        measure: its name, a key of `NOTES`.
        value: finite.
        interval: 95 per cent, or None.
        better: which way.
    """

    measure: str
    value: float
    interval: tuple[float, float] | None = None
    better: Literal["lower", "higher"] = "lower"

    @property
    def rank(self) -> float:
        """Lower is better."""
        return self.value if self.better == "lower" else -self.value

    def __str__(self) -> str:
        if self.interval is None:
            return number(self.value)
        return f"{number(self.value)} ({' to '.join(map(number, self.interval))})"


def ending(run: RunRecord) -> Ending | None:
    """Return the training loss of a run that trains, else what its last evaluation measured; None until it finished."""
    trained = _last(run, "train")
    if trained is not None:
        if trained.state != "finished" or "loss" not in trained.series:
            return None
        values = trained.series["loss"].values
        last = values[-max(1, len(values) // 10) :]
        return Ending(LOSS, math.fsum(last) / len(last))
    found = evaluated(run)
    evaluation = found.evaluation if found else None
    if evaluation is None:
        return None
    against = evaluation.against_float.nll_difference if evaluation.against_float else None
    if against is not None and against.value is not None:
        return Ending(ABOVE, against.value, against.interval)
    if evaluation.perplexity is not None and evaluation.perplexity.value is not None:
        return Ending(NLL, math.log(evaluation.perplexity.value))
    rate = evaluation.pass_rate
    return Ending(PASSED, rate.value, rate.interval, "higher") if rate and rate.value is not None else None


def evaluated(run: RunRecord) -> StageRecord | None:
    """Return the last evaluate stage that finished."""
    return next((s for s in reversed(run.stages) if s.planned.kind == "evaluate" and s.state == "finished"), None)


def columns(run: RunRecord) -> dict[str, str]:
    """Return what the last evaluation and quantization measured, as text by name; nothing of what was not measured."""
    stage, found = evaluated(run), {}
    if stage is not None and (evaluation := stage.evaluation) is not None:
        if evaluation.perplexity is not None:
            found["perplexity"] = number(evaluation.perplexity.value)
        if against := evaluation.against_float:
            found[ABOVE] = _interval(against.nll_difference)
            found["KL to float"] = number(against.kl.value if against.kl else None)
        if evaluation.cloze is not None:
            found["multiple choice"] = estimate(evaluation.cloze)
        if evaluation.pass_rate is not None:
            found[PASSED] = estimate(evaluation.pass_rate)
    if (quantized := _last(run, "quantize")) is not None and quantized.layers:
        before, after = (
            sum(getattr(layer, f"bytes_{when}") for layer in quantized.layers) for when in ("before", "after")
        )
        found["bytes of the layers"] = f"{after / before:.0%}"
        if quantized.spent.seconds is not None:
            found["seconds to quantize"] = number(quantized.spent.seconds, 3)
    return found


def titles(measured: Iterable[Mapping[str, str]], shown: Container[str]) -> list[str]:
    """Return the names of all that runs measured, in order, but for what is shown already."""
    return [name for name in dict.fromkeys(key for each in measured for key in each) if name not in shown]


def _interval(value: Estimate | None) -> str:
    return "-" if value is None or value.value is None else str(Ending(ABOVE, value.value, value.interval))


def _last(run: RunRecord, kind: str) -> StageRecord | None:
    return next((stage for stage in reversed(run.stages) if stage.planned.kind == kind), None)
