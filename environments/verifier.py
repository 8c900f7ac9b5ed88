"""The verifier: is the world as it should be, and does the answer state what was asked for - whatever the path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from stackloom.core.chat import Message
from stackloom.environments.entities import Blueprint, Row
from stackloom.environments.factory import BuiltTask
from stackloom.environments.statements import Required, unstated
from stackloom.environments.world import Contents, World

Renaming: TypeAlias = Mapping[tuple[str, str], str]
MOST_RENAMINGS = 200  # of rows made alike


@dataclass(frozen=True)
class Verdict:
    """What the verifier found.

    Attributes:
        passed: everything holds.
        components: what was looked at: "message" (there is a final one), "state", "statements".
        reason: the first thing that does not hold; empty if everything does.
    """

    passed: bool
    components: Mapping[str, bool]
    reason: str


def verify(built: BuiltTask, world: World, messages: Sequence[Message]) -> Verdict:
    """Judge an attempt by its outcome.

    The world must equal the golden chain's on every table: rows in any order, rows that the attempt made under any id,
    and nothing else touched. The final message must state each required value, outside questions and denials and not
    under the name of another field, and no other value of that kind that the user has not mentioned: an answer that
    lists everything states nothing.

    Args:
        built: the task.
        world: as the attempt left it.
        messages: the attempt, after the task's own messages; the user's replies among them.
    """
    final = messages[-1] if messages else None
    spoken = final is not None and final.role == "assistant" and not final.tool_calls and bool(final.content.strip())
    text = final.content if final is not None and spoken else ""
    said = " ".join([built.request.opening, *(item.content for item in messages if item.role == "user")])
    reasons = {"message": "" if spoken else "there is no final message"}
    initial = {table: frozenset(str(row["id"]) for row in rows) for table, rows in built.rows.items()}
    renamings = matches(built.domain.blueprint, initial, built.target, world.contents())
    first = next(renamings, None)
    reasons["state"] = "" if first is not None else "the world is not as the task wants it"
    reasons["statements"] = unstated(built.domain, _required(built, first or {}), text, said, built.target)
    if first is not None and reasons["statements"]:
        # Rows that were made alike can stand for each other: the answer may mean any of them.
        for renaming in islice(renamings, MOST_RENAMINGS):
            if not unstated(built.domain, _required(built, renaming), text, said, built.target):
                reasons["statements"] = ""
                break
    components = {name: not reason for name, reason in reasons.items()}
    return Verdict(all(components.values()), components, next((item for item in reasons.values() if item), ""))


def _required(built: BuiltTask, renaming: Renaming) -> Required:
    """Return the statements with their values in this attempt: ids of rows that it made are its own."""
    own = {name: row_id for (_, row_id), name in renaming.items()}
    return [(item, own.get(str(item.value), item.value) if item.made else item.value) for item in built.statements]


def matches(
    blueprint: Blueprint, initial: Mapping[str, frozenset[str]], target: Contents, found: Contents
) -> Iterator[Renaming]:
    """Yield every way to rename the rows that an attempt made, (table, id) to id, that turns `found` into `target`.

    Rows that were there before keep their names. Nothing is yielded where the two differ.
    """
    fresh: list[tuple[str, str]] = []
    wanted: dict[str, list[str]] = {}
    for table, rows in target.items():
        old = initial.get(table, frozenset())
        made, goal = [row_id for row_id in found[table] if row_id not in old], [i for i in rows if i not in old]
        if len(made) != len(goal) or (rows.keys() & old) != (found[table].keys() & old):
            return
        fresh += [(table, row_id) for row_id in made]
        wanted[table] = goal
    yield from _assign(_Matching(blueprint, target, found, frozenset(fresh)), fresh, wanted, {})


@dataclass(frozen=True)
class _Matching:
    """Two worlds that are compared."""

    blueprint: Blueprint
    target: Contents
    found: Contents
    fresh: frozenset[tuple[str, str]]

    def renamed(self, table: str, row: Row, renaming: Renaming) -> Row | None:
        """Return a row with its references renamed; None where one of them has no new name yet."""
        entity, changed = self.blueprint.by_table[table], {}
        for column in entity.columns:
            if not column.parent:
                continue
            key = (self.blueprint.by_name[column.parent].plural, row[column.name])
            if key in self.fresh:
                if key not in renaming:
                    return None
                changed[column.name] = renaming[key]
        return {**row, **changed}

    def agrees(self, renaming: Renaming) -> bool:
        """Whether a complete renaming turns one world into the other."""
        for table, rows in self.found.items():
            for row_id, row in rows.items():
                new = self.renamed(table, row, renaming)
                name = renaming.get((table, row_id), row_id)
                if new is None or {**new, "id": name} != self.target[table].get(name):
                    return False
        return True


def _assign(
    both: _Matching,
    fresh: Sequence[tuple[str, str]],
    wanted: Mapping[str, list[str]],
    renaming: dict[tuple[str, str], str],
) -> Iterator[Renaming]:
    if not fresh:
        if both.agrees(renaming):
            yield dict(renaming)
        return
    # Parents come before children in `fresh`, so a row's references are named before the row itself.
    (table, row_id), rest = fresh[0], fresh[1:]
    used = {name for (other, _), name in renaming.items() if other == table}
    row = both.renamed(table, both.found[table][row_id], renaming)
    for name in wanted[table]:
        if name not in used and row is not None and {**row, "id": name} == both.target[table][name]:
            yield from _assign(both, rest, wanted, {**renaming, (table, row_id): name})
