from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stackloom as sl
from stackloom.core.errors import ConfigError, ErrorGroup
from stackloom.core.stack import StackSpec, load_yaml

GOOD = """
name: first
model: {use: model.hf, checkpoint: somewhere}
stages:
  - train: {optimizer: {use: optimizer.adamw, lr: 2e-3}, data: {use: data.jsonl, path: x.jsonl}, steps: 60}
"""


def test_yaml_and_python_spell_the_same_stack() -> None:
    spelled = sl.Stack(
        "first",
        model=sl.use("model.hf", checkpoint="somewhere"),
        stages=[
            sl.train(optimizer=sl.use("optimizer.adamw", lr=2e-3), data=sl.use("data.jsonl", path="x.jsonl"), steps=60)
        ],
    )
    assert spelled.spec.to_data() == StackSpec.from_yaml(GOOD).to_data()


def test_a_stack_survives_the_round_trip_through_yaml() -> None:
    spec = StackSpec.from_yaml(GOOD)
    assert StackSpec.from_yaml(spec.to_yaml()).to_data() == spec.to_data()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-3", 0.002),
        ("1E5", 100_000.0),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("12", 12),
        ("012", "012"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("~", None),
        (".5", 0.5),
        ("2024-01-01", "2024-01-01"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert load_yaml(f"x: {text}", "s") == {"x": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "twice"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: [", "expected"),
        ("1: 2", "not a word"),
        ("a: " + "[" * 60 + "]" * 60, "deeper"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: 1\n--- \nb: 2", "single document"),
        ("\x00", "not a stack file"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_yaml(text, "stack.yaml")
    assert caught.value.where.startswith("stack.yaml")


def errors_of(text: str) -> list[str]:
    with pytest.raises(ErrorGroup) as caught:
        StackSpec.from_yaml(text, "stack.yaml")
    return [str(error) for error in caught.value.errors]


def test_all_errors_of_the_frame_come_at_once_with_path_and_suggestion() -> None:
    found = errors_of(
        "nam: x\nseed: -1\nmodel: 3\nresources: {devise: cpu, workers: two}\nstages: [{trian: {}}, train, {train: 4}]"
    )
    for expected in (
        "nam: unknown key; did you mean 'name'?",
        "name: required",
        "seed: should be greater",
        "model: expected a plugin, got 3",
        "resources.devise: unknown key; did you mean 'device'?",
        "resources.workers:",
        "stages[0]: unknown stage 'trian'\n  fix: did you mean 'train'?",
        "stages[1]: a stage has one key",
        "stages[2].train: expected options, got 4",
    ):
        assert any(item.startswith(expected) for item in found), (expected, found)
    assert len(found) == 9


@pytest.mark.parametrize("text", ["", "[]", "text", "3"])
def test_what_is_no_mapping_is_no_stack(text: str) -> None:
    with pytest.raises(ConfigError, match="mapping"):
        StackSpec.from_yaml(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        StackSpec.from_file(tmp_path / "nowhere.yaml")


def test_a_directory_is_no_stack_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        StackSpec.from_file(tmp_path)


@given(st.text(max_size=200))
def test_any_text_is_either_a_stack_or_a_config_error(text: str) -> None:
    try:
        StackSpec.from_yaml(text)
    except ConfigError as error:
        assert str(error)


@pytest.mark.parametrize("ref", ["mona", ".mona", "optimizer.", ""])
def test_a_reference_that_is_no_id_is_refused(ref: str) -> None:
    with pytest.raises((ConfigError, ValueError), match="plugin"):
        StackSpec.from_data({"name": "x", "model": {"use": ref}, "stages": [{"train": {}}]})
