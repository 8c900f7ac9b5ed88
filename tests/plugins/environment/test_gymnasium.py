"""`environment.gymnasium`: the slot's laws on several spaces, actions and returns, and what it refuses."""

from typing import ClassVar

import pytest

from stackloom.core.chat import ToolCall
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.environment import ToolError
from stackloom.testing import EnvironmentContract

pytest.importorskip("gymnasium")

from stackloom.plugins.environment.gymnasium.config import GymnasiumConfig

LAKE = {"id": "FrozenLake-v1", "options": {"is_slippery": False, "map_name": "4x4"}}


class TestTextWorld(EnvironmentContract):
    plugin = "environment.gymnasium"
    options: ClassVar = LAKE
    sample: ClassVar[int] = 6


class TestNumbers(EnvironmentContract):
    plugin = "environment.gymnasium"
    options: ClassVar = {"id": "CartPole-v1", "high": 64.0}
    sample: ClassVar[int] = 6


class TestBox(EnvironmentContract):
    plugin = "environment.gymnasium"
    options: ClassVar = {"id": "MountainCarContinuous-v0", "low": -100.0, "high": 100.0}
    sample: ClassVar[int] = 4


def act(episode, action):
    return episode.call(ToolCall("act", {"action": action}, "1"))


def test_walking_to_the_goal_earns_one():
    environment = GymnasiumConfig(**LAKE).build()
    (task,) = environment.tasks("train", 1)
    assert "[S]FFF" in task.messages[1].content
    episode = environment.start(task)
    for action in (1, 1, 2, 1, 2):
        assert "reward 0" in act(episode, action)
    assert episode.reward(()).value == 0
    assert "The game is over, your score is 1." in act(episode, 2)
    assert (episode.reward(()).value, episode.answer(())) == (1.0, "1")
    with pytest.raises(ToolError, match="over"):
        act(episode, 0)


@pytest.mark.parametrize("action", [4, -1, 1.5, "1", None, True, [1], {}, 2**70])
def test_an_action_outside_the_space_is_the_agents_error(action):
    environment = GymnasiumConfig(**LAKE).build()
    with pytest.raises(ToolError, match="no action"):
        act(environment.start(environment.tasks("train", 1)[0]), action)


@pytest.mark.parametrize(
    "call", [ToolCall("fly", {}, "1"), ToolCall("act", {}, "1"), ToolCall("act", {"action": 1, "x": 2}, "1")]
)
def test_another_call_is_the_agents_error(call):
    environment = GymnasiumConfig(**LAKE).build()
    with pytest.raises(ToolError):
        environment.start(environment.tasks("train", 1)[0]).call(call)


def test_boxes_take_numbers_of_their_dtype():
    environment = GymnasiumConfig(**TestBox.options).build()
    episode = environment.start(environment.tasks("train", 1)[0])
    assert "reward" in act(episode, [0.5])
    for action in ([2.0], [0.5, 0.5], ["x"], 0.5, [None], [[0.5]]):
        with pytest.raises(ToolError, match="no action"):
            act(episode, action)


def test_the_return_is_cut_to_its_range():
    environment = GymnasiumConfig(id="CartPole-v1", high=4.0).build()
    episode = environment.start(environment.tasks("train", 1)[0])
    found = []
    for turn in range(6):
        act(episode, turn % 2)
        found.append(episode.reward(()).value)
    assert found == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="cannot be made"):
        GymnasiumConfig(id="NoSuchThing-v0").build()
    with pytest.raises(ConfigError, match="cannot be made"):
        GymnasiumConfig(id="FrozenLake-v1", options={"depth": 3}).build()
    with pytest.raises(ValueError, match="low must be below high"):
        GymnasiumConfig(low=1.0, high=1.0)
    with pytest.raises(FitError, match="no demonstrations"):
        GymnasiumConfig(**LAKE).build().demonstration(None)
