"""The transform stage, transforms while training, and several optimizers: planned, checked, resumed bit-exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import stackloom as sl
from stackloom.core.errors import ConfigError, FitError
from stackloom.plugins.transform.wisca import wisca
from stackloom.report import write_report
from stackloom.run import rewriting, runner

WISCA = {"use": "transform.wisca", "qk": "channel", "up_down": "channel", "min_change": 0.0}
OFTEN = {"use": "transform.wisca", "every_n_steps": 2, "min_change": 0.0}
SHARED = {
    "*_proj.weight": {"use": "optimizer.muon", "lr": 1e-2},
    "*": {"use": "optimizer.adamw", "lr": 1e-3},
}
LORA = {"use": "adapter.lora", "rank": 4, "dropout": 0.1}
OF_LORA = {"use": "transform.wisca", "qk": "off", "vo": "off", "lora": "rank", "every_n_steps": 2, "min_change": 0.0}


@pytest.fixture
def rewrite(lines: Path) -> Any:
    """`rewrite(transform, ...)`: a transform stage that checks on the lines."""

    def make(*transforms: Any, **options: Any) -> Any:
        data = sl.use("data.jsonl", path=str(lines), format="messages")
        return sl.transform(**{"transform": list(transforms), "data": data, "sequence_length": 32} | options)

    return make


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model(torch.arange(40, 72)[None]).logits


def test_the_stage_writes_a_model_that_computes_the_same(planned, rewrite, registry, checkpoint, tmp_path) -> None:
    made = runner.run(planned(rewrite(WISCA)), registry, folder=tmp_path / "run")
    assert made.stages[0].card.kind == "model"
    (said,) = json.loads((made.stages[0].folder / "rewrites.json").read_text())
    assert 0 <= said["change"] <= said["invariant"]["bound"] < 1e-5
    assert len(said["rewrites"]) == 6
    before, after = logits(checkpoint), logits(made.stages[0].folder)
    assert rewriting.relative_change([before], [after]) <= said["invariant"]["bound"]
    one, two = (load_file(folder / "model.safetensors") for folder in (checkpoint, made.stages[0].folder))
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_a_later_stage_trains_what_the_transform_left(planned, rewrite, train, registry, tmp_path) -> None:
    made = runner.run(planned(rewrite(WISCA), train(steps=2)), registry, folder=tmp_path / "run")
    assert made.stages[1].card.parent == made.stages[0].digest


def test_the_report_shows_each_place_with_bound_and_change(planned, rewrite, registry, tmp_path) -> None:
    runner.run(planned(rewrite(WISCA)), registry, folder=tmp_path / "run")
    page = write_report(tmp_path / "run", registry).read_text()
    assert "model.layers.1.self_attn q/k" in page
    assert "the logits, up to rounding" in page
    assert "Bound, from the dtype" in page


class Broken(wisca.Wisca):
    """Forgets the divided side."""

    def apply(self, model: Any, optimizers: Any = ()) -> Any:
        found = super().apply(model, optimizers)
        with torch.no_grad():
            model.model.layers[0].self_attn.o_proj.weight.mul_(1.01)
        return found


@pytest.mark.parametrize("where", ["stage", "train"])
def test_a_broken_invariant_is_refused_and_nothing_is_written(
    planned, rewrite, train, registry, tmp_path: Path, monkeypatch, where: str
) -> None:
    monkeypatch.setattr(wisca, "Wisca", Broken)
    plan = planned(rewrite(WISCA) if where == "stage" else train(transform=WISCA))
    with pytest.raises(FitError, match=r"transform.wisca promised to keep the logits.*above its bound"):
        runner.run(plan, registry, folder=tmp_path / "run")
    assert not list((tmp_path / "run").glob("0-*/model.safetensors"))


def test_two_transforms_of_one_module_are_found_before_any_change(planned, rewrite, train) -> None:
    for stage in (rewrite(WISCA, WISCA), train(transform=[WISCA, OFTEN])):
        (problem,) = planned(stage).problems()
        assert "transform.wisca (rewrite) and transform.wisca (rewrite) both change model.layers.*" in str(problem)


def test_a_transform_after_quantizing_is_a_conflict_of_state(planned, rewrite) -> None:
    plan = planned(sl.quantize(quantizer={"use": "quantizer.rtn", "scheme": "w8a8"}), rewrite(WISCA))
    assert any("in state 'float'" in str(problem) for problem in plan.problems())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter": LORA, "transform": OFTEN}, "only the adapter is saved"),
        ({"transform": OF_LORA}, "lora needs a low-rank adapter"),
    ],
)
def test_what_cannot_be_rewritten_is_refused_in_the_plan(planned, train, options: Any, said: str) -> None:
    assert any(said in str(problem) for problem in planned(train(**options)).problems())


def test_options_of_training_say_nothing_in_a_stage(planned, rewrite) -> None:
    (problem,) = planned(rewrite(OFTEN)).problems()
    assert "every_n_steps say nothing in a transform stage" in str(problem)


def test_training_applies_it_at_init_and_every_n_steps(planned, train, registry, tmp_path: Path) -> None:
    said: list[str] = []
    display = runner.Display()
    display.say = said.append  # type: ignore[method-assign]
    made = runner.run(planned(train(transform=OFTEN)), registry, folder=tmp_path / "run", display=display)
    assert [line.partition(":")[0] for line in said] == ["step 0", "step 2", "step 4"]
    steps = [metric.step for metric in registry.ledger.metrics(made.id, "output_change")]
    assert steps == [1, 3, 5]


class Stop(BaseException):
    """Stands for a kill at a chosen step."""


class StopAt(runner.Display):
    def __init__(self, step: int) -> None:
        self.at = step

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        if step == self.at:
            raise Stop


CONTROL = {"use": "transform.wisca", "control": "scale-invariant", "every_n_steps": None}
STACKS = {
    "wisca": {"transform": OFTEN, "optimizer": SHARED},
    "lora": {"transform": OF_LORA, "adapter": LORA, "optimizer": {"use": "optimizer.mona", "lr": 1e-2}},
    "control": {"transform": CONTROL, "optimizer": {"use": "optimizer.muon", "lr": 1e-2}},
}


def states(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's newest checkpoint, by file and name: parameters and optimizer state of all workers."""
    newest = max((folder / "0-train.work").glob("step-*"))
    return {
        f"{path.name}: {name}": tensor
        for path in sorted(newest.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def resumes_with_the_same_bits(plan: Any, registry: Any, folder: Path, stops: list[int]) -> None:
    whole = runner.run(plan, registry, folder=folder / "whole")
    for step in stops:
        with pytest.raises(Stop):
            runner.run(plan, registry, folder=folder / "cut", display=StopAt(step))
    cut = runner.run(plan, registry, folder=folder / "cut")
    assert cut.stages[0].digest == whole.stages[0].digest
    one, two = states(folder / "whole"), states(folder / "cut")
    assert len(one) > 10
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("stack", "step"),
    [("wisca", 1), ("wisca", 2), ("wisca", 3), ("wisca", 4), ("wisca", 5), ("lora", 2), ("lora", 3), ("control", 3)],
)
def test_a_run_stopped_at_any_step_resumes_bit_exactly(
    planned, train, registry, tmp_path: Path, stack: str, step: int
) -> None:
    """Also on the step of an application, which must not happen twice."""
    resumes_with_the_same_bits(planned(train(**STACKS[stack])), registry, tmp_path, [step])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stack", "shard"), [("wisca", "fsdp"), ("lora", "fsdp"), ("control", "fsdp"), ("lora", "none")]
)
def test_two_workers_resume_bit_exactly(planned, train, registry, tmp_path: Path, stack: str, shard: str) -> None:
    plan = planned(train(**STACKS[stack], checkpoint_every=3), workers=2, shard=shard)
    resumes_with_the_same_bits(plan, registry, tmp_path, [5])


@pytest.mark.slow
def test_shards_learn_as_one_worker_with_a_transform(planned, train, registry, tmp_path: Path) -> None:
    stage = train(transform=OFTEN, micro_batch_size=1)
    losses = []
    for workers in ({"workers": 1}, {"workers": 2, "shard": "fsdp"}):
        made = runner.run(planned(stage, **workers), registry, folder=tmp_path / str(workers["workers"]))
        losses.append([metric.value for metric in registry.ledger.metrics(made.id, "loss")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_first_pattern_that_names_a_parameter_gives_it_its_optimizer(planned, train, registry, tmp_path) -> None:
    """Matrices move as under muon alone, the others as under adamw alone."""

    def trained(name: str, optimizer: Any) -> dict[str, torch.Tensor]:
        stage = train(optimizer=optimizer, steps=1, clip_norm=None)
        return load_file(
            runner.run(planned(stage), registry, folder=tmp_path / name).stages[0].folder / "model.safetensors"
        )

    shared = trained("shared", SHARED)
    alone = {pattern: trained(str(len(pattern)), optimizer) for pattern, optimizer in SHARED.items()}
    for name, tensor in shared.items():
        pattern = "*_proj.weight" if name.endswith("_proj.weight") else "*"
        assert torch.equal(tensor, alone[pattern][name]), name


def test_plans_count_the_state_of_each_optimizer_by_its_pattern(planned, train) -> None:
    plan = planned(train(optimizer=SHARED))
    found = {part.path.partition("optimizer")[2]: part.cost.optimizer_bytes for part in plan.stages[0].components}
    matrices = sum(size for name, size in plan.shape.sizes() if name.endswith("_proj.weight"))
    assert found["[*_proj.weight]"] == 4 * matrices
    assert found["[*]"] == 8 * (plan.shape.parameters - matrices)


def test_plans_count_state_in_the_dtype_that_an_adapter_holds(planned, train) -> None:
    """Float32 matrices beside bfloat16 weights: two float32 moments of each."""
    plan = planned(train(adapter=LORA), dtype="bfloat16")
    costs = {part.plugin: part.cost for part in plan.stages[0].components}
    assert costs["optimizer.adamw"].optimizer_bytes == 8 * costs["adapter.lora"].parameters


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["*_proj.weight"], "no pattern takes model.embed_tokens.weight"),
        (["*", "*_proj.weight"], "nothing is left for the pattern '\\*_proj.weight'"),
    ],
)
def test_a_parameter_without_an_optimizer_is_found_in_the_plan(planned, train, patterns: list[str], said: str) -> None:
    stage = train(optimizer={pattern: {"use": "optimizer.adamw"} for pattern in patterns})
    (problem,) = planned(stage).problems()
    with pytest.raises(FitError, match=said):
        raise problem


def test_a_parameter_of_an_adapter_without_an_optimizer_is_refused_by_name(planned, train, registry, tmp_path) -> None:
    stage = train(adapter=LORA, optimizer={"*lora_A*": {"use": "optimizer.adamw"}})
    with pytest.raises(ConfigError, match=r"no pattern takes .*lora_B"):
        runner.run(planned(stage), registry, folder=tmp_path / "run")


def test_an_optimizer_without_a_pattern_is_refused(planned, train) -> None:
    with pytest.raises(ConfigError, match="optimizer names no pattern"):
        planned(train(optimizer={}))
