"""Executor ray: the local executor's curve, on loopback, with the workers' own checks."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from stackloom.core.errors import ErrorGroup, FitError
from stackloom.run import runner

# not `importorskip`: the addresses that Ray listens on are settled when it is imported, by the executor
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")]


def listening(process_names: tuple[str, ...]) -> set[str]:
    """Addresses (hexadecimal, as the kernel lists them) on which processes of these names listen."""
    inodes = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A":
                inodes[f"socket:[{columns[9]}]"] = columns[1].rpartition(":")[0]
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(name in (process / "cmdline").read_text() for name in process_names):
                found |= {inodes[link] for fd in (process / "fd").iterdir() if (link := os.readlink(fd)) in inodes}
        except OSError:
            continue
    return found


class Watch(runner.Display):
    """Notes the open doors once the workers are at work."""

    def __init__(self) -> None:
        self.steps, self.doors = list[int](), set[str]()

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        self.steps.append(step)
        if step == 1:
            self.doors = listening(("raylet", "gcs_server", "ray::"))


def test_ray_trains_as_the_local_executor_does_and_on_loopback_alone(planned, train, registry, tmp_path: Path) -> None:
    plan = planned(train(steps=4), workers=2)
    losses = []
    for executor in ("local", "ray"):
        watch = Watch()
        made = runner.run(plan, registry, folder=tmp_path / executor, display=watch, executor=executor)
        losses.append([metric.value for metric in registry.ledger.metrics(made.id, "loss")])
        assert watch.steps == [1, 2, 3, 4]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert watch.doors
    assert watch.doors <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert os.environ["RAY_AUTH_MODE"] == "token"

    elsewhere = runner.run(plan, registry, folder=tmp_path / "ray", executor="local")
    assert elsewhere.seconds == [0.0]  # the same stage, whoever started its workers


class Drift(runner.Display):
    """Changes a plugin's file after the driver has checked it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def stage(self, index: int, kind: str, state: str, seconds: float = 0.0) -> None:
        if state == "running":
            self.file.write_text(self.file.read_text() + "\n# changed\n")


def test_a_ray_worker_refuses_a_plugin_that_changed_since_the_plan(
    planned, train, registry, site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = site("drifting", "optimizer.drifting")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    registry.refresh()
    plan = planned(train(optimizer={"use": "optimizer.drifting"}), workers=2)
    with pytest.raises(ErrorGroup, match=r"worker \d of 2(.|\n)*optimizer.drifting: its files changed"):
        runner.run(
            plan,
            registry,
            folder=tmp_path / "run",
            display=Drift(folder / "drifting" / "component.py"),
            executor="ray",
        )


def test_an_address_where_no_cluster_is_is_refused(planned, train, registry, tmp_path: Path) -> None:
    with pytest.raises(FitError, match="Ray cannot be used"):
        runner.run(
            planned(train(), workers=2), registry, folder=tmp_path / "run", executor="ray", address="127.0.0.1:1"
        )
