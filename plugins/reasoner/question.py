"""A question in a conversation: what is asked of a reasoner, what it tells while it thinks, and what it settles on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from stackloom.core.chat import Message, Tool, ToolCall
from stackloom.core.generation import ChatModel, ChatRequest, Reply


@dataclass(frozen=True)
class Question:
    """A question in a conversation.

    Attributes:
        messages: system, earlier turns with their final answers alone, and last what the user asks now.
        thinker: the model that thinks.
        summarizer: the model that aggregates; None for the same.
        tools: what may be called.
        read_only: names of the tools that change nothing.
        snapshot: makes a copy of the world for one thinker, as a function from a call to its answer, which may raise
            ToolError; None where thinkers cannot call tools.
        verify: scores an answer from 0 to 1.
    """

    messages: tuple[Message, ...]
    thinker: ChatModel
    summarizer: ChatModel | None = None
    tools: tuple[Tool, ...] = ()
    read_only: frozenset[str] = frozenset()
    snapshot: Callable[[], Callable[[ToolCall], str]] | None = None
    verify: Callable[[Message], Awaitable[float]] | None = None


@dataclass(frozen=True)
class Trajectory:
    """What became of one thinker.

    Attributes:
        round, number: both from 0.
        message: the visible answer or the proposed call; None where there is none.
        answer: extracted, in a form that equal answers share; None where nothing could be extracted.
        finish: "stop", "tool_calls", "length", "failed", "stopped" (no longer needed), "deadline", "tokens"
            or "unsure".
        error: why it failed.
        score: the aggregator's; None without one.
    """

    round: int
    number: int
    seed: int
    message: Message | None = None
    answer: str | None = None
    reasoning: str = ""
    finish: str = "failed"
    tokens: int = 0
    prompt_tokens: int = 0
    error: str = ""
    logprob: float | None = None
    confidences: tuple[float, ...] = field(default=(), repr=False)
    score: float | None = None


@dataclass(frozen=True)
class Thought:
    """The end of a reasoner's work.

    Attributes:
        message: the answer, or one proposed tool call, fit to be appended to the conversation.
        trajectories: of all rounds.
        votes: answers of the last round with their votes.
        tokens, prompt_tokens: of all calls together.
        summary_tokens: what of `tokens` the aggregation took.
        stopped_by: "width" where all thinkers ended, else "exact", "bayesian", "window", "deadline" or "tokens".
        aggregated_by: "summary" for a text of the summary's own, else how one of the thinkers' was chosen.
    """

    message: Message
    trajectories: tuple[Trajectory, ...]
    votes: Mapping[str, int]
    tokens: int
    prompt_tokens: int
    summary_tokens: int
    stopped_by: str
    aggregated_by: str


@dataclass(frozen=True)
class Thinking:
    """Thinker `number` of `round` has written more; it has `tokens` in all."""

    round: int
    number: int
    text: str
    reasoning: str
    tokens: int


@dataclass(frozen=True)
class Ended:
    """A thinker has ended; `votes` count the answers of its round so far."""

    trajectory: Trajectory
    votes: Mapping[str, int]


@dataclass(frozen=True)
class EarlyStop:
    """A round ends before all thinkers have."""

    rule: str
    done: int
    width: int


@dataclass(frozen=True)
class Summarizing:
    """The summary has written more."""

    text: str
    reasoning: str
    tokens: int


@dataclass(frozen=True)
class Notice:
    """Something that the user should know."""

    text: str


Event: TypeAlias = Thinking | Ended | EarlyStop | Summarizing | Notice | Thought


Ask: TypeAlias = Callable[[ChatRequest], Awaitable[Reply]]


class ThinkingReasoner(Protocol):
    """What a component of slot `reasoner` also has to be asked questions."""

    def think(self, question: Question) -> AsyncIterator[Event]:
        """Answer a question; the last event is the Thought. Closing the iterator cancels everything under way.

        Raises:
            ConfigError: a question that cannot be asked, or no answer that can be compared.
            ServerError: too few thinkers answered.
        """
        ...


class Aggregator(Protocol):
    """Makes one answer of several trajectories."""

    def aggregate(self, question: Question, trajectories: Sequence[Trajectory], ask: Ask) -> Awaitable[Message | int]:
        """Return the index of the chosen trajectory, or an answer of its own.

        Args:
            question: what was asked.
            trajectories: those that have a message, in the order of their numbers.
            ask: the model that aggregates, within the question's budgets.

        Raises:
            ConfigError: there is no answer to choose.
        """
        ...
