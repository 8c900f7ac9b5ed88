"""Runs a plan: takes the folder's lock, skips what is done, runs the rest, keeps the ledger, writes the report."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import importlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from stackloom.artifacts import Artifact, read
from stackloom.core.errors import ArtifactError, ConfigError, ErrorGroup, FitError, did_you_mean
from stackloom.core.events import Failure, Metric, StageEvent
from stackloom.core.hooks import hook_manager
from stackloom.core.plan import Plan, PlannedStage
from stackloom.registry import Registry
from stackloom.run.context import StageContext, build, describe
from stackloom.run.memory import release_heap
from stackloom.run.workers import SHARED_STAGES, peak_bytes

PLAN_FILE, LOCK_FILE, RESULT_FILE = "plan.json", ".lock", "run.json"
MODEL_KINDS = ("model", "adapter", "quantized")
EXECUTORS = {"local": "stackloom.run.local_executor", "ray": "stackloom.run.ray_executor"}
KNOWN = "known executors: local, ray"
Launch: TypeAlias = Callable[[StageContext], tuple[Artifact, int]]


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
        peak_bytes: per stage, the largest resident size so far of this process or of a worker.
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


def run(
    plan: Plan,
    registry: Registry,
    *,
    folder: Path | None = None,
    display: Display | None = None,
    executor: str = "local",
    address: str | None = None,
) -> Run:
    """Run a plan, or go on with it where it stopped.

    Args:
        plan: a plan without problems.
        registry: where plugins are found and the run is recorded.
        folder: for everything it makes; runs/<name>-<digest> if absent.
        display: what the user watches.
        executor: who starts the workers of a stage: "local" or "ray".
        address: of a Ray cluster; None starts one on this machine.

    Raises:
        FitError: the plan has problems, or a worker was lost.
        ConfigError: plugins changed since it was made, requirements are missing, the folder holds another plan or
            another process runs in it; or the executor cannot be used.
    """
    check(plan, registry, executor, address)
    folder, display = (folder or default_folder(plan)).resolve(), display or Display()
    with locked(folder):
        _claim(folder, plan)
        identity = registry.ledger.begin(plan.name, plan.model_dump(mode="json"), plan.digest, folder)
        made = Run(identity, folder, plan)
        try:
            with listening(plan, registry, folder) as listeners:
                _stages(made, registry, display, listeners, _launcher(plan, executor, address))
        except BaseException as error:
            if isinstance(error, Exception):
                registry.ledger.finish(identity, "failed", f"{type(error).__name__}: {error}")
            else:
                registry.ledger.finish(identity, "interrupted")
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


def check(plan: Plan, registry: Registry, executor: str = "local", address: str | None = None) -> None:
    """Refuse a plan that cannot run here."""
    if executor not in EXECUTORS:
        raise ConfigError(
            f"unknown executor {executor!r}", where="executor", fix=did_you_mean(executor, EXECUTORS, otherwise=KNOWN)
        )
    if address is not None and executor != "ray":
        raise ConfigError("only executor ray has an address", where="address", fix="leave it out, or use executor ray")
    if executor == "ray" and find_spec("ray") is None:
        raise ConfigError("ray is not installed", where="executor", fix="pip install 'stackloom[ray]'")
    if problems := plan.problems():
        raise problems[0] if len(problems) == 1 else ErrorGroup(problems, f"{plan.name}: this stack cannot work")
    plan.verify(registry)
    if missing := plan.missing():
        raise ConfigError("; ".join(missing), where=plan.name)
    if plan.device.kind == "cuda" and executor == "local":
        import torch

        if (found := torch.cuda.device_count()) < plan.resources.workers:
            raise FitError(
                f"planned for {plan.resources.workers} x {plan.device.title}, and torch finds {found or 'no'} GPU here",
                where="resources.device",
                fix="plan with --device cpu, fewer workers, or run with executor ray",
            )


def _launcher(plan: Plan, executor: str, address: str | None) -> Launch:
    """Return what runs a stage and returns its artifact and the largest resident size of a process that made it."""

    def launch(ctx: StageContext) -> tuple[Artifact, int]:
        shared = ctx.stage.kind in SHARED_STAGES
        if shared and (executor != "local" or plan.resources.workers > 1):
            workers: int = importlib.import_module(EXECUTORS[executor]).launch(ctx, address)
            return read(ctx.target), max(workers, peak_bytes())
        return importlib.import_module(f"stackloom.run.{ctx.stage.kind}").run(ctx), peak_bytes()

    return launch


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


def _stages(made: Run, registry: Registry, display: Display, listeners: dict[str, Any], launch: Launch) -> None:
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
                artifact, peak = launch(ctx)
            except Exception as error:
                hooks.on_error(failure=Failure(run=made.id, stage=stage.index, **describe(error)))
                raise
            seconds = time.monotonic() - started
            hooks.on_stage_end(event=StageEvent(made.id, stage.index, stage.kind, str(target), seconds))
            display.stage(stage.index, stage.kind, "done", seconds)
        else:
            seconds, peak = 0.0, peak_bytes()
            display.stage(stage.index, stage.kind, "skipped")
        gc.collect()  # a stage's peak must not add to the next one's
        release_heap()
        made.stages.append(artifact)
        made.seconds.append(seconds)
        made.peak_bytes.append(peak)
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
