"""What every reasoner must hold."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest

from stackloom.core.chat import Message
from stackloom.core.errors import ConfigError
from stackloom.core.generation import ChatRequest, ServerError
from stackloom.core.slots.environment import Reward
from stackloom.core.slots.reasoner import Attempt, Solution
from stackloom.plugins.reasoner.question import Event, Question, Thought
from stackloom.plugins.reasoner.scripted import Line, ScriptedModel
from stackloom.testing.contracts.plugin import PluginContract

ANSWERS: tuple[tuple[str | None, ...], ...] = (
    ("1",),
    (None,),
    ("1", "2"),
    ("1", "2", "2"),
    (None, None, "3"),
    ("1", "2", "1", "2"),
    ("a", "b", "c", "d", "e"),
    ("", None),
    ("1", None, None),
)


class Attempts:
    """Attempts whose answers repeat a pattern; a stand-in for what the evaluate stage hands to a reasoner.

    Args:
        answers: of attempt 0, 1, ...; they start again after the last.
        reward: of every attempt.
        failing: attempt number to the error that it raises.
        slow_first: whether early attempts end last.

    Attributes:
        made: number to finished attempt.
        asked: numbers in the order in which they were asked for.
        together: most attempts that were under way at once.
    """

    question = (Message("user", "Which number?"),)

    def __init__(
        self,
        answers: Sequence[str | None],
        *,
        reward: Reward | None = None,
        failing: dict[int, Exception] | None = None,
        slow_first: bool = False,
    ) -> None:
        self._answers, self._failing, self._slow_first = answers, failing or {}, slow_first
        self._reward = reward or Reward(0.0)
        self.made: dict[int, Attempt] = {}
        self.asked: list[int] = []
        self.together = self._running = 0

    async def __call__(self, index: int, messages: Sequence[Message] | None = None, /) -> Attempt:
        """Make attempt `index`, be it of the question or of other messages."""
        self.asked.append(index)
        self._running += 1
        self.together = max(self.together, self._running)
        try:
            for _ in range(10 * (max(1, 20 - index) if self._slow_first else index) + 1):
                await asyncio.sleep(0)
            if index in self._failing:
                raise self._failing[index]
            answer = self._answers[index % len(self._answers)]
            text = Message("assistant", answer or "I do not know.")
            tokens = 5 + index * 7 % 4
            sure = 0.1 + index * 5 % 7
            self.made[index] = Attempt(answer, (text,), tokens, self._reward, -sure, (sure,) * tokens)
            return self.made[index]
        finally:
            self._running -= 1


class ReasonerContract(PluginContract):
    """The laws of slot `reasoner`.

    Attributes:
        answers: patterns of attempts' answers that the laws try.

    Example:
        >>> class TestMyVote(ReasonerContract):
        ...     plugin = "reasoner.my-vote"
        ...     options = {"width": 3}
    """

    answers: ClassVar[Sequence[Sequence[str | None]]] = ANSWERS

    @classmethod
    def solve(cls, attempts: Attempts) -> Solution:
        """Let the reasoner solve one task; no task of its own may outlive it."""

        async def run() -> Solution:
            reasoner: Any = cls.component()
            solution = await reasoner.solve(attempts)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert isinstance(solution, Solution)
            return solution

        return asyncio.run(run())

    def test_choice_is_one_of_the_attempts(self) -> None:
        for answers in self.answers:
            solution = self.solve(Attempts(answers))
            assert type(solution.chosen) is int
            assert 0 <= solution.chosen < len(solution.attempts)

    def test_every_attempt_is_counted_once_and_in_order(self) -> None:
        """Tokens are spent on each, so the report must see each, and none that was not made."""
        for answers in self.answers:
            attempts = Attempts(answers)
            solution = self.solve(attempts)
            assert sorted(attempts.asked) == list(range(len(solution.attempts)))
            assert all(made is attempts.made[index] for index, made in enumerate(solution.attempts))

    def test_choice_is_the_same_each_time_and_in_any_order_of_finishing(self) -> None:
        for answers in self.answers:
            chosen = {self.solve(Attempts(answers, slow_first=slow)).chosen for slow in (False, True, False)}
            assert len(chosen) == 1

    def test_reward_is_not_looked_at(self) -> None:
        for answers in self.answers:
            rewards = (Reward(0.0), Reward(1.0), Reward(0.0, valid=False))
            assert len({self.solve(Attempts(answers, reward=reward)).chosen for reward in rewards}) == 1

    def test_attempt_without_an_answer_is_not_chosen_over_one_with(self) -> None:
        for answers in self.answers:
            solution = self.solve(Attempts(answers))
            if any(attempt.answer is not None for attempt in solution.attempts):
                assert solution.attempts[solution.chosen].answer is not None

    def test_one_object_solves_many_tasks_at_once(self) -> None:
        async def run() -> list[Solution]:
            reasoner: Any = self.component()
            return list(await asyncio.gather(*(reasoner.solve(Attempts(answers)) for answers in self.answers)))

        together = [solution.chosen for solution in asyncio.run(run())]
        assert together == [self.solve(Attempts(answers)).chosen for answers in self.answers]

    def test_error_of_an_attempt_is_raised_as_it_is(self) -> None:
        made = len(self.solve(Attempts(("1",))).attempts)
        for failing in range(made):
            error = RuntimeError(f"attempt {failing} lost its engine")
            assert self._raised(Attempts(("1",), failing={failing: error})) is error

    def test_no_attempt_outlives_a_failed_solution(self) -> None:
        attempts = Attempts(("1",), failing={0: RuntimeError("lost")})
        self._raised(attempts)
        assert attempts._running == 0

    def test_parallel_feature_is_true(self) -> None:
        attempts = Attempts(("1", "2"))
        made = len(self.solve(attempts).attempts)
        if "parallel" in self.record().manifest.can.features and made > 1:
            assert attempts.together > 1
        else:
            assert attempts.together <= made

    def test_conversation_ends_with_one_thought_and_leaves_nothing_running(self) -> None:
        events = self.thought(lambda request: Line("The answer is 42.", "6 * 7", seconds=0.001))
        thought = events[-1]
        assert isinstance(thought, Thought)
        assert sum(isinstance(event, Thought) for event in events) == 1
        assert "42" in thought.message.content
        assert thought.message.role == "assistant"

    def test_usage_adds_up(self) -> None:
        """Tokens of all trajectories and the summary are the total, cancelled ones included."""
        thought = self.thought(lambda request: Line(f"The answer is {request.sampling.seed % 2}."))[-1]
        assert isinstance(thought, Thought)
        assert sum(one.tokens for one in thought.trajectories) + thought.summary_tokens == thought.tokens
        assert len({(one.round, one.number) for one in thought.trajectories}) == len(thought.trajectories)

    def test_reasoning_never_reaches_the_answer_or_another_prompt(self) -> None:
        model = ScriptedModel(lambda request: Line("The answer is 42.", "my secret notes"))
        thought = self.thought(model.script, model)[-1]
        assert isinstance(thought, Thought)
        texts = [thought.message.content, *(message.content for asked in model.asked for message in asked.messages)]
        assert not any("secret" in text for text in texts)

    def test_closing_the_stream_cancels_every_call(self) -> None:
        model = ScriptedModel(lambda request: Line("word " * 50, seconds=30.0))

        async def run() -> None:
            reasoner: Any = self.component()
            events = reasoner.think(Question((Message("user", "?"),), model))
            async for _ in events:
                break
            await events.aclose()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(run())
        assert model.running == 0

    def test_a_question_that_nobody_asked_is_refused(self) -> None:
        for messages in ((), (Message("assistant", "Hello"),), (Message("system", "Be brief."),)):
            with pytest.raises(ConfigError):
                self.thought(lambda request: Line("42"), messages=messages)

    def test_when_no_thinker_answers_the_error_says_why(self) -> None:
        with pytest.raises(ServerError, match="out of order"):
            self.thought(lambda request: Line("a b", error=ServerError("out of order")))

    @classmethod
    def thought(
        cls,
        script: Callable[[ChatRequest], Line],
        model: ScriptedModel | None = None,
        messages: tuple[Message, ...] = (Message("user", "6 * 7?"),),
    ) -> list[Event]:
        """Let the reasoner answer a question; return its events."""

        async def run() -> list[Event]:
            reasoner: Any = cls.component()
            events = [event async for event in reasoner.think(Question(messages, model or ScriptedModel(script)))]
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return events

        return asyncio.run(run())

    def test_attempts_are_left_as_they_are(self) -> None:
        attempts = Attempts(("1", "2", "2"))
        before = {index: dataclasses.replace(made) for index, made in enumerate(self.solve(attempts).attempts)}
        assert attempts.made == before

    def _raised(self, attempts: Attempts) -> BaseException:
        async def run() -> BaseException:
            reasoner: Any = self.component()
            with pytest.raises(RuntimeError) as caught:
                await reasoner.solve(attempts)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return caught.value

        return asyncio.run(run())
