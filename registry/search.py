"""Search over the indexed plugins: every word must occur, where it occurs decides the rank."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stackloom.core.errors import ConfigError, did_you_mean
from stackloom.core.rows import PluginRow
from stackloom.registry.catalogue import plugin_row

FACETS = ("slot", "paper", "dtype", "device", "lifecycle", "origin", "evidence")
_COLUMNS = "id, slot, version, lifecycle, paper, origin, summary, keywords, dtypes, devices"


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        rows: the page of plugins, the best first.
        total: how many matched.
        facets: for each facet, how many of the matching plugins have which value.
        hint: "did you mean ...?" when nothing matched and something is near.
    """

    rows: tuple[PluginRow, ...]
    total: int
    facets: dict[str, dict[str, int]]
    hint: str = ""


@dataclass(frozen=True)
class _Match:
    row: PluginRow
    rank: int
    facets: dict[str, tuple[str, ...]]


def search(
    read: Callable[..., list[Any]],
    with_evidence: Callable[[], set[str]],
    text: str,
    facets: Mapping[str, str | bool | None],
    limit: int | None,
) -> SearchResult:
    """Search a snapshot; see `Registry.search`.

    Args:
        read: runs a query whose first parameter is the snapshot.
        with_evidence: gives the ids that have evidence.
        text: the words.
        facets: the values that must match.
        limit: the most rows to return.
    """
    for name in facets:
        if name not in FACETS:
            raise ConfigError(
                f"plugins have no facet {name!r}", fix=did_you_mean(name, FACETS, otherwise=f"use {', '.join(FACETS)}")
            )
    wanted = {
        name: ("yes" if value else "no") if isinstance(value, bool) else value
        for name, value in facets.items()
        if value is not None
    }
    words = text.casefold().split()
    condition = r" AND search LIKE ? ESCAPE '\'" * len(words)
    found = read(
        f"SELECT {_COLUMNS} FROM plugins WHERE snapshot = ?{condition}", *(f"%{_literal(word)}%" for word in words)
    )
    proven = with_evidence()
    matches = [
        match
        for match in (_match(values, words, proven) for values in found)
        if all(value in match.facets[name] for name, value in wanted.items())
    ]
    matches.sort(key=lambda match: (-match.rank, match.row.id))
    counts = {name: Counter(value for match in matches for value in match.facets[name]) for name in FACETS}
    return SearchResult(
        tuple(match.row for match in matches[:limit]),
        len(matches),
        {name: dict(sorted(count.items())) for name, count in counts.items()},
        "" if matches else _hint(read, text),
    )


def _match(values: tuple[str, ...], words: list[str], proven: set[str]) -> _Match:
    row = plugin_row(values[:6])
    summary, keywords, dtypes, devices = values[6], *(json.loads(column) for column in values[7:])
    facets = {
        "slot": (row.slot,),
        "paper": (row.paper,) if row.paper else (),
        "dtype": tuple(dtypes),
        "device": tuple(devices),
        "lifecycle": (row.lifecycle,),
        "origin": (row.origin,),
        "evidence": ("yes" if row.id in proven else "no",),
    }
    names = [keyword.casefold() for keyword in keywords]
    rank = sum(_weight(word, row, names, summary.casefold()) for word in words)
    return _Match(row, rank + (row.id in proven), facets)


def _weight(word: str, row: PluginRow, keywords: list[str], summary: str) -> int:
    technique = row.id.partition(".")[2]
    for holds, weight in (
        (word in (row.id, technique), 100),
        (word in technique.split("-"), 60),
        (word == row.slot, 50),
        (word == row.paper.casefold(), 50),
        (word in keywords, 40),
        (word in row.id, 30),
        (word in summary.split(), 20),
        (word in summary, 10),
    ):
        if holds:
            return weight
    return 1  # in a claim, in the paper's title, or in part of a keyword


def _literal(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")


def _hint(read: Callable[..., list[Any]], text: str) -> str:
    known: set[str] = set()
    for plugin, paper, keywords in read("SELECT id, paper, keywords FROM plugins WHERE snapshot = ?"):
        known |= {plugin, plugin.partition(".")[2], *json.loads(keywords)} | ({paper} if paper else set())
    return did_you_mean(text.strip().casefold(), known)
