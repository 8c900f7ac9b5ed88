"""`tracker.tensorboard`: the slot's laws, read back with TensorBoard's own reader."""

import struct
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stackloom.core.errors import ConfigError
from stackloom.core.events import Failure, Metric, StageEvent
from stackloom.plugins.tracker.tensorboard.config import TensorBoardConfig
from stackloom.testing import TrackerContract


def read(folder):
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


class TestTensorBoard(TrackerContract):
    plugin = "tracker.tensorboard"

    @classmethod
    def rows(cls, folder):
        return [
            (int(stage.name.partition("-")[0]), event.step, name, event.value)
            for stage in (folder / "tensorboard").iterdir()
            for curves in [read(stage)]
            for name in curves.Tags()["scalars"]
            for event in curves.Scalars(name)
        ]


def test_stage_has_a_folder_named_after_its_kind(tmp_path):
    tracker = TensorBoardConfig().build(tmp_path)
    tracker.on_stage_start(event=StageEvent("run", 2, "quantize"))
    tracker.on_metric(metric=Metric("run", 2, 1, "layers", 14.0))
    tracker.close()
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["2-quantize"]


def test_value_is_stored_in_float32(tmp_path):
    tracker = TensorBoardConfig().build(tmp_path)
    tracker.on_metric(metric=Metric("run", 0, 1, "loss", 0.1))
    tracker.close()
    assert TestTensorBoard.rows(tmp_path) == [(0, 1, "loss", struct.unpack("f", struct.pack("f", 0.1))[0])]


def test_end_and_error_are_texts(tmp_path):
    tracker = TensorBoardConfig().build(tmp_path)
    tracker.on_stage_start(event=StageEvent("run", 0, "train"))
    tracker.on_metric(metric=Metric("run", 0, 7, "loss", 1.0))
    tracker.on_stage_end(event=StageEvent("run", 0, "train", "/a/b", 1.5))
    tracker.on_stage_start(event=StageEvent("run", 1, "evaluate"))
    tracker.on_error(failure=Failure("run", 1, "FitError", "no room", "you"))
    tracker.close()
    (ended,) = read(tmp_path / "tensorboard" / "0-train").Tensors("stage_end/text_summary")
    (failed,) = read(tmp_path / "tensorboard" / "1-evaluate").Tensors("error/text_summary")
    assert (ended.step, ended.tensor_proto.string_val[0]) == (7, b"1.500 s, /a/b")
    assert failed.tensor_proto.string_val[0] == b"FitError: no room"


def test_new_step_brings_the_one_before_to_the_disk(tmp_path):
    tracker = TensorBoardConfig(flush_seconds=1e6).build(tmp_path)
    for step in (1, 2, 3):
        tracker.on_metric(metric=Metric("run", 0, step, "loss", float(step)))
    found = [row[1] for row in TestTensorBoard.rows(tmp_path)]
    tracker.close()
    assert found[:2] == [1, 2]


def test_absent_package_is_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError) as caught:
        TensorBoardConfig().build(tmp_path)
    assert str(caught.value) == "tracker.tensorboard: tensorboard is not installed: pip install tensorboard"
    assert list(tmp_path.iterdir()) == []
