"""Markdown that pages are made of: tables, badges, numbers, file names."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from stackloom.core.rows import EvidenceRow

NO_EVIDENCE = "no evidence"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; pipes and line breaks of the cells are escaped."""
    clean = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *clean]) + "\n"


def badge(kind: str, text: str, *, title: str = "", stale: bool = False) -> str:
    """A word with the colour and the border of its kind: declared, checked, measured, or a verdict.

    Args:
        kind: the style's name.
        text: what it says; the word carries the meaning, the colour only repeats it.
        title: more, shown on hover.
        stale: whether it speaks of another state of the plugin; says so and is greyed.
    """
    words = f"{text}, stale" if stale else text
    tip = f' title="{html.escape(title)}"' if title else ""
    return f'<span class="badge {kind}{" stale" if stale else ""}"{tip}>{html.escape(words)}</span>'


def verdict(row: EvidenceRow, reason: str = "") -> str:
    """The badge of a measured row; `reason` says why it is stale, if it is."""
    return badge(f"measured {row.verdict}", row.verdict.replace("_", " "), title=reason, stale=bool(reason))


def number(value: float | None) -> str:
    """At most four significant digits; a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"


def interval(row: EvidenceRow) -> str:
    """The 95 per cent interval of a row."""
    return f"{number(row.interval[0])} to {number(row.interval[1])}" if row.interval else "-"


def slug(text: str) -> str:
    """A file name of a title: lower case, hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80]


def deeper(markdown: str) -> str:
    """Move headings one level down, code blocks aside."""
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else re.sub(r"^#", "##", part, flags=re.MULTILINE) for part in parts)


def first_sentence_upper(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
