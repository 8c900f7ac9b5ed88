"""What several attempts at one run add up to, from ledger entries made by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from stackloom.registry.ledger import Metric, Stage
from stackloom.report.record import Spent, merged_metrics, read_run, time_spent


def reported(values: dict[int, float], name: str = "loss") -> list[Metric]:
    return [Metric(0, step, name, value, 1000.0 + step) for step, value in values.items()]


def attempt(seconds: float | None, kind: str = "train") -> Stage:
    began = "1970-01-01T00:16:40+00:00"  # 1000 seconds
    ended = None if seconds is None else f"1970-01-01T00:16:{40 + seconds:09.6f}+00:00"
    return Stage(0, kind, "running" if ended is None else "finished", "key", began, ended)


def test_a_resumed_attempt_replaces_what_it_did_again() -> None:
    merged = merged_metrics([reported({1: 5.0, 2: 4.0, 3: 3.0, 4: 9.0}), reported({3: 3.5, 4: 2.5})])
    assert merged["loss"].steps == (1, 2, 3, 4)
    assert merged["loss"].values == (5.0, 4.0, 3.5, 2.5)


def test_steps_after_the_last_checkpoint_are_void_until_they_are_done_again() -> None:
    merged = merged_metrics([reported({1: 5.0, 2: 4.0, 3: 3.0, 4: 9.0}), reported({3: 3.5})])
    assert merged["loss"].steps == (1, 2, 3)


def test_an_attempt_that_reported_nothing_changes_nothing() -> None:
    assert merged_metrics([reported({1: 5.0}), []])["loss"].values == (5.0,)


def test_attempts_add_up() -> None:
    found = time_spent("train", [(attempt(None), reported({1: 1.0, 4: 1.0})), (attempt(10.0), reported({5: 1.0}))])
    assert found == Spent(pytest.approx(14.0), partial=True, attempts=2)


def test_finding_a_finished_artifact_is_no_attempt() -> None:
    worked, skipped = (attempt(10.0), reported({1: 1.0})), (attempt(0.01), [])
    assert time_spent("train", [worked, skipped, skipped]) == Spent(pytest.approx(10.0), attempts=1)
    assert time_spent("train", [skipped]) == Spent()
    assert time_spent("export", [(attempt(3.0), []), (attempt(0.01), [])]) == Spent(pytest.approx(3.0), attempts=1)


def test_a_stage_done_anew_counts_from_there() -> None:
    assert time_spent("train", [(attempt(10.0), reported({1: 1.0})), (attempt(4.0), reported({1: 1.0}))]) == Spent(
        pytest.approx(4.0), attempts=1
    )


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_is_found_by_its_relative_folder(
    elsewhere: bool, tmp_path: Path, registry: Any, planned: Any, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(f"relative-{elsewhere}", train)
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(plan.to_json())
    mine = registry.ledger.begin(plan.name, {}, plan.digest, Path("runs/mine"))
    registry.ledger.begin(plan.name, {}, plan.digest, Path("runs/other"))
    registry.ledger.begin(plan.name, {}, "another plan", Path("runs/mine"))
    monkeypatch.chdir(tmp_path.parent if elsewhere else tmp_path)
    assert [run.id for run in read_run(folder, registry).runs] == [mine]


def test_a_value_that_is_no_number_stays_one(registry: Any, tmp_path: Path, planned: Any, train: Any) -> None:
    plan = planned("gaps", train)
    (tmp_path / "plan.json").write_text(plan.to_json())
    run = registry.ledger.begin(plan.name, {}, plan.digest, tmp_path)
    registry.ledger.begin_stage(run, 0, "train", "key")
    for step, value in enumerate((3.0, math.nan, 1.0), 1):
        registry.ledger.record_metrics(run, 0, step, {"loss": value})
    (stage,) = read_run(tmp_path, registry).stages
    assert math.isnan(stage.series["loss"].values[1])
    assert stage.state == "running"
