"""The run ledger: which plan ran when, what each stage gave, and its metrics. Every call is one transaction."""

from __future__ import annotations

import json
import math
import os
import platform
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from stackloom.core.errors import ConfigError, EngineError, did_you_mean

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from stackloom.registry.storage import Store

Status: TypeAlias = Literal["running", "finished", "failed", "interrupted", "skipped"]
MAX_FAILURE = 4000  # characters
_RUN = "id, name, plan_digest, status, created, finished, folder, failure, host, pid"


@dataclass(frozen=True)
class Run:
    """One run of a plan. `interrupted` also stands for a process of this machine that is gone without a word.

    Attributes:
        failure: what stopped a failed run, type and message; empty otherwise.
    """

    id: str
    name: str
    plan_digest: str
    status: Status
    created: str
    finished: str | None
    folder: Path
    failure: str = ""


@dataclass(frozen=True)
class Stage:
    """One stage of a run; `key` is the content address that lets another run skip it."""

    position: int
    kind: str
    status: Status
    key: str
    started: str
    finished: str | None


@dataclass(frozen=True)
class Artifact:
    """What a stage gave."""

    stage: int
    digest: str
    kind: str
    path: Path


@dataclass(frozen=True)
class Metric:
    """One number of one step; `time` in seconds since 1970."""

    stage: int
    step: int
    name: str
    value: float
    time: float


class Ledger:
    """The runs of a store. Every method that writes raises `StorageError` where the store cannot keep it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, name: str, plan: Mapping[str, Any], plan_digest: str, folder: Path) -> str:
        """Record that a run starts in this process; returns its id, which sorts by time.

        Args:
            name: the stack's name.
            plan: the whole plan, as plain JSON data.
            plan_digest: its digest.
            folder: where the run writes.
        """
        from stackloom.registry.schema import runs

        run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        values = {
            "id": run,
            "name": name,
            "plan": json.dumps(plan, sort_keys=True),
            "plan_digest": plan_digest,
            "status": "running",
            "created": _now(),
            "folder": str(folder),
            "host": platform.node(),
            "pid": os.getpid(),
        }
        self._store.record(lambda connection: connection.execute(runs.insert().values(values)))
        return run

    def resume(self, run: str) -> None:
        """Record that this process goes on with an interrupted or failed run."""
        self._change(run, status="running", finished=None, failure=None, host=platform.node(), pid=os.getpid())

    def finish(self, run: str, status: Status = "finished", failure: str = "") -> None:
        """Record how a run ended, and what stopped it if it failed."""
        text = failure.replace("\0", "")[:MAX_FAILURE].encode(errors="replace").decode()
        self._change(run, status=status, finished=_now(), failure=text or None)

    def begin_stage(self, run: str, position: int, kind: str, key: str) -> None:
        """Record that a stage starts, again if it was begun before."""
        from sqlalchemy import and_

        from stackloom.registry.schema import stages

        values = {"kind": kind, "key": key, "status": "running", "started": _now(), "finished": None}

        def work(connection: Connection) -> None:
            here = and_(stages.c.run == run, stages.c.position == position)
            if not connection.execute(stages.update().where(here).values(values)).rowcount:
                connection.execute(stages.insert().values(run=run, position=position, **values))

        self.get(run)
        self._store.record(work)

    def finish_stage(
        self, run: str, position: int, status: Status = "finished", *, artifact: Artifact | None = None
    ) -> None:
        """Record how a stage ended, together with what it gave.

        Raises:
            EngineError: the stage was never begun.
        """
        from sqlalchemy import and_

        from stackloom.registry.schema import artifacts, stages

        def work(connection: Connection) -> None:
            here = and_(stages.c.run == run, stages.c.position == position)
            if not connection.execute(stages.update().where(here).values(status=status, finished=_now())).rowcount:
                raise EngineError(f"stage {position} of run {run} was never begun")
            if artifact:
                values = {
                    "digest": artifact.digest,
                    "run": run,
                    "stage": position,
                    "kind": artifact.kind,
                    "path": str(artifact.path),
                }
                connection.execute(
                    artifacts.delete().where(and_(artifacts.c.run == run, artifacts.c.stage == position))
                )
                connection.execute(artifacts.insert().values(values))

        self._store.record(work)

    def record_metrics(
        self, run: str, position: int, step: int, values: Mapping[str, float], *, at: float | None = None
    ) -> None:
        """Record the numbers of one step."""
        from stackloom.registry.schema import metrics

        moment = time.time() if at is None else at
        rows = [
            {
                "run": run,
                "stage": position,
                "step": step,
                "name": name,
                "time": moment,
                "value": None if math.isnan(value) else float(value),
            }
            for name, value in values.items()
        ]
        if rows:
            self._store.record(lambda connection: connection.execute(metrics.insert(), rows))

    def runs(self, *, limit: int | None = None, offset: int = 0) -> list[Run]:
        """Return the runs, the newest first."""
        page, parameters = (" LIMIT ? OFFSET ?", (limit, offset)) if limit is not None else ("", ())
        return [
            _run(row)
            for row in self._store.read(f"SELECT {_RUN} FROM runs ORDER BY created DESC, id DESC{page}", parameters)
        ]

    def get(self, run: str) -> Run:
        """Return one run.

        Raises:
            ConfigError: there is none of that id.
        """
        if found := self._store.read(f"SELECT {_RUN} FROM runs WHERE id = ?", (run,)):
            return _run(found[0])
        known = [id_ for (id_,) in self._store.read("SELECT id FROM runs ORDER BY created DESC LIMIT 200")]
        raise ConfigError(
            f"no run {run!r} in the ledger", fix=did_you_mean(run, known, otherwise="`stackloom report` lists the runs")
        )

    def plan(self, run: str) -> dict[str, Any]:
        """Return the plan that a run was started with."""
        self.get(run)
        plan: dict[str, Any] = json.loads(self._store.read("SELECT plan FROM runs WHERE id = ?", (run,))[0][0])
        return plan

    def stages(self, run: str) -> list[Stage]:
        """Return the stages of a run, in order."""
        return [
            Stage(*row)
            for row in self._store.read(
                "SELECT position, kind, status, key, started, finished FROM stages WHERE run = ? ORDER BY position",
                (run,),
            )
        ]

    def artifacts(self, run: str) -> list[Artifact]:
        """Return what the stages of a run gave, in order."""
        found = self._store.read("SELECT stage, digest, kind, path FROM artifacts WHERE run = ? ORDER BY stage", (run,))
        return [Artifact(stage, digest, kind, Path(path)) for stage, digest, kind, path in found]

    def artifact_of(self, key: str) -> Artifact | None:
        """Return the newest artifact of a finished stage with this content address, from any run."""
        found = self._store.read(
            "SELECT a.stage, a.digest, a.kind, a.path "
            "FROM stages s JOIN artifacts a ON a.run = s.run AND a.stage = s.position "
            "WHERE s.key = ? AND s.status = 'finished' ORDER BY s.finished DESC LIMIT 1",
            (key,),
        )
        for stage, digest, kind, path in found:
            return Artifact(stage, digest, kind, Path(path))
        return None

    def metrics(self, run: str, name: str | None = None) -> list[Metric]:
        """Return the numbers of a run in the order of their steps, all or those of one name."""
        chosen, parameters = (" AND name = ?", (run, name)) if name is not None else ("", (run,))
        found = self._store.read(
            f"SELECT stage, step, name, value, time FROM metrics WHERE run = ?{chosen} ORDER BY stage, step, id",
            parameters,
        )
        return [
            Metric(stage, step, metric, math.nan if value is None else value, at)
            for stage, step, metric, value, at in found
        ]

    def _change(self, run: str, **values: Any) -> None:
        from stackloom.registry.schema import runs

        self.get(run)
        self._store.record(lambda connection: connection.execute(runs.update().where(runs.c.id == run).values(values)))


def _run(row: tuple[Any, ...]) -> Run:
    *values, host, pid = row
    id_, name, digest, status, created, finished, folder, failure = values
    if status == "running" and host == platform.node() and not _alive(pid):
        status = "interrupted"
    return Run(id_, name, digest, status, created, finished, Path(folder), failure or "")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # someone else's process
        return True
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
