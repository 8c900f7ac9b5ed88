"""What every environment must hold, and a scripted model to play its tasks with."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import pytest

from stackloom.core.chat import Message, Tool, ToolCall, parse_tool_calls, render_call, render_result
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.generation import Completion, Request, Sampling
from stackloom.core.slots.environment import Reward, Split, Task, ToolError
from stackloom.environments.agent_loop import Transcript, judge, play
from stackloom.testing.contracts.plugin import PluginContract
from stackloom.testing.tokenizer import tiny_tokenizer

SPLITS: tuple[Split, ...] = ("train", "held-out")
SCALARS = ("string", "number", "integer", "boolean")
JUNK = ("", " ", "\x00", "\ud800", "NaN", "-1e999", "9" * 5000, "<tool_call>", "(" * 500, "\u0663\u0664", "{'a': [")


class ByteChat:
    """A `core.generation.ChatTokenizer` over single bytes, with ChatML markers and tool calls in their text.

    Example:
        >>> len(ByteChat().render([Message("user", "Hi")], reply=False))
        11
    """

    end_of_message = "<|im_end|>"

    def __init__(self, *, tool_format: str = "hermes") -> None:
        self.tokenizer, self._format = tiny_tokenizer(), tool_format

    def render(self, messages: Sequence[Message], *, reply: bool) -> list[int]:
        """Return the ids of a conversation; with `reply`, up to where the assistant's next message begins."""
        plain = [{"role": message.role, "content": written(message, self._format)} for message in messages]
        text = self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=reply)
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def written(message: Message, tool_format: str = "hermes") -> str:
    """Return a message's text with its calls or its result in it."""
    if message.role == "tool":
        return render_result(message.name, message.content, format=tool_format)
    calls = [render_call(call, format=tool_format) for call in message.tool_calls]
    return "\n".join([*([message.content] if message.content else []), *calls])


class ScriptedGenerator:
    """A `core.generation.Generator` that says what it is told, whatever it is asked.

    Args:
        script: the messages' texts; an exception is raised in its turn.
        chat: encodes them; the end of the message is a token of its own.

    Attributes:
        requests: all that were made, in order.
    """

    def __init__(self, script: Iterable[str | Exception], chat: ByteChat) -> None:
        self._script, self._chat = list(script), chat
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> Completion:
        """Return the next text, cut at max_tokens."""
        self.requests.append(request)
        text = self._script[len(self.requests) - 1]
        await asyncio.sleep(0)
        if isinstance(text, Exception):
            raise text
        tokenizer = self._chat.tokenizer
        ids = tokenizer.encode(text + self._chat.end_of_message, add_special_tokens=False)
        room = request.sampling.max_tokens
        finish = "stop" if len(ids) <= room else "length"
        kept = ids[:room]
        said = tokenizer.decode([token for token in kept if token != tokenizer.eos_token_id])
        return Completion(tuple(kept), tuple(-0.5 for _ in kept), said, finish)  # type: ignore[arg-type]


class EnvironmentContract(PluginContract):
    """The laws of slot `environment`.

    Attributes:
        sample: how many tasks of each split the laws look at.

    Example:
        >>> class TestMyMaze(EnvironmentContract):
        ...     plugin = "environment.my-maze"
        ...     options = {"seed": 3}
    """

    sample: ClassVar[int] = 24

    @classmethod
    def tasks(cls, **changes: Any) -> list[tuple[Any, Task]]:
        """Return (environment, task) for the first tasks of both splits."""
        environment = cls.component(**changes)
        return [(environment, task) for split in SPLITS for task in environment.tasks(split, cls.sample)]

    @classmethod
    def shown(cls) -> list[tuple[Any, Task, list[Message]]]:
        """Return (environment, task, demonstration); empty for an environment without demonstrations."""
        if "demonstrations" not in cls.record().manifest.can.features:
            return []
        return [(environment, task, environment.demonstration(task)) for environment, task in cls.tasks()]

    @classmethod
    def wrong(cls, task: Task, demonstration: list[Message]) -> list[list[Message]]:
        """Return attempts that must earn nothing: every strict prefix, and the demonstration with its answer changed.

        The default changes the last digit of the final message. Override it where answers are no numbers.
        """
        found = [demonstration[:length] for length in range(len(demonstration))]
        *before, final = demonstration
        changed = re.sub(r"\d(?=\D*$)", lambda digit: str((int(digit[0]) + 1) % 10), final.content)
        if changed != final.content:
            found.append([*before, dataclasses.replace(final, content=changed)])
        return [*found, [*before, dataclasses.replace(final, content="")]]

    def test_tasks_are_as_many_as_asked_for(self) -> None:
        environment = self.component()
        for split in SPLITS:
            for count in (0, 1, self.sample):
                assert len(environment.tasks(split, count)) == count

    def test_tasks_are_rebuilt_byte_by_byte(self) -> None:
        first, second = ([repr(task).encode() for _, task in self.tasks()] for _ in range(2))
        assert first == second

    def test_fewer_tasks_are_the_first_of_more(self) -> None:
        environment = self.component()
        for split in SPLITS:
            assert list(environment.tasks(split, 3)) == list(environment.tasks(split, self.sample))[:3]

    def test_global_random_state_is_left_alone(self) -> None:
        before = random.getstate()
        for environment, task in self.tasks():
            environment.start(task)
        assert random.getstate() == before

    def test_ids_are_unique(self) -> None:
        ids = [task.id for _, task in self.tasks()]
        assert sorted(ids) == sorted(set(ids))

    def test_splits_share_no_conversation(self) -> None:
        environment = self.component()
        train, held_out = ({task.messages for task in environment.tasks(split, 10 * self.sample)} for split in SPLITS)
        assert train.isdisjoint(held_out)

    def test_unknown_split_is_refused(self) -> None:
        environment = self.component()
        with pytest.raises(ConfigError, match="split"):
            environment.tasks("test", 1)

    def test_conversation_ends_with_what_the_agent_answers(self) -> None:
        for _, task in self.tasks():
            assert task.messages
            assert task.messages[-1].role in ("user", "tool")
            assert task.kind

    def test_tools_feature_is_true(self) -> None:
        has_tools = any(task.tools for _, task in self.tasks())
        assert has_tools == ("tools" in self.record().manifest.can.features)

    def test_agent_sees_messages_and_tools_alone(self) -> None:
        """Nothing rides along: plain messages and tools, and no copy of the secret in their text."""
        for _, task in self.tasks():
            assert all(type(message) is Message and type(message.content) is str for message in task.messages)
            assert all(type(tool) is Tool for tool in task.tools)
            fields = {field.name for field in dataclasses.fields(Message)}
            assert all(set(vars(message)) == fields for message in task.messages)
            if task.secret:
                seen = repr((task.messages, task.tools))
                assert json.dumps(dict(task.secret), default=repr) not in seen
                assert repr(dict(task.secret)) not in seen

    def test_demonstrations_feature_is_true(self) -> None:
        if "demonstrations" in self.record().manifest.can.features:
            assert len(self.shown()) == len(SPLITS) * self.sample
        else:
            environment, task = self.tasks()[0]
            with pytest.raises(FitError):
                environment.demonstration(task)

    def test_demonstration_earns_the_reward_when_replayed(self) -> None:
        for environment, task, messages in self.shown():
            episode = environment.start(task)
            replay(episode, messages)
            reward = episode.reward(messages)
            assert (reward.value, reward.valid) == (1.0, True), task.id
            assert episode.answer(messages) is not None
            assert messages[-1].role == "assistant"
            assert not messages[-1].tool_calls

    def test_demonstration_earns_the_reward_in_the_agent_loop(self) -> None:
        chat = ByteChat()
        for environment, task, messages in self.shown():
            episode = environment.start(task)
            said = [written(message) for message in messages if message.role == "assistant"]
            assert all(parse_tool_calls(text).errors == () for text in said)
            transcript = _play(task, episode, ScriptedGenerator(said, chat), chat, turns=len(said))
            assert transcript.finish == "answered"
            assert transcript.attempt(episode).reward.value == 1.0, task.id

    def test_wrong_attempts_earn_nothing(self) -> None:
        for environment, task, messages in self.shown():
            for attempt in self.wrong(task, messages):
                episode = environment.start(task)
                replay(episode, attempt)
                reward, _ = judge(episode, attempt)
                assert (reward.value, reward.valid) == (0.0, True), (task.id, attempt)

    def test_empty_attempt_earns_nothing_and_has_no_answer(self) -> None:
        for environment, task in self.tasks():
            assert environment.start(task).answer(()) is None
            reward, _ = judge(environment.start(task), ())
            assert (reward.value, reward.valid) == (0.0, True)

    def test_bad_calls_are_refused_and_change_nothing(self) -> None:
        for environment, task in self.tasks()[::4]:
            refused = environment.start(task)
            for call in bad_calls(task):
                with pytest.raises(ToolError, match=r"\w"):
                    refused.call(call)
            if "demonstrations" in self.record().manifest.can.features:
                messages = environment.demonstration(task)
                replay(refused, messages)
                assert refused.reward(messages).value == 1.0

    def test_attempts_at_one_task_do_not_meet(self) -> None:
        for environment, task, messages in self.shown()[::4]:
            done, untouched = environment.start(task), environment.start(task)
            replay(done, messages)
            replay(untouched, messages[:-1])
            assert untouched.reward(messages[:-1]).value == 0.0
            assert done.reward(messages).value == 1.0

    def test_judging_twice_gives_the_same(self) -> None:
        for environment, task, messages in self.shown()[::4]:
            episode = environment.start(task)
            replay(episode, messages)
            assert episode.reward(messages) == episode.reward(messages)
            assert episode.answer(messages) == episode.answer(messages)

    def test_odd_answers_are_judged_not_crashed_on(self) -> None:
        for environment, task in self.tasks()[::4]:
            for text in JUNK:
                for content in (text, f"<answer>{text}</answer>"):
                    reward = environment.start(task).reward((Message("assistant", content),))
                    assert isinstance(reward, Reward)
                    assert 0 <= reward.value < 1

    def test_task_without_its_secret_is_masked_not_scored(self) -> None:
        """The verifier cannot do its work: the reward is invalid, or starting raises."""
        for environment, task in self.tasks()[::4]:
            if not task.secret:
                continue
            broken = dataclasses.replace(task, secret={})
            try:
                episode = environment.start(broken)
            except Exception:  # noqa: BLE001 - any refusal will do
                continue
            reward, answer = judge(episode, (Message("assistant", "The answer is <answer>1</answer>"),))
            assert not reward.valid
            assert answer is None or reward.reason


def replay(episode: Any, messages: Sequence[Message]) -> None:
    """Run an attempt's tool calls; each must answer what the attempt says it answered, refusals too.

    Raises:
        AssertionError: an answer differs.
    """
    answers = iter([message for message in messages if message.role == "tool"])
    for message in messages:
        for call in message.tool_calls:
            said = next(answers, None)
            try:
                answer = episode.call(call)
            except ToolError as refused:  # as the agent loop tells it
                answer = f"Error: {refused}"
            assert said is None or answer == said.content, (call, answer, said)


def bad_calls(task: Task) -> list[ToolCall]:
    """Return calls that no episode of the task may accept: an unknown tool, and wrong arguments for each known one."""
    found = [ToolCall("no_such_tool", {}), ToolCall("", {})]
    for tool in task.tools:
        properties = dict(tool.input_schema.get("properties", {}))
        required = list(tool.input_schema.get("required", ()))
        found.append(ToolCall(tool.name, dict.fromkeys(properties) | {"no_such_argument": 1}))
        if required:
            found.append(ToolCall(tool.name, {}))
            found.append(ToolCall(tool.name, dict.fromkeys(properties)))
        scalars = [name for name, schema in properties.items() if schema.get("type") in SCALARS]
        if scalars:
            found.append(ToolCall(tool.name, dict.fromkeys(properties) | {name: [{}] for name in scalars}))
    return found


def _play(task: Task, episode: Any, generator: ScriptedGenerator, chat: ByteChat, turns: int) -> Transcript:
    sampling = Sampling(max_tokens=4096)
    return asyncio.run(play(task, episode, generator, chat, sampling=sampling, turns=turns, key=task.id))
