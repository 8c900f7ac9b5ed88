"""Environments in Ray actors: the attempts of one environment, spread, and deaths that cost their own alone."""

import asyncio
import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from stackloom.core.chat import Message, ToolCall
from stackloom.core.errors import ConfigError
from stackloom.core.slots.environment import ToolError
from stackloom.worlds.pool import HostLost, open_pool

# not `importorskip`: the addresses that Ray listens on are settled when it is imported, by the pool
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")]
OPTIONS = {"tools": 6, "low": 1, "high": 2, "withheld": 0.3}


@pytest.fixture(scope="module")
def pool():
    with open_pool("environment.domain-graph", OPTIONS, actors=2, seconds=60) as opened:
        yield opened


def attempt(pool, task):
    """Act out the demonstration, the user's words from the pool; return the episode and its reward."""
    episode, said = pool.start(task), []
    for message in pool.demonstration(task):
        if message.role == "assistant":
            said.append(message)
            for call in message.tool_calls:
                said.append(Message("tool", episode.call(call), tool_call_id=call.id, name=call.name))
        elif message.role == "user":
            said.append(Message("user", asyncio.run(episode.user.reply(said))))
    return episode, episode.reward(said)


def test_attempts_side_by_side_are_right_and_spread(pool):
    tasks = pool.tasks("train", 12)
    with ThreadPoolExecutor(6) as threads:
        ended = list(threads.map(lambda task: attempt(pool, task), tasks))
    assert {reward.value for _, reward in ended} == {1.0}
    assert {episode.place for episode, _ in ended} == {0, 1}
    assert sum(pool.held) == 12
    for episode, _ in ended:
        episode.close()
    assert pool.held == [0, 0]


def test_what_the_agent_gets_wrong_is_its_own(pool):
    episode = pool.start(pool.tasks("train", 1)[0])
    with pytest.raises(ToolError, match="there is no tool"):
        episode.call(ToolCall("fly", {}, "1"))
    assert episode.reward(()).value == 0


def ask_for_a_minute(episode):
    """Killing an actor is asked for, and happens a little later."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        episode.reward(())


def test_a_death_costs_the_attempts_of_its_actor_alone(pool):
    import ray

    task = pool.tasks("train", 1)[0]
    first, second = pool.start(task), pool.start(task)
    assert first.place != second.place
    ray.kill(pool.actors[first.place], no_restart=False)
    with pytest.raises(HostLost):
        ask_for_a_minute(first)
    assert second.reward(()).valid
    first.close()
    deadline = time.monotonic() + 60
    while True:  # the actor comes back for new attempts
        try:
            again = pool.start(task)
            break
        except HostLost:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert again.place == first.place
    assert again.reward(()).valid


def test_what_cannot_be_is_refused():
    for plugin, options, actors, says in (
        ("environment.nothing", {}, 1, "environment.nothing"),
        ("optimizer.adamw", {}, 1, "no environment"),
        ("environment.domain-graph", {"tools": 1}, 1, "tools"),
        ("environment.domain-graph", {}, 0, "at least 1"),
    ):
        with pytest.raises(ConfigError, match=says), open_pool(plugin, options, actors=actors):
            pass
