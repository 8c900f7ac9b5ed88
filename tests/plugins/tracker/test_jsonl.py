"""`tracker.jsonl`: the slot's laws, and files that survive kills, full disks and resumes."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest

from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.core.events import Failure, Metric, StageEvent
from stackloom.core.hooks import hook_manager
from stackloom.plugins.tracker.jsonl.config import JsonlConfig
from stackloom.testing import TrackerContract


class TestJsonl(TrackerContract):
    plugin = "tracker.jsonl"

    @classmethod
    def rows(cls, folder):
        found = [json.loads(line, parse_constant=pytest.fail) for line in (folder / "metrics.jsonl").open()]
        assert all(set(row) == {"stage", "step", "name", "value"} for row in found)
        return [(row["stage"], row["step"], row["name"], float(row["value"])) for row in found]


def loss(step, value=1.0, stage=0):
    return Metric("run", stage, step, "loss", value)


def write(folder, *steps, **options):
    tracker = JsonlConfig(**options).build(folder)
    for step in steps:
        tracker.on_metric(metric=loss(step))
    tracker.close()


def steps(folder):
    return [row[1] for row in TestJsonl.rows(folder)]


def test_events_are_kept_with_their_time_and_fields(tmp_path):
    tracker = JsonlConfig().build(tmp_path)
    hooks = hook_manager({"tracker.jsonl": tracker}).hook
    hooks.on_stage_start(event=StageEvent("r", 0, "train"))
    hooks.on_stage_end(event=StageEvent("r", 0, "train", "/a/b", 1.5))
    hooks.on_error(failure=Failure("r", 1, "FitError", "no\nroom", "you"))
    tracker.close()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").open()]
    assert [event.pop("event") for event in events] == ["stage_start", "stage_end", "error"]
    assert all(event.pop("time").endswith("+00:00") for event in events)
    assert events == [
        {"run": "r", "stage": 0, "kind": "train"},
        {"run": "r", "stage": 0, "kind": "train", "artifact": "/a/b", "seconds": 1.5},
        {"run": "r", "stage": 1, "error": "FitError", "message": "no\nroom", "acts": "you", "details": {}},
    ]


def test_plan_is_an_event(tmp_path):
    class Planned:
        name, digest = "stack", "abc"

    tracker = JsonlConfig().build(tmp_path)
    tracker.on_plan(plan=Planned())
    tracker.close()
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert (event["event"], event["name"], event["digest"]) == ("plan", "stack", "abc")


@pytest.mark.parametrize("torn", [b"{", b'{"stage": 0, "step": 3, "name": "loss", "value": 1.0}', b"x" * 200_000])
def test_torn_last_line_is_cut_off(tmp_path, torn):
    write(tmp_path, 1, 2)
    for name in ("metrics.jsonl", "events.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(torn)
    write(tmp_path, 3)
    assert steps(tmp_path) == [1, 2, 3]
    assert (tmp_path / "events.jsonl").read_bytes() == b""


def test_file_of_a_torn_line_alone_becomes_empty(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"st')
    write(tmp_path, 1)
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize(
    "line", ["[]", "{}", "7", "nonsense", '{"stage": 0, "step": "1"}', '{"stage": true, "step": 1}']
)
def test_foreign_line_is_named_and_nothing_is_lost(tmp_path, line):
    write(tmp_path, 1)
    path = tmp_path / "metrics.jsonl"
    content = path.read_text() + line + "\n"
    path.write_text(content)
    with pytest.raises(ArtifactError) as caught:
        JsonlConfig().build(tmp_path)
    assert caught.value.where.endswith("metrics.jsonl:2")
    assert path.read_text() == content


def test_rows_from_the_first_reported_step_on_are_dropped_with_later_stages(tmp_path):
    tracker = JsonlConfig().build(tmp_path)
    for stage, step in ((0, 1), (0, 2), (0, 3), (1, 1)):
        tracker.on_metric(metric=loss(step, stage=stage))
    tracker.close()
    tracker = JsonlConfig().build(tmp_path)
    tracker.on_metric(metric=loss(3, 9.0))
    tracker.on_metric(metric=loss(2, 7.0))  # a late value of an earlier step drops nothing
    tracker.close()
    assert TestJsonl.rows(tmp_path) == [
        (0, 1, "loss", 1.0),
        (0, 2, "loss", 1.0),
        (0, 3, "loss", 9.0),
        (0, 2, "loss", 7.0),
    ]
    assert not (tmp_path / "metrics.jsonl.new").exists()


def test_restart_without_a_metric_drops_nothing(tmp_path):
    write(tmp_path, 1, 2)
    write(tmp_path)
    assert steps(tmp_path) == [1, 2]


KILLED = """
import os, signal, sys
from pathlib import Path
from stackloom.core.events import Metric
from stackloom.plugins.tracker.jsonl.config import JsonlConfig
tracker = JsonlConfig(durable=sys.argv[2]).build(Path(sys.argv[1]))
for step in range(1, 51):
    tracker.on_metric(metric=Metric("run", 0, step, "loss", float(step)))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("durable", ["step", "stage"])
def test_killed_process_loses_no_row(tmp_path, durable):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), durable], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert steps(tmp_path) == list(range(1, 51))


@pytest.mark.parametrize(("durable", "expected"), [("step", 3), ("stage", 0)])
def test_durable_says_when_the_disk_is_waited_for(tmp_path, monkeypatch, durable, expected):
    tracker = JsonlConfig(durable=durable).build(tmp_path)
    calls, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(number) or fsync(number))
    for step in (1, 2, 3):
        tracker.on_metric(metric=loss(step))
        tracker.on_metric(metric=loss(step))
    assert len(calls) == expected
    tracker.on_stage_end(event=StageEvent("run", 0, "train"))
    assert len(calls) == expected + 2
    tracker.close()


def test_full_disk_is_a_typed_error_and_leaves_whole_lines(tmp_path, monkeypatch):
    tracker = JsonlConfig().build(tmp_path)
    tracker.on_metric(metric=loss(1))
    file = tracker._metrics._file

    class Full:
        def write(self, line):
            return file.write(line[: len(line) // 2])

        def __getattr__(self, name):
            return getattr(file, name)

    monkeypatch.setattr(tracker._metrics, "_file", Full())
    with pytest.raises(ConfigError, match="cannot write it") as caught:
        tracker.on_metric(metric=loss(2))
    assert caught.value.where.endswith("metrics.jsonl")
    assert steps(tmp_path) == [1]
    monkeypatch.setattr(tracker._metrics, "_file", file)
    tracker.on_metric(metric=loss(3))
    tracker.close()
    assert steps(tmp_path) == [1, 3]


def test_values_come_back_bit_by_bit(tmp_path):
    values = [0.1, 1e-310, 1.7976931348623157e308, -0.0, 2**53 + 1, math.pi]
    tracker = JsonlConfig().build(tmp_path)
    for step, value in enumerate(values):
        tracker.on_metric(metric=loss(step, value))
    tracker.close()
    assert [row[3].hex() for row in TestJsonl.rows(tmp_path)] == [float(value).hex() for value in values]
