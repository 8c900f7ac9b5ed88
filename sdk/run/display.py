"""What people and machines see of a run while it goes on."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from typing import IO, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from stackloom.run.runner import Display

_SHOWN = ("loss", "tokens_per_second", "pass_rate", "lowest_snr_db", "rewritten", "output_change")


class QuietDisplay(Display, AbstractContextManager["QuietDisplay"]):
    """Shows nothing."""

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""


class JsonDisplay(QuietDisplay):
    """Writes one JSON object per event.

    Args:
        stream: where to.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def _write(self, event: str, **fields: object) -> None:
        self.stream.write(json.dumps({"event": event} | fields) + "\n")
        self.stream.flush()

    def stage(self, index: int, kind: str, state: str, seconds: float = 0.0) -> None:
        """Write that a stage is running, done or skipped."""
        self._write("stage", index=index, kind=kind, state=state, seconds=round(seconds, 3))

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """Write a step."""
        self._write("progress", step=step, steps=steps, values=values)

    def say(self, line: str) -> None:
        """Write a line."""
        self._write("notice", text=line)


class LiveDisplay(QuietDisplay):
    """One line per stage with a bar, the newest values and the time that is left.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=console,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def stage(self, index: int, kind: str, state: str, seconds: float = 0.0) -> None:
        """Open a stage's line, or close it."""
        if state == "running":
            self.task = self.bars.add_task(f"{index} {kind}", total=None, values="")
        elif state == "skipped":
            self.console.print(f"{index} {kind}: done before, skipped")
        elif self.task is not None and not self.console.is_terminal:
            self.console.print(f"{index} {kind}: done in {seconds:.1f} s")

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """Move the bar."""
        if self.task is not None:
            shown = "  ".join(f"{name.replace('_', ' ')} {values[name]:.4g}" for name in _SHOWN if name in values)
            self.bars.update(self.task, total=steps, completed=step, values=shown)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.console.print(line)
