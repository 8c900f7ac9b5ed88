"""What every worker of a stage does, and what it tells the process that started it; executors only launch it.

A job travels as JSON to the workers and events as JSON back, so that nothing but data crosses.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

from pydantic import BaseModel, ConfigDict

from stackloom.artifacts import read
from stackloom.core.catalogue import PluginRecord
from stackloom.core.errors import (
    ArtifactError,
    ConfigError,
    EngineError,
    ErrorGroup,
    FitError,
    PluginError,
    StackloomError,
    did_you_mean,
)
from stackloom.core.plan import Plan
from stackloom.run.context import StageContext

SHARED_STAGES = ("train",)  # stages whose module has `work(ctx, team)`; the others run in the driver
Send: TypeAlias = Callable[[str], None]


class Job(BaseModel):
    """One stage for several workers: what the driver's StageContext holds, as data.

    Attributes:
        run: id of the run.
        plan: the whole plan; each worker verifies its plugins.
        stage: number of the stage in it.
        key, folder, target: as in StageContext; every worker sees the same folders.
        lineage: folders of the artifacts that made the model so far.
        start: the folder that the plan's relative paths start from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    plan: Plan
    stage: int
    key: str
    folder: Path
    target: Path
    lineage: tuple[Path, ...]
    start: Path

    @classmethod
    def of(cls, ctx: StageContext) -> Self:
        """Return a stage's job."""
        return cls(
            run=ctx.run,
            plan=Plan.model_validate(ctx.plan.model_dump()),
            stage=ctx.stage.index,
            key=ctx.key,
            folder=ctx.folder,
            target=ctx.target,
            lineage=tuple(artifact.folder for artifact in ctx.lineage),
            start=Path.cwd(),
        )


class Installed:
    """The plugins that this process can import, read from their files and from no index. A `Catalogue`."""

    def __init__(self) -> None:
        from stackloom.registry import discover

        self._records = {record.id: record for record in discover().records}

    def get(self, plugin: str) -> PluginRecord:
        """Return a plugin's record.

        Raises:
            ConfigError: it is not installed here, or broken.
        """
        if plugin not in self._records:
            raise ConfigError("is not installed here", where=plugin, fix=did_you_mean(plugin, self._records))
        return self._records[plugin]

    def ids(self) -> list[str]:
        """All ids that can be asked for."""
        return sorted(self._records)


def work(job: Job, send: Send) -> None:
    """Do one worker's part of a stage. The default process group is there if it has company.

    Raises:
        ErrorGroup: plugins are not those of the plan; nothing of them was imported.
        ConfigError: the run's folder is not visible here.
    """
    import importlib

    import torch.distributed as dist

    from stackloom.run.team import Replicas, Shards, Solo

    for folder in (job.folder.parent, job.start):
        if not folder.is_dir():
            raise ConfigError(
                "this worker does not see the run's folder, or the one that it was started in",
                where=str(folder),
                fix="use folders on a file system that all machines share",
            )
    os.chdir(job.start)
    installed = Installed()
    job.plan.verify(installed)
    team = Solo()
    if dist.is_initialized() and dist.get_world_size() > 1:
        team = Replicas() if job.plan.resources.shard == "none" else Shards(job.plan.device.kind)
    told: dict[str, Any] = _reports(send) if team.rank == 0 else {}
    ctx = StageContext(
        run=job.run,
        plan=job.plan,
        stage=job.plan.stages[job.stage],
        key=job.key,
        folder=job.folder,
        target=job.target,
        lineage=tuple(read(folder) for folder in job.lineage),
        catalogue=installed,
        **told,
    )
    importlib.import_module(f"stackloom.run.{ctx.stage.kind}").work(ctx, team)
    send(_event("done", rank=team.rank, peak_bytes=peak_bytes()))


@contextmanager
def reporting(rank: int, send: Send) -> Iterator[None]:
    """Tell the driver about an error before it ends this worker."""
    try:
        yield
    except Exception as error:
        send(_event("failed", rank=rank, at=time.time(), error=_packed(error)))
        raise


def peak_bytes() -> int:
    """Return this process's largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reports(send: Send) -> dict[str, Any]:
    return {
        "metrics": lambda step, values: send(_event("metrics", step=step, values=values)),
        "progress": lambda step, steps, values: send(_event("progress", step=step, steps=steps, values=values)),
        "say": lambda line: send(_event("say", line=line)),
    }


def _event(kind: str, **fields: Any) -> str:
    return json.dumps({"event": kind} | fields)


@dataclass
class Inbox:
    """What the driver has heard from the workers of a stage; passes reports on as a single process would make them.

    Attributes:
        ctx: the driver's; gets metrics, progress and lines.
        done: workers that have finished.
        failures: (time, worker, its error) of each that has failed.
        peak_bytes: the largest resident size of a finished worker.
    """

    ctx: StageContext
    done: set[int] = field(default_factory=set)
    failures: list[tuple[float, int, StackloomError]] = field(default_factory=list)
    peak_bytes: int = 0
    _step: int = 0

    def take(self, text: str) -> None:
        """Take one event. A step that is repeated after a recovery has the same values and is recorded once."""
        event = json.loads(text)
        kind = event["event"]
        if kind == "metrics" and event["step"] > self._step:
            self._step = event["step"]
            self.ctx.metrics(event["step"], event["values"])
        elif kind == "progress":
            self.ctx.progress(event["step"], event["steps"], event["values"])
        elif kind == "say":
            self.ctx.say(event["line"])
        elif kind == "done":
            self.done.add(event["rank"])
            self.peak_bytes = max(self.peak_bytes, event["peak_bytes"])
        elif kind == "failed":
            self.failures.append((event["at"], event["rank"], self._named(event["rank"], event["error"])))

    def first_failure(self) -> StackloomError:
        """Return the earliest error: the others mostly say that their peer is gone."""
        return min(self.failures, key=lambda failure: failure[:2])[2]

    def lost(self, rank: int, cause: str, fix: str = "") -> FitError:
        """Return the error of a worker that said nothing before it was gone."""
        return FitError(
            f"{self._title(rank)} {cause}",
            where=f"stages[{self.ctx.stage.index}].{self.ctx.stage.kind}",
            fix=fix or f"`stackloom resume {self.ctx.target.parent}` goes on from the last checkpoint",
        )

    def _title(self, rank: int) -> str:
        return f"worker {rank} of {self.ctx.plan.resources.workers}"

    def _named(self, rank: int, packed: dict[str, Any]) -> StackloomError:
        error = _unpacked(packed)
        error.reason = f"{self._title(rank)}: {error.reason}"
        return error


_KINDS = {kind.__name__: kind for kind in (ConfigError, FitError, PluginError, ArtifactError, EngineError)}


def _packed(error: Exception) -> dict[str, Any]:
    """Write an error as data; one that nobody raised on purpose becomes an EngineError with its traceback."""
    if not isinstance(error, StackloomError):
        lines = str(error).strip().splitlines() or [""]
        text = "".join(traceback.format_exception(error))
        return {"kind": "EngineError", "reason": f"{type(error).__name__}: {lines[0]}", "traceback": text}
    kind = next(each.__name__ for each in type(error).__mro__ if each.__name__ in _KINDS or each is StackloomError)
    packed: dict[str, Any] = {"kind": kind, "reason": error.reason, "where": error.where, "fix": error.fix}
    if isinstance(error, ErrorGroup):
        packed["errors"] = [_packed(each) for each in error.errors]
    return packed


def _unpacked(packed: dict[str, Any]) -> StackloomError:
    if "errors" in packed:
        return ErrorGroup(map(_unpacked, packed["errors"]), packed["reason"])
    kind = _KINDS.get(packed["kind"], EngineError)
    error = kind(packed["reason"], where=packed.get("where", ""), fix=packed.get("fix", ""))
    if "traceback" in packed:
        error.add_note(packed["traceback"])
    return error
