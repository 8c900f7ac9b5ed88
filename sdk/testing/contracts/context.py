"""What every context must hold."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

from stackloom.core.chat import Message, Tool, ToolCall
from stackloom.core.generation import Sampling
from stackloom.core.slots.context import Cut, Seen
from stackloom.core.slots.environment import Reward, Task
from stackloom.environments.agent_loop import Transcript, play
from stackloom.testing.contracts.environment import ByteChat, ScriptedGenerator
from stackloom.testing.contracts.plugin import PluginContract

QUESTION = (Message("system", "You look things up."), Message("user", "What is the sum of all pages?"))
LOOK = Tool("look", "Look at a page.", {"type": "object", "properties": {}})
CALL = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
PAGE = "The page says a number, and a good deal besides. " * 4


class _Pages:
    """An episode whose one tool returns a page."""

    def call(self, call: ToolCall) -> str:
        return PAGE

    def reward(self, transcript: Sequence[Message]) -> Reward:
        return Reward(float(bool(transcript) and transcript[-1].content == "42"))

    def answer(self, transcript: Sequence[Message]) -> str | None:
        return transcript[-1].content if transcript else None


class ContextContract(PluginContract):
    """The laws of slot `context`.

    Attributes:
        tight: options with which the context is cut soon.

    Example:
        >>> class TestMyContext(ContextContract):
        ...     plugin = "context.my-context"
        ...     tight = {"tokens": 900}
    """

    tight: ClassVar[dict[str, Any]] = {}

    @classmethod
    def decide(cls, notes: str, size: int, said: int, **changes: Any) -> tuple[Cut | None, int]:
        """Ask the component once, for a prompt of `size` tokens after `said` messages.

        Returns:
            its decision, and how often it asked for notes.
        """
        times = 0

        async def ask(message: Message) -> str:
            nonlocal times
            times += 1
            assert message.content
            return notes

        def measure(messages: Sequence[Message]) -> int:
            return sum(len(message.content) for message in (*QUESTION, *messages))

        since = (Message("assistant", "", (ToolCall("look", {}, "call_0"),)), Message("tool", PAGE))
        seen = Seen(QUESTION, since, size, said, measure)
        return asyncio.run(cls.component(**changes).manage(seen, ask)), times

    @classmethod
    def attempt(cls, turns: int, notes: str = "So far: 40.", **options: Any) -> tuple[Transcript, ScriptedGenerator]:
        """Let an agent look at pages and then answer, with notes wherever it is asked for them."""

        class Agent(ScriptedGenerator):
            """Looks `turns` times; anything that asks for notes gets them."""

            looked = 0

            async def generate(self, request: Any) -> Any:
                if request.key.endswith("/summary"):
                    self._script.insert(len(self.requests), notes)
                else:
                    self.looked += 1
                    self._script.insert(len(self.requests), CALL if self.looked <= turns else "42")
                return await super().generate(request)

        chat = ByteChat()
        agent = Agent([], chat)
        task = Task("t", "t", QUESTION, (LOOK,))
        context = cls.component(**{**cls.tight, **options})
        sampling = Sampling(max_tokens=400)
        made = asyncio.run(
            play(task, _Pages(), agent, chat, sampling=sampling, turns=turns + 1, key="t", context=context)
        )
        return made, agent

    def test_a_short_context_is_left_alone(self) -> None:
        assert self.decide("notes", 1, 1) == (None, 0)

    def test_notes_are_asked_for_at_most_once(self) -> None:
        for notes in ("", "notes", "n" * 10**6):
            for size, said in ((1, 1), (10**9, 1), (1, 10**9), (10**9, 10**9)):
                assert self.decide(notes, size, said, **self.tight)[1] <= 1

    def test_notes_that_are_empty_or_too_long_are_not_kept(self) -> None:
        for notes in ("", "n" * 10**6):
            cut, _ = self.decide(notes, 10**9, 1, **self.tight)
            assert cut is None or (cut.messages == () and cut.restart)

    def test_nothing_is_kept_between_calls(self) -> None:
        first = [self.decide("notes", size, 3, **self.tight) for size in (1, 10**9, 1)]
        assert first[0] == first[2]

    def test_the_question_always_stands_first(self) -> None:
        made, agent = self.attempt(8)
        opening = ByteChat().render(QUESTION, reply=False)
        assert all(list(request.input_ids[: len(opening)]) == opening for request in agent.requests)
        assert made.finish == "answered"

    def test_every_token_is_accounted_for(self) -> None:
        made, agent = self.attempt(8)
        segments = made.segments
        for segment in segments:
            assert len(segment.token_ids) == len(segment.loss_mask)
            assert sum(segment.loss_mask) == len(segment.logprobs)
        assert made.tokens == sum(len(segment.logprobs) for segment in segments)
        prompts = [request.input_ids for request in agent.requests]
        whole = [segment.token_ids for segment in segments]
        assert all(any(ids[: len(prompt)] == prompt for ids in whole) for prompt in prompts)

    def test_whoever_judges_sees_every_message(self) -> None:
        made, _ = self.attempt(8)
        calls = [message for message in made.messages if message.tool_calls]
        assert len(calls) == 8
        assert made.messages[-1].content == "42"
        assert made.attempt(_Pages()).reward.value == 1.0

    def test_the_same_attempt_is_made_twice(self) -> None:
        assert self.attempt(8)[0] == self.attempt(8)[0]
