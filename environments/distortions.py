"""What noise does to texts: a user's opening, and the JSON that a tool answers. Nothing is lost without a way back."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from stackloom.environments.chains import Known
from stackloom.environments.tape import Tape

COLLOQUIAL = {
    "please": "pls",
    "you": "u",
    "I'd": "id",
    "I'm": "im",
    "could": "cud",
    "thanks": "thx",
    "and": "n",
    "what": "wat",
    "tell": "tel",
    "need": "ned",
}
TYPING = 0.25  # of the words that may be mistyped
PADDING = {
    "request_id": "req-{0:08x}",
    "served_by": "node-{1:02d}",
    "notice": "Figures are shown as stored. Times are local. This interface will change; see the release notes.",
    "links": {"self": "/v2/answers/{0:08x}", "help": "/v2/help"},
    "warnings": [],
}
EXTRA = ("revision", "source", "locale")


def mistyped(text: str, tape: Tape, kept: Sequence[str] = ()) -> str:
    """Return a text with colloquial words and neighbouring letters swapped.

    Words with a digit or a capital letter and everything in `kept` stay, so that no name, id or value changes.

    Args:
        text: of the user.
        tape: draws the words.
        kept: texts that must stay.
    """
    spans = [match.span() for each in kept if each for match in re.finditer(re.escape(each), text)]

    def change(match: re.Match[str]) -> str:
        word = match.group()
        start, stop = match.span()
        if any(start < last and first < stop for first, last in spans) or tape.draw("typing", start) >= TYPING:
            return word
        if word in COLLOQUIAL:
            return COLLOQUIAL[word]
        if len(word) < 5 or not word.islower():
            return word
        place = 1 + tape.below(len(word) - 3, "letters", start)
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]

    return re.sub(r"[A-Za-z][A-Za-z']*", change, text)


def without(text: str, known: Known) -> str | None:
    """Return an opening that does not tell a detail; None where it does not stand there by itself."""
    sentence = f" My {known.noun} is {known.text}."
    if sentence in text:
        return text.replace(sentence, "", 1)
    if text.count(known.text) != 1:
        return None
    return text.replace(known.text, f"(ask me for the {known.noun})", 1)


def altered(known: Known, tape: Tape) -> str | None:
    """Return a wrong text for a detail: its last digit is another one; None for a text without digits."""
    digits = [match.start() for match in re.finditer(r"\d", known.text)]
    if not digits:
        return None
    place = digits[-1]
    other = (int(known.text[place]) + 1 + tape.below(9, "digit", known.noun)) % 10
    return f"{known.text[:place]}{other}{known.text[place + 1 :]}"


def cut_list(answer: Any, reference: str, tape: Tape, call: str) -> tuple[Any, Any] | None:
    """Return a list's first rows with a reference, and the rest; None for what is no list of two rows or more."""
    if not (isinstance(answer, dict) and len(answer) == 1):
        return None
    ((name, rows),) = answer.items()
    if not isinstance(rows, list) or len(rows) < 2:
        return None
    kept = 1 + tape.below(len(rows) - 1, "rows", call)
    return {name: rows[:kept], "rows": len(rows), "rest": reference}, {name: rows[kept:]}


def left_out(answer: Any, reference: str, tape: Tape, call: str) -> tuple[Any, Any] | None:
    """Return an answer without some of its fields and a reference, and those fields; None for a single field."""
    if not isinstance(answer, dict) or len(answer) < 2 or any(isinstance(value, list) for value in answer.values()):
        return None
    names = list(answer)
    gone = {name for name in names[1:] if tape.draw("field", call, name) < 0.5} or {names[-1]}
    shown = {name: answer[name] for name in names if name not in gone}
    return shown | {"rest": reference}, {name: answer[name] for name in names if name in gone}


def renamed(answer: Any, tape: Tape, call: str) -> Any:
    """Return an answer whose fields have other names and another order, with further fields beside them."""
    if isinstance(answer, list):
        return [renamed(item, tape, call) for item in answer]
    if not isinstance(answer, dict):
        return answer
    fields = {_camel(name): renamed(value, tape, call) for name, value in answer.items()}
    fields[EXTRA[tape.below(len(EXTRA), "extra", call)]] = "n/a"
    return {name: fields[name] for name in sorted(fields, key=lambda name: tape.draw("order", call, name))}


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others) if others else f"{name}Value"


def wrapped(answer: Any, tape: Tape, call: str) -> Any:
    """Return an answer inside a verbose envelope, as its "result"."""
    fields = _filled(PADDING, (tape.below(2**32, "request", call), tape.below(40, "node", call)))
    items = list(fields.items())
    place = tape.below(len(items) + 1, "place", call)
    return dict([*items[:place], ("result", answer), *items[place:]])


def _filled(value: Any, numbers: tuple[int, int]) -> Any:
    if isinstance(value, dict):
        return {name: _filled(each, numbers) for name, each in value.items()}
    return value.format(*numbers) if isinstance(value, str) else value


def parsed(text: str) -> Any:
    """Return the JSON that a tool answered; None for any other text."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def leaves(answer: Any) -> set[str]:
    """Return every value of an answer as text."""
    if isinstance(answer, dict):
        return {leaf for value in answer.values() for leaf in leaves(value)}
    if isinstance(answer, list):
        return {leaf for value in answer for leaf in leaves(value)}
    return {str(answer)}
