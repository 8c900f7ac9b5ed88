"""Parallel thinking: rounds of thinkers, one aggregator, and an answer whatever becomes of any of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from stackloom.core.chat import Message
from stackloom.core.errors import ConfigError
from stackloom.core.generation import ChatRequest, Delta, Reply, Sampling, ServerError
from stackloom.core.slots.reasoner import Attempt, Attempts
from stackloom.plugins.reasoner.answers import Equality
from stackloom.plugins.reasoner.question import (
    Aggregator,
    Ask,
    EarlyStop,
    Event,
    Notice,
    Question,
    Summarizing,
    Thought,
    Trajectory,
)
from stackloom.plugins.reasoner.thinkers import Budget, Emit, OutOfTokens, Round, Spoken, Watch, relay, speak
from stackloom.plugins.reasoner.thinking_config import ThinkingConfig
from stackloom.plugins.reasoner.votes import Ballot, believed, decided, settled, tally, winner

REASONING = re.compile(r"<(think|longcat_think|thinking)>.*?(?:</\1>\s*|\Z)", re.DOTALL)


class NoExtractableAnswer(ConfigError):
    """A vote in which nobody has an answer that could be compared."""


class InsufficientTrajectories(ServerError):
    """No thinker answered."""

    acts = "you, or whoever runs the server,"


async def make_attempts(
    attempt: Attempts, numbers: Sequence[int], messages: Sequence[Message] | None = None
) -> list[Attempt]:
    """Make attempts side by side. If one raises, the others are cancelled and its error is raised."""

    async def make(number: int) -> Attempt:
        return await (attempt(number) if messages is None else attempt(number, messages))

    running = [asyncio.create_task(make(number)) for number in numbers]
    try:
        return list(await asyncio.gather(*running))
    except BaseException:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        raise


def ballots(made: Sequence[Trajectory | Attempt], weights: Sequence[float] | None = None) -> list[Ballot]:
    """Return the votes of trajectories, or of attempts in their order."""
    return [
        Ballot(getattr(one, "number", place), one.answer, one.tokens, weights[place] if weights else 1.0)
        for place, one in enumerate(made)
    ]


class ParallelThinking:
    """Runs the rounds of one question and has their answers aggregated.

    Args:
        config: the reasoner's options.
        aggregator: makes one answer of many.
    """

    def __init__(self, config: ThinkingConfig, aggregator: Aggregator) -> None:
        self.config, self.aggregator = config, aggregator
        self.equal = Equality(config.extract)
        self.top_logprobs = 0
        """How many of the likeliest tokens thinkers have to report."""

    def think(self, question: Question) -> AsyncIterator[Event]:
        """Answer a question; see `question.ThinkingReasoner.think`."""

        async def work(emit: Emit) -> None:
            await self._answer(question, emit)

        return relay(work)

    async def _answer(self, question: Question, emit: Emit) -> None:
        config = self.config
        question = checked(question)
        if config.temperature == 0 and config.width > 1:
            emit(Notice(f"temperature 0 makes all {config.width} thinkers the same"))
        loop = asyncio.get_running_loop()
        budget = Budget(
            config.max_total_tokens,
            None if config.deadline_s is None else loop.time() + config.deadline_s,
            asyncio.Semaphore(config.max_concurrency),
        )
        share = config.max_tokens
        if config.max_total_tokens is not None:
            calls = sum(config.rounds_made) + config.aggregation_calls
            share = min(share, config.max_total_tokens // calls)
            if share < 1:
                raise ConfigError(
                    f"max_total_tokens {config.max_total_tokens} is less than one token for each of {calls} calls",
                    where="max_total_tokens",
                    fix="raise it, or lower the width",
                )
            budget.reserved = share * config.aggregation_calls
        every: list[Trajectory] = []
        usable: list[Trajectory] = []
        stopped = "width"
        for number in range(len(config.rounds_made)):
            messages = self.prompt(question, usable) if number else question.messages
            made, stopped = await self.round(question, number, messages, share, budget, emit)
            every += made
            usable = [one for one in made if one.message is not None] or usable
        message, how = await self._aggregate(question, usable, every, share, budget, emit)
        if how == "deadline":
            stopped = "deadline"
        used = sum(one.tokens for one in every)
        emit(
            Thought(
                message=message,
                trajectories=tuple(every),
                votes=self.votes([one for one in usable if one.round == usable[-1].round]),
                tokens=budget.spent,
                prompt_tokens=budget.prompt_spent,
                summary_tokens=budget.spent - used,
                stopped_by=stopped,
                aggregated_by=how,
            )
        )

    def prompt(self, question: Question, answers: Sequence[Trajectory]) -> tuple[Message, ...]:
        """Return what thinkers of a later round read."""
        raise NotImplementedError

    def votes(self, made: Sequence[Trajectory]) -> dict[str, int]:
        """Count the answers."""
        return tally(ballots(made), self.equal)

    def callable_tools(self, question: Question, number: int) -> frozenset[str]:
        """Names of the tools that thinkers of round `number` may run in their snapshots."""
        return question.read_only if number == 0 else frozenset()

    async def round(
        self,
        question: Question,
        number: int,
        messages: tuple[Message, ...],
        share: int,
        budget: Budget,
        emit: Emit,
    ) -> tuple[list[Trajectory], str]:
        """Run one round; return its trajectories and why it ended."""
        width = self.config.rounds_made[number]
        reserve = self.config.summary_reserve_s if self.config.aggregation_calls else 0.0
        made, why = await self.thinkers(question, number, messages, share).run(
            range(width), budget, emit, reserve=reserve, stop=self.stop(width), votes=self.votes
        )
        return made, self.told(made, why, emit)

    def thinkers(
        self,
        question: Question,
        number: int,
        messages: tuple[Message, ...],
        share: int,
        watch: Watch | None = None,
    ) -> Round:
        """Return the thinkers of one round, not yet running."""
        config = self.config
        sampling = Sampling(temperature=config.temperature, top_p=config.top_p, max_tokens=share)
        return Round(
            question,
            number,
            ChatRequest(messages, question.tools, sampling, self.top_logprobs),
            seed=config.seed + sum(config.rounds_made[:number]),
            turns=config.turns,
            callable_tools=self.callable_tools(question, number),
            how=config.extract,
            watch=watch,
        )

    def told(self, made: Sequence[Trajectory], why: str, emit: Emit) -> str:
        """Emit an early stop and return the reason by its own name."""
        if why != "stop":
            return why
        done = sum(one.finish != "stopped" for one in made)
        emit(EarlyStop(self.config.early_stop, done, len(made)))
        return self.config.early_stop

    def stop(self, width: int) -> Callable[[list[Trajectory]], bool]:
        """Return the early stop of a round of `width` thinkers."""
        config = self.config

        def decide(ended: list[Trajectory]) -> bool:
            if config.early_stop == "exact":
                return decided(ballots(ended), width, config.ties, equal=self.equal)
            if config.early_stop == "bayesian":
                return believed(ballots(ended), config.confidence, equal=self.equal)
            if config.early_stop == "window":
                return settled([one.answer for one in ended], config.window, equal=self.equal)
            return False

        return decide

    async def _aggregate(
        self,
        question: Question,
        usable: Sequence[Trajectory],
        every: Sequence[Trajectory],
        share: int,
        budget: Budget,
        emit: Emit,
    ) -> tuple[Message, str]:
        """Return the answer and how it was made; with too few answers, or without time, the best there is."""
        if not usable:
            errors = [one.error for one in every if one.error] or [one.finish for one in every]
            raise InsufficientTrajectories(
                f"none of {len(every)} thinkers answered: {errors[0]}",
                where="model",
                fix="give more tokens (max_tokens)"
                if {one.finish for one in every} == {"length"}
                else "look at the server, give more time (deadline_s) or more tokens (max_tokens)",
            )
        needed = min(self.config.min_answers, self.config.rounds_made[-1])
        if len(usable) < needed:
            emit(
                Notice(
                    f"{len(usable)} of {len(every)} thinkers answered, {needed} were wanted: the best of them is taken"
                )
            )
            return self.best(usable), "too few answers"
        budget.reserved = 0
        try:
            chosen = await self.aggregator.aggregate(question, usable, self._asker(question, share, budget, emit))
        except (TimeoutError, OutOfTokens, ServerError) as cause:
            short = (
                "deadline" if isinstance(cause, TimeoutError) else str(getattr(cause, "reason", "no tokens are left"))
            )
            emit(Notice(f"the aggregation did not end ({short}): the best of the thinkers' answers is taken"))
            return self.best(usable), "deadline" if isinstance(cause, TimeoutError) else "no summary"
        if isinstance(chosen, Message):
            return chosen, "summary"
        message = usable[chosen].message
        assert message is not None
        return message, "choice"

    def by_vote(self, trajectories: Sequence[Trajectory], weights: Sequence[float] | None = None) -> int:
        """Return the place of the trajectory that stands for the most frequent answer.

        Raises:
            NoExtractableAnswer: none has an answer.
        """
        found = winner(ballots(trajectories, weights), ties=self.config.ties, seed=self.config.seed, equal=self.equal)
        if found is None:
            raise NoExtractableAnswer(
                f"none of {len(trajectories)} answers could be extracted with extract={self.config.extract!r}",
                where="extract",
                fix="choose how answers are found, or an aggregator that needs none: reasoner.heavy-thinking",
            )
        return next(place for place, one in enumerate(trajectories) if one.number == found.number)

    def best(self, usable: Sequence[Trajectory]) -> Message:
        """Return the most frequent answer, or the first where none can be compared."""
        found = winner(ballots(usable), ties=self.config.ties, seed=self.config.seed, equal=self.equal)
        message = next(one for one in usable if found is None or one.number == found.number).message
        assert message is not None
        return message

    def _asker(self, question: Question, share: int, budget: Budget, emit: Emit) -> Ask:
        model, heard = question.summarizer or question.thinker, Spoken()

        def tell(piece: Delta) -> None:
            emit(Summarizing(piece.text, piece.reasoning, heard.tokens))

        async def ask(request: ChatRequest) -> Reply:
            request = replace(
                request, sampling=replace(request.sampling, max_tokens=min(share, request.sampling.max_tokens))
            )
            async with asyncio.timeout(budget.seconds()):
                return await speak(model, request, budget, heard, tell)

        return ask


def checked(question: Question) -> Question:
    """Return the question without the reasoning of earlier turns.

    Raises:
        ConfigError: no message, or the last one is neither a user's nor a tool's answer.
    """
    if not question.messages or question.messages[-1].role not in ("user", "tool"):
        raise ConfigError(
            "the conversation does not end with a user's message", where="messages", fix="add what the user asks"
        )
    clean = tuple(
        replace(message, content=REASONING.sub("", message.content)) if message.role == "assistant" else message
        for message in question.messages
    )
    return replace(question, messages=clean)
