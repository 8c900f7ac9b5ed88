from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stackloom.core.errors import ArtifactError, ConfigError, FitError
from stackloom.core.slots.data import Example
from stackloom.run import runner
from stackloom.run import train as stage
from stackloom.run.batches import WORTH, Batches, Row, flatten, share_beginnings
from stackloom.run.packed_attention import packed_attention, sequences


class Lines:
    """Example i repeats token i; `only` keeps one of them."""

    def __init__(self, lengths: list[int], only: int | None = None) -> None:
        self.examples = [
            Example([index] * length, [False] + [True] * (length - 1))
            for index, length in enumerate(lengths)
            if only is None or index == only
        ]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def problems(self) -> list[str]:
        return []


def batches(lengths: list[int], **options: int) -> Batches:
    return Batches(Lines(lengths), **{"sequence_length": 16, "batch_size": 2, "seed": 0} | options)


def test_a_batch_is_a_pure_function_of_the_step() -> None:
    one, two = batches([5, 9, 3, 7, 16, 2]), batches([5, 9, 3, 7, 16, 2])
    two.rows(40)
    for step in (7, 0, 3):
        assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(one.rows(step), two.rows(step), strict=True))


def test_every_example_is_trained_once_per_epoch() -> None:
    made = batches([5, 9, 3, 7, 16, 2], batch_size=1)
    seen: list[int] = []
    step = 0
    while made.epoch(step) < 3:
        seen += [int(ids[0]) for ids in made.rows(step)[0].input_ids.split(1)]
        step += 1
    assert [seen.count(index) for index in range(6)] == [3 * length for length in (5, 9, 3, 7, 16, 2)]


def test_positions_start_anew_with_each_example_and_targets_stay_inside_it() -> None:
    for step in range(10):
        for row in batches([5, 9, 3, 7]).rows(step):
            assert len(row.input_ids) <= 16
            starts = [index for index, position in enumerate(row.positions.tolist()) if position == 0]
            assert all(at + 1 not in starts for at in row.predicts.tolist())
            assert torch.equal(row.input_ids[row.predicts], row.targets)


def test_an_example_without_a_trained_token_is_left_out_and_named() -> None:
    made = batches([5, 1])
    assert len(made.examples) == 1
    assert made.left_out == ["example 1: no trained token within 16 tokens"]


def test_data_without_a_trained_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="no example has a token to train on"):
        batches([1, 1])


def test_packing_changes_no_loss(checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64)
    lengths = [5, 9, 3, 7, 4, 11]
    rows = batches(lengths, sequence_length=20, batch_size=2).rows(0)
    packed = {int(token) for row in rows for token in row.input_ids.unique()}
    apart = [
        Batches(Lines(lengths, only=index), sequence_length=20, batch_size=1, seed=0).rows(0)[0] for index in packed
    ]
    assert len(packed) > len(rows)
    together = float(stage.loss_of(model, flatten(rows)).detach())
    assert together == pytest.approx(sum(float(stage.loss_of(model, row).detach()) for row in apart), rel=1e-6)


def chats(*tails: list[int], beginning: int = 40) -> Row:
    """Sequences with a common beginning, the loss on what follows it; tokens stay below 50."""
    parts = [[*(7 * place % 50 for place in range(beginning)), *tail] for tail in tails]
    ids = torch.tensor([token for part in parts for token in part])
    positions = torch.tensor([place for part in parts for place in range(len(part))])
    predicts = (positions >= beginning).nonzero().flatten() - 1
    return Row(ids, positions, ids[predicts + 1], predicts)


ROW = chats([1, 2, 3], [4, 5], [1, 2, 9, 9], [6])


def test_a_shared_beginning_is_kept_once() -> None:
    shared = share_beginnings(ROW)
    assert sequences(shared.positions) == [(0, 43), (40, 2), (41, 3), (40, 1)]
    assert torch.equal(shared.targets, ROW.targets)
    assert torch.equal(shared.positions[shared.predicts], ROW.positions[ROW.predicts])


def test_sharing_changes_neither_losses_nor_gradients(checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64)
    other = chats([8, 7], [5, 5, 5], beginning=WORTH + 3)
    found = []
    for row in (flatten([ROW, other]), share_beginnings(flatten([ROW, other]))):
        model.zero_grad()
        with packed_attention(model) as packed:
            assert packed
            loss = stage.loss_of(model, row)
            loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for plain, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-7)  # losses and rotary factors are float32


def test_sequences_that_share_less_than_it_is_worth_stay_whole() -> None:
    row = chats([1, 2], [3, 4], beginning=WORTH - 1)
    assert torch.equal(share_beginnings(row).input_ids, row.input_ids)
    assert sequences(share_beginnings(chats([1, 2], [3, 4], beginning=WORTH)).positions) == [(0, 18), (16, 2)]


def test_a_sequence_that_only_repeats_another_keeps_a_token() -> None:
    assert sequences(share_beginnings(chats([1, 2], [1, 2], [1])).positions) == [(0, 42), (41, 1), (40, 1)]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_rate_warms_up_to_its_peak_and_ends_at_its_fraction(planned, train, schedule: str) -> None:
    from stackloom.core.stages import Train

    options = Train.model_construct(steps=100, warmup_steps=10, schedule=schedule, final_lr_fraction=0.2)
    rates = [stage.rate(options, step) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[9] == rates[10] == 1.0
    assert min(rates[10:]) == (1.0 if schedule == "constant" else pytest.approx(0.2, abs=0.02))


def test_training_lowers_the_loss_and_writes_a_model(planned, train, registry, tmp_path: Path) -> None:
    plan = planned(train(steps=20))
    made = runner.run(plan, registry, folder=tmp_path / "run")
    losses = [metric.value for metric in registry.ledger.metrics(made.id, "loss")]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 1
    assert made.stages[0].card.kind == "model"


def test_one_large_micro_batch_and_many_small_ones_give_the_same_gradient(
    planned, train, registry, tmp_path: Path
) -> None:
    norms = []
    for size in (1, 4):
        made = runner.run(planned(train(steps=1, micro_batch_size=size)), registry, folder=tmp_path / str(size))
        norms.append([registry.ledger.metrics(made.id, name)[0].value for name in ("loss", "grad_norm")])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_activation_checkpointing_changes_nothing(planned, train, registry, tmp_path: Path) -> None:
    states = [
        load_file(
            runner.run(planned(train(steps=2), activation_checkpointing=flag), registry, folder=tmp_path / str(flag))
            .stages[0]
            .folder
            / "model.safetensors"
        )
        for flag in (False, True)
    ]
    assert all(torch.equal(a, states[1][name]) for name, a in states[0].items())


class Stop(BaseException):
    """Stands for a kill at a chosen step."""


class StopAt(runner.Display):
    def __init__(self, step: int) -> None:
        self.at = step

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        if step == self.at:
            raise Stop


@pytest.mark.parametrize(
    ("step", "optimizer"),
    [
        *((step, f"optimizer.{name}") for name in ("adamw", "muon") for step in (1, 2, 3, 5, 6)),
        (3, "optimizer.mona"),
    ],
)
def test_a_run_stopped_at_any_step_resumes_bit_exactly(
    planned, train, registry, tmp_path: Path, step: int, optimizer: str
) -> None:
    plan = planned(train(optimizer={"use": optimizer, "lr": 1e-2}))
    whole = runner.run(plan, registry, folder=tmp_path / "whole")
    with pytest.raises(Stop):
        runner.run(plan, registry, folder=tmp_path / "cut", display=StopAt(step))
    cut = runner.run(plan, registry, folder=tmp_path / "cut")
    assert cut.stages[0].digest == whole.stages[0].digest


def test_a_run_stopped_within_an_adapters_schedule_resumes_bit_exactly(
    planned, train, registry, tmp_path: Path
) -> None:
    """The checkpoint is written after step 2; beta falls over all six steps."""
    plan = planned(train(adapter={"use": "adapter.afa-lora", "activation": "silu", "rho": 1.0, "dropout": 0.1}))
    whole = runner.run(plan, registry, folder=tmp_path / "whole")
    with pytest.raises(Stop):
        runner.run(plan, registry, folder=tmp_path / "cut", display=StopAt(3))
    cut = runner.run(plan, registry, folder=tmp_path / "cut")
    assert cut.stages[0].digest == whole.stages[0].digest


def test_a_finished_stage_is_skipped(planned, train, registry, tmp_path: Path) -> None:
    plan = planned(train())
    runner.run(plan, registry, folder=tmp_path / "run")
    again = runner.run(plan, registry, folder=tmp_path / "run", display=StopAt(1))
    assert again.seconds == [0.0]


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(planned, train, registry, tmp_path: Path) -> None:
    plan = planned(train())
    whole = runner.run(plan, registry, folder=tmp_path / "whole")
    with pytest.raises(Stop):
        runner.run(plan, registry, folder=tmp_path / "cut", display=StopAt(5))
    (tmp_path / "cut" / "0-train.work" / "step-00000004" / "optimizer.safetensors").write_bytes(b"torn")
    said: list[str] = []
    display = runner.Display()
    display.say = said.append  # type: ignore[method-assign]
    assert (
        runner.run(plan, registry, folder=tmp_path / "cut", display=display).stages[0].digest == whole.stages[0].digest
    )
    assert any("passed over" in line for line in said)
    assert "resuming at step 2" in said


def test_a_loss_that_is_no_number_stops_the_run_before_the_weights_change(
    planned, train, registry, tmp_path: Path
) -> None:
    with pytest.raises(FitError, match="is not finite"):
        runner.run(
            planned(train(optimizer={"use": "optimizer.adamw", "lr": 1e30}, clip_norm=None, steps=50)),
            registry,
            folder=tmp_path / "run",
        )


def test_two_runs_in_one_folder_are_refused_by_process(planned, train, registry, tmp_path: Path) -> None:
    with runner.locked(tmp_path / "run"), pytest.raises(ConfigError, match="is running in it"):
        runner.run(planned(train()), registry, folder=tmp_path / "run")


def test_a_folder_of_another_plan_is_refused(planned, train, registry, tmp_path: Path) -> None:
    runner.run(planned(train(steps=1)), registry, folder=tmp_path / "run")
    with pytest.raises(ConfigError, match="another plan"):
        runner.run(planned(train(steps=2)), registry, folder=tmp_path / "run")


@pytest.mark.parametrize("name", ["model.safetensors", "artifact.json", "SHA256SUMS"])
def test_a_damaged_artifact_is_refused_by_name_and_not_thrown_away(
    planned, train, registry, tmp_path: Path, name: str
) -> None:
    plan = planned(train(steps=1))
    made = runner.run(plan, registry, folder=tmp_path / "run")
    path = made.stages[0].folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        runner.run(plan, registry, folder=tmp_path / "run")
    assert path.read_bytes() == content


def test_two_stages_follow_each_other(planned, train, registry, tmp_path: Path) -> None:
    plan = planned(train(steps=2), train(steps=2))
    made = runner.run(plan, registry, folder=tmp_path / "run")
    assert made.stages[1].card.parent == made.stages[0].digest
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["name"] == "tiny"
