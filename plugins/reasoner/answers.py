"""Answers: how they are found in a message, brought to one form and compared."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from stackloom.core.chat import Message, parse_tool_calls
from stackloom.core.errors import ConfigError

ExtractorName: TypeAlias = Literal["auto", "number", "math", "json", "tool_call", "last_line", "exact"]

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?(?:\s*/\s*\d+)?%?|[-+]?\.\d+%?")
MARKED = re.compile(r"(?:final answer|answer)\s*(?:is|:|=)\s*:?\s*([^\n]+)", re.IGNORECASE)
FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
MAX_DIGITS = 300
MAX_MATH_CHARS = 300


def extract(message: Message | None, how: ExtractorName = "auto") -> str | None:
    """Return the answer of a message in a form that equal answers share, or None where there is none.

    "auto" takes a tool call if there is one, then what stands in `\\boxed{}` or behind "answer is", as a number where
    it is one, then a message that is JSON or one line. The others look for their own kind alone.

    Example:
        >>> extract(Message("assistant", "So the answer is 1,024.0."))
        '1024'
        >>> extract(Message("assistant", '{"b": 1, "a": 0.5}'), "json")
        '{"a":0.5,"b":1}'
    """
    return None if message is None else _EXTRACTORS[how](message)


def _tool_call(message: Message) -> str | None:
    calls = message.tool_calls or parse_tool_calls(message.content).calls
    if not calls:
        return None
    return _canonical([{"name": call.name, "arguments": dict(call.arguments)} for call in calls])


def _canonical(value: Any) -> str:
    """JSON with sorted keys, in which 1, 1.0 and 1e0 are one number."""
    return json.dumps(_whole(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def _json(message: Message) -> str | None:
    fenced = re.findall(r"```(?:json)?\s*\n(.*?)```", message.content, re.DOTALL)
    for text in (*reversed(fenced), message.content):
        try:
            return _canonical(json.loads(text, parse_constant=_refuse))
        except (ValueError, RecursionError):
            continue
    return None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def number(text: str) -> str | None:
    """Return the canonical form of a text that is one number, with its fraction kept exact.

    Example:
        >>> number("$1,500.50"), number("2/4"), number("12%")
        ('1500.5', '1/2', '12%')
    """
    bare = FRACTION.sub(r"\1/\2", text).strip("$€£*\n ").rstrip(".").replace("\u2212", "-").replace(" ", "")
    if not NUMBER.fullmatch(bare) or len(bare) > MAX_DIGITS:
        return None
    percent = bare.endswith("%")
    try:
        value = Fraction(bare.rstrip("%").replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
    return _decimal(value) + ("%" if percent else "")


def _decimal(value: Fraction) -> str:
    """A terminating decimal as digits, anything else as p/q."""
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest //= prime
            count += 1
        places = max(places, count)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (digits[:-places] + "." + digits[-places:] if places else digits)


def _number(message: Message) -> str | None:
    for text in (*reversed(_marked(message.content)), message.content):
        found = NUMBER.findall(FRACTION.sub(r"\1/\2", text).replace("\u2212", "-"))
        if found and (value := number(found[-1])) is not None:
            return value
    return None


def _marked(text: str) -> list[str]:
    """What is marked as the answer, in order of standing: boxed texts come last, as they are the surest."""
    return [*(found.strip(".*$ ") for found in MARKED.findall(text)), *_boxed(text)]


def _boxed(text: str) -> list[str]:
    found = []
    for start in (match.end() for match in re.finditer(r"\\boxed\s*\{", text)):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                found.append(text[start:place].strip())
                break
    return found


def _math(message: Message) -> str | None:
    """The answer as math-verify reads it; `equal` compares two of them."""
    for text in reversed(_marked(message.content)):
        if text:
            return number(text) or " ".join(text.split())
    return _number(message)


def _last_line(message: Message) -> str | None:
    lines = [line.strip() for line in message.content.splitlines() if line.strip()]
    return _plain(lines[-1]) if lines else None


def _plain(text: str) -> str | None:
    return " ".join(text.casefold().split()).strip("*_`\"'. ") or None


def _exact(message: Message) -> str | None:
    return message.content.strip() or None


def _auto(message: Message) -> str | None:
    if (call := _tool_call(message)) is not None:
        return call
    for text in reversed(_marked(message.content)):
        if text:
            found = NUMBER.findall(text)
            return number(text) or (number(found[0]) if len(found) == 1 and _mostly(found[0], text) else _plain(text))
    if (value := number(message.content)) is not None:
        return value
    if message.content.strip().startswith(("{", "[", "```json")) and (value := _json(message)) is not None:
        return value
    return _plain(message.content) if 0 < len(message.content.strip().splitlines()) < 2 else None


def _mostly(found: str, text: str) -> bool:
    """Whether a text is a number and its unit: "42 km", and not a sentence that happens to hold one."""
    return len(text.split()) <= 3 and text.lstrip("$ ").startswith(found)


_EXTRACTORS: dict[str, Callable[[Message], str | None]] = {
    "auto": _auto,
    "number": _number,
    "math": _math,
    "json": _json,
    "tool_call": _tool_call,
    "last_line": _last_line,
    "exact": _exact,
}


@dataclass(frozen=True)
class Equality:
    """How answers are compared.

    Args:
        how: with "math" two different texts are equal where math-verify proves it; else equal texts are.

    Raises:
        ConfigError: "math" without math-verify.

    Example:
        >>> Equality("math")("\\\\frac{1}{2}", "0.5")
        True
    """

    how: ExtractorName = "auto"

    def __post_init__(self) -> None:
        if self.how == "math":
            _math_verify()

    def __call__(self, one: str, other: str) -> bool:
        """Return whether two extracted answers are the same."""
        return one == other or (self.how == "math" and _same_mathematics(*sorted((one, other))))


def _math_verify() -> Any:
    try:
        import math_verify
    except ModuleNotFoundError:
        raise ConfigError(
            "comparing mathematics needs math-verify", where="extract", fix="pip install 'stackloom[serve]'"
        ) from None
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of each call without its signal's timeout
    return math_verify


@lru_cache(4096)
def _same_mathematics(one: str, other: str) -> bool:
    """Ask math-verify about two texts that are small enough to be compared without a clock.

    Its own timeouts are signals, which work in a main thread alone and break an event loop, so texts whose evaluation
    could take long are not given to it: towers of powers, factorials, long exponents.
    """
    if any(len(text) > MAX_MATH_CHARS or _explodes(text) for text in (one, other)):
        return False
    library = _math_verify()
    try:
        left, right = (library.parse(f"${text}$", parsing_timeout=None) for text in (one, other))
        return bool(library.verify(left, right, timeout_seconds=None))
    except Exception:  # noqa: BLE001 - a parser's failure on a model's text: such answers are not equal
        return False


def _explodes(text: str) -> bool:
    return bool(
        re.search(r"!|\\sum|\\prod|\\int|\\lim|binom|\d{40}", text)
        or re.search(r"(?:\^|\*\*)\s*[\{(]?\s*[-+]?\d{3}", text)
        or len(re.findall(r"\^|\*\*", text)) > 2
    )
