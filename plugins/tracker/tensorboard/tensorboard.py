"""Writes TensorBoard's event files, one folder per stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stackloom.core.errors import ConfigError
from stackloom.core.events import Failure, Metric, StageEvent
from stackloom.core.hooks import hookimpl
from stackloom.plugins.tracker.tensorboard.config import TensorBoardConfig

FOLDER = "tensorboard"


class TensorBoard:
    """A listener that writes `<run folder>/tensorboard/<stage>-<kind>/`, which TensorBoard shows as one run per stage.

    A metric is a scalar under its own name. The end of a stage and an error are texts.

    After a resume, values of steps that the run does again are purged: TensorBoard shows each step once.

    Args:
        config: the plugin's options.
        folder: the run's; made if it is not there.

    Raises:
        ConfigError: the package tensorboard is not installed, or the folder cannot be made.

    Example:
        >>> tracker = TensorBoard(TensorBoardConfig(), Path("runs/first"))
        >>> tracker.on_metric(metric=Metric(run="first", stage=0, step=1, name="loss", value=2.5))
        >>> tracker.close()
    """

    def __init__(self, config: TensorBoardConfig, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "tensorboard is not installed: pip install tensorboard", where="tracker.tensorboard"
            ) from None
        self.config, self._folder, self._make = config, folder / FOLDER, SummaryWriter
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise ConfigError(f"cannot make the folder: {cause.strerror}", where=str(self._folder)) from None
        self._names: dict[int, str] = {}
        self._writers: dict[int, Any] = {}
        self._steps: dict[int, int] = {}

    @hookimpl
    def on_stage_start(self, event: StageEvent) -> None:
        """Name the stage's folder after its kind."""
        self._names[event.index] = f"{event.index}-{event.kind}"

    @hookimpl
    def on_stage_end(self, event: StageEvent) -> None:
        """Write how long it took and close the stage's file."""
        self._text(event.index, "stage_end", f"{event.seconds:.3f} s, {event.artifact}")
        self._writers.pop(event.index).close()

    @hookimpl
    def on_metric(self, metric: Metric) -> None:
        """Write a value; the first of a new step brings the step before to the disk."""
        writer = self._writer(metric.stage, metric.step)
        if self._steps.get(metric.stage, metric.step) != metric.step:
            writer.flush()
        self._steps[metric.stage] = metric.step
        writer.add_scalar(metric.name, metric.value, metric.step)

    @hookimpl
    def on_error(self, failure: Failure) -> None:
        """Write why the run stops."""
        self._text(failure.stage, "error", f"{failure.error}: {failure.message}")

    def close(self) -> None:
        """Write everything out and end the writers' threads."""
        while self._writers:
            self._writers.popitem()[1].close()

    def _text(self, stage: int, tag: str, text: str) -> None:
        step = self._steps.get(stage, 0)
        self._writer(stage, step).add_text(tag, text, step)

    def _writer(self, stage: int, step: int) -> Any:
        """Return the stage's writer. One made on top of an earlier process's files purges `step` and what follows."""
        if stage not in self._writers:
            folder = self._folder / self._names.get(stage, str(stage))
            again = folder.is_dir() and any(folder.iterdir())
            self._writers[stage] = self._make(
                str(folder), purge_step=step if again else None, flush_secs=self.config.flush_seconds
            )
        return self._writers[stage]
