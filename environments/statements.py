"""What a final answer must state, and whether it does: asserted, under its name, with nothing else of that kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from stackloom.environments.domain import Domain
from stackloom.environments.values import Kind, Value, mentioned, plain
from stackloom.environments.world import Contents

Required: TypeAlias = Sequence[tuple["Statement", Value]]
_NEGATION = re.compile(r"\b(?:not|never|cannot|no longer|without|unlike)\b|n't\b|n’t\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_DOUBT = re.compile(r"\b(?:or|maybe|perhaps|alternatively)\b([^.;!?\n]*)", re.IGNORECASE)  # offers a second value
_QUOTED = re.compile(r'"[^"]*"|\u201c[^\u201d]*\u201d')
_CLAUSE = re.compile(r"[,;:]\s|\bbut\b|\band\b|[–—]", re.IGNORECASE)
_PART = re.compile(r"[,;]\s|\bbut\b|\band\b|[–—]|\n", re.IGNORECASE)  # "Store credit: $5" is one part
NAMED: frozenset[Kind] = frozenset({"money", "integer", "date", "clock"})  # values that do not say what they are
# Words that fit any field of their kind: "the total that you get back" names no other field than the refund.
GENERAL = frozenset(
    ["amount", "balance", "count", "date", "day", "length", "number", "price", "time", "total", "value"]
)
FILLING = frozenset(["get", "had", "have", "now", "new", "one", "that", "the", "this", "which", "would"])


@dataclass(frozen=True)
class Statement:
    """What the final answer must state: a value and what it is called. A task has one of each kind at most.

    Attributes:
        kind, value: as a world stores it.
        fact: its type.
        noun: "the total of my order from 4 May".
        made: whether it is the id of a row that the attempt makes, which may differ from the golden chain's.
    """

    kind: Kind
    value: Value
    fact: str
    noun: str
    made: bool = False


def choices_of(domain: Domain, statement: Statement) -> tuple[str, ...]:
    """Return every value that the column of an asked choice may have."""
    entity, _, column = statement.fact.partition(".")
    return domain.blueprint.by_name[entity].by_name[column].choices


def holds(text: str, words: str) -> bool:
    """Whether a text holds these words as whole words; case, dashes and underscores do not count."""
    return bool(re.search(rf"(?<!\w){re.escape(plain(words))}(?!\w)", plain(text)))


def states(statement: Statement, text: str) -> bool:
    """Whether a text asserts a statement's value."""
    claims = " \n".join(_claims(text))
    return _states(statement, statement.value, mentioned(claims), claims)


def unstated(domain: Domain, required: Required, text: str, said: str, contents: Contents) -> str:
    """Return which value a final message fails to state, misnames, or spoils with another one of its kind; "" if none.

    Args:
        required: statements, with the value of each in this attempt.
        text: the final message.
        said: everything that the user said; values in it may be repeated.
        contents: the world as the task wants it.
    """
    claims = " \n".join(_claims(text))
    stated, everything, user = mentioned(claims), mentioned(text), mentioned(said)
    doubts = " \n".join(_DOUBT.findall(_QUOTED.sub("", text)))
    doubted = mentioned(doubts)
    for statement, value in required:
        if not _states(statement, value, stated, claims):
            return f"the answer does not state {statement.noun}"
        if statement.kind in NAMED and (name := _misnamed(domain, statement, value, claims, contents)):
            return f"the answer calls {statement.noun} the {name}"
    for statement, value in required:
        if statement.kind == "choice":
            rest = re.sub(rf"(?<!\w){re.escape(plain(str(value)))}(?!\w)", " ", plain(text))
            others = [word for word in choices_of(domain, statement) if plain(word) != plain(str(value))]
            spoilt = any(holds(rest, word) and not holds(said, word) for word in others)
            spoilt = spoilt or any(holds(doubts, word) for word in others)
        else:
            own = {str(value).upper() if statement.kind == "id" else value}
            spoilt = bool(_others(statement, value, everything) - _allowed(statement, required, user))
            spoilt = spoilt or bool(_others(statement, value, doubted) - own)
        if spoilt:
            return f"the answer states another value besides {statement.noun}"
    return ""


def _claims(text: str) -> Iterator[str]:
    """Yield what a text asserts: its sentences without questions and without clauses that deny."""
    for sentence in _SENTENCE.split(text):
        if sentence.rstrip().endswith("?"):
            continue
        if _NEGATION.search(_QUOTED.sub("", sentence)):  # a title may deny what it likes
            yield from (clause for clause in _CLAUSE.split(sentence) if not _NEGATION.search(clause))
        else:
            yield sentence


def _states(statement: Statement, value: Value, stated: Mapping[str, Sequence[Value]], claims: str) -> bool:
    match statement.kind:
        case "money":
            return value in stated["money"] or any(100 * int(number) == value for number in stated["number"])
        case "integer":
            return value in stated["number"] or value in stated["one"] or (value == 0 and _says_none(statement, claims))
        case "date" | "clock":
            return value in stated[statement.kind]
        case "id":
            return str(value).upper() in stated["id"]
    return holds(claims, str(value))


def _misnamed(domain: Domain, statement: Statement, value: Value, claims: str, contents: Contents) -> str:
    """Return the name of another field under which a text states a value, wherever it states it; "" if it does not.

    A name is wrong if the part of the sentence with the value holds no word of what was asked for and the whole name of
    another field of that kind, which has this value in no row.
    """
    own, found = own_words(statement), ""
    for part in _PART.split(claims):
        if not _states(statement, value, mentioned(part), part):
            continue
        heard = {word[:4] for word in re.findall(r"[a-z]+", part.lower())}
        wrong = () if own & heard else other_names(domain, statement, value, contents)
        found = next((name for name in wrong if holds(part, name)), "")
        if not found:
            return ""
    return found


def own_words(statement: Statement) -> frozenset[str]:
    """Return the stems by which an answer may call what was asked for."""
    head = re.split(r" of | in | on | for ", statement.noun.removeprefix("the number of "))[0].lower()
    words = [word for word in re.findall(r"[a-z]+", head) if len(word) > 2 and word not in FILLING]
    return frozenset(word[:4] for word in [word for word in words if word not in GENERAL] or words)


def other_names(domain: Domain, statement: Statement, value: Value, contents: Contents) -> tuple[str, ...]:
    """Return what other fields of a statement's kind are called that hold its value nowhere in a world."""
    held: dict[str, bool] = {}
    for entity in domain.blueprint.entities:
        for column in entity.columns:
            if column.kind == statement.kind and not set(plain(column.spoken).split()) <= GENERAL:
                holds_it = any(row[column.name] == value for row in contents[entity.plural].values())
                held[column.spoken] = held.get(column.spoken, False) or holds_it
    return tuple(name for name, anywhere in held.items() if not anywhere)


def _says_none(statement: Statement, claims: str) -> bool:
    """Whether a text says "no orders" or "none" of what the statement counts."""
    nouns = [word for word in re.findall(r"[a-z]+", statement.noun.lower()) if len(word) > 3 and word != "number"]
    counted = "|".join(nouns) or "none"
    return bool(re.search(rf"\bnone\b|\bno (?:\w+ )?(?:{counted})\b", claims, re.IGNORECASE))


def _others(statement: Statement, value: Value, everything: Mapping[str, Sequence[Value]]) -> set[Value]:
    """Return the values of a statement's kind that a text holds."""
    if statement.kind == "id":
        return {found for found in everything["id"] if _style(found) == _style(value)}
    return set(everything.get("number" if statement.kind == "integer" else statement.kind, ()))


def _allowed(statement: Statement, required: Required, user: Mapping[str, Sequence[Value]]) -> set[Value]:
    """Return the values of a statement's kind that a text may hold."""
    mine = {
        str(value).upper() if item.kind == "id" else value for item, value in required if item.kind == statement.kind
    }
    if statement.kind == "integer":
        amounts = {int(value) // 100 for item, value in required if item.kind == "money"}
        return mine | set(user["number"]) | amounts
    return mine | set(user[statement.kind])


def _style(value: Value) -> str:
    return str(value).partition("-")[0] if "-" in str(value) else "letters"
