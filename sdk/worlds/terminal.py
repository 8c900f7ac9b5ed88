"""A seat in a world: a person acts as the agent, in the terminal."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from stackloom.core.chat import Message, ToolCall
from stackloom.core.errors import did_you_mean
from stackloom.core.slots.environment import ToolError
from stackloom.environments.acceptance import as_call
from stackloom.environments.episodes import WorldEpisode, scripted
from stackloom.environments.factory import BuiltTask
from stackloom.environments.tools import WorldTool
from stackloom.environments.verifier import Verdict, verify

HELP = """[b]TOOL argument=value ...[/b]  call a tool; quote values with spaces
[b]tools[/b] · [b]help TOOL[/b] · [b]hint[/b] (the next call of the golden chain) · [b]task[/b] · [b]quit[/b]
Anything after [b]say[/b] goes to the user: a question, or your final answer, which ends the attempt."""


class Seat:
    """Plays one task with a person.

    Args:
        built: the task.
        console: where it is shown.
        ask: returns the next line; raises EOFError when there is none.
    """

    def __init__(self, built: BuiltTask, console: Console, ask: Callable[[str], str]) -> None:
        self.built, self._console, self._ask = built, console, ask
        self.episode = WorldEpisode(built, scripted(built))
        self.messages: list[Message] = []
        self._hints = 0

    def play(self) -> Verdict | None:
        """Read commands until an answer is given; return its verdict, or None for a person who left."""
        self._console.print(f"[b]{self.built.domain.title}[/b]: you are the agent. {self.built.domain.role}")
        self._show_task()
        self._console.print(HELP)
        for line in self._lines():
            verb, _, rest = line.partition(" ")
            match verb:
                case "quit" | "exit":
                    return None
                case "tools":
                    self._show_tools()
                case "task":
                    self._show_task()
                case "help":
                    self._show_help(rest.strip())
                case "hint":
                    self._hint()
                case "say":
                    if (verdict := self._say(rest.strip())) is not None:
                        return verdict
                case _:
                    self._call(line)
        return None

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                line = self._ask("> ").strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line:
                yield line

    def _show_task(self) -> None:
        self._console.print(Panel(self.built.request.opening, title="user", title_align="left", border_style="blue"))

    def _show_tools(self) -> None:
        table = Table(box=None, show_header=False)
        for tool in sorted(self.built.tools.values(), key=lambda tool: (tool.form, tool.name)):
            table.add_row(f"[b]{tool.name}[/b]", " ".join(item.name for item in tool.parameters), tool.description)
        self._console.print(table)

    def _show_help(self, name: str) -> None:
        tool = self.built.tools.get(name)
        if tool is None:
            self._console.print(HELP if not name else self._unknown(name))
            return
        self._console.print(f"[b]{tool.name}[/b]: {tool.description}")
        for item in tool.parameters:
            choices = f": {', '.join(item.choices)}" if item.choices else ""
            self._console.print(f"  {item.name} ({item.kind}{choices}) {item.description}")
        self._console.print("  answers " + ", ".join(output.name for output in tool.outputs))

    def _hint(self) -> None:
        step = self.built.golden[min(self._hints, len(self.built.golden) - 1)]
        self._hints += 1
        made = as_call(self.built, step)
        words = " ".join(f"{key}={shlex.quote(str(value))}" for key, value in made.arguments.items())
        self._console.print(f"[dim]for instance[/dim] {made.tool} {words}", markup=True, highlight=False)

    def _call(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name not in self.built.tools:
            self._console.print(self._unknown(name))
            return
        try:
            arguments = read_arguments(self.built.tools[name], rest)
            call = ToolCall(name, arguments, "call_0")
            text = self.episode.call(call)
        except ToolError as refused:
            self._console.print(f"[red]{refused}[/red]", highlight=False)
            return
        self.messages += [Message("assistant", "", (call,)), Message("tool", text, tool_call_id="call_0", name=name)]
        self._show_answer(json.loads(text))

    def _show_answer(self, answer: dict[str, Any]) -> None:
        lists = [value for value in answer.values() if isinstance(value, list)]
        rows = lists[0] if lists else [answer]
        if not rows:
            self._console.print("[dim]nothing found[/dim]")
            return
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        self._console.print(table)

    def _say(self, text: str) -> Verdict | None:
        if not text:
            self._console.print("say what?")
            return None
        self.messages.append(Message("assistant", text))
        reply = asyncio.run(self.episode.user.reply(self.messages)) if self.episode.user else None
        if reply is not None:
            self.messages.append(Message("user", reply))
            self._console.print(Panel(reply, title="user", title_align="left", border_style="blue"))
            return None
        verdict = verify(self.built, self.episode.world, self.messages)
        if verdict.passed:
            self._console.print("[green]reward 1[/green]: everything is as the user asked")
        else:
            self._console.print(f"[red]reward 0[/red]: {verdict.reason}")
        return verdict

    def _unknown(self, name: str) -> str:
        words = [*self.built.tools, "say", "tools", "help", "hint", "task", "quit"]
        return f"[red]{name!r} is no tool here[/red]; " + did_you_mean(name, words, otherwise="tools lists them")


def read_arguments(tool: WorldTool, text: str) -> dict[str, Any]:
    """Read `name=value` words, numbers where the tool wants numbers; one value alone goes to a tool's only argument.

    Raises:
        ToolError: words that are no arguments.

    Example:
        >>> read_arguments(find_domain("retail").tools["get_order"], "RO-10001")
        {'order_id': 'RO-10001'}
    """
    try:
        words = shlex.split(text)
    except ValueError as cause:
        raise ToolError(f"{cause}; quote values with spaces") from None
    if len(words) == 1 and len(tool.parameters) == 1 and "=" not in words[0]:
        words = [f"{tool.parameters[0].name}={words[0]}"]
    found: dict[str, Any] = {}
    kinds = {item.name: item.kind for item in tool.parameters}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ToolError(f"write {' '.join(f'{key}=...' for key in kinds)}; got {word!r}")
        found[name] = _number(value) if kinds.get(name) in ("integer", "money") else value
    return found


def _number(text: str) -> int | float | str:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
