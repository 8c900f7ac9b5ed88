"""Several workers on this machine: the same curve as one, the same bits after a resume, no worker left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stackloom.core.errors import ConfigError, ErrorGroup, FitError
from stackloom.run import checkpoint, runner
from stackloom.run.batches import Batches
from stackloom.run.team import Solo

pytestmark = pytest.mark.slow
LORA = {"use": "adapter.lora", "rank": 4, "dropout": 0.0}


@pytest.fixture
def curve(planned, registry, tmp_path: Path) -> Callable[..., list[list[float]]]:
    """`curve(stage, workers=2)`: the loss and the gradient norm of each step."""

    def measure(stage: Any, **resources: Any) -> list[list[float]]:
        folder = tmp_path / "-".join(map(str, resources.values()))
        made = runner.run(planned(stage, **resources), registry, folder=folder)
        return [[metric.value for metric in registry.ledger.metrics(made.id, name)] for name in ("loss", "grad_norm")]

    return measure


@pytest.mark.parametrize(
    ("shard", "options", "again"),
    [
        ("none", {}, False),
        ("none", {"adapter": LORA}, True),
        ("fsdp", {}, True),
        ("fsdp", {"adapter": LORA}, False),
    ],
    ids=["replicas", "replicas-lora-recomputed", "shards-recomputed", "shards-lora"],
)
def test_two_workers_learn_as_one_at_the_same_batch(curve, train, shard: str, options: Any, again: bool) -> None:
    stage = train(steps=8, micro_batch_size=1, **options)
    one = curve(stage, workers=1)
    two = curve(stage, workers=2, shard=shard, activation_checkpointing=again)
    assert [len(values) for values in two] == [8, 8]
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert two[1] == pytest.approx(one[1], rel=1e-4)


def test_shards_write_the_model_that_one_worker_writes(planned, train, registry, tmp_path: Path) -> None:
    models = [
        load_file(
            runner.run(planned(train(steps=2), **resources), registry, folder=tmp_path / str(resources["workers"]))
            .stages[0]
            .folder
            / "model.safetensors"
        )
        for resources in ({"workers": 1}, {"workers": 2, "shard": "fsdp"})
    ]
    assert models[0].keys() == models[1].keys()
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=0, atol=1e-4)


class Stop(BaseException):
    """Stands for Ctrl-C at a chosen step."""


class StopAt(runner.Display):
    def __init__(self, step: int) -> None:
        self.at, self.said = step, list[str]()

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        if step == self.at:
            raise Stop

    def say(self, line: str) -> None:
        self.said.append(line)


def states(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's newest checkpoint, by file and name: parameters and optimizer state of all workers."""
    newest = max((folder / "0-train.work").glob("step-*"))
    return {
        f"{path.name}: {name}": tensor
        for path in sorted(newest.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


DROPPING = {"rank": 4, "dropout": 0.1}  # every worker's random state counts
LITE = {"use": "optimizer.mona", "lr": 1e-2, "buffers": "lite", "stochastic_rounding": True}


@pytest.mark.parametrize(
    ("shard", "options"),
    [
        ("none", {"adapter": {"use": "adapter.lora", **DROPPING}}),
        ("fsdp", {"adapter": {"use": "adapter.lora", **DROPPING}}),
        ("fsdp", {"adapter": {"use": "adapter.afa-lora", "rho": 1.0, **DROPPING}}),
        ("fsdp", {"optimizer": {"use": "optimizer.muon", "lr": 1e-2}}),
        ("fsdp", {"optimizer": LITE}),
    ],
    ids=["replicas-lora", "shards-lora", "shards-afa-lora", "shards-muon", "shards-mona-lite"],
)
def test_a_stopped_run_resumes_with_the_bits_of_an_undisturbed_one(
    planned, train, registry, tmp_path: Path, shard: str, options: Any
) -> None:
    plan = planned(train(**options, checkpoint_every=3, steps=8), workers=2, shard=shard)
    whole = runner.run(plan, registry, folder=tmp_path / "whole")
    for step in (2, 5):
        with pytest.raises(Stop):
            runner.run(plan, registry, folder=tmp_path / "cut", display=StopAt(step))
        assert workers_of(os.getpid()) == []
    resumed = StopAt(0)
    cut = runner.run(plan, registry, folder=tmp_path / "cut", display=resumed)
    assert any(line.startswith("resuming at step") for line in resumed.said)
    assert cut.stages[0].digest == whole.stages[0].digest
    one, two = states(tmp_path / "whole"), states(tmp_path / "cut")
    assert len(one) > 10
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def workers_of(parent: int) -> list[int]:
    """Processes that `parent` started to train and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ppid = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if ppid == parent and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (OSError, ValueError):
            continue
    return found


class KillAt(runner.Display):
    """Kills the last worker that was started, at a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        if step == self.at:
            os.kill(max(workers_of(os.getpid())), signal.SIGKILL)


def test_a_killed_worker_ends_the_run_by_name_and_resume_goes_on(planned, train, registry, tmp_path: Path) -> None:
    plan = planned(train(steps=300, checkpoint_every=1), workers=2)
    begin = time.monotonic()
    with pytest.raises(FitError, match=r"worker 1 of 2 was killed by SIGKILL[^$]*\n  fix: .*resume"):
        runner.run(plan, registry, folder=tmp_path / "run", display=KillAt(2))
    print(f"a killed worker was reported after {time.monotonic() - begin:.1f} s, start-up included")
    assert workers_of(os.getpid()) == []
    assert checkpoint.newest(tmp_path / "run" / "0-train.work", runner.stage_key(plan, plan.stages[0], ""))[0]


def test_an_error_of_a_worker_keeps_its_type_and_names_the_worker(planned, train, registry, tmp_path: Path) -> None:
    stage = train(optimizer={"use": "optimizer.adamw", "lr": 1e30}, clip_norm=None, steps=50)
    with pytest.raises(FitError, match=r"worker \d of 2: .* is not finite"):
        runner.run(planned(stage, workers=2), registry, folder=tmp_path / "run")


SCRIPT = """
import sys
from pathlib import Path
from stackloom.stack import Plan
if __name__ == "__main__":
    Plan.from_file(Path(sys.argv[1])).run(folder=sys.argv[2])
"""


def test_workers_die_with_a_killed_driver(planned, train, tmp_path: Path) -> None:
    plan = planned(train(steps=100_000, checkpoint_every=1), workers=2)
    plan.save(tmp_path / "plan.json")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "plan.json"), str(tmp_path / "run")]
    environment = os.environ | {"STACKLOOM_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "run").glob("0-train.work/step-*")):
        assert driver.poll() is None, driver.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    workers = workers_of(driver.pid)
    assert len(workers) == 2
    driver.kill()
    driver.communicate()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def drifting(site: Callable[..., Path], registry, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed plugin, optimizer.drifting."""
    folder = site("drifting", "optimizer.drifting")
    monkeypatch.syspath_prepend(str(folder))
    registry.refresh()
    return folder / "drifting"


class Drift(runner.Display):
    """Changes a plugin's file after the driver has checked it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def stage(self, index: int, kind: str, state: str, seconds: float = 0.0) -> None:
        if state == "running":
            self.file.write_text(self.file.read_text() + "\n# changed\n")


def test_a_worker_refuses_a_plugin_that_changed_since_the_plan(
    planned, train, registry, drifting: Path, tmp_path: Path
) -> None:
    plan = planned(train(optimizer={"use": "optimizer.drifting"}), workers=2)
    with pytest.raises(ErrorGroup, match=r"worker \d of 2(.|\n)*optimizer.drifting: its files changed"):
        runner.run(plan, registry, folder=tmp_path / "run", display=Drift(drifting / "component.py"))
    assert not (tmp_path / "run" / "0-train").exists()


def test_the_stage_key_depends_on_the_workers_and_not_on_the_executor(planned, train) -> None:
    plans = [
        planned(train(), **resources)
        for resources in ({"workers": 1}, {"workers": 2}, {"workers": 2, "shard": "fsdp"}, {"workers": 2})
    ]
    keys = [runner.stage_key(plan, plan.stages[0], "") for plan in plans]
    assert len(set(keys)) == 3
    assert keys[1] == keys[3]


def test_the_workers_shares_make_the_batch(checkpoint: Path) -> None:
    class Lines(list):
        def problems(self) -> list[str]:
            return []

    from stackloom.core.slots.data import Example

    lines = Lines(Example([i] * 5, [True] * 5) for i in range(11))
    made = Batches(lines, sequence_length=8, batch_size=6, seed=0)
    for step in (0, 3):
        together = [row.input_ids.tolist() for row in made.rows(step)]
        assert [row.input_ids.tolist() for rank in range(3) for row in made.rows(step, rank, 3)] == together


@pytest.mark.parametrize(
    ("resources", "options", "reason"),
    [
        ({"workers": 3}, {}, "batch_size 4 is no multiple of 6"),
        ({"workers": 8}, {"micro_batch_size": 1}, "batch_size 4 is no multiple of 8"),
    ],
)
def test_workers_without_whole_micro_batches_do_not_fit(planned, train, resources, options, reason: str) -> None:
    assert any(reason in str(problem) for problem in planned(train(**options), **resources).problems())


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"executor": "rey"}, "did you mean 'ray'"), ({"address": "ray://nowhere"}, "only executor ray has an address")],
)
def test_an_executor_that_cannot_be_is_refused(planned, train, registry, tmp_path: Path, options, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        runner.run(planned(train()), registry, folder=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_single_worker_needs_no_collectives() -> None:
    team = Solo()
    assert (team.rank, team.size, team.total(3), team.agree("x"), team.seed(7)) == (0, 1, 3, "x", 7)
