"""The agent loop: a model, its tools and one task, down to the exact tokens that were read and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias, TypeVar

from stackloom.core.chat import Message, Parsed, ToolCall, find_format, parse_tool_calls
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.generation import ChatTokenizer, Completion, ContextFull, Generator, Request, Sampling
from stackloom.core.slots.environment import Episode, Reward, Task, ToolError
from stackloom.core.slots.reasoner import Attempt

Finish: TypeAlias = Literal["answered", "turns", "tokens", "context", "failed"]
T = TypeVar("T")


@dataclass(frozen=True)
class Transcript:
    """What happened in one attempt.

    Attributes:
        task: what was attempted.
        messages: what the agent and its tools said, after the task's own messages.
        token_ids: the whole conversation, each token as the model read or wrote it; never rendered again.
        loss_mask: per token, whether the model generated it; same length as token_ids.
        logprobs: natural log-probability of each generated token, in order.
        finish: "answered" for a message without tool calls, "turns" when its last permitted message still called tools,
            "tokens" when a message was cut, "context" when the model's context was full, be it by the task alone,
            "failed" when the environment itself raised.
        failure: what the environment raised; empty unless failed.
    """

    task: Task
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    failure: str = ""

    @property
    def tokens(self) -> int:
        """Number of generated tokens."""
        return sum(self.loss_mask)

    def attempt(self, episode: Episode) -> Attempt:
        """Have the episode judge the transcript; a failure of its own is masked, never scored 0."""
        reward, answer = judge(episode, self.messages)
        if self.failure:
            reward, answer = Reward(0.0, valid=False, reason=self.failure), None
        return Attempt(answer=answer, messages=self.messages, tokens=self.tokens, reward=reward)


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
) -> Transcript:
    """Let a model attempt a task.

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

    Raises:
        ConfigError: turns or tokens below 1, an unknown tool format, or what the generator refuses but a full context.
        FitError: the chat template rewrites what the model has already read.

    Example:
        >>> transcript = await play(task, episode, engine, chat, sampling=Sampling(), turns=4, key=task.id)
        >>> transcript.attempt(episode).reward
        Reward(value=1.0, valid=True, reason='')
    """
    if turns < 1 or (tokens is not None and tokens < 1):
        raise ConfigError(f"turns and tokens are at least 1, got {turns} and {tokens}", where="agent_loop.play")
    find_format(tool_format)
    log = _Log(task, tokenizer)
    for turn in range(turns):
        room = sampling.max_tokens if tokens is None else min(sampling.max_tokens, tokens - log.generated)
        if room < 1:
            return log.close("tokens")
        request = Request(tuple(log.ids), replace(sampling, max_tokens=room), f"{key}/{turn}")
        try:
            completion = await generator.generate(request)
        except ContextFull:
            return log.close("context")
        log.write(completion)
        if completion.finish == "length":
            log.messages.append(Message("assistant", completion.text))
            return log.close("tokens" if len(completion.token_ids) >= room else "context")
        parsed = parse_tool_calls(completion.text, format=tool_format) if task.tools else None
        if parsed is None or not (parsed.calls or parsed.errors):
            log.messages.append(Message("assistant", completion.text.strip()))
            return log.close("answered")
        results, failure = _run_calls(episode, parsed)
        log.messages += [Message("assistant", parsed.text, parsed.calls), *results]
        if failure:
            return log.close("failed", failure)
        if turn < turns - 1:
            log.read(results)
    return log.close("turns")


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


def _run_calls(episode: Episode, parsed: Parsed) -> tuple[list[Message], str]:
    """Run a message's calls in order; return their answers, and what broke the environment, if anything did."""
    results: list[Message] = []
    for call in parsed.calls:
        content, failure = _guarded(f"tool {call.name!r}", partial(_answer_of, episode, call))
        if not failure and not isinstance(content, str):
            failure = f"tool {call.name!r} returned {type(content).__name__}, not text"
        if failure or content is None:
            return results, failure
        results.append(Message("tool", content, tool_call_id=call.id, name=call.name))
    return results + [Message("tool", f"Error: {error}") for error in parsed.errors], ""


class _Log:
    """The tokens and messages of an attempt while it runs."""

    def __init__(self, task: Task, tokenizer: ChatTokenizer) -> None:
        self._task, self._tokenizer = task, tokenizer
        self.messages: list[Message] = []
        self.ids = tokenizer.render(task.messages, reply=True)
        self._opening = tuple(self.ids)
        self._mask = [False] * len(self.ids)
        self.generated = self._last = 0
        self.logprobs: list[float] = []

    def write(self, completion: Completion) -> None:
        """Add what the model generated."""
        self.ids += completion.token_ids
        self._mask += [True] * len(completion.token_ids)
        self.logprobs += completion.logprobs
        self._last = len(completion.token_ids)
        self.generated += self._last

    def read(self, results: Sequence[Message]) -> None:
        """Add what lies between the model's message and its next one: its end, the tools' answers, the next opening.

        It is rendered behind an empty message, so that what the model wrote is not tokenized again.
        """
        whole = self._tokenizer.render([*self._task.messages, Message("assistant"), *results], reply=True)
        if tuple(whole[: len(self._opening)]) != self._opening:
            raise FitError(
                "the chat template changes what the model has already read once tools answer, so the tokens of an "
                "attempt cannot be kept",
                where="tokenizer",
                fix="use a template that appends",
            )
        between = whole[len(self._opening) :]
        for length in range(min(self._last, len(between)), 0, -1):
            if self.ids[-length:] == between[:length]:  # the model wrote the end of its message itself
                between = between[length:]
                break
        self.ids += between
        self._mask += [False] * len(between)

    def close(self, finish: Finish, failure: str = "") -> Transcript:
        """Return the finished transcript."""
        return Transcript(
            task=self._task,
            messages=tuple(self.messages),
            token_ids=tuple(self.ids),
            loss_mask=tuple(self._mask),
            logprobs=tuple(self.logprobs),
            finish=finish,
            failure=failure,
        )
