"""The agent loop: a model, its tools and one task, down to the exact tokens that were read and written."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, TypeAlias, TypeVar

from stackloom.core.chat import Message, Parsed, ToolCall, find_format, parse_tool_calls
from stackloom.core.errors import ConfigError, EngineError, FitError
from stackloom.core.generation import (
    ChatModel,
    ChatRequest,
    ChatTokenizer,
    ContextFull,
    Generator,
    Request,
    Sampling,
)
from stackloom.core.slots.context import Context, Seen
from stackloom.core.slots.environment import Episode, Reward, Task, ToolError
from stackloom.core.slots.reasoner import Attempt
from stackloom.environments.users import User, whole_reply

Finish: TypeAlias = Literal["answered", "turns", "tokens", "context", "failed"]
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Bounds on tool calls.

    Attributes:
        calls: most calls of one message; the agent reads that the others were not run.
        seconds: most that one call may take; None runs it where it is. A call that takes longer masks the attempt.
    """

    calls: int = 16
    seconds: float | None = None


DEFAULT_LIMITS = Limits()
TOKENS_PER_CHARACTER = 0.25  # of English, until a server has counted a prompt


@dataclass(frozen=True)
class Segment:
    """A stretch of an attempt in which each prompt extends the one before, token by token.

    Attributes:
        token_ids: each token as the model read or wrote it; empty behind a chat endpoint.
        loss_mask: per token, whether the model generated it; same length as token_ids.
        logprobs: natural log-probability of each generated token, in order.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Transcript:
    """What happened in one attempt.

    Attributes:
        task: what was attempted.
        messages: what the agent, its tools and the user said, after the task's own messages.
        token_ids: the whole conversation, or what of it followed the last cut of its context: each token as the model
            read or wrote it, never rendered again; empty behind a chat endpoint.
        loss_mask: per token, whether the model generated it; same length as token_ids.
        logprobs: natural log-probability of each generated token, in order.
        finish: "answered" for a message without tool calls, "turns" when its last permitted message still called tools,
            "tokens" when a message was cut, "context" when the model's context was full, be it by the task alone,
            "failed" when the environment itself raised.
        failure: what the environment raised; empty unless failed.
        earlier: what preceded each cut of the context, with the summary that was written there; to be trained on
            as samples of their own that share the attempt's advantage.
    """

    task: Task
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    failure: str = ""
    earlier: tuple[Segment, ...] = ()

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All stretches in order."""
        return (*self.earlier, Segment(self.token_ids, self.loss_mask, self.logprobs))

    @property
    def tokens(self) -> int:
        """Number of generated tokens, summaries included."""
        return sum(sum(segment.loss_mask) for segment in self.segments)

    def attempt(self, episode: Episode) -> Attempt:
        """Have the episode judge the transcript; a failure of its own is masked, never scored 0."""
        reward, answer = judge(episode, self.messages)
        if self.failure:
            reward, answer = Reward(0.0, valid=False, reason=self.failure), None
        logprobs = [each for segment in self.segments for each in segment.logprobs]
        logprob = math.fsum(logprobs) / len(logprobs) if logprobs else None
        return Attempt(answer, self.messages, self.tokens, reward, logprob)


async def play(
    task: Task,
    episode: Episode,
    generator: Generator,
    tokenizer: ChatTokenizer,
    *,
    sampling: Sampling,
    turns: int,
    tokens: int | None = None,
    tool_format: str = "hermes",
    key: str,
    user: User | None = None,
    limits: Limits = DEFAULT_LIMITS,
    context: Context | None = None,
) -> Transcript:
    """Let a model attempt a task, token in and token out.

    Each prompt is the tokens that were read and written so far, and the newly rendered rest; nothing is tokenized
    twice.
    Text of a ToolError and of a malformed call goes back to the agent as a tool's answer. Several calls of one message
    run in order. A message that was cut ends the attempt and its calls do not run.

    Args:
        task: what to attempt.
        episode: the attempt's state, from `environment.start(task)`.
        generator: the model.
        tokenizer: of that model; it must write tool calls in `tool_format`.
        sampling: of each message; `max_tokens` is per message.
        turns: most messages of the agent.
        tokens: most generated tokens of the attempt; None sets no bound.
        tool_format: how the model writes tool calls (see core.chat).
        key: names the attempt for its random draws; message i draws with "<key>/<i>".
        user: answers messages without calls; the default is the episode's own `user`, if it has one. Without a user
            such a message is the answer.
        limits: of tool calls.
        context: decides before each message but the first what of the attempt stays in sight; the default keeps all.
            Whoever judges the attempt sees every message, cut or not.

    Raises:
        ConfigError: turns or tokens below 1, an unknown tool format, or what the generator refuses but a full context.
        FitError: the chat template rewrites what the model has already read.

    Example:
        >>> transcript = await play(task, episode, engine, chat, sampling=Sampling(), turns=4, key=task.id)
        >>> transcript.attempt(episode).reward
        Reward(value=1.0, valid=True, reason='')
    """
    find_format(tool_format)
    voice = _TokenVoice(task, generator, tokenizer, tool_format)
    return await _attempt(task, episode, voice, sampling, turns, tokens, key, user, limits, context)


async def play_chat(
    task: Task,
    episode: Episode,
    model: ChatModel,
    *,
    sampling: Sampling,
    turns: int,
    tokens: int | None = None,
    key: str,
    user: User | None = None,
    limits: Limits = DEFAULT_LIMITS,
    context: Context | None = None,
) -> Transcript:
    """Let a model behind a chat endpoint attempt a task; see `play`.

    The server renders and parses, so the transcript holds messages and no tokens: it can be judged, not trained on.

    Raises:
        ServerError: the server failed; nothing is wrong with the attempt, which must not be scored.
    """
    return await _attempt(task, episode, _ChatVoice(task, model), sampling, turns, tokens, key, user, limits, context)


async def _attempt(
    task: Task,
    episode: Episode,
    voice: _Voice,
    sampling: Sampling,
    turns: int,
    tokens: int | None,
    key: str,
    user: User | None,
    limits: Limits,
    context: Context | None,
) -> Transcript:
    if turns < 1 or (tokens is not None and tokens < 1):
        raise ConfigError(f"turns and tokens are at least 1, got {turns} and {tokens}", where="agent_loop.play")
    user = user or getattr(episode, "user", None)
    said: list[Message] = []
    sight = _Sight(task, voice, context) if context else None
    for turn in range(turns):
        room = sampling.max_tokens if tokens is None else min(sampling.max_tokens, tokens - voice.generated)
        if room < 1:
            return voice.close(said, "tokens")
        try:
            parsed, cut = await voice.say(replace(sampling, max_tokens=room), f"{key}/{turn}")
        except ContextFull:
            return voice.close(said, "context")
        said.append(Message("assistant", parsed.text, () if cut else parsed.calls))
        if cut:
            return voice.close(said, cut)
        if parsed.calls or parsed.errors:
            heard, failure = await _run_calls(episode, parsed, limits)
            if failure:
                return voice.close([*said, *heard], "failed", failure)
        else:
            reply = await user.reply(tuple(said)) if user else None
            if reply is None:
                return voice.close(said, "answered")
            heard = [Message("user", reply)]
        said += heard
        if turn == turns - 1:
            break
        if sight is None:
            voice.hear(heard)
        else:
            room = sampling.max_tokens if tokens is None else min(sampling.max_tokens, tokens - voice.generated)
            await sight.go_on(said[-1 - len(heard) :], replace(sampling, max_tokens=room), f"{key}/{turn}/summary")
    return voice.close(said, "turns")


def judge(episode: Episode, messages: Sequence[Message]) -> tuple[Reward, str | None]:
    """Return an episode's reward and answer; a verifier that raises or returns nonsense gives an invalid reward."""
    reward, failure = _guarded("the verifier", lambda: episode.reward(tuple(messages)))
    if not failure and not _is_reward(reward):
        failure = f"the verifier returned {reward!r}, not a Reward from 0 to 1"
    answer, answer_failure = _guarded("the verifier's answer()", lambda: episode.answer(tuple(messages)))
    failure = failure or answer_failure
    if failure or reward is None:
        return Reward(0.0, valid=False, reason=failure), None
    return reward, answer


def _is_reward(reward: object) -> bool:
    return isinstance(reward, Reward) and math.isfinite(reward.value) and 0 <= reward.value <= 1


def _guarded(what: str, act: Callable[[], T]) -> tuple[T | None, str]:
    """Return what `act` gives and "", or None and what it raised."""
    try:
        return act(), ""
    except Exception as cause:  # noqa: BLE001 - an environment's own code; whatever it raises masks the attempt
        return None, f"{what} raised {type(cause).__name__}: {cause}"


def _answer_of(episode: Episode, call: ToolCall) -> str:
    try:
        return episode.call(call)
    except ToolError as refused:
        return f"Error: {refused}"


async def _run_calls(episode: Episode, parsed: Parsed, limits: Limits) -> tuple[list[Message], str]:
    """Run a message's calls in order; return their answers, and what broke the environment, if anything did."""
    results: list[Message] = []
    for place, call in enumerate(parsed.calls):
        if place >= limits.calls:
            content = f"Error: a message makes at most {limits.calls} calls; this one was not run"
        else:
            answer, failure = await _run_call(episode, call, limits.seconds)
            if not failure and not isinstance(answer, str):
                failure = f"tool {call.name!r} returned {type(answer).__name__}, not text"
            if failure or answer is None:
                return results, failure
            content = answer
        results.append(Message("tool", content, tool_call_id=call.id, name=call.name))
    return results + [Message("tool", f"Error: {error}") for error in parsed.errors[: limits.calls]], ""


async def _run_call(episode: Episode, call: ToolCall, seconds: float | None) -> tuple[str | None, str]:
    what, act = f"tool {call.name!r}", partial(_answer_of, episode, call)
    if seconds is None:
        return _guarded(what, act)
    try:
        # A call that hangs keeps its thread; its attempt is over and is masked.
        return await asyncio.wait_for(asyncio.to_thread(_guarded, what, act), seconds)
    except TimeoutError:
        return None, f"{what} took longer than {seconds:g} s"


class _Sight:
    """What of an attempt the model still sees, kept by a component of slot `context`."""

    def __init__(self, task: Task, voice: _Voice, context: Context) -> None:
        self._question, self._voice, self._context = task.messages, voice, context
        self._since: list[Message] = []
        self._turns = 0

    async def go_on(self, new: Sequence[Message], sampling: Sampling, key: str) -> None:
        """Take in the model's message and what followed it; then leave it all, or cut it."""
        voice, heard = self._voice, new[1:]
        self._since += new
        self._turns += 1
        mark = voice.mark()
        voice.hear(heard)
        asked = False

        async def ask(message: Message) -> str:
            nonlocal asked
            if asked:
                raise EngineError("a context asks once per turn", where="context")
            asked = True
            if sampling.max_tokens < 1:
                return ""
            voice.back(mark)
            voice.hear([*heard, message])
            try:
                parsed, cut = await voice.say(sampling, key)
            except ContextFull:
                return ""
            return "" if cut else parsed.text.strip()

        seen = Seen(self._question, tuple(self._since), voice.size, self._turns, voice.measure)
        cut = await self._context.manage(seen, ask)
        if cut is not None:
            voice.restart(cut.messages)
            self._since = list(cut.messages)
            self._turns = 0 if cut.restart else self._turns
        elif asked:  # nothing came of it: what was asked and answered is gone
            voice.restart(self._since)


class _Voice(Protocol):
    """How a model says its messages and hears what follows."""

    generated: int

    @property
    def size(self) -> int:
        """Tokens of the next prompt."""
        ...

    def mark(self) -> int:
        """Return a place that `back` can go to."""
        ...

    def back(self, mark: int) -> None:
        """Forget what was heard since."""
        ...

    def measure(self, messages: Sequence[Message]) -> int:
        """Return the tokens of the task's messages and these."""
        ...

    def restart(self, messages: Sequence[Message]) -> None:
        """See the task's messages and these from now on, and nothing else."""
        ...

    async def say(self, sampling: Sampling, key: str) -> tuple[Parsed, Finish | None]:
        """Return the next message, and how it was cut if it was."""
        ...

    def hear(self, messages: Sequence[Message]) -> None:
        """Take in what followed the model's message."""
        ...

    def close(self, said: Sequence[Message], finish: Finish, failure: str = "") -> Transcript:
        """Return the finished transcript."""
        ...


class _TokenVoice:
    """A model that reads and writes tokens, each of which is kept."""

    def __init__(self, task: Task, generator: Generator, tokenizer: ChatTokenizer, tool_format: str) -> None:
        self._task, self._generator, self._tokenizer, self._format = task, generator, tokenizer, tool_format
        self.generated = 0
        self._earlier: list[Segment] = []
        self._begin(())

    def _begin(self, messages: Sequence[Message]) -> None:
        self._before = (*self._task.messages, *messages)
        self._ids = self._tokenizer.render(self._before, reply=True)
        self._opening = tuple(self._ids)
        self._mask = [False] * len(self._ids)
        self._last = 0
        self._logprobs: list[float] = []

    @property
    def size(self) -> int:
        """Tokens of the next prompt."""
        return len(self._ids)

    def mark(self) -> int:
        """Return a place that `back` can go to."""
        return len(self._ids)

    def back(self, mark: int) -> None:
        """Forget what was heard since."""
        del self._ids[mark:], self._mask[mark:]

    def measure(self, messages: Sequence[Message]) -> int:
        """Return the tokens of the task's messages and these."""
        return len(self._tokenizer.render([*self._task.messages, *messages], reply=True))

    def restart(self, messages: Sequence[Message]) -> None:
        """See the task's messages and these from now on, and nothing else."""
        self._earlier.append(self._segment())
        self._begin(messages)

    def _segment(self) -> Segment:
        return Segment(tuple(self._ids), tuple(self._mask), tuple(self._logprobs))

    async def say(self, sampling: Sampling, key: str) -> tuple[Parsed, Finish | None]:
        """Generate a message."""
        completion = await self._generator.generate(Request(tuple(self._ids), sampling, key))
        self._ids += completion.token_ids
        self._mask += [True] * len(completion.token_ids)
        self._logprobs += completion.logprobs
        self._last = len(completion.token_ids)
        self.generated += self._last
        if completion.finish == "length":
            cut: Finish = "tokens" if self._last >= sampling.max_tokens else "context"
            return Parsed(completion.text, (), ()), cut
        if not self._task.tools:
            return Parsed(completion.text.strip(), (), ()), None
        parsed = parse_tool_calls(completion.text, format=self._format)
        if parsed.calls or parsed.errors:
            return parsed, None
        return Parsed(completion.text.strip(), (), ()), None

    def hear(self, messages: Sequence[Message]) -> None:
        """Add what lies between the model's message and its next one: its end, what followed, the next opening.

        It is rendered behind an empty message, so that what the model wrote is not tokenized again.
        """
        whole = self._tokenizer.render([*self._before, Message("assistant"), *messages], reply=True)
        if tuple(whole[: len(self._opening)]) != self._opening:
            raise FitError(
                "the chat template changes what the model has already read once tools answer, so the tokens of an "
                "attempt cannot be kept",
                where="tokenizer",
                fix="use a template that appends",
            )
        between = whole[len(self._opening) :]
        for length in range(min(self._last, len(between)), 0, -1):
            if self._ids[-length:] == between[:length]:  # the model wrote the end of its message itself
                between = between[length:]
                break
        self._ids += between
        self._mask += [False] * len(between)

    def close(self, said: Sequence[Message], finish: Finish, failure: str = "") -> Transcript:
        """Return the finished transcript."""
        return Transcript(
            task=self._task,
            messages=tuple(said),
            token_ids=tuple(self._ids),
            loss_mask=tuple(self._mask),
            logprobs=tuple(self._logprobs),
            finish=finish,
            failure=failure,
            earlier=tuple(self._earlier),
        )


class _ChatVoice:
    """A model behind a chat endpoint."""

    def __init__(self, task: Task, model: ChatModel) -> None:
        self._task, self._model = task, model
        self._messages = list(task.messages)
        self.generated = 0
        self._per_character = TOKENS_PER_CHARACTER

    @property
    def size(self) -> int:
        """Tokens of the next prompt, estimated from the last one that the server counted."""
        return math.ceil(self._per_character * _characters(self._messages))

    def mark(self) -> int:
        """Return a place that `back` can go to."""
        return len(self._messages)

    def back(self, mark: int) -> None:
        """Forget what was heard since."""
        del self._messages[mark:]

    def measure(self, messages: Sequence[Message]) -> int:
        """Return the tokens of the task's messages and these, estimated likewise."""
        return math.ceil(self._per_character * _characters([*self._task.messages, *messages]))

    def restart(self, messages: Sequence[Message]) -> None:
        """See the task's messages and these from now on, and nothing else."""
        self._messages = [*self._task.messages, *messages]

    async def say(self, sampling: Sampling, key: str) -> tuple[Parsed, Finish | None]:
        """Ask for a message."""
        request = ChatRequest(tuple(self._messages), tuple(self._task.tools), sampling, key=key)
        reply = await whole_reply(self._model, request)
        self.generated += reply.tokens
        if reply.prompt_tokens:
            self._per_character = reply.prompt_tokens / max(1, _characters(self._messages))
        self._messages.append(reply.message)
        cut: Finish | None = "tokens" if reply.finish == "length" else None
        return Parsed(reply.message.content.strip(), reply.message.tool_calls, reply.errors), cut

    def hear(self, messages: Sequence[Message]) -> None:
        """Append to the conversation."""
        self._messages += messages

    def close(self, said: Sequence[Message], finish: Finish, failure: str = "") -> Transcript:
        """Return the finished transcript."""
        return Transcript(self._task, tuple(said), (), (), (), finish, failure)


def _characters(messages: Sequence[Message]) -> int:
    calls = (call for message in messages for call in message.tool_calls)
    return sum(len(message.content) for message in messages) + sum(len(str(call.arguments)) for call in calls)
