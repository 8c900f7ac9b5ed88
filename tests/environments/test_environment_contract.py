"""Each law of the environment contract can fail: an environment broken on purpose is caught by the law for it."""

import random
from dataclasses import replace

import pytest

from stackloom.core.chat import Message, Tool
from stackloom.core.slots.environment import Reward, ToolError
from stackloom.plugins.environment.arithmetic.arithmetic import Arithmetic, ArithmeticEpisode
from stackloom.plugins.environment.arithmetic.config import ArithmeticConfig
from stackloom.testing import EnvironmentContract

CAUGHT = (AssertionError, pytest.fail.Exception, ToolError, UnicodeEncodeError)  # what a law fails with


class Loud(Message):
    """A message with something riding along."""


def tasks(change):
    """An environment whose tasks are `change(task, index, split)`."""

    def changed(self, split, count):
        return [change(task, index, split) for index, task in enumerate(Arithmetic.tasks(self, split, count))]

    return {"tasks": changed}


def episodes(**methods):
    """An environment whose episodes have other methods."""
    return {"start": lambda self, task: type("Episode", (ArithmeticEpisode,), methods)(task)}


def refuses_but_remembers(self, call):
    if getattr(self, "spoilt", False):
        raise ToolError("spoilt")
    self.spoilt = set(call.arguments) != {"expression"}
    return ArithmeticEpisode.call(self, call)


def with_copied_secret(task, index, split):
    return replace(task, messages=(Message("system", repr(dict(task.secret))), *task.messages))


MUTANTS = {
    "too few": (
        {"tasks": lambda self, split, count: Arithmetic.tasks(self, split, count)[:-1]},
        "as_many_as_asked_for",
    ),
    "random ids": (tasks(lambda task, *_: replace(task, id=str(random.random()))), "rebuilt_byte_by_byte"),
    "depends on count": (
        {"tasks": lambda self, split, count: Arithmetic.tasks(self, split, count)[::-1]},
        "fewer_tasks_are_the_first_of_more",
    ),
    "draws globally": (tasks(lambda task, *_: (random.random(), task)[1]), "global_random_state"),
    "one id": (tasks(lambda task, *_: replace(task, id="same")), "ids_are_unique"),
    "one split": (
        {"tasks": lambda self, split, count: Arithmetic.tasks(self, "train", count)},
        "splits_share_no_conversation",
    ),
    "any split": (
        {"tasks": lambda self, split, count: Arithmetic.tasks(self, "train", count)},
        "unknown_split_is_refused",
    ),
    "ends with the assistant": (
        tasks(lambda task, *_: replace(task, messages=(*task.messages, Message("assistant", "So")))),
        "ends_with_what_the_agent_answers",
    ),
    "no tools": (tasks(lambda task, *_: replace(task, tools=())), "tools_feature"),
    "secret in the text": (tasks(with_copied_secret), "agent_sees_messages_and_tools_alone"),
    "secret rides along": (
        tasks(lambda task, *_: replace(task, messages=(Loud("user", "?"),))),
        "agent_sees_messages_and_tools_alone",
    ),
    "wrong demonstration": (
        {"demonstration": lambda self, task: [Message("assistant", "The answer is -1.")]},
        "earns_the_reward_when_replayed",
    ),
    "demonstration that lies about results": (
        {
            "demonstration": lambda self, task: [
                replace(message, content="0") if message.role == "tool" else message
                for message in Arithmetic.demonstration(self, task)
            ]
        },
        "earns_the_reward_when_replayed",
    ),
    "call that no format writes": (
        {
            "demonstration": lambda self, task: [
                Message("assistant", "<tool_call>"),
                *Arithmetic.demonstration(self, task),
            ]
        },
        "earns_the_reward_in_the_agent_loop",
    ),
    "generous": (episodes(reward=lambda self, transcript: Reward(1.0)), "wrong_attempts_earn_nothing"),
    "generous to silence": (
        episodes(reward=lambda self, transcript: Reward(float(not transcript))),
        "empty_attempt_earns_nothing",
    ),
    "answers silence": (episodes(answer=lambda self, transcript: ""), "empty_attempt_earns_nothing"),
    "takes any call": (episodes(call=lambda self, call: "1"), "bad_calls_are_refused"),
    "spoilt by a bad call": (episodes(call=refuses_but_remembers), "bad_calls_are_refused"),
    "drawn verdict": (
        episodes(reward=lambda self, transcript: Reward(random.random())),
        "judging_twice_gives_the_same",
    ),
    "crash on junk": (
        episodes(reward=lambda self, transcript: Reward(0.0 * len(transcript[-1].content.encode()))),
        "odd_answers_are_judged_not_crashed_on",
    ),
    "scores without its secret": (
        episodes(reward=lambda self, transcript: Reward(0.0)),
        "task_without_its_secret_is_masked",
    ),
    "shared state": (
        episodes(reward=lambda self, transcript: Reward(1.0)),
        "attempts_at_one_task_do_not_meet",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_law_catches(mutant):
    methods, part = MUTANTS[mutant]
    broken = type("Broken", (Arithmetic,), methods)
    contract = type(
        "Mutant",
        (EnvironmentContract,),
        {
            "plugin": "environment.arithmetic",
            "sample": 8,
            "component": staticmethod(lambda **changes: broken(ArithmeticConfig())),
        },
    )
    (law,) = [name for name in dir(contract) if name.startswith("test_") and part in name]
    with pytest.raises(CAUGHT):
        getattr(contract(), law)()


def test_calls_that_must_be_refused_name_every_tool():
    from stackloom.testing.contracts.environment import bad_calls

    task = ArithmeticConfig().build().tasks("train", 1)[0]
    listed = Tool("pick", "", {"type": "object", "properties": {"items": {"type": "array"}}, "required": ["items"]})
    names = [call.name for call in bad_calls(replace(task, tools=(*task.tools, listed)))]
    assert names.count("calculator") == 4
    assert names.count("pick") == 3
