"""What a user sees of thinkers: a live view on a terminal, lines elsewhere, and an HTML transcript."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stackloom.core.chat import Message, render_call
from stackloom.plugins.reasoner.question import (
    EarlyStop,
    Ended,
    Event,
    Notice,
    Summarizing,
    Thinking,
    Thought,
    Trajectory,
)

STATES = {
    "stop": ("done", "green"),
    "tool_calls": ("proposes a call", "green"),
    "length": ("cut", "yellow"),
    "failed": ("failed", "red"),
    "stopped": ("not needed", "dim"),
    "deadline": ("out of time", "yellow"),
    "tokens": ("out of tokens", "yellow"),
    "unsure": ("unsure, stopped", "yellow"),
}
TAIL = 2000
"""Characters of a summary that the live view holds; the whole answer is printed at the end."""


@dataclass
class Line:
    """One thinker as the view shows it."""

    state: str = "waits"
    style: str = "dim"
    tokens: int = 0
    text: str = ""


@dataclass
class View:
    """Follows the events of one question.

    Attributes:
        lines: per (round, thinker).
        votes: of the newest round.
        notices: early stops and what the user should know.
        summary: the aggregation's text so far.
    """

    lines: dict[tuple[int, int], Line] = field(default_factory=dict)
    votes: dict[str, int] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    summary: str = ""
    summary_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def tell(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, Thinking):
            line = self.lines.setdefault((event.round, event.number), Line())
            line.tokens = event.tokens
            if event.text:
                line.state, line.style, line.text = "answers", "cyan", (line.text + event.text)[-400:]
            elif event.reasoning:
                line.state, line.style = "thinks", "blue"
        elif isinstance(event, Ended):
            made = event.trajectory
            state, style = STATES.get(made.finish, (made.finish, ""))
            self.lines[made.round, made.number] = Line(state, style, made.tokens, _shown(made))
            self.votes = dict(event.votes)
        elif isinstance(event, EarlyStop):
            self.notices.append(f"early stop ({event.rule}): decided after {event.done} of {event.width} thinkers")
        elif isinstance(event, Summarizing):
            self.summary = (self.summary + event.text)[-TAIL:]
            self.summary_tokens = event.tokens
        elif isinstance(event, Notice):
            self.notices.append(event.text)

    def render(self, height: int = 40) -> RenderableType:
        """Return the view: one line per thinker, votes, notices, and the summary as it is written."""
        table = Table(box=None, padding=(0, 1), expand=True, show_edge=False)
        table.add_column("thinker", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("tokens", justify="right", no_wrap=True)
        table.add_column("answer", ratio=1, no_wrap=True, overflow="ellipsis")
        rounds = len({key[0] for key in self.lines})
        shown = sorted(self.lines.items())[-max(4, height - 10) :]
        for (number, thinker), line in shown:
            name = f"{number + 1}.{thinker + 1}" if rounds > 1 else str(thinker + 1)
            table.add_row(name, Text(line.state, line.style), str(line.tokens), Text(" ".join(line.text.split())))
        parts: list[RenderableType] = [table]
        if len(shown) < len(self.lines):
            parts.append(Text(f"and {len(self.lines) - len(shown)} more", "dim"))
        if self.votes:
            votes = "   ".join(f"{answer[:40]}: {count}" for answer, count in list(self.votes.items())[:6])
            parts.append(Text(f"votes  {votes}", "bold"))
        parts += [Text(notice, "yellow") for notice in self.notices[-4:]]
        seconds = time.monotonic() - self.started
        tokens = sum(line.tokens for line in self.lines.values()) + self.summary_tokens
        parts.append(Text(f"{seconds:.1f} s, {tokens} tokens", "dim"))
        if self.summary:
            parts.append(Text("\n" + self.summary[-800:]))
        return Group(*parts)


def _shown(made: Trajectory) -> str:
    if made.message is None:
        return made.error
    if made.answer is not None:
        return made.answer
    return made.message.content or ", ".join(map(render_call, made.message.tool_calls))


class Watching:
    """Shows a question's events while they come: live on a terminal, as lines of text on one that is none.

    Args:
        console: where to; standard error, so that standard output holds the answer alone.
    """

    def __init__(self, console: Console) -> None:
        self._console, self.view = console, View()
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=True)

    def _render(self) -> RenderableType:
        return self.view.render(self._console.height)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
            self.view.summary = ""
            self._console.print(self._render())

    def tell(self, event: Event) -> None:
        """Show an event."""
        self.view.tell(event)
        if self._console.is_terminal:
            return
        if isinstance(event, Ended):
            made = event.trajectory
            line = self.view.lines[made.round, made.number]
            text = " ".join(line.text.split())[:100]
            self._console.print(
                f"round {made.round + 1}, thinker {made.number + 1}: {line.state}, {made.tokens} tokens"
                f"{f': {text}' if text else ''}",
                markup=False,
                soft_wrap=True,
            )
        elif isinstance(event, EarlyStop | Notice):
            self._console.print(self.view.notices[-1], markup=False, soft_wrap=True)


def to_json(thought: Thought) -> dict[str, Any]:
    """Return a thought as JSON data with stable fields; token confidences are left out."""
    data = asdict(thought)
    for made in data["trajectories"]:
        del made["confidences"]
    return data


ANSWERS = {
    "summary": "the summary's answer",
    "choice": "a thinker's answer",
    "too few answers": "the best of too few answers",
    "no summary": "the best thinker's answer, for want of a summary",
    "deadline": "the best thinker's answer when time was up",
}
ENDED = {"width": "", "deadline": ", the others ran out of time", "tokens": ", the others ran out of tokens"}


def ending(thought: Thought) -> str:
    """Return one line about how an answer came about."""
    widths: dict[int, int] = {}
    for made in thought.trajectories:
        widths[made.round] = widths.get(made.round, 0) + 1
    answered = sum(made.message is not None for made in thought.trajectories)
    return (
        f"{answered} of {len(thought.trajectories)} thinkers answered"
        f"{f' in {len(widths)} rounds' if len(widths) > 1 else ''}"
        f"{ENDED.get(thought.stopped_by, f', the others were not needed ({thought.stopped_by} stop)')}; "
        f"{ANSWERS[thought.aggregated_by]}; {thought.tokens} tokens, {thought.summary_tokens} of them the summary's"
    )


def save(path: Path, turns: Sequence[tuple[Message, Thought, float]], *, reasoner: str, model: str) -> None:
    """Write an HTML transcript of a conversation; it loads nothing and runs nothing.

    Args:
        path: of the page.
        turns: what was asked, what came of it, and the seconds that it took.
        reasoner, model: their names.

    Raises:
        ConfigError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError:
        from stackloom.core.errors import ConfigError

        raise ConfigError("a transcript needs Jinja2", where="--save", fix="pip install 'stackloom[serve]'") from None
    from stackloom.registry.atomic import write_atomic

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, here / "report"]), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["calls"] = lambda message: "\n".join(map(render_call, message.tool_calls))
    page = environment.get_template("thinking_view.html.tmpl").render(
        turns=turns,
        reasoner=reasoner,
        model=model,
        states=STATES,
        ending=ending,
        shown=_shown,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page.encode())
