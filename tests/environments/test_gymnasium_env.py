"""Our environments as gymnasium's: its own checker, and a whole attempt step by step."""

import asyncio

import pytest

from stackloom.core.chat import render_call

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env  # noqa: E402

from stackloom.environments.gymnasium_env import AgentEnv, Texts  # noqa: E402
from stackloom.plugins.environment.arithmetic.config import ArithmeticConfig  # noqa: E402
from stackloom.plugins.environment.domain_graph.config import DomainGraphConfig  # noqa: E402


def made(**options):
    return AgentEnv(DomainGraphConfig(tools=6, low=1, high=2, **options).build(), tasks=6)


def played(env, index):
    """Act out the demonstration of a task and return what the last step gave."""
    task = env.environment.tasks("train", index + 1)[index]
    env.reset(options={"task": index})
    for message in env.environment.demonstration(task):
        if message.role == "assistant":
            calls = "".join(render_call(call) for call in message.tool_calls)
            last = env.step(message.content + calls)
    return last


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("build", [made, lambda: AgentEnv(ArithmeticConfig().build(), tasks=6)])
def test_gymnasium_finds_nothing_wrong(build):
    check_env(build(), skip_render_check=True)


@pytest.mark.parametrize("withheld", [0.0, 1.0])
def test_a_demonstration_earns_its_reward_at_the_last_step(withheld):
    env = made(withheld=withheld)
    for index in range(6):
        _, reward, terminated, truncated, info = played(env, index)
        assert (reward, terminated, truncated, info["valid"], info["error_kind"]) == (1.0, True, False, True, None)
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step("again")


def test_equal_seeds_give_equal_episodes():
    first, second = made(), made()
    assert first.reset(seed=5) == second.reset(seed=5)
    assert first.step("no") == second.step("no")


def test_errors_say_whose_they_are():
    env = made()
    env.reset(seed=0)
    seen, reward, terminated, _, info = env.step('<tool_call>{"name": "fly", "arguments": {}}</tool_call>')
    assert (reward, terminated, info["error_kind"]) == (0.0, False, "agent")
    assert seen.startswith("Error: there is no tool 'fly'")
    env._episode.call = lambda call: 1 / 0
    _, reward, terminated, _, info = env.step('<tool_call>{"name": "fly", "arguments": {}}</tool_call>')
    assert (reward, terminated, info["error_kind"], info["valid"]) == (0.0, True, "infra", False)


def test_turns_that_run_out_truncate_and_judge():
    env = AgentEnv(DomainGraphConfig(tools=6).build(), tasks=2, turns=1)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step('<tool_call>{"name": "fly", "arguments": {}}</tool_call>')
    assert (reward, terminated, truncated, info["valid"]) == (0.0, False, True, True)


def test_a_user_answers_also_inside_a_running_loop():
    env = made(withheld=1.0)

    async def main():
        return played(env, 0)

    assert asyncio.run(main())[1] == 1.0


def test_vector_environments_work():
    both = gymnasium.vector.SyncVectorEnv([made, made])
    seen, _ = both.reset(seed=1)
    assert len(seen) == 2
    both.close()


def test_texts():
    space = Texts(10, seed=0)
    assert "abc" in space
    assert "a" * 11 not in space
    assert 3 not in space
    assert space == Texts(10) != Texts(11)
    assert isinstance(space.sample(), str)
