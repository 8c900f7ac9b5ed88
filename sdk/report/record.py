"""Gathers what is known about a run: its plan, every ledger entry of its folder, and the artifacts of its stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from stackloom import artifacts
from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.core.plan import Plan, PlannedStage
from stackloom.core.rows import EvidenceRow
from stackloom.report.measured import (
    EVALUATION,
    LAYERS,
    RESULT,
    REWRITES,
    Applied,
    Evaluation,
    Layer,
    Result,
    load,
)

if TYPE_CHECKING:
    from stackloom.registry import Registry
    from stackloom.registry import ledger as books

State: TypeAlias = Literal["finished", "damaged", "missing", "running", "interrupted", "failed", "not started"]
METERED = {
    "train",
    "transform",
    "evaluate",
    "quantize",
    "reinforce",
}  # stages that report a metric whenever they do any work


@dataclass(frozen=True)
class Series:
    """One metric by step."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Spent:
    """Time that a stage took over all attempts.

    Attributes:
        seconds: None where it was not measured.
        partial: an attempt ended without a word, so that it took longer than this.
        attempts: how many there were.
    """

    seconds: float | None = None
    partial: bool = False
    attempts: int = 0


@dataclass(frozen=True)
class StageRecord:
    """What is known about one stage.

    Attributes:
        problem: why its artifact cannot be used, or "".
        size: bytes of the artifact's files.
        series: its metrics by name.
        peak_bytes: the process's largest resident size when the stage ended; None where not measured.
        checkpoint: step of the newest checkpoint; None without one.
    """

    planned: PlannedStage
    name: str
    state: State
    problem: str
    artifact: artifacts.Artifact | None
    size: int
    series: dict[str, Series]
    spent: Spent
    peak_bytes: int | None
    checkpoint: int | None
    evaluation: Evaluation | None
    layers: tuple[Layer, ...]
    rewrites: tuple[Applied, ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """What is known about a run.

    Attributes:
        runs: entries of the ledger for this folder, the newest first; a resumed run has several.
        versions: of the packages that ran; empty where the run did not record them.
        evidence: about the plan's plugins, the newest row of each claim and scale.
        notes: what could not be read.
    """

    folder: Path
    plan: Plan
    runs: tuple[books.Run, ...]
    stages: tuple[StageRecord, ...]
    versions: dict[str, str]
    evidence: tuple[EvidenceRow, ...]
    notes: tuple[str, ...]


def read_run(folder: Path, registry: Registry) -> RunRecord:
    """Gather a run, whatever state it is in.

    Raises:
        ConfigError: the folder holds no run.
        ArtifactError: its plan is damaged.
    """
    path = folder / "plan.json"
    if not path.is_file():
        raise ConfigError("holds no plan.json, so no run", where=str(folder), fix="name the folder of a run")
    plan = Plan.from_file(path)
    runs = _runs_of(folder, plan, registry.ledger.runs())
    entries = [(run, registry.ledger.stages(run.id), registry.ledger.metrics(run.id)) for run in reversed(runs)]
    result, notes = _result(folder)
    return RunRecord(
        folder=folder,
        plan=plan,
        runs=tuple(runs),
        stages=tuple(_stage(folder, stage, entries, result) for stage in plan.stages),
        versions=result.versions,
        evidence=tuple(_evidence(plan, registry)),
        notes=notes,
    )


def _runs_of(folder: Path, plan: Plan, runs: Iterable[books.Run]) -> list[books.Run]:
    """Pick the entries of this folder; a relative path was relative to a working directory that may have changed."""
    here = folder.resolve()

    def same(path: Path) -> bool:
        return path.resolve() == here or (not path.is_absolute() and here.parts[-len(path.parts) :] == path.parts)

    return [run for run in runs if run.plan_digest == plan.digest and same(run.folder)]


def _result(folder: Path) -> tuple[Result, tuple[str, ...]]:
    path = folder / "run.json"
    if not path.is_file():
        return Result(), ()
    try:
        found: Result = load(path, RESULT)
    except ArtifactError as error:
        return Result(), (error.reason,)
    return found, ()


Entry: TypeAlias = "tuple[books.Run, list[books.Stage], list[books.Metric]]"


def _stage(folder: Path, planned: PlannedStage, entries: Sequence[Entry], result: Result) -> StageRecord:
    """Gather one stage; `entries` are the ledger's, the oldest first."""
    name, index = f"{planned.index}-{planned.kind}", planned.index
    attempts = [
        (run, stage, [metric for metric in metrics if metric.stage == index])
        for run, stages, metrics in entries
        for stage in stages
        if stage.position == index
    ]
    artifact, evaluation, layers, rewrites, problem = None, None, (), (), ""
    target = folder / name
    try:
        if target.exists():
            artifact = artifacts.read(target)
            if (path := target / "metrics.json").is_file():
                evaluation = load(path, EVALUATION)
            if (path := target / "layers.json").is_file():
                layers = load(path, LAYERS)
            if (path := target / "rewrites.json").is_file():
                rewrites = load(path, REWRITES)
    except ArtifactError as error:
        problem = error.reason
    checkpoint = _checkpoint(folder / f"{name}.work")
    spent = time_spent(planned.kind, [(stage, metrics) for _, stage, metrics in attempts])
    skipped = index >= len(result.seconds) or not result.seconds[index]
    if spent.seconds is None and not skipped:
        spent = Spent(result.seconds[index], attempts=1)
    return StageRecord(
        planned=planned,
        name=name,
        state="damaged" if problem else "finished" if artifact else _unfinished(attempts, checkpoint),
        problem=problem,
        artifact=artifact,
        size=sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) if artifact else 0,
        series=merged_metrics(metrics for _, _, metrics in attempts),
        spent=spent,
        peak_bytes=None if skipped or index >= len(result.peak_bytes) else result.peak_bytes[index] or None,
        checkpoint=checkpoint,
        evaluation=evaluation,
        layers=layers,
        rewrites=rewrites,
    )


def _unfinished(attempts: Sequence[tuple[books.Run, books.Stage, list[books.Metric]]], checkpoint: int | None) -> State:
    if not attempts:
        return "not started" if checkpoint is None else "interrupted"
    run, stage, _ = attempts[-1]
    if stage.status == "finished":
        return "missing"
    return run.status if run.status in ("running", "failed") else "interrupted"


def _checkpoint(folder: Path) -> int | None:
    steps = [path.name.removeprefix("step-") for path in folder.glob("step-*")]
    return max((int(step) for step in steps if step.isdecimal()), default=None)


def merged_metrics(attempts: Iterable[Iterable[books.Metric]]) -> dict[str, Series]:
    """Join the metrics of several attempts, the oldest first.

    An attempt that goes on from a checkpoint makes the steps after it anew: what an earlier attempt had reported from
    there on no longer belongs to the model.
    """
    merged: dict[str, dict[int, float]] = {}
    for metrics in attempts:
        found = list(metrics)
        if not found:
            continue
        first = min(metric.step for metric in found)
        merged = {
            name: {step: value for step, value in values.items() if step < first} for name, values in merged.items()
        }
        for metric in found:
            merged.setdefault(metric.name, {})[metric.step] = metric.value
    return {
        name: Series(*map(tuple, zip(*sorted(values.items()), strict=True)))
        for name, values in sorted(merged.items())
        if values
    }


def time_spent(kind: str, attempts: Sequence[tuple[books.Stage, list[books.Metric]]]) -> Spent:
    """Add up a stage's attempts, the oldest first; one that found the artifact and did no work does not count."""
    seconds, partial, count, done = 0.0, False, 0, False
    for stage, metrics in attempts:
        if not metrics and stage.finished and (done or kind in METERED):
            continue
        if done:  # its artifact was gone, and all was made anew
            seconds, partial, count = 0.0, False, 0
        begin = datetime.fromisoformat(stage.started).timestamp()
        end = datetime.fromisoformat(stage.finished).timestamp() if stage.finished else None
        last = max((metric.time for metric in metrics), default=begin)
        seconds += max(0.0, (last if end is None else end) - begin)
        partial, count, done = partial or end is None, count + 1, end is not None
    return Spent(seconds, partial, count) if seconds else Spent(attempts=count)


def _evidence(plan: Plan, registry: Registry) -> Iterable[EvidenceRow]:
    for plugin in sorted({part.plugin for part in plan.components()}):
        seen: set[tuple[str, str]] = set()
        for row in registry.evidence.rows(plugin):
            if (row.claim, row.scale) not in seen:
                seen.add((row.claim, row.scale))
                yield row
