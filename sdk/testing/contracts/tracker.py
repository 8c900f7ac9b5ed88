"""What every tracker must hold."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stackloom.core.errors import StackloomError
from stackloom.core.events import Failure, Metric, StageEvent
from stackloom.core.hooks import Hooks, hook_manager
from stackloom.testing.contracts.plugin import PluginContract

RUN = "run"
Row = tuple[int, int, str, float]  # stage, step, name, value
VALUES: Sequence[Row] = [
    (0, 1, "loss", 2.5),
    (0, 1, "lr", 0.125),
    (0, 2, "loss", math.nan),
    (0, 2, "lr", math.inf),
    (0, 3, "loss", -math.inf),
    (1, 1, "bytes_after", 3.0),
]
HOOKS = [name for name in vars(Hooks) if name.startswith("on_")]


class TrackerContract(PluginContract):
    """The laws of slot `tracker`.

    Example:
        >>> class TestMyTracker(TrackerContract):
        ...     plugin = "tracker.my-csv"
        ...     @classmethod
        ...     def rows(cls, folder):
        ...         lines = (folder / "metrics.csv").read_text().splitlines()
        ...         return [(int(s), int(t), n, float(v)) for s, t, n, v in (line.split(",") for line in lines)]
    """

    @classmethod
    def rows(cls, folder: Path) -> list[Row]:
        """Read back (stage, step, name, value) of every metric, as a user of the tracker would; any order.

        The default skips the laws that need it.
        """
        pytest.skip("the test class has no `rows`")

    def start(self, folder: Path) -> tuple[Any, Any]:
        """Return the tracker, and the hooks that a run calls it through."""
        tracker = self.component(folder)
        return tracker, hook_manager({self.plugin: tracker}).hook

    def recorded(self, folder: Path) -> list[str]:
        """Return the metrics as texts that compare, NaN included."""
        return sorted(map(repr, self.rows(folder)))

    def test_hooks_are_known_and_features_are_true(self, tmp_path: Path) -> None:
        tracker, hooks = self.start(tmp_path / RUN)
        heard = {name for name in HOOKS if getattr(hooks, name).get_hookimpls()}
        tracker.close()
        assert heard
        features = self.record().manifest.can.features
        assert ("on_metric" in heard) == ("metrics" in features)
        assert bool(heard & {"on_stage_start", "on_stage_end", "on_error"}) == ("events" in features)

    def test_every_metric_is_recorded(self, tmp_path: Path) -> None:
        tracker, hooks = self.start(tmp_path / RUN)
        _tell(hooks, VALUES)
        tracker.close()
        assert self.recorded(tmp_path / RUN) == sorted(map(repr, VALUES))

    def test_finished_stage_is_recorded_without_a_close(self, tmp_path: Path) -> None:
        tracker, hooks = self.start(tmp_path / RUN)
        _tell(hooks, VALUES[:3])
        found = self.recorded(tmp_path / RUN)
        tracker.close()
        assert found == sorted(map(repr, VALUES[:3]))

    def test_error_loses_no_metric(self, tmp_path: Path) -> None:
        tracker, hooks = self.start(tmp_path / RUN)
        hooks.on_stage_start(event=StageEvent(RUN, 0, "train"))
        hooks.on_metric(metric=Metric(RUN, 0, 1, "loss", 2.5))
        hooks.on_error(failure=Failure(RUN, 0, "FitError", "the loss is not finite", "you", {"at": {1, 2}}))
        tracker.close()
        assert self.rows(tmp_path / RUN) == [(0, 1, "loss", 2.5)]

    def test_redone_steps_are_recorded_once(self, tmp_path: Path) -> None:
        """A run killed in step 4 goes on at step 3, after its last checkpoint, and ends otherwise than before."""
        tracker, hooks = self.start(tmp_path / RUN)
        _tell(hooks, [(0, 1, "bytes", 7.0)])
        hooks.on_stage_start(event=StageEvent(RUN, 1, "train"))
        for step in (1, 2, 3, 4):
            hooks.on_metric(metric=Metric(RUN, 1, step, "loss", float(step)))
        tracker.close()
        tracker, hooks = self.start(tmp_path / RUN)
        _tell(hooks, [(1, 3, "loss", 30.0)])
        tracker.close()
        assert self.recorded(tmp_path / RUN) == sorted(
            map(repr, [(0, 1, "bytes", 7.0), (1, 1, "loss", 1.0), (1, 2, "loss", 2.0), (1, 3, "loss", 30.0)])
        )

    def test_two_resumes_record_each_step_once(self, tmp_path: Path) -> None:
        for first in (1, 3, 5):
            tracker, hooks = self.start(tmp_path / RUN)
            _tell(hooks, [(0, step, "loss", float(10 * first + step)) for step in range(first, first + 3)])
            tracker.close()
        expected = [(1, 11.0), (2, 12.0), (3, 33.0), (4, 34.0), (5, 55.0), (6, 56.0), (7, 57.0)]
        assert sorted((step, value) for _, step, _, value in self.rows(tmp_path / RUN)) == expected

    def test_writes_into_its_folder_alone(self, tmp_path: Path) -> None:
        tracker, hooks = self.start(tmp_path / RUN)
        _tell(hooks, VALUES)
        tracker.close()
        assert [path.name for path in tmp_path.iterdir()] == [RUN]
        assert any(path.is_file() and path.stat().st_size for path in (tmp_path / RUN).rglob("*"))

    def test_close_ends_its_threads(self, tmp_path: Path) -> None:
        before = set(threading.enumerate())
        tracker, hooks = self.start(tmp_path / RUN)
        hooks.on_stage_start(event=StageEvent(RUN, 0, "train"))
        hooks.on_metric(metric=Metric(RUN, 0, 1, "loss", 2.5))
        tracker.close()
        assert {thread for thread in threading.enumerate() if thread.is_alive()} <= before

    def test_folder_that_cannot_be_made_is_a_typed_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StackloomError):
            self.component(tmp_path / "file" / RUN)


def _tell(hooks: Any, values: Sequence[Row]) -> None:
    """Report metrics as a run does, stage by stage."""
    for stage in sorted({row[0] for row in values}):
        hooks.on_stage_start(event=StageEvent(RUN, stage, "train"))
        for index, step, name, value in values:
            if index == stage:
                hooks.on_metric(metric=Metric(RUN, stage, step, name, value))
        hooks.on_stage_end(event=StageEvent(RUN, stage, "train", "artifact", 1.5))
