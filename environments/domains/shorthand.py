"""Columns and arguments that most domains have, in a line each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stackloom.environments.domain import Given, Says, Tells
from stackloom.environments.entities import Column
from stackloom.environments.rows import Draw


def one_of(name: str, choices: Sequence[str], *, drawn: Sequence[str] = (), **options: Any) -> Column:
    """Return a column of choices; `drawn` says how often each comes, all alike if empty."""
    pool = tuple(drawn or choices)
    return Column(name, "choice", lambda d: d.rng.choice(pool), choices=tuple(choices), **options)


def status(choices: Sequence[str], *, drawn: Sequence[str] = (), name: str = "status") -> Column:
    """Return the column of a thing's state: lists show it, and nobody asks for it."""
    return one_of(name, choices, drawn=drawn, shown=True, asked=False)


def number(name: str, low: int, high: int, *, step: int = 1, **options: Any) -> Column:
    """Return a column of integers, drawn from `low` to `high` on a multiple of `step`."""
    bounds = {"high": max(high, options.pop("most", 10**6))}
    return Column(name, "integer", lambda d: d.rng.randrange(low, high + 1, step), **bounds, **options)


def amount(name: str, low: int, high: int, *, step: int = 100, **options: Any) -> Column:
    """Return a column of money, drawn between two amounts in whole units on a multiple of `step` cents."""
    return Column(name, "money", lambda d: d.money(low, high, step=step), **options)


def day(name: str, low: int, high: int, **options: Any) -> Column:
    """Return a column of dates, `low` to `high` days after today."""
    return Column(name, "date", lambda d: d.day(low, high), **options)


def clock(
    name: str, low: int, high: int, *, hours: tuple[int, int] = (8, 18), step: int = 30, **options: Any
) -> Column:
    """Return a column of moments on such days."""
    return Column(name, "clock", lambda d: d.clock(low, high, hours=hours, step=step), **options)


def word(name: str, words: str, **options: Any) -> Column:
    """Return a column of texts from a list of words."""
    return Column(name, "text", lambda d: d.one(words), **options)


def parent(name: str, **options: Any) -> Column:
    """Return the column that holds another entity's id."""
    return Column(f"{name}_id", "id", parent=name, **options)


def says_one(fact: str, noun: str, choices: Sequence[str]) -> Says:
    """Return an argument of choices."""
    return Says(fact, "choice", lambda d, g: d.rng.choice(choices), noun, choices=tuple(choices))


def says_other(fact: str, noun: str, choices: Sequence[str], entity: str, column: str) -> Says:
    """Return an argument of choices other than what a row before it has."""

    def draw(d: Draw, given: Given) -> str:
        return str(d.rng.choice([each for each in choices if each != given[entity][column]]))

    return Says(fact, "choice", draw, noun, choices=tuple(choices))


def says_day(fact: str, noun: str, low: int, high: int) -> Says:
    """Return an argument that is a date."""
    return Says(fact, "date", lambda d, g: d.day(low, high), noun)


def says_number(fact: str, noun: str, low: int, high: int, *, step: int = 1) -> Says:
    """Return an argument that is an integer."""
    return Says(fact, "integer", lambda d, g: d.rng.randrange(low, high + 1, step), noun, low=low, high=high)


def says_amount(fact: str, noun: str, low: int, high: int, *, step: int = 500) -> Says:
    """Return an argument that is money."""
    return Says(fact, "money", lambda d, g: d.money(low, high, step=step), noun, low=100, high=high * 100)


def says_word(fact: str, noun: str, words: str) -> Says:
    """Return an argument that is a text from a list of words."""
    return Says(fact, "text", lambda d, g: d.one(words), noun)


def tells_id(entity: str, noun: str) -> Tells:
    """Return an answer's field with the id of what was made."""
    return Tells(f"{entity}_id", "id", f"{entity}.id", noun)


def tells(entity: str, column: str, kind: Any, noun: str) -> Tells:
    """Return an answer's field with a column's value."""
    return Tells(column, kind, f"{entity}.{column}", noun)
