"""Thinkers: parallel calls of a model that stop together, within budgets, and leave nothing running."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stackloom.core.chat import Message, ToolCall
from stackloom.core.errors import StackloomError
from stackloom.core.generation import ChatModel, ChatRequest, Delta, Reply, ServerError
from stackloom.core.slots.environment import ToolError
from stackloom.plugins.reasoner.answers import ExtractorName, extract
from stackloom.plugins.reasoner.question import Ended, Event, Question, Thinking, Trajectory

Emit = Callable[[Event], None]
Watch = Callable[[int, Delta], bool]


@dataclass
class Budget:
    """What all calls of one question may spend.

    Args:
        tokens: most generated tokens; None for no bound.
        deadline: of the event loop's clock; None for none.
        gate: a permit per call under way.
    """

    tokens: int | None
    deadline: float | None
    gate: asyncio.Semaphore
    spent: int = 0
    prompt_spent: int = 0
    reserved: int = 0

    @property
    def left(self) -> float:
        """Tokens that thinkers may still generate."""
        return math.inf if self.tokens is None else self.tokens - self.reserved - self.spent

    def seconds(self, reserve: float = 0.0) -> float | None:
        """Seconds until `reserve` before the deadline; None without one."""
        return None if self.deadline is None else self.deadline - reserve - asyncio.get_running_loop().time()


@dataclass
class Spoken:
    """What has been received of one speaker's calls, ended or not; `text` is that of the newest alone."""

    text: str = ""
    reasoning: str = ""
    tokens: int = 0
    logprobs: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)


class OutOfTokens(Exception):
    """The token budget is spent."""


class Unneeded(Exception):
    """A watcher wants no more of this thinker."""


async def speak(
    model: ChatModel, request: ChatRequest, budget: Budget, heard: Spoken, tell: Callable[[Delta], None]
) -> Reply:
    """Make one call; `heard` and the budget follow what arrives, whatever ends it.

    Raises:
        OutOfTokens: the budget was spent before the reply ended.
        ServerError: the stream ended without a reply.
    """
    async with budget.gate:
        if budget.left < 1:
            raise OutOfTokens
        room = int(min(request.sampling.max_tokens, budget.left))
        request = replace(request, sampling=replace(request.sampling, max_tokens=room))
        stream, before = model.stream(request), heard.tokens
        heard.text = ""
        try:
            async for piece in stream:
                if isinstance(piece, Reply):
                    budget.spent += before + piece.tokens - heard.tokens  # the server's own count has the last word
                    budget.prompt_spent += piece.prompt_tokens
                    heard.tokens = before + piece.tokens
                    return piece
                heard.text += piece.text
                heard.reasoning += piece.reasoning
                heard.tokens += piece.tokens
                heard.logprobs += piece.logprobs
                heard.confidences += [-math.fsum(likely) / len(likely) for likely in piece.top_logprobs if likely]
                budget.spent += piece.tokens
                tell(piece)
                if budget.left < 0:
                    raise OutOfTokens
        finally:
            if (close := getattr(stream, "aclose", None)) is not None:
                await close()
    raise ServerError("the reply broke off", where="model")


@dataclass(frozen=True)
class Round:
    """Thinkers of one round.

    Args:
        question: what is asked; `messages` is what its thinkers read.
        number: of the round, from 0.
        request: what each asks, but for the seed.
        seed: thinker k draws with seed + k.
        turns: most messages of one that calls tools.
        callable_tools: names of the tools that a thinker may run in its snapshot; other calls are its answer.
        how: how answers are extracted.
        watch: asked after every piece whether thinker k should stop.
        prompts: messages of thinkers that read others than the request's.
    """

    question: Question
    number: int
    request: ChatRequest
    seed: int
    turns: int
    callable_tools: frozenset[str]
    how: ExtractorName
    watch: Watch | None = None
    prompts: Mapping[int, tuple[Message, ...]] = field(default_factory=dict)

    async def run(
        self,
        numbers: Sequence[int],
        budget: Budget,
        emit: Emit,
        *,
        reserve: float,
        stop: Callable[[list[Trajectory]], bool],
        votes: Callable[[Sequence[Trajectory]], dict[str, int]],
    ) -> tuple[list[Trajectory], str]:
        """Run thinkers until all have ended, `stop` says so, or time or tokens run out.

        Args:
            numbers: of the thinkers.
            budget: what they share.
            emit: told of every piece and every end.
            reserve: seconds before the deadline at which they are stopped.
            stop: asked, in the order of ending, whether the round is decided.
            votes: counts what is told with an end.

        Returns:
            the trajectories in the order of their numbers, and why the round ended: "width", "stop",
            "deadline" or "tokens".
        """
        heard = {number: Spoken() for number in numbers}
        tasks = {asyncio.create_task(self._think(number, budget, heard[number], emit)): number for number in numbers}
        ended: list[Trajectory] = []
        why, pending = "width", set(tasks)
        try:
            while pending:
                left = budget.seconds(reserve)
                done, pending = await asyncio.wait(
                    pending, timeout=None if left is None else max(0.0, left), return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    why = "deadline"
                    break
                for task in sorted(done, key=tasks.__getitem__):
                    ended.append(task.result())
                    emit(Ended(ended[-1], votes(ended)))
                if pending and stop(ended):
                    why = "stop"
                    break
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finish = {"stop": "stopped"}.get(why, why)
        for task in sorted(pending, key=tasks.__getitem__):
            number = tasks[task]
            written = heard[number].reasoning + heard[number].text
            ended.append(replace(self._trajectory(number, heard[number]), finish=finish, reasoning=written))
            emit(Ended(ended[-1], votes(ended)))
        if why == "width" and any(one.finish == "tokens" for one in ended):
            why = "tokens"
        return sorted(ended, key=lambda one: one.number), why

    def _trajectory(self, number: int, heard: Spoken) -> Trajectory:
        logprob = math.fsum(heard.logprobs) / len(heard.logprobs) if heard.logprobs else None
        return Trajectory(
            round=self.number,
            number=number,
            seed=self.seed + number,
            reasoning=heard.reasoning,
            tokens=heard.tokens,
            logprob=logprob,
            confidences=tuple(heard.confidences),
        )

    async def _think(self, number: int, budget: Budget, heard: Spoken, emit: Emit) -> Trajectory:
        """Run one thinker; whatever goes wrong with it is its own trajectory's and nobody else's."""

        def tell(piece: Delta) -> None:
            emit(Thinking(self.number, number, piece.text, piece.reasoning, heard.tokens))
            if self.watch is not None and self.watch(number, piece):
                raise Unneeded

        request = replace(
            self.request,
            messages=self.prompts.get(number, self.request.messages),
            sampling=replace(self.request.sampling, seed=self.seed + number),
        )
        world = self.question.snapshot() if self.question.snapshot and self.callable_tools else None
        prompt_tokens, finish, error, message = 0, "failed", "", None
        for turn in range(self.turns):
            try:
                reply = await speak(self.question.thinker, request, budget, heard, tell)
            except OutOfTokens:
                finish = "tokens"
                break
            except Unneeded:
                finish = "unsure"
                break
            except StackloomError as cause:
                error = f"{type(cause).__name__}: {cause.reason}"
                break
            prompt_tokens += reply.prompt_tokens
            calls = reply.message.tool_calls
            if calls and world and turn < self.turns - 1 and {made.name for made in calls} <= self.callable_tools:
                results = [await _answer(world, made) for made in calls]
                request = replace(request, messages=(*request.messages, reply.message, *results))
                continue
            finish = reply.finish
            if not (reply.message.content.strip() or calls):
                finish, error = "failed", next(iter(reply.errors), "an empty answer")
            elif finish == "length":
                error = "cut before its end"
            else:
                message = reply.message
            break
        made = replace(self._trajectory(number, heard), finish=finish, error=error, prompt_tokens=prompt_tokens)
        return replace(made, message=message, answer=extract(message, self.how))


async def _answer(world: Callable[[ToolCall], str], call: ToolCall) -> Message:
    """A tool's answer from a thinker's own snapshot; what breaks in it is told to the thinker."""
    try:
        content = await asyncio.to_thread(world, call)
    except ToolError as refused:
        content = f"Error: {refused}"
    except Exception as broken:  # noqa: BLE001 - a snapshot's own code; the thinker goes on without this answer
        content = f"Error: the tool failed: {type(broken).__name__}"
    return Message("tool", content, tool_call_id=call.id, name=call.name)


async def relay(work: Callable[[Emit], Coroutine[None, None, None]]) -> AsyncIterator[Event]:
    """Yield what `work` emits and raise what it raises; closing the iterator cancels it and waits for its end."""
    queue: asyncio.Queue[Event | None] = asyncio.Queue()
    task = asyncio.create_task(work(queue.put_nowait))
    task.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (event := await queue.get()) is not None:
            yield event
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
