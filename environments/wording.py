"""How people ask and how an agent reports: sentences made of a domain's phrases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from stackloom.core.chat import Message, Tool, tool_prompt
from stackloom.environments.chains import Known, Wish
from stackloom.environments.rows import Rows
from stackloom.environments.values import say

if TYPE_CHECKING:
    from stackloom.environments.domain import Domain
    from stackloom.environments.statements import Statement

ASKS = (
    ("Please {}.", "Could you {}?", "I'd like you to {}.", "I need you to {}."),
    ("Please also {}.", "Then {}.", "And {}, please."),
)
QUESTIONS = (
    ("What is {}?", "Please tell me {}.", "I'd like to know {}."),
    ("And what is {}?", "I'd also like to know {}.", "Tell me {} too, please."),
)
RULES = (
    "Look things up with the tools; ask the user only for what they alone can know. When all is done, report it and "
    "give what was asked for, and no other figures."
)


@dataclass(frozen=True)
class Request:
    """What a user says.

    Attributes:
        opening: the first message.
        known: everything that the user knows about the task.
        withheld: the part of it that the opening leaves out, told when the agent asks.
    """

    opening: str
    known: tuple[Known, ...]
    withheld: tuple[Known, ...] = ()


def request(domain: Domain, rows: Rows, rng: Random, person: str, wishes: Sequence[Wish], withheld: float) -> Request:
    """Word the wishes; each detail in brackets is left out with probability `withheld`."""
    entity = domain.blueprint.by_name[domain.blueprint.person]
    row = rows.tables[entity.plural][person]
    known = tuple(dict.fromkeys(item for wish in wishes for item in wish.known))
    spoken = {entity.fact(column.name): column.spoken for column in entity.columns}
    identity = [item for item in known if spoken.get(item.fact) == item.noun]
    words = {column.name: say(column.kind, row[column.name]) for column in entity.columns if not column.parent}
    sentences = [rng.choice(domain.greetings).format(**words)]
    sentences += [f"My {item.noun} is {item.text}." for item in identity]
    held: list[Known] = []
    asked = told = 0
    for wish in wishes:
        if wish.ask:
            hide = bool(wish.slots) and rng.random() < withheld
            held += wish.slots if hide else ()
            text = re.sub(r" ?\[.*\]", "", wish.ask) if hide else wish.ask.replace("[", "").replace("]", "")
            sentences.append(rng.choice(ASKS[bool(asked)]).format(text))
            asked += 1
        if wish.question:
            sentences.append(rng.choice(QUESTIONS[bool(asked or told)]).format(wish.question))
            told += 1
    return Request(" ".join(sentences), known, tuple(held))


def system(domain: Domain, tools: Sequence[Tool], *, compact: bool, tool_format: str = "hermes") -> Message:
    """Return the agent's instructions with its tools."""
    prompt = tool_prompt(tools, format=tool_format, compact=compact)
    return Message("system", f"{domain.role} Today is {domain.today}. {RULES}\n{prompt}")


def report(wishes: Sequence[Wish], statements: Sequence[Statement]) -> str:
    """Return the final message of an agent that did everything: what is done, then what was asked for.

    Digits stand in the required values alone.
    """
    done = [wish.done for wish in wishes if wish.done]
    sentences = []
    if done:
        joined = ", and ".join([", ".join(done[:-1]), done[-1]] if len(done) > 1 else done)
        sentences.append(f"{joined[0].upper()}{joined[1:]}.")
    for statement in statements:
        noun = re.sub(r"^(.*) of \D*\d.*$", r"\1", statement.noun)
        noun = re.sub(r"\bI\b", "you", re.sub(r"\bmy\b", "your", noun))
        sentences.append(f"{noun[0].upper()}{noun[1:]} is {say(statement.kind, statement.value)}.")
    return " ".join(sentences)


def question_for(known: Known) -> str:
    """Return how an agent asks for a detail."""
    return f"Could you tell me the {known.noun}?"


def reply_with(known: Known) -> str:
    """Return how a user gives a detail."""
    return f"The {known.noun} is {known.text}."
