"""Kinds of values: how a world stores them, how tools take and show them, and how people write them in sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal, TypeAlias

from stackloom.core.slots.environment import ToolError

Kind: TypeAlias = Literal["id", "text", "email", "phone", "money", "date", "clock", "integer", "choice"]
Value: TypeAlias = str | int

MAX_TEXT = 300
MAX_MONEY = 10**9  # cents
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
CLOCK = "%Y-%m-%d %H:%M"
YEAR = 2026  # every world lives in it, so that people may leave it out


def json_schema(
    kind: Kind, description: str, *, choices: Sequence[str] = (), low: int = 0, high: int = 10**6
) -> dict[str, Any]:
    """Return the JSON Schema of an argument.

    Args:
        kind: what it holds; an amount of money is a number with at most two decimals.
        description: for the model.
        choices: of kind "choice".
        low, high: bounds of an integer, or of an amount in cents.
    """
    match kind:
        case "choice":
            return {"type": "string", "enum": list(choices), "description": description}
        case "integer":
            return {"type": "integer", "minimum": low, "maximum": high, "description": description}
        case "money":
            bounds = {"minimum": low / 100, "maximum": min(high, MAX_MONEY) / 100}
            return {"type": "number", **bounds, "multipleOf": 0.01, "description": description}
        case "date":
            return {"type": "string", "format": "date", "description": f"{description}, YYYY-MM-DD"}
        case "clock":
            return {"type": "string", "description": f"{description}, YYYY-MM-DD HH:MM"}
    return {"type": "string", "minLength": 1, "maxLength": MAX_TEXT, "description": description}


def parse(kind: Kind, value: Any, name: str, *, choices: Sequence[str] = (), low: int = 0, high: int = 10**6) -> Value:
    """Return an argument as the world stores it.

    Raises:
        ToolError: a value that the argument's schema does not allow, in words for the agent.

    Example:
        >>> parse("money", 12.5, "amount", low=1), parse("date", "2026-05-01", "on")
        (1250, '2026-05-01')
    """
    if kind in ("integer", "money"):
        return _parse_number(kind, value, name, low, high)
    if not isinstance(value, str):
        raise ToolError(f"{name} is text, got {_described(value)}")
    if not value.strip() or len(value) > MAX_TEXT:
        raise ToolError(f"{name} is text of 1 to {MAX_TEXT} characters")
    if any(ord(character) < 32 or "\ud800" <= character <= "\udfff" for character in value):
        raise ToolError(f"{name} holds characters that are no text")
    if kind == "choice" and value not in choices:
        raise ToolError(f"{name} is one of {', '.join(choices)}; got {value[:40]!r}")
    if kind in ("date", "clock"):
        return _parse_time(kind, value, name)
    return value


def _parse_number(kind: Kind, value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ToolError(f"{name} is a number, got {_described(value)}")
    if value != value or value in (float("inf"), float("-inf")):
        raise ToolError(f"{name} is a finite number")
    exact = Decimal(str(value)) * (100 if kind == "money" else 1)
    if exact != exact.to_integral_value():
        raise ToolError(f"{name} has at most two decimals" if kind == "money" else f"{name} is a whole number")
    if not low <= exact <= high:
        unit = Decimal(100) if kind == "money" else Decimal(1)
        raise ToolError(f"{name} lies from {Decimal(low) / unit} to {Decimal(high) / unit}")
    return int(exact)


def _parse_time(kind: Kind, value: str, name: str) -> str:
    shape, example = ("%Y-%m-%d", "2026-05-31") if kind == "date" else (CLOCK, "2026-05-31 14:30")
    try:
        moment = datetime.strptime(value, shape)
    except ValueError:
        raise ToolError(f"{name} is written like {example}, got {value[:40]!r}") from None
    written = f"{moment:%Y-%m-%d}" if kind == "date" else f"{moment:%Y-%m-%d %H:%M}"
    if written != value:
        raise ToolError(f"{name} is written like {example}, got {value[:40]!r}")
    return value


def _described(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def show(kind: Kind, value: Value) -> Value:
    """Return a stored value as a tool's answer shows it: an amount as "12.50", anything else as it is stored."""
    return f"{Decimal(value) / 100:.2f}" if kind == "money" else value


def argument(kind: Kind, value: Value) -> Any:
    """Return a stored value as an agent passes it: an amount as a number."""
    if kind != "money":
        return value
    amount = Decimal(value) / 100
    return int(amount) if amount == amount.to_integral_value() else float(amount)


def say(kind: Kind, value: Value) -> str:
    """Return a stored value as a person writes it.

    Example:
        >>> say("money", 1250), say("clock", "2026-05-31 14:30"), say("choice", "in_transit")
        ('$12.50', '31 May at 14:30', 'in transit')
    """
    match kind:
        case "money":
            cents = int(value)
            return f"{'-' if cents < 0 else ''}${abs(cents) // 100:,}.{abs(cents) % 100:02d}"
        case "date":
            day = date.fromisoformat(str(value))
            return f"{day.day} {MONTHS[day.month - 1]}{'' if day.year == YEAR else f' {day.year}'}"
        case "clock":
            moment = datetime.strptime(str(value), CLOCK)
            return f"{moment.day} {MONTHS[moment.month - 1]} at {moment:%H:%M}"
        case "choice":
            return str(value).replace("_", " ")
    return str(value)


_MONTH = "|".join(f"{name}|{name[:3]}\\.?" for name in MONTHS)
_DAY = rf"(?:(?P<y>\d{{4}})-(?P<m>\d{{2}})-(?P<d>\d{{2}}))|(?:(?P<d2>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<m2>{_MONTH})(?!\w)(?:,? (?P<y2>\d{{4}}))?)|(?:(?P<m3>{_MONTH}) (?P<d3>\d{{1,2}})(?:st|nd|rd|th)?(?!\w)(?:,? (?P<y3>\d{{4}}))?)"  # noqa: E501 - one pattern
_DATE = re.compile(rf"(?<![\w-])(?:{_DAY})(?![\w-])", re.IGNORECASE)
_MOMENT = re.compile(
    rf"(?<![\w-])(?:{_DAY})(?:T|,? at |,? )(?P<hh>\d{{1,2}})[:.](?P<mm>\d{{2}})(?::00)?(?: ?(?P<half>am|pm))?(?!\w)",
    re.IGNORECASE,
)
_TIME_FIRST = re.compile(
    rf"(?P<time>\d{{1,2}}[:.]\d{{2}}(?: ?(?:am|pm))?) on (?P<day>{re.sub(r'[?]P<[a-z0-9]+>', '?:', _DAY)})",
    re.IGNORECASE,
)
_CODE = re.compile(r"(?<![\w-])(?:[A-Z]{1,4}-?\d{3,8}|[A-HJ-NP-Z2-9]{6}(?<!\d{6}))(?![\w-])")
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_PHONE = re.compile(r"(?<![\w-])\+?\d[\d ()-]{6,}\d(?!\w)")
_PLAIN = r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?"
_MONEY = re.compile(
    rf"(?<![\w.])(?P<sign>[-\u2212]?)(?:(?P<mark>[$€£]) ?|(?:USD|EUR|GBP) )?(?P<minus>[-\u2212]?)(?P<number>{_PLAIN})"
    r"(?P<word> ?(?:dollars?|euros?|pounds?|USD|EUR|GBP)\b)?(?![\w])",
    re.IGNORECASE,
)
_WORD = re.compile(rf"\b(?:{'|'.join(word for word in WORDS if word != 'one')})\b", re.IGNORECASE)
# "You have one order" counts; "the new one" does not.
_ONE = re.compile(
    r"(?<!\w)(?<!new )(?<!the )(?<!that )(?<!this )(?<!other )(?<!old )(?<!last )(?<!next )one\b", re.IGNORECASE
)


def mentioned(text: str) -> dict[str, list[Value]]:
    """Return what a text states, by kind, in stored form.

    Keys: "email", "clock", "date", "id", "money" (a sign, a currency or decimals say so), "number" (bare whole numbers
    and small number words), "one" (the word, where it counts). Each piece of text counts once: a date is not three
    numbers.

    Example:
        >>> found = mentioned("Order RO-48213 of $1,250.50 arrives on 4 June, in two parcels.")
        >>> [found[kind] for kind in ("date", "id", "money", "number")]
        [['2026-06-04'], ['RO-48213'], [125050], [2]]
    """
    found: dict[str, list[Value]] = {kind: [] for kind in ("email", "clock", "date", "id", "money", "number", "one")}

    def take(pattern: re.Pattern[str], kind: str, read: Any) -> None:
        nonlocal text

        def keep(match: re.Match[str]) -> str:
            value = read(match)
            if value is None:
                return match[0]
            found[kind].append(value)
            return " \x00 "

        text = pattern.sub(keep, text)

    text = _TIME_FIRST.sub(lambda match: f"{match['day']} at {match['time']}", text)
    take(_EMAIL, "email", lambda match: match[0].rstrip(".").casefold())
    take(_MOMENT, "clock", _moment_of)
    take(_DATE, "date", _date_of)
    take(_CODE, "id", lambda match: match[0].upper())
    text = _PHONE.sub(" \x00 ", text)
    take(_MONEY, "money", lambda match: _cents(match) if _is_money(match) else None)
    take(_MONEY, "number", lambda match: _cents(match) // 100)
    take(_WORD, "number", lambda match: WORDS.index(match[0].lower()))
    take(_ONE, "one", lambda match: 1)
    return found


def _is_money(match: re.Match[str]) -> bool:
    return bool(match["mark"] or match["word"] or "." in match["number"] or match[0][:3].upper() in ("USD", "EUR"))


def _cents(match: re.Match[str]) -> int:
    number = match["number"].replace(",", "")
    if len(number) > 15:
        return -1  # nothing that a world holds
    amount = int(Decimal(number) * 100)
    return -amount if match["sign"] or match["minus"] else amount


def _date_of(match: re.Match[str]) -> str | None:
    year = match["y"] or match["y2"] or match["y3"] or YEAR
    month = match["m"] or match["m2"] or match["m3"]
    day = match["d"] or match["d2"] or match["d3"]
    if not month.isdigit():
        month = next(place for place, name in enumerate(MONTHS, 1) if name.lower().startswith(month[:3].lower()))
    try:
        return date(int(year), int(month), int(day)).isoformat()
    except ValueError:
        return None


def _moment_of(match: re.Match[str]) -> str | None:
    day, hour = _date_of(match), int(match["hh"])
    if match["half"]:
        hour = hour % 12 + (12 if match["half"].lower() == "pm" else 0)
    return f"{day} {hour:02d}:{match['mm']}" if day and hour < 24 and int(match["mm"]) < 60 else None


def plain(text: str) -> str:
    """Return text in the form in which words are compared: case, spaces, underscores and dashes do not count."""
    return re.sub(r"[\s_\u2010-\u2015-]+", " ", text).strip().casefold()


def check_arguments(names: Iterable[str], arguments: Mapping[str, Any], tool: str) -> None:
    """Refuse missing and unknown arguments.

    Raises:
        ToolError: naming what is missing or unknown.
    """
    wanted = list(names)
    if unknown := [str(name)[:40] for name in arguments if name not in wanted]:
        raise ToolError(f"{tool} takes {', '.join(wanted) or 'no arguments'}; it knows no {', '.join(unknown[:5])}")
    if missing := [name for name in wanted if name not in arguments]:
        raise ToolError(f"{tool} also needs {', '.join(missing)}")
