"""Writes metrics.jsonl and events.jsonl: one JSON object per line, whole lines only, no step twice."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.core.events import Failure, Metric, StageEvent
from stackloom.core.hooks import hookimpl
from stackloom.core.plan import Plan
from stackloom.plugins.tracker.jsonl.config import JsonlConfig

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
Place = tuple[int, int]  # stage, step


class Jsonl:
    """A listener that appends to two files of the run's folder.

    A metric is `{"stage": 0, "step": 12, "name": "loss", "value": 1.25}`; a value that is not finite is the string
    "nan", "inf" or "-inf", which `float` reads. An event has "time" (UTC), "event" and the fields of its kind.

    Every row is one write, so that a killed process leaves whole rows and at most one torn line, which the next start
    cuts off. When a stage reports its first metric after a start, rows of that step and later ones are dropped: the
    run is doing them again.

    Args:
        config: the plugin's options.
        folder: the run's; made if it is not there.

    Raises:
        ArtifactError: metrics.jsonl holds a whole line that is no metric; names the line.
        ConfigError: the folder cannot be written.

    Example:
        >>> tracker = Jsonl(JsonlConfig(), Path("runs/first"))
        >>> tracker.on_metric(metric=Metric(run="first", stage=0, step=1, name="loss", value=2.5))
        >>> tracker.close()
    """

    def __init__(self, config: JsonlConfig, folder: Path) -> None:
        self.config = config
        self._metrics, self._events = LineFile(folder / METRICS), LineFile(folder / EVENTS)
        self._last: Place = max((place for place, _ in _rows(self._metrics.path)), default=(-1, -1))
        self._resumed: set[int] = set()
        self._step: Place | None = None

    @hookimpl
    def on_plan(self, plan: Plan) -> None:
        """Record the plan's name and digest."""
        self._event("plan", name=plan.name, digest=plan.digest)

    @hookimpl
    def on_stage_start(self, event: StageEvent) -> None:
        """Record that a stage begins."""
        self._event("stage_start", run=event.run, stage=event.index, kind=event.kind)

    @hookimpl
    def on_stage_end(self, event: StageEvent) -> None:
        """Record that a stage has ended, and force everything to the disk."""
        details = {"artifact": event.artifact, "seconds": event.seconds}
        self._event("stage_end", run=event.run, stage=event.index, kind=event.kind, **details)
        self._sync()

    @hookimpl
    def on_metric(self, metric: Metric) -> None:
        """Record a value."""
        place = (metric.stage, metric.step)
        if metric.stage not in self._resumed:
            self._resumed.add(metric.stage)
            if place <= self._last:
                self._drop_from(place)
        if self.config.durable == "step" and place != self._step:
            self._metrics.sync()
        self._step = place
        value = metric.value if math.isfinite(metric.value) else str(float(metric.value))
        self._metrics.append({"stage": metric.stage, "step": metric.step, "name": metric.name, "value": value})

    @hookimpl
    def on_error(self, failure: Failure) -> None:
        """Record why the run stops."""
        details = {"error": failure.error, "message": failure.message, "acts": failure.acts}
        self._event("error", run=failure.run, stage=failure.stage, **details, details=failure.details)
        self._sync()

    def close(self) -> None:
        """Force everything to the disk and close both files."""
        self._sync()
        self._metrics.close()
        self._events.close()

    def _event(self, event: str, **details: Any) -> None:
        self._events.append({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **details})

    def _sync(self) -> None:
        self._metrics.sync()
        self._events.sync()

    def _drop_from(self, place: Place) -> None:
        self._metrics.replace(line for found, line in _rows(self._metrics.path) if found < place)


class LineFile:
    """A file of whole lines that is appended to.

    Args:
        path: made with its folder if it is not there; a last line without its end is cut off.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
            self._size = _end_of_last_line(path)
            self._file.truncate(self._size)
        except OSError as cause:
            raise self._refusal(cause) from None

    def append(self, row: dict[str, Any]) -> None:
        """Write one row in one go; a row that does not fit on the disk leaves no part of itself.

        Raises:
            ConfigError: the write failed.
        """
        line = json.dumps(row, ensure_ascii=True, allow_nan=False, default=str).encode() + b"\n"
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(0, f"wrote {written} of {len(line)} bytes")
        except OSError as cause:
            os.ftruncate(self._file.fileno(), self._size)
            raise self._refusal(cause) from None
        self._size += len(line)

    def replace(self, lines: Iterator[bytes]) -> None:
        """Put other lines in the place of all: beside the file first, then over it."""
        beside = self.path.with_name(self.path.name + ".new")
        try:
            with beside.open("wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
                self._size = file.tell()
            beside.replace(self.path)
            self._file.close()
            self._file = self._open()
        except OSError as cause:
            raise self._refusal(cause) from None

    def sync(self) -> None:
        """Force what was written to the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as cause:
            raise self._refusal(cause) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self) -> BinaryIO:
        return self.path.open("ab", buffering=0)  # type: ignore[return-value]  # a FileIO, whose write tells how much

    def _refusal(self, cause: OSError) -> ConfigError:
        return ConfigError(
            f"cannot write it: {cause.strerror}", where=str(self.path), fix="check space and permissions"
        )


def _end_of_last_line(path: Path) -> int:
    """Return the offset after the last line end, 0 if there is none; reads from the end in blocks."""
    block = 65536
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        while position:
            start = max(0, position - block)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            position = start
    return 0


def _rows(path: Path) -> Iterator[tuple[Place, bytes]]:
    """Yield ((stage, step), line with its end) of every metric.

    Raises:
        ArtifactError: a line is no metric.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                place = (row["stage"], row["step"])
            except (ValueError, RecursionError, TypeError, KeyError):
                place = (None, None)
            if not all(type(part) is int for part in place):
                raise ArtifactError(
                    "not a metric that this tracker wrote", where=f"{path}:{number}", fix="move the file out of the run"
                )
            yield place, line
