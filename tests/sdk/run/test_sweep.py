"""Sweeps and comparisons: every value runs in its folder, a stopped sweep goes on, the lowest final loss wins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import stackloom as sl
from stackloom import sweep as sweeps
from stackloom.cli import make_app
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.stack import StackSpec
from stackloom.report.comparison import labels_of, write_comparison
from stackloom.run import runner

RATES = sweeps.Axis("train.optimizer.lr", (1e-3, 1e-2))


@pytest.fixture
def spec(checkpoint: Path, train: Any) -> StackSpec:
    """A stack that trains for ten steps."""
    stage = train(steps=10, optimizer="optimizer.adamw")
    return sl.Stack(
        "tiny", model=sl.use("model.hf", checkpoint=str(checkpoint)), stages=[stage], device="cpu", dtype="float32"
    ).spec


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("train.optimizer.lr=1e-3,2e-3", (0.001, 0.002)),
        ("train.steps=10", (10,)),
        ("train.optimizer={use: optimizer.muon},{use: optimizer.adamw, lr: 0.1}", 2),
        ("resources.dtype=float32,bfloat16", ("float32", "bfloat16")),
    ],
)
def test_values_are_read_as_yaml_reads_them(text: str, values: Any) -> None:
    found = sweeps.Axis.read(text)
    assert found.path == text.partition("=")[0]
    assert len(found.values) == values if isinstance(values, int) else found.values == values


@pytest.mark.parametrize("text", ["lr", "=1", "train.lr=", "train.lr=1,1", "train.lr=[", "train.lr=}"])
def test_what_names_no_option_with_values_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        sweeps.Axis.read(text)


def stack(*kinds: str, **options: Any) -> StackSpec:
    return StackSpec.from_data(
        {"name": "a", "model": "model.hf", "stages": [{kind: json.loads(json.dumps(options))} for kind in kinds]}
    )


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("train.optimizer.lr", {"optimizer": "optimizer.adamw"}),
        ("stages[0].train.optimizer.lr", {"optimizer": {"use": "optimizer.adamw", "lr": 1.0}}),
        (
            "train.optimizer[*_proj.weight].lr",
            {"optimizer": {"*_proj.weight": "optimizer.muon", "*": "optimizer.adamw"}},
        ),
        ("train.transform[1].every_n_steps", {"transform": [{"use": "transform.wisca"}, "transform.wisca"]}),
    ],
)
def test_a_path_reaches_options_of_plugins_lists_and_patterns(path: str, options: Any) -> None:
    ((label, values, made),) = sweeps.points(stack("train", **options), [sweeps.Axis(path, (7,))])
    assert label == f"{path.rpartition('.')[2]}=7"
    assert values == {path: 7}
    assert '": 7' in json.dumps(made.to_data())


@pytest.mark.parametrize(
    ("path", "kinds", "said"),
    [
        ("quantize.quantizer.x", ("train",), "has no 'quantize'"),
        ("train.adapter.rank", ("train",), "has no 'adapter'"),
        ("train.steps.x", ("train",), "steps is 3 and has no x"),
        ("train.steps", ("train", "train"), r"2 train stages[^$]*stages\[0\].train.steps"),
        ("stages[3].train.steps", ("train",), "no number 3 among 1"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_with_what_is_there(path: str, kinds: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        list(sweeps.points(stack(*kinds, steps=3), [sweeps.Axis(path, (1,))]))


def test_two_axes_make_every_combination() -> None:
    axes = [sweeps.Axis("train.steps", (1, 2)), sweeps.Axis("seed", (5, 6, 7))]
    labels = [label for label, _, _ in sweeps.points(stack("train", steps=3), axes)]
    assert labels == [f"steps={steps},seed={seed}" for steps in (1, 2) for seed in (5, 6, 7)]
    with pytest.raises(ConfigError, match="swept twice"):
        list(sweeps.points(stack("train", steps=3), [axes[0], axes[0]]))


class Stop(BaseException):
    """Stands for Ctrl-C."""


class StopAt(runner.Display):
    def __init__(self, step: int) -> None:
        self.at, self.seen = step, 0

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        self.seen += 1
        if self.seen == self.at:
            raise Stop


def test_a_stopped_sweep_goes_on_and_ends_as_an_undisturbed_one(spec, registry, tmp_path: Path) -> None:
    _, whole = sweeps.sweep(spec, [RATES], registry, folder=tmp_path / "whole")
    with pytest.raises(Stop):
        sweeps.sweep(spec, [RATES], registry, folder=tmp_path / "cut", display=StopAt(15))
    counting = StopAt(0)
    folder, cut = sweeps.sweep(spec, [RATES], registry, folder=tmp_path / "cut", display=counting)
    assert counting.seen < 10  # the first run is skipped, the second goes on from its checkpoint
    assert [point.ending for point in cut] == [point.ending for point in whole]
    winner = sweeps.best(cut)
    assert winner is not None
    assert winner.values == {"train.optimizer.lr": 1e-2}
    data = json.loads((folder / "sweep.json").read_text())
    assert (data["best"], data["measure"]) == ("lr=0.01", "final loss")
    page = (folder / "sweep.html").read_text()
    assert "Final loss by value" in page
    assert "Stage 0: loss" in page
    assert re.search(r"lr=0\.01.*?<strong>best</strong>", page, re.DOTALL)
    assert (folder / "lr=0.001" / "report.html").is_file()


def test_a_value_that_diverges_is_noted_and_the_others_go_on(spec, registry, tmp_path: Path) -> None:
    axes = [sweeps.Axis("train.optimizer.lr", (1e30, 1e-2)), sweeps.Axis("train.clip_norm", (None,))]
    _, found = sweeps.sweep(spec, axes, registry, folder=tmp_path / "sweep")
    assert found[0].ending is None
    assert "is not finite" in found[0].failure
    assert sweeps.best(found) is found[1]
    with pytest.raises(FitError, match="is not finite"):
        sweeps.sweep(spec, [sweeps.Axis("train.optimizer.lr", (1e30,)), axes[1]], registry, folder=tmp_path / "none")


def test_a_bad_value_is_refused_before_anything_runs(spec, registry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="greater than or equal to 0"):
        sweeps.sweep(spec, [sweeps.Axis("train.optimizer.lr", (1e-3, -1.0))], registry, folder=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_the_command_line_sweeps_prints_the_best_and_compares(
    spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACKLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    Path("stack.yaml").write_text(spec.to_yaml())
    call = ["run", "stack.yaml", "--sweep", "train.optimizer.lr=1e-3,1e-2", "--folder", "sweep"]
    done = CliRunner().invoke(make_app(), call, catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"lr=0\.01\s+.*best", done.stdout)
    said = json.loads(CliRunner().invoke(make_app(), [*call, "--json"]).stdout.splitlines()[-1])
    assert said["best"] == "lr=0.01"
    compared = CliRunner().invoke(make_app(), ["report", "sweep/lr=0.001", "sweep/lr=0.01"], catch_exceptions=False)
    assert "wrote comparison.html" in compared.stdout
    assert "2 runs compared" in Path("comparison.html").read_text()


def test_a_comparison_shows_where_stacks_differ_and_runs_without_an_end(
    planned, train, registry, tmp_path: Path
) -> None:
    runner.run(planned(train(steps=4)), registry, folder=tmp_path / "one")
    with pytest.raises(Stop):
        runner.run(planned(train(steps=6)), registry, folder=tmp_path / "two", display=StopAt(3))
    labels = labels_of([tmp_path / "one", tmp_path / "two"])
    page = write_comparison(labels, registry, tmp_path / "page.html", title="two").read_text()
    assert "stages[0].train.steps" in page
    assert "not finished" in page
    assert page.count("<svg") == 4


@pytest.fixture
def quantizing(checkpoint: Path, lines: Path) -> StackSpec:
    """A stack that quantizes and evaluates, and states what it sweeps."""
    data = sl.use("data.jsonl", path=str(lines), format="messages")
    return sl.Stack(
        "widths",
        model=sl.use("model.hf", checkpoint=str(checkpoint)),
        stages=[
            sl.quantize(quantizer=sl.use("quantizer.rtn", scheme="w8a8", group_size=16)),
            sl.evaluate(data=data, sequences=5, sequence_length=64, compare_to_float=True, cloze=8),
        ],
        sweep={
            "quantize.quantizer": [sl.use("quantizer.rtn", scheme=each, group_size=16) for each in ("w8a8", "w4a8")]
        },
        device="cpu",
        dtype="float32",
    ).spec


def test_a_stack_states_its_sweep_and_is_planned_without_it(quantizing: StackSpec, registry) -> None:
    read = StackSpec.from_yaml(quantizing.to_yaml())
    (axis,) = sweeps.Axis.of(read)
    assert axis.path == "quantize.quantizer"
    assert [value["options"]["scheme"] if "options" in value else value["scheme"] for value in axis.values] == [
        "w8a8",
        "w4a8",
    ]
    from stackloom.core import planning

    assert planning.plan(read, registry).digest == planning.plan(read.model_copy(update={"sweep": {}}), registry).digest


@pytest.mark.parametrize("values", [[], [1, 1]])
def test_a_swept_option_has_distinct_values(values: list[int]) -> None:
    data = {"name": "a", "model": "model.hf", "stages": [{"train": {}}], "sweep": {"seed": values}}
    with pytest.raises(ConfigError, match="at least one value, none of them twice"):
        sweeps.Axis.of(StackSpec.from_data(data))


def test_without_training_a_sweep_compares_evaluations(quantizing: StackSpec, registry, tmp_path: Path) -> None:
    folder, found = sweeps.sweep(quantizing, sweeps.Axis.of(quantizing), registry, folder=tmp_path / "sweep")
    endings = [point.ending for point in found]
    for point, ended in zip(found, endings, strict=True):
        assert ended is not None
        assert ended.measure == "nats above float"
        measured = json.loads((point.folder / "1-evaluate" / "metrics.json").read_text())["against_float"]
        assert ended.value == measured["nll_difference"]["value"]
        assert list(ended.interval or ()) == measured["nll_difference"]["interval"]
    winner = sweeps.best(found)
    assert winner is not None
    assert winner.ending == min(endings, key=lambda each: each.value)
    page = (folder / "sweep.html").read_text()
    for name in ("nats above float", "perplexity", "KL to float", "multiple choice", "bytes of the layers"):
        assert f">{name}</th>" in page
    assert "<svg" in page


def test_a_sweep_needs_something_to_compare_by(checkpoint: Path, registry, tmp_path: Path) -> None:
    spec = sl.Stack("a", model=sl.use("model.hf", checkpoint=str(checkpoint)), stages=[sl.export()], device="cpu").spec
    with pytest.raises(ConfigError, match="neither a train nor an evaluate stage"):
        sweeps.sweep(spec, [sweeps.Axis("seed", (1, 2))], registry, folder=tmp_path / "sweep")


def test_the_command_line_runs_a_stack_that_sweeps(
    quantizing: StackSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACKLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.chdir(tmp_path)
    Path("stack.yaml").write_text(quantizing.to_yaml())
    shown = CliRunner().invoke(make_app(), ["plan", "stack.yaml"], catch_exceptions=False)
    assert "2 values of quantize.quantizer" in shown.stdout
    done = CliRunner().invoke(make_app(), ["run", "stack.yaml", "--folder", "sweep"], catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"nats above float.*perplexity.*KL to float", done.stdout)
    assert done.stdout.count("best") == 1


def test_the_command_line_runs_a_python_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "stack.py"
    script.write_text("print('it ran'); raise SystemExit(3)")
    done = CliRunner().invoke(make_app(), ["run", str(script)])
    assert done.exit_code == 3
    assert "it ran" in capfd.readouterr().out
    refused = CliRunner().invoke(make_app(), ["run", str(script), "--device", "cpu"])
    assert isinstance(refused.exception, ConfigError)
    assert "has its own options" in str(refused.exception)
