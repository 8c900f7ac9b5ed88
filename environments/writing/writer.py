"""A chat model writes a domain: one sheet, checked and sent back with what is wrong, a bounded number of times."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from stackloom.core.chat import Message
from stackloom.core.errors import PluginError
from stackloom.core.generation import ChatModel, ChatRequest, Reply, Sampling
from stackloom.environments.sandbox import Sandbox
from stackloom.environments.writing.sheet import DomainSheet, mistakes
from stackloom.environments.writing.trials import SHOWN, problems

REPAIRS = 3  # section 2.2 of the page: R = 3
SAMPLING = Sampling(temperature=0.7, max_tokens=16_384)
EXAMPLE = Path(__file__).parent / "example.json"


@dataclass(frozen=True)
class Round:
    """One reply and what is wrong with it.

    Attributes:
        number: 0 for the first writing, then the repairs.
        problems: none for a domain that works.
    """

    number: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """A domain that passed every check, and how it came to be."""

    sheet: DomainSheet
    rounds: tuple[Round, ...]


class NotWritten(PluginError):
    """The model did not write a domain that works.

    Attributes:
        rounds: what was wrong each time.
    """

    def __init__(self, rounds: tuple[Round, ...]) -> None:
        last = rounds[-1]
        super().__init__(
            f"no working domain after {last.number} repairs; the last one: {'; '.join(last.problems[:3])}",
            where="env write",
            fix="describe it more narrowly, allow more repairs, or ask a stronger model",
        )
        self.rounds = rounds


async def write_domain(
    model: ChatModel,
    name: str,
    about: str,
    sandbox: Sandbox,
    *,
    repairs: int = REPAIRS,
    sampling: Sampling = SAMPLING,
    seen: Callable[[Round], None] = lambda made: None,
) -> Written:
    """Let a model write a domain, and repair it until every check passes.

    The checks: the sheet's schema, tables and dependency graph, each action's unit tests (the world before and after),
    and the acceptance suite of built tasks. Code that the model wrote runs in the sandbox alone.

    Args:
        model: who writes.
        name: of the domain.
        about: what it is about, in a sentence or more.
        sandbox: where its rules run.
        repairs: most times that the problems are sent back.
        sampling: of each reply.
        seen: called after each round.

    Raises:
        NotWritten: problems are left after the last repair.
        SandboxRefused: the isolation broke down.
        ServerError: the endpoint fails.
    """
    messages = [Message("system", instructions()), Message("user", f"Name: {name}\nAbout: {about}")]
    rounds: list[Round] = []
    for number in range(repairs + 1):
        text = await _reply(model, messages, sampling, f"{name}/{number}")
        sheet, wrong = read_reply(text, name)
        if sheet is not None:
            wrong = problems(sheet, sandbox)
        rounds.append(Round(number, tuple(wrong)))
        seen(rounds[-1])
        if sheet is not None and not wrong:
            return Written(sheet, tuple(rounds))
        told = "\n".join(f"- {problem}" for problem in wrong)
        messages += [
            Message("assistant", text),
            Message("user", f"The checks found problems:\n{told}\nSend the whole corrected document."),
        ]
    raise NotWritten(tuple(rounds))


def instructions() -> str:
    """Return the system message: the form of a sheet, in words, as a JSON Schema and as an example."""
    schema = json.dumps(DomainSheet.model_json_schema(), separators=(",", ":"))
    return f"""You design small, realistic worlds in which an agent with tools serves a person. Reply with one JSON
document and nothing else.

A world is a few tables (entities) and actions that change them by rules. Tools that find, list, show, count and edit
rows follow from the entities; you write the actions. Amounts of money are whole cents everywhere but in draw (whole
units). Today is fixed; dates are YYYY-MM-DD, moments YYYY-MM-DD HH:MM.

The person's entity has the columns name, email and phone without being told. A column with "own" leads to the person
who owns the row. "known" columns are what a person can say, "shown" ones are in lists. Handles are the words by which
a person points at a row. "asks" are requests with the arguments' names in braces; what stands in brackets may be left
out.

An action's code is plain Python without imports: run(db, given) returns a dict with exactly the fields of "tells";
pre(db, given), where rules may refuse, returns the reason or "". given holds a row (a dict) for each argument with an
entity and a value for each other one. db.get(table, id), db.select(table, **where), db.insert(table, **columns) -> row,
db.update(table, id, **columns), db.delete(table, id), db.today. It may touch the tables of "reads" and "writes" alone,
besides those of its arguments. Each action has unit tests: what changes and nothing else, and one that is refused if
the action may refuse.

JSON Schema:
{schema}

An example:
{EXAMPLE.read_text(encoding="utf-8")}"""


def read_reply(text: str, name: str) -> tuple[DomainSheet | None, list[str]]:
    """Return the sheet in a reply, or what is wrong with it. Text around the document does not count."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None, ["the reply holds no JSON document"]
    try:
        sheet = DomainSheet.model_validate_json(text[start : end + 1])
    except ValidationError as cause:
        return None, list(mistakes(cause))[:SHOWN]
    if sheet.name != name:
        return None, [f"name: the domain is called {name!r}, not {sheet.name!r}"]
    return sheet, []


async def _reply(model: ChatModel, messages: list[Message], sampling: Sampling, key: str) -> str:
    request = ChatRequest(tuple(messages), sampling=sampling, key=key)
    text = ""
    async for piece in model.stream(request):
        if isinstance(piece, Reply):
            text = piece.message.content
    return text
