"""`data.environment-trajectories`: the slot's laws, and that examples are what the agent loop writes."""

import asyncio

import pytest

from stackloom.core.catalogue import PluginRecord
from stackloom.core.chat import Message
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.generation import Sampling
from stackloom.core.ref import use
from stackloom.environments.agent_loop import play
from stackloom.plugins.data.environment_trajectories.config import EnvironmentTrajectoriesConfig
from stackloom.plugins.data.environment_trajectories.sample import Sums, SumsConfig
from stackloom.plugins.environment.arithmetic.config import ArithmeticConfig
from stackloom.plugins.environment.reasoning_gym.config import ReasoningGymConfig
from stackloom.testing import ByteChat, DataContract, ScriptedGenerator, record, tiny_tokenizer
from stackloom.testing.contracts.environment import written
from stackloom.testing.lookup import make_config

END = "<|im_end|>"
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 0, "b": 1}}\n</tool_call>'


class TestSums(DataContract):
    plugin = "data.environment-trajectories"
    trained = (f"{CALL}{END}It is 1.{END}",)


class TestArithmetic(DataContract):
    plugin = "data.environment-trajectories"

    @classmethod
    def files(cls, folder):
        return {"environment": ArithmeticConfig(seed=2), "count": 6, "split": "held-out"}


def build(tokenizer=None, **options):
    return EnvironmentTrajectoriesConfig(**{"environment": SumsConfig(), "count": 3} | options).build(
        tokenizer or tiny_tokenizer()
    )


def decoded(data, index, kept=None):
    tokens, mask = data[index]
    return tiny_tokenizer().decode(
        [token for token, trained in zip(tokens, mask, strict=True) if kept is None or trained is kept]
    )


def test_what_is_not_the_assistants_is_not_trained():
    assert decoded(build(), 1, kept=False) == (
        f"<|im_start|>user\n1 + 1?{END}\n<|im_start|>assistant\n\n"
        f"<|im_start|>tool\n<tool_response>\n2\n</tool_response>{END}\n<|im_start|>assistant\n\n"
    )


@pytest.mark.parametrize("tool_format", ["hermes", "json", "pythonic"])
def test_example_is_token_by_token_what_the_agent_loop_writes(tool_format):
    environment, chat = ArithmeticConfig().build(), ByteChat(tool_format=tool_format)
    data = build(environment=ArithmeticConfig(), count=9, tool_format=tool_format)
    for index, task in enumerate(environment.tasks("train", 9)):
        said = [
            written(message, tool_format) for message in environment.demonstration(task) if message.role == "assistant"
        ]
        transcript = asyncio.run(
            play(
                task,
                environment.start(task),
                ScriptedGenerator(said, chat),
                chat,
                sampling=Sampling(max_tokens=4096),
                turns=4,
                tool_format=tool_format,
                key="k",
            )
        )
        tokens, mask = data[index]
        assert tuple(tokens[: len(transcript.token_ids)]) == transcript.token_ids
        assert tuple(mask[: len(transcript.token_ids)]) == transcript.loss_mask
        assert not any(mask[len(transcript.token_ids) :])


def test_assistant_messages_of_the_task_itself_are_not_trained(monkeypatch):
    def tasks(self, split, count):
        shown = (Message("user", "1 + 1?"), Message("assistant", "It is 2."))
        return [
            type(task)(task.id, task.kind, (*shown, *task.messages), task.tools, task.secret)
            for task in plain(self, split, count)
        ]

    plain = Sums.tasks
    monkeypatch.setattr(Sums, "tasks", tasks)
    assert decoded(build(), 0, kept=True) == f"{CALL}{END}It is 1.{END}"
    assert "It is 2." in decoded(build(), 0)


def test_split_and_count_are_the_environments():
    data = build(environment=ArithmeticConfig(), count=5, split="held-out")
    tasks = ArithmeticConfig().build().tasks("held-out", 5)
    assert len(data) == 5
    assert all(task.messages[-1].content in decoded(data, index) for index, task in enumerate(tasks))


def test_template_that_refuses_the_role_tool_gets_results_as_the_users():
    strict = (
        "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tool') }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert f"<|im_start|>user\n<tool_response>\n1\n</tool_response>{END}" in decoded(build(tiny_tokenizer(strict)), 0)


def test_template_that_rewrites_history_is_refused_before_the_first_step():
    forgetful = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(FitError, match="no loss mask is right"):
        build(tiny_tokenizer(forgetful))


def test_message_without_an_end_token_is_trained_whole():
    tokenizer = tiny_tokenizer(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert decoded(build(tokenizer), 0, kept=True) == f"{CALL}\n\nIt is 1.\n\n"


def test_environment_without_demonstrations_is_refused():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(FitError, match="no demonstrations"):
        build(environment=ReasoningGymConfig())


def test_environment_without_tasks_is_refused(monkeypatch):
    monkeypatch.setattr(Sums, "tasks", lambda self, split, count: [])
    with pytest.raises(ConfigError, match="has no train tasks"):
        build()


def test_reference_that_no_plan_has_resolved_is_refused():
    with pytest.raises(ConfigError, match="is a reference"):
        build(environment=use("environment.arithmetic"))


def test_plan_resolves_the_environment_of_a_stack():
    from stackloom.core.planning import _resolve

    class Installed:
        def get(self, plugin: str) -> PluginRecord:
            return record(plugin)

        def ids(self):
            return ["data.environment-trajectories", "environment.arithmetic"]

    reference = use("data.environment-trajectories", environment={"use": "environment.arithmetic", "seed": 4}, count=2)
    errors = []
    owner, nested = _resolve(reference, "data", "stages[0].train.data", Installed(), errors)
    assert errors == []
    assert nested.config == owner.config.environment == ArithmeticConfig(seed=4)
    assert len(owner.config.build(tiny_tokenizer())) == 2


def test_refused_calls_are_shown_and_not_trained():
    worlds = make_config(record("environment.domain-graph"), {"tools": 4, "low": 2, "high": 3, "recovery": 1.0})
    tokenizer = tiny_tokenizer()
    data = EnvironmentTrajectoriesConfig(environment=worlds, count=6).build(tokenizer)
    for index in range(len(data)):
        tokens, mask = data[index]
        shown = tokenizer.decode(tokens)
        trained = tokenizer.decode([token for token, kept in zip(tokens, mask, strict=True) if kept])
        assert shown.count("Error: ") == 1
        assert "Error: " not in trained
        assert '"value"' in shown  # the call that fails misnames an argument
        assert '"value"' not in trained
        assert trained.count("<tool_call>\n") == shown.count("<tool_call>\n") - 1
