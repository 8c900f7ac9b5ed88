"""`environment.reasoning-gym`: the slot's laws, its scorers as verifiers, and what it refuses."""

from typing import ClassVar, get_args

import pytest

from stackloom.core.chat import Message
from stackloom.core.errors import ConfigError
from stackloom.core.slots.environment import Reward
from stackloom.plugins.environment.reasoning_gym.config import Dataset, ReasoningGymConfig
from stackloom.testing import EnvironmentContract

pytest.importorskip("reasoning_gym")


class TestDefaults(EnvironmentContract):
    plugin = "environment.reasoning-gym"


class TestOtherDatasets(EnvironmentContract):
    plugin = "environment.reasoning-gym"
    options: ClassVar = {
        "datasets": ["knights_knaves", "calendar_arithmetic"],
        "dataset_options": {"knights_knaves": {"n_people": 2}},
        "seed": 11,
    }
    sample = 6


def answered(text):
    return [Message("assistant", f"Hm. <answer>no</answer> <answer> {text} </answer>")]


@pytest.mark.parametrize("name", get_args(Dataset))
def test_every_dataset_gives_its_own_answer_the_reward_and_another_less(name):
    environment = ReasoningGymConfig(datasets=[name], seed=3, size=100).build()
    for split in ("train", "held-out"):
        task = environment.tasks(split, 1)[0]
        episode = environment.start(task)
        assert episode.reward(answered(task.secret["item"]["answer"])) == Reward(1.0, reason="scored by reasoning-gym")
        assert episode.reward(answered("no idea")).value < 1
        assert task.kind == name


def test_question_comes_once_and_small_datasets_say_when_they_end():
    environment = ReasoningGymConfig(
        datasets=["gcd"], size=400, dataset_options={"gcd": {"min_value": 1, "max_value": 6}}
    ).build()
    tasks = environment.tasks("train", 5)
    assert len({task.messages for task in tasks}) == 5
    with pytest.raises(ConfigError, match="different train questions among 400"):
        environment.tasks("train", 200)


@pytest.mark.parametrize("failure", [ZeroDivisionError("oops"), float("nan"), 2.0, "much"])
def test_scorer_that_fails_is_masked_not_scored(failure, monkeypatch):
    environment = ReasoningGymConfig(datasets=["gcd"]).build()
    task = environment.tasks("train", 1)[0]

    def score(self, answer, entry):
        if isinstance(failure, Exception):
            raise failure
        return failure

    monkeypatch.setattr(type(environment._datasets["gcd"]), "score_answer", score)
    reward = environment.start(task).reward(answered("1"))
    assert (reward.value, reward.valid) == (0.0, False)
    assert "scorer" in reward.reason


def test_overlong_answer_never_reaches_a_scorer(monkeypatch):
    environment = ReasoningGymConfig(datasets=["gcd"], max_answer_chars=10).build()
    task = environment.tasks("train", 1)[0]
    monkeypatch.setattr(type(environment._datasets["gcd"]), "score_answer", lambda *_, **__: 1.0)
    assert environment.start(task).reward(answered("1" * 11)).value == 0.0
    assert environment.start(task).reward(answered("1" * 10)).value == 1.0


@pytest.mark.parametrize("name", ["countdown", "puzzle24", "n_queens", "simple_integration", "composite", "codeio"])
def test_dataset_that_runs_answers_as_code_is_refused(name):
    with pytest.raises(ValueError, match="should be"):
        ReasoningGymConfig(datasets=[name])


@pytest.mark.parametrize(
    "options",
    [
        {"datasets": ["gcd", "gcd"]},
        {"datasets": ["gcd"], "dataset_options": {"lcm": {}}},
        {"datasets": ["gcd"], "dataset_options": {"gcd": {"seed": 3}}},
    ],
)
def test_options_that_nothing_would_read_are_refused(options):
    with pytest.raises(ValueError, match=r"datasets|data sets"):
        ReasoningGymConfig(**options)


@pytest.mark.parametrize("wrong", [{"no_such": 1}, {"min_numbers": -4}])
def test_bad_dataset_option_names_the_dataset(wrong):
    with pytest.raises(ConfigError, match="gcd refuses its options"):
        ReasoningGymConfig(datasets=["gcd"], dataset_options={"gcd": wrong}).build()
