"""The ledger says which plan ran when, what each stage gave, and what became of a run whose process is gone."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from stackloom.core.errors import ConfigError, EngineError
from stackloom.registry import StorageError, open_registry
from stackloom.registry.ledger import Artifact

PLAN = {"name": "tool-agent", "stages": [{"train": {"lr": 2e-3}}]}


@pytest.fixture
def ledger(store_url):
    with open_registry(store_url, search_path=[]) as registry:
        yield registry.ledger


def test_a_run_from_begin_to_finish(ledger):
    run = ledger.begin("tool-agent", PLAN, "d" * 64, Path("/runs/1"))
    assert [each.status for each in ledger.runs()] == ["running"]
    ledger.begin_stage(run, 0, "train", "key0")
    artifact = Artifact(0, "a" * 64, "adapter", Path("/runs/1/0"))
    ledger.finish_stage(run, 0, artifact=artifact)
    ledger.begin_stage(run, 1, "evaluate", "key1")
    ledger.finish_stage(run, 1, "failed")
    ledger.finish(run, "failed")
    found = ledger.get(run)
    assert (found.id, found.name, found.plan_digest, found.status, found.folder) == (
        run,
        "tool-agent",
        "d" * 64,
        "failed",
        Path("/runs/1"),
    )
    assert found.finished is not None
    assert found.finished >= found.created
    assert ledger.plan(run) == PLAN
    assert [(stage.position, stage.kind, stage.status, stage.key) for stage in ledger.stages(run)] == [
        (0, "train", "finished", "key0"),
        (1, "evaluate", "failed", "key1"),
    ]
    assert ledger.artifacts(run) == [artifact]


def test_runs_list_the_newest_first_and_page(ledger):
    runs = [ledger.begin(f"run{number}", {}, "", Path()) for number in range(3)]
    assert [run.id for run in ledger.runs()] == runs[::-1]
    assert [run.id for run in ledger.runs(limit=1, offset=1)] == [runs[1]]


def test_another_run_finds_the_artifact_of_a_finished_stage_by_its_key(ledger):
    first, second = (ledger.begin(name, {}, "", Path()) for name in ("first", "second"))
    ledger.begin_stage(first, 0, "train", "same")
    assert ledger.artifact_of("same") is None
    ledger.finish_stage(first, 0, artifact=Artifact(0, "old", "model", Path("/old")))
    ledger.begin_stage(second, 0, "train", "same")
    ledger.finish_stage(second, 0, artifact=Artifact(0, "new", "model", Path("/new")))
    assert ledger.artifact_of("same") == Artifact(0, "new", "model", Path("/new"))
    assert ledger.artifact_of("other") is None


def test_a_stage_begun_again_replaces_what_it_gave(ledger):
    run = ledger.begin("x", {}, "", Path())
    for digest in ("one", "two"):
        ledger.begin_stage(run, 0, "train", "key")
        ledger.finish_stage(run, 0, artifact=Artifact(0, digest, "model", Path("/x")))
    assert [artifact.digest for artifact in ledger.artifacts(run)] == ["two"]
    assert len(ledger.stages(run)) == 1


def test_metrics_come_back_in_step_order_with_infinities_and_nan(ledger):
    run = ledger.begin("x", {}, "", Path())
    ledger.begin_stage(run, 0, "train", "key")
    for step, loss in ((2, math.inf), (0, 3.5), (1, math.nan)):
        ledger.record_metrics(run, 0, step, {"loss": loss, "lr": 0.1}, at=float(step))
    values = [(metric.step, metric.value, metric.time) for metric in ledger.metrics(run, "loss")]
    assert values[0] == (0, 3.5, 0.0)
    assert math.isnan(values[1][1])
    assert values[2] == (2, math.inf, 2.0)
    assert len(ledger.metrics(run)) == 6
    ledger.record_metrics(run, 0, 3, {})
    assert len(ledger.metrics(run)) == 6


def test_a_run_whose_process_is_gone_is_interrupted_and_can_be_resumed(ledger, store_url):
    pid = os.fork()
    if pid == 0:
        with open_registry(store_url, search_path=[]) as registry:
            registry.ledger.begin("orphan", {}, "", Path())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    (run,) = ledger.runs()
    assert run.status == "interrupted"
    ledger.resume(run.id)
    assert ledger.get(run.id).status == "running"


def test_unknown_runs_and_stages_are_named(ledger):
    run = ledger.begin("x", {}, "", Path())
    with pytest.raises(ConfigError, match="did you mean"):
        ledger.get(run[:-1])
    with pytest.raises(ConfigError):
        ledger.finish("nothing-like-it")
    with pytest.raises(EngineError, match="never begun"):
        ledger.finish_stage(run, 7)
    with pytest.raises(StorageError, match=r"(?i)foreign key"):
        ledger.record_metrics(run, 7, 0, {"loss": 1.0})
    assert ledger.metrics(run) == []


def test_a_failed_run_keeps_what_stopped_it_until_it_goes_on(ledger):
    run = ledger.begin("tool-agent", PLAN, "d" * 64, Path("/runs/1"))
    ledger.finish(run, "failed", "FitError: the loss is not finite\0\ud800" + "x" * 10_000)
    failure = ledger.get(run).failure
    assert failure.startswith("FitError: the loss is not finite?x")
    assert len(failure) == 4000
    ledger.resume(run)
    assert ledger.get(run).failure == ""
    ledger.finish(run)
    assert (ledger.get(run).status, ledger.get(run).failure) == ("finished", "")
