"""Turns the record of a run into its page: what to say in which words and numbers; the template says where."""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stackloom.core.plan import gib
from stackloom.core.statistics import paired_difference
from stackloom.plan_table import adds, count, duration
from stackloom.report import plots
from stackloom.report.measured import Applied, Estimate, Evaluation, Transcript
from stackloom.report.record import RunRecord, Series, Spent, StageRecord

NOT_MEASURED = "not measured"
NBSP = "\N{NO-BREAK SPACE}"
PACKAGES = ("stackloom", "torch", "transformers")
TRANSCRIPTS = 6
MAX_TEXT = 4000  # characters of one message
# Titles and units of the metrics that stages report; others are shown under their own name.
TITLES = {
    "loss": ("Loss", "mean negative log-likelihood per trained token"),
    "lr": ("Learning rate", "of the first parameter group"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "tokens_per_second": ("Throughput", "tokens per second"),
    "reward": ("Reward", "mean over the step's attempts"),
    "output_change": ("Change of the logits by transforms", "share of the largest logit, at the steps that rewrite"),
    "rewritten": ("Places rewritten by transforms", "at the steps that rewrite"),
}
SMOOTHED = {"loss", "grad_norm", "tokens_per_second", "reward"}
FACTS = {"epoch"}  # metrics that are no curve


@dataclass(frozen=True)
class Plot:
    """A drawing with its words; `alt` says what it shows to whoever cannot see it."""

    id: str
    title: str
    note: str
    alt: str
    svg: Markup


@dataclass(frozen=True)
class Difference:
    """Two evaluate stages of the same tasks: the second minus the first pass rate.

    Attributes:
        alike: whether both name the same environment with the same options; tasks are matched by id in any case.
    """

    first: StageRecord
    second: StageRecord
    change: Estimate
    alike: bool


def render(run: RunRecord) -> str:
    """Return the whole page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "gib": size,
        "count": lambda value: NOT_MEASURED if value is None else count(value),
        "number": number,
        "percent": percent,
        "estimate": estimate,
        "around": around,
        "change": change,
        "when": when,
        "spent": spent,
        "expected": expected,
        "whole": whole,
        "span": lambda value: span(value) or NOT_MEASURED,
        "cut": cut,
        "places": places,
        "adds": adds,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
    }
    compared = list(differences(run))
    return environment.get_template("report.html.tmpl").render(
        run=run,
        plan=run.plan,
        status=_status(run),
        missing=list(_missing(run)),
        results={stage.name: headline(stage) for stage in run.stages},
        versions=run.versions or _installed(),
        configuration=_yaml(run.plan.stack),
        resolved=_yaml({part.path: {"use": part.plugin, **_plain(part.options)} for part in run.plan.components()}),
        curves={stage.name: list(curves(stage)) for stage in run.stages},
        facts={stage.name: _facts(stage) for stage in run.stages},
        layers={stage.name: list(_layer_plots(stage)) for stage in run.stages},
        transcripts={stage.name: _chosen(stage.evaluation) for stage in run.stages if stage.evaluation},
        differences=compared,
        difference_plot=_difference_plot(compared),
        claims=_claims(run),
        command=f"stackloom resume {shlex.quote(str(run.folder))}",
    )


def number(value: float | None, digits: int = 4) -> str:
    """Write a number for people; what is no number was not measured."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}".replace("-", "−")


def size(value: float | None) -> str:
    """Write bytes for people."""
    return NOT_MEASURED if value is None else gib(value)


def percent(value: float | None) -> str:
    """Write a share as a percentage."""
    return NOT_MEASURED if value is None or not math.isfinite(value) else f"{100 * value:.1f}{NBSP}%"


def estimate(value: Estimate | None) -> str:
    """Write a pass rate with its interval: "87.0 % (79.0 to 92.3 %)"."""
    if value is None or value.value is None:
        return NOT_MEASURED
    return f"{percent(value.value)} ({span(value) or f'interval {NOT_MEASURED}'})"


def span(value: Estimate) -> str:
    """Write the interval of a pass rate."""
    return f"{100 * value.interval[0]:.1f} to {percent(value.interval[1])}" if value.interval else ""


def around(value: Estimate | None) -> str:
    """Write a mean with its interval: "0.5116 (0.4774 to 0.5457)"."""
    if value is None or value.value is None:
        return NOT_MEASURED
    low_high = [number(bound) for bound in value.interval or ()]
    return f"{number(value.value)} ({' to '.join(low_high) or f'interval {NOT_MEASURED}'})"


def change(value: Estimate) -> str:
    """Write a difference of pass rates in percentage points with its interval: "+5.0 (−1.2 to +11.2)"."""
    if value.value is None:
        return NOT_MEASURED
    low_high = [f"{100 * bound:+.1f}" for bound in value.interval or ()]
    return f"{100 * value.value:+.1f} ({' to '.join(low_high) or f'interval {NOT_MEASURED}'})".replace("-", "−")


def expected(stage: StageRecord) -> str:
    """Write a stage's planned time; one whose work is unknown has none."""
    if stage.planned.seconds is None:
        return "not estimated"
    return duration(stage.planned.seconds) if stage.planned.seconds >= 1e-3 else "under 1 ms"


def whole(value: int | None) -> str:
    """Write a count with its thousands apart."""
    return NOT_MEASURED if value is None else f"{value:,}"


def when(instant: str | None) -> str:
    """Write an ISO 8601 instant to the second, in UTC."""
    return f"{datetime.fromisoformat(instant).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if instant else "not recorded"


def spent(value: Spent) -> str:
    """Write how long a stage took."""
    if value.seconds is None:
        return NOT_MEASURED
    text = f"at least {duration(value.seconds)}" if value.partial else duration(value.seconds)
    return f"{text} in {value.attempts} attempts" if value.attempts > 1 else text


def cut(text: str | None) -> str:
    """Shorten a text that would fill the page, and say so."""
    text = text or ""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ... and {len(text) - MAX_TEXT:,} more characters"


def _status(run: RunRecord) -> str:
    if all(stage.state == "finished" for stage in run.stages):
        return "finished"
    if any(stage.state in ("damaged", "missing") for stage in run.stages):
        return "damaged"
    if not run.runs:
        return "not finished"
    return run.runs[0].status if run.runs[0].status != "finished" else "not finished"


def _missing(run: RunRecord) -> Iterator[str]:
    for stage in run.stages:
        name = f"Stage {stage.planned.index} ({stage.planned.kind})"
        if stage.state == "damaged":
            yield f"{name} is damaged: {stage.problem}."
        elif stage.state == "missing":
            yield f"{name} was finished, but its artifact is gone."
        elif stage.state == "not started":
            yield f"{name} was not started."
        elif stage.state != "finished":
            steps = stage.planned.options.get("steps")
            total = f" of {steps}" if isinstance(steps, int) else ""
            at = "there is no checkpoint" if stage.checkpoint is None else f"last checkpoint at step {stage.checkpoint}"
            yield f"{name} {'is still running' if stage.state == 'running' else stage.state}: {at}{total}."
    if not run.runs:
        yield "The ledger does not know this run: no times and no metrics by step."
    yield from (f"{note}." for note in run.notes)


def headline(stage: StageRecord) -> str:
    """Return a stage's result in a few words."""
    parts = []
    if (loss := stage.series.get("loss")) is not None:
        parts.append(f"loss {number(loss.values[0])} to {number(loss.values[-1])}")
    if (found := stage.evaluation) is not None:
        if found.pass_rate:
            parts.append(f"pass rate {estimate(found.pass_rate)}")
        if found.perplexity:
            parts.append(f"perplexity {number(found.perplexity.value)}")
        if found.against_float and found.against_float.kl:
            parts.append(f"KL to the float model {number(found.against_float.kl.value)}")
        if found.cloze:
            parts.append(f"multiple choice {estimate(found.cloze)}")
    if stage.layers:
        before, after = totals(stage)
        parts.append(f"{len(stage.layers)} layers, {gib(before)} to {gib(after)}")
    for one in stage.rewrites:
        parts.append(f"{one.plugin}: {places(one)} places, logits changed by {number(one.change, 2)}")
    return "; ".join(parts) or ("-" if stage.state == "finished" else NOT_MEASURED)


def places(applied: Applied) -> int:
    """Count what a transform rewrote."""
    return sum(not rewrite.skipped for rewrite in applied.rewrites)


def totals(stage: StageRecord) -> tuple[int, int]:
    """Return the bytes of a quantize stage's layers (before, after)."""
    return sum(layer.bytes_before for layer in stage.layers), sum(layer.bytes_after for layer in stage.layers)


def curves(stage: StageRecord) -> Iterator[Plot]:
    """Draw a stage's metrics by step, the known ones first; a metric of a single step is no curve."""
    if stage.planned.kind in ("evaluate", "quantize", "transform"):
        return
    order = [*(name for name in TITLES if name in stage.series), *sorted(stage.series.keys() - TITLES.keys() - FACTS)]
    for place, name in enumerate(order):
        series = stage.series[name]
        points = zip(series.steps, series.values, strict=True)
        finite = [(step, value) for step, value in points if math.isfinite(value)]
        if len(finite) < 2:
            continue
        title, note = TITLES.get(name, (name, ""))
        window = min(50, max(3, len(finite) // 20)) if name in SMOOTHED and len(finite) > 3 else 0
        low, high = (choose(finite, key=lambda pair: pair[1]) for choose in (min, max))
        alt = (
            f"{title} by step: {number(finite[0][1])} at step {finite[0][0]}, {number(finite[-1][1])} at step "
            f"{finite[-1][0]}; lowest {number(low[1])} at step {low[0]}, highest {number(high[1])} at step {high[0]}."
        )
        key = f"stage{stage.planned.index}-curve{place}"
        shown = Series(*zip(*finite, strict=True))
        yield Plot(key, title, note, alt, plots.curve(key, shown, smooth=window))


def _facts(stage: StageRecord) -> dict[str, str]:
    """Say in numbers what a train stage's curves show."""
    series = stage.series
    facts = {}
    if loss := series.get("loss"):
        facts["Steps done"] = f"{loss.steps[-1]:,} of {stage.planned.options.get('steps', '?')}"
        facts["Last loss"] = number(loss.values[-1])
        facts["Lowest loss"] = number(min((value for value in loss.values if math.isfinite(value)), default=math.nan))
    if (epoch := series.get("epoch")) is not None:
        facts["Epochs"] = number(epoch.values[-1], 3)
    if (speed := series.get("tokens_per_second")) is not None:
        finite = sorted(value for value in speed.values if math.isfinite(value))
        facts["Median throughput"] = f"{number(finite[len(finite) // 2])} tokens/s" if finite else NOT_MEASURED
    return facts


def _layer_plots(stage: StageRecord) -> Iterator[Plot]:
    """Draw what quantization did layer by layer; what was not measured is left out."""
    drawn = (
        ("snr", "Signal-to-noise ratio by layer", "of the weights, in decibels; higher is nearer to the original", "dB",
         [layer.snr_db for layer in stage.layers]),
        ("range", "Input range by layer", "largest magnitude in calibration, before any equalization", "magnitude",
         [layer.activation_range for layer in stage.layers]),
        ("error", "Output error by layer", "squared, as a share of the output's square, on calibration inputs", "share",
         [layer.output_error for layer in stage.layers]),
    )  # fmt: skip
    for name, title, note, up, found in drawn:
        values = [math.nan if value is None else value for value in found]
        finite = [place for place, value in enumerate(values) if math.isfinite(value)]
        if not finite:
            continue
        least, most = (choose(finite, key=values.__getitem__) for choose in (min, max))
        key = f"stage{stage.planned.index}-{name}"
        alt = (
            f"{title}, {len(values)} layers: from {number(values[least])} {up} in layer {least}, "
            f"{stage.layers[least].name}, to {number(values[most])} in layer {most}, {stage.layers[most].name}."
        )
        lowest = name == "snr"
        yield Plot(key, title, note, alt, plots.dots(key, values, across="layer", up=up, lowest=lowest))


def _chosen(found: Evaluation) -> list[tuple[Transcript, str]]:
    """Pick a few transcripts with their verdicts, failures first: they teach more."""

    def verdict(transcript: Transcript) -> str:
        task = found.tasks.get(transcript.task)
        return NOT_MEASURED if task is None else "masked" if not task.valid else "passed" if task.passed else "failed"

    judged = [(transcript, verdict(transcript)) for transcript in found.transcripts]
    failed = [pair for pair in judged if pair[1] == "failed"]
    others = [pair for pair in judged if pair[1] != "failed"]
    enough = failed[: max(TRANSCRIPTS // 2, TRANSCRIPTS - len(others))]
    return [*enough, *others[: TRANSCRIPTS - len(enough)]]


def differences(run: RunRecord) -> Iterator[Difference]:
    """Compare each evaluate stage with the first and with the one before it, on the tasks that both attempted."""
    stages = [stage for stage in run.stages if stage.evaluation and stage.evaluation.tasks]
    pairs = [(stages[0], stage) for stage in stages[1:]] + list(itertools.pairwise(stages[1:])) if stages else []
    if not pairs:
        return
    for first, second in pairs:
        one, two = (
            {name: task.model_dump() for name, task in stage.evaluation.tasks.items()}
            for stage in (first, second)
            if stage.evaluation
        )
        found = Estimate.model_validate(paired_difference(one, two))
        if found.count:
            yield Difference(first, second, found, _environment(first) == _environment(second))


def _environment(stage: StageRecord) -> list[Any]:
    path = f"stages[{stage.planned.index}].{stage.planned.kind}.environment"
    split = stage.planned.options.get("split")
    return [split, *((part.plugin, part.options) for part in stage.planned.components if part.path == path)]


def _difference_plot(found: Sequence[Difference]) -> Plot | None:
    rows = [
        (
            f"{pair.first.planned.index} to {pair.second.planned.index}",
            100 * pair.change.value,
            (100 * pair.change.interval[0], 100 * pair.change.interval[1]) if pair.change.interval else None,
        )
        for pair in found
        if pair.change.value is not None
    ]
    if not rows:
        return None
    said = "; ".join(
        f"stage {pair.first.planned.index} to stage {pair.second.planned.index}: {change(pair.change)}"
        for pair in found
    )
    return Plot(
        "differences",
        "Change of the pass rate between stages",
        "dot: difference; bar: 95 per cent interval",
        f"Paired difference of the pass rate, {said}.",
        plots.intervals("differences", rows, across="percentage points", zero=True),
    )


def _claims(run: RunRecord) -> list[tuple[Any, bool]]:
    """Return each evidence row with whether it was measured with the very plugin that the plan names."""
    parts = {part.plugin: part for part in run.plan.components()}
    found = []
    for row in run.evidence:
        part = parts[row.plugin]
        same = row.versions.get(part.distribution, part.version) == part.version
        found.append((row, same and row.versions.get(part.plugin, part.digest) == part.digest))
    return found


def _installed() -> dict[str, str]:
    import platform

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _plain(value: Any) -> Any:
    """Return options with nested references spelled as a stack spells them."""
    if isinstance(value, dict):
        if value.keys() == {"use", "options"}:
            return {"use": value["use"], **_plain(value["options"])}
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip()
