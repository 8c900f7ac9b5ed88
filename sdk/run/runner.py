"""Runs a plan: takes the folder's lock, skips what is done, runs the rest, keeps the ledger, writes the report."""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stackloom.artifacts import Artifact, read
from stackloom.core.errors import ArtifactError, ConfigError, ErrorGroup, FitError
from stackloom.core.events import Failure, Metric, StageEvent
from stackloom.core.hooks import hook_manager
from stackloom.core.plan import Plan, PlannedStage
from stackloom.registry import Registry
from stackloom.run.context import StageContext, build, describe

PLAN_FILE, LOCK_FILE, RESULT_FILE = "plan.json", ".lock", "run.json"
MODEL_KINDS = ("model", "adapter", "quantized")


class Display:
    """What a user watches; this one is silent. The command line gives one that draws."""

    def stage(self, index: int, kind: str, state: str, seconds: float = 0.0) -> None:
        """A stage is "running", "done" or "skipped"."""

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """A step of the running stage is done."""

    def say(self, line: str) -> None:
        """Something happened that the user should know."""


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: everything that it made.
        stages: per stage its artifact, in order.
        seconds: per stage, 0 where it was skipped.
        peak_bytes: per stage, the process's largest resident size so far.
    """

    id: str
    folder: Path
    plan: Plan
    stages: list[Artifact] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)

    def metrics(self, index: int) -> dict[str, Any]:
        """Return what an evaluate stage measured.

        Raises:
            ConfigError: the stage measured nothing.
        """
        path = self.stages[index].folder / "metrics.json"
        if not path.is_file():
            raise ConfigError(f"stage {index} is no evaluate stage", where=str(self.folder))
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def default_folder(plan: Plan) -> Path:
    """Return runs/<name>-<digest>, the same for the same plan."""
    return Path("runs") / f"{plan.name}-{plan.digest[:8]}"


def run(plan: Plan, registry: Registry, *, folder: Path | None = None, display: Display | None = None) -> Run:
    """Run a plan, or go on with it where it stopped.

    Args:
        plan: a plan without problems.
        registry: where plugins are found and the run is recorded.
        folder: for everything it makes; runs/<name>-<digest> if absent.
        display: what the user watches.

    Raises:
        FitError: the plan has problems.
        ConfigError: plugins changed since it was made, requirements are missing, the folder holds another plan or
            another process runs in it.
    """
    check(plan, registry)
    folder, display = (folder or default_folder(plan)).resolve(), display or Display()
    with locked(folder):
        _claim(folder, plan)
        identity = registry.ledger.begin(plan.name, plan.model_dump(mode="json"), plan.digest, folder)
        made = Run(identity, folder, plan)
        try:
            with listening(plan, registry, folder) as listeners:
                _stages(made, registry, display, listeners)
        except BaseException as error:
            stopped = not isinstance(error, Exception)
            registry.ledger.finish(identity, "interrupted" if stopped else "failed")
            raise
        registry.ledger.finish(identity)
    return made


@contextmanager
def listening(plan: Plan, registry: Registry, folder: Path) -> Iterator[dict[str, Any]]:
    """Build the stack's trackers, by the path under which the stack names them, and close them at the end."""
    listeners: dict[str, Any] = {}
    try:
        for part in plan.trackers:
            listeners[part.path] = build(registry, part, folder)
        yield listeners
    finally:
        for listener in listeners.values():
            listener.close()


def check(plan: Plan, registry: Registry) -> None:
    """Refuse a plan that cannot run here."""
    if problems := plan.problems():
        raise problems[0] if len(problems) == 1 else ErrorGroup(problems, f"{plan.name}: this stack cannot work")
    plan.verify(registry)
    if missing := plan.missing():
        raise ConfigError("; ".join(missing), where=plan.name)
    if plan.resources.workers > 1 or plan.resources.shard != "none":
        raise FitError(
            "several workers and shards can be planned, not run yet",
            where="resources",
            fix="run with workers: 1 and shard: none",
        )
    if plan.device.kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise FitError(
                f"planned for {plan.device.title}, and torch finds no GPU here",
                where="resources.device",
                fix="plan with --device cpu",
            )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which a dying process releases.

    Raises:
        ConfigError: another process holds it.
        ArtifactError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a+")
    except OSError as cause:
        raise ArtifactError(f"cannot be written: {cause.strerror}", where=str(folder)) from cause
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ConfigError(
                f"process {file.read().strip() or '?'} is running in it",
                where=str(folder),
                fix="wait for it, or name another folder",
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def _claim(folder: Path, plan: Plan) -> None:
    path = folder / PLAN_FILE
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(plan.to_json(), encoding="utf-8")
        os.replace(temporary, path)
    elif (other := Plan.from_file(path)).digest != plan.digest:
        raise ConfigError(
            f"holds the run of another plan ({other.name}, {other.digest[:8]})",
            where=str(folder),
            fix="name another folder",
        )


def holds(folder: Path, plan: Plan) -> bool:
    """Whether a folder is a run of this plan, begun or finished."""
    path = folder / PLAN_FILE
    return path.is_file() and Plan.from_file(path).digest == plan.digest


def stage_key(plan: Plan, stage: PlannedStage, before: str) -> str:
    """Return the content address of a stage: its options, components, seed, resources, and the key of what it gets."""
    content = stage.model_dump(mode="json", include={"kind", "seed", "options"})
    content["components"] = [
        part.model_dump(mode="json", include={"plugin", "distribution", "version", "digest", "options"})
        for part in stage.components
    ]
    content["model"] = [part.model_dump(mode="json", include={"plugin", "digest", "options"}) for part in plan.model]
    content |= {
        "device": plan.device.kind,
        "resources": plan.resources.model_dump(mode="json", exclude={"device"}),
        "before": before,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stages(made: Run, registry: Registry, display: Display, listeners: dict[str, Any]) -> None:
    plan, lineage, before = made.plan, list[Artifact](), ""
    hooks = hook_manager(listeners).hook
    hooks.on_plan(plan=plan)
    for stage in plan.stages:
        key = stage_key(plan, stage, before)
        name = f"{stage.index}-{stage.kind}"
        target = made.folder / name
        started = time.monotonic()
        registry.ledger.begin_stage(made.id, stage.index, stage.kind, key)
        artifact = _finished(target, key)
        if artifact is None:
            display.stage(stage.index, stage.kind, "running")
            hooks.on_stage_start(event=StageEvent(made.id, stage.index, stage.kind))
            ctx = StageContext(
                run=made.id,
                plan=plan,
                stage=stage,
                key=key,
                folder=made.folder / f"{name}.work",
                target=target,
                lineage=tuple(lineage),
                catalogue=registry,
                metrics=_recorder(registry, hooks, made.id, stage.index),
                progress=display.progress,
                say=display.say,
            )
            try:
                artifact = importlib.import_module(f"stackloom.run.{stage.kind}").run(ctx)
            except Exception as error:
                hooks.on_error(failure=Failure(run=made.id, stage=stage.index, **describe(error)))
                raise
            seconds = time.monotonic() - started
            hooks.on_stage_end(event=StageEvent(made.id, stage.index, stage.kind, str(target), seconds))
            display.stage(stage.index, stage.kind, "done", seconds)
        else:
            seconds = 0.0
            display.stage(stage.index, stage.kind, "skipped")
        made.stages.append(artifact)
        made.seconds.append(seconds)
        made.peak_bytes.append(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        )
        _record(made)
        registry.ledger.finish_stage(made.id, stage.index)
        if artifact.card.kind in MODEL_KINDS:
            lineage.append(artifact)
        before = key


def _record(made: Run) -> None:
    """Write what the run measured of itself; a skipped stage keeps what it measured when it ran."""
    path = made.folder / RESULT_FILE
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"seconds": [], "peak_bytes": []}
    for name, now in (("seconds", made.seconds), ("peak_bytes", made.peak_bytes)):
        kept = earlier[name]
        for index, (value, seconds) in enumerate(zip(now, made.seconds, strict=True)):
            if index >= len(kept):
                kept.append(value)
            elif seconds:
                kept[index] = value
    used = {"stackloom", "torch", "transformers", *(part.distribution for part in made.plan.components())}
    earlier["versions"] = {"python": platform.python_version()} | {name: version(name) for name in sorted(used)}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(earlier, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def _finished(target: Path, key: str) -> Artifact | None:
    """Return the stage's artifact if it is whole and of this very stage.

    Raises:
        ArtifactError: it is there and damaged; nothing is thrown away behind the user's back.
    """
    if not target.exists():
        return None
    artifact = read(target)
    if artifact.card.key != key:
        raise ArtifactError("was made by another plan", where=str(target), fix="name another run folder")
    return artifact


def _recorder(registry: Registry, hooks: Any, run: str, stage: int) -> Callable[[int, dict[str, float]], None]:
    """Keep a step's values in one transaction, then tell every tracker."""

    def record(step: int, values: dict[str, float]) -> None:
        registry.ledger.record_metrics(run, stage, step, values)
        for name, value in values.items():
            hooks.on_metric(metric=Metric(run, stage, step, name, value))

    return record
