"""think: more compute for a better answer, from any OpenAI-compatible server or the local model."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stackloom.output import print_json, registry

if TYPE_CHECKING:
    from stackloom.core.chat import Message
    from stackloom.plugins.reasoner.question import Thought


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(think)


def think(
    question: str = typer.Argument(None, help="What to ask; '-' reads standard input; none starts a conversation."),
    endpoint: list[str] = typer.Option(
        [], "--endpoint", "-e", help="URL of an OpenAI-compatible server, up to /v1; several share the load."
    ),
    model: str = typer.Option(None, help="The model's name on the servers; default: the first they list."),
    checkpoint: str = typer.Option(None, help="Ask a model on this machine instead: a folder or a known name."),
    executor: str = typer.Option("local", help="Of a checkpoint: local computes here, ray in several engines."),
    replicas: int = typer.Option(2, min=1, help="Engines of executor ray; thinkers go to the one with the fewest."),
    address: str = typer.Option(None, help="Of a Ray cluster; without one, Ray starts on this machine's loopback."),
    reasoner: str = typer.Option("reasoner.heavy-thinking", help="Which reasoner answers."),
    width: int = typer.Option(None, help="Thinkers side by side."),
    rounds: str = typer.Option(None, help="Widths of all rounds, for instance 8,4."),
    deadline: float = typer.Option(None, help="Seconds after which the answer is there."),
    option: list[str] = typer.Option([], "--option", "-o", help="A further option of the reasoner, as NAME=VALUE."),
    system: str = typer.Option(None, help="A system message."),
    context: int = typer.Option(None, help="Tokens that the servers' model can read and write."),
    api_key_env: str = typer.Option("OPENAI_API_KEY", help="Environment variable that holds the servers' key."),
    http: str = typer.Option("httpx2", help="HTTP implementation: httpx2 or httpx."),
    save: Path = typer.Option(None, help="Write an HTML transcript to this file."),
    as_json: bool = typer.Option(False, "--json", help="Print the whole thought as JSON."),
) -> None:
    """Ask a question, or start a conversation, and let several thinkers work on it.

    Progress goes to standard error, the answer to standard output. Ctrl-C cancels every call.
    """
    from stackloom.core.chat import Message
    from stackloom.core.errors import ConfigError

    options = _options(option) | {
        name: value
        for name, value in (("width", width), ("rounds", _widths(rounds)), ("deadline_s", deadline))
        if value is not None
    }
    if question == "-":
        question = sys.stdin.read()
    if question is not None and not question.strip():
        raise ConfigError("an empty question", where="QUESTION", fix="write what you want to know")
    if question is None and as_json:
        raise ConfigError("a conversation cannot be JSON", where="--json", fix="give a question")
    messages = (Message("system", system),) if system else ()
    talk = _Talk(reasoner, options, messages, question, as_json, save)
    from stackloom.thinking import make_reasoner, open_model

    async def run() -> None:
        with registry() as opened:
            talk.made = make_reasoner(opened, reasoner, options)
            async with open_model(
                endpoint,
                model=model,
                checkpoint=checkpoint,
                api_key=os.environ.get(api_key_env, "") if endpoint else "",
                registry=opened,
                http=http,
                context=context,
                executor=executor,
                replicas=replicas,
                address=address,
            ) as asked:
                talk.model, talk.name = asked, checkpoint or getattr(asked, "model", None) or ", ".join(endpoint)
                await talk.go()

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        typer.echo("cancelled", err=True)
        raise typer.Exit(130) from None


class _Talk:
    """A conversation, or one question."""

    def __init__(
        self,
        reasoner: str,
        options: dict[str, Any],
        messages: tuple[Message, ...],
        question: str | None,
        as_json: bool,
        save: Path | None,
    ) -> None:
        from rich.console import Console

        self._reasoner, self._question, self._as_json, self._save = reasoner, question, as_json, save
        self._messages = messages
        self._turns: list[tuple[Message, Thought, float]] = []
        self._console = Console(stderr=True, highlight=False)
        self.made: Any = None
        self.model: Any = None
        self.name = ""

    async def go(self) -> None:
        """Answer the question, or questions until there are no more."""
        if self._question is not None:
            await self._ask(self._question)
            return
        typer.echo("Ask; an empty line or Ctrl-D ends.", err=True)
        while text := (await asyncio.to_thread(_read_line)).strip():
            await self._ask(text)

    async def _ask(self, text: str) -> None:
        from stackloom.core.chat import Message
        from stackloom.plugins.reasoner.question import Question
        from stackloom.thinking import answer, remember
        from stackloom.thinking_view import Watching, ending, save, to_json

        asked, start = Message("user", text), time.monotonic()
        with Watching(self._console) as watching:
            thought = await answer(self.made, Question((*self._messages, asked), self.model), watching.tell)
        self._turns.append((asked, thought, time.monotonic() - start))
        self._messages = remember((*self._messages, asked), thought)
        typer.secho(ending(thought), err=True, dim=True)
        if self._as_json:
            print_json(to_json(thought))
        else:
            typer.echo(thought.message.content)
            for call in thought.message.tool_calls:
                typer.echo(f"proposed call: {call.name}({dict(call.arguments)})")
        if self._save is not None:
            name = getattr(self.model, "model", None) or self.name
            save(self._save, self._turns, reasoner=self._reasoner, model=name)
            typer.secho(f"transcript: {self._save}", err=True, dim=True)


def _read_line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return ""


def _options(given: list[str]) -> dict[str, Any]:
    """Read NAME=VALUE pairs, values as in a stack's YAML."""
    import yaml

    from stackloom.core.errors import ConfigError

    found = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is not NAME=VALUE", where="--option", fix="for instance -o early_stop=exact")
        found[name.strip()] = yaml.safe_load(value)
    return found


def _widths(text: str | None) -> list[int] | None:
    from stackloom.core.errors import ConfigError

    if text is None:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r} is no list of widths", where="--rounds", fix="numbers with commas: 8,4") from None
