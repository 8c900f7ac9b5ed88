"""Rows of a world before it runs: drawn so that people believe them, added so that a tool's conditions hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from random import Random
from typing import Any

from stackloom.core.errors import PluginError
from stackloom.environments.entities import Blueprint, Column, Entity, Row
from stackloom.environments.world import write_id

MAX_DRAWS = 60


class Draw:
    """What a column's draw may use.

    Attributes:
        rng: the only source of chance.
        words: the domain's lists of names and texts.
        today: the world's date, ISO.
        row: the columns that are drawn already.
    """

    def __init__(self, rows: Rows, entity: Entity, row: Row) -> None:
        self.rng, self.words, self.today, self.row = rows.rng, rows.words, rows.today, row
        self._rows, self._entity = rows, entity

    def one(self, name: str) -> Any:
        """Return one entry of a list of words."""
        return self.rng.choice(self.words[name])

    def parent(self, column: str) -> Row:
        """Return the row that a column of this one refers to."""
        parent = self._rows.blueprint.by_name[self._entity.by_name[column].parent]
        return self._rows.tables[parent.plural][self.row[column]]

    def day(self, low: int, high: int, *, after: str = "") -> str:
        """Return a date, low to high days after today or after another date."""
        start = date.fromisoformat((after or self.today)[:10])
        return (start + timedelta(days=self.rng.randint(low, high))).isoformat()

    def clock(self, low: int, high: int, *, hours: tuple[int, int] = (8, 18), step: int = 30) -> str:
        """Return a moment on such a day, on a multiple of `step` minutes."""
        minutes = self.rng.randrange(hours[0] * 60, hours[1] * 60, step)
        return f"{self.day(low, high)} {minutes // 60:02d}:{minutes % 60:02d}"

    def money(self, low: int, high: int, *, step: int = 1) -> int:
        """Return an amount in cents, from two amounts in whole units, on a multiple of `step` cents."""
        return self.rng.randrange(low * 100, high * 100 + 1, step)

    def digits(self, count: int) -> str:
        """Return that many digits, the first of them no zero."""
        return str(self.rng.randrange(10 ** (count - 1), 10**count))


class Rows:
    """The rows of a world that is being built, with an undo.

    Args:
        blueprint: the domain's entities.
        rng: the only source of chance.
        words: the domain's lists of names and texts.
        today: the world's date, ISO.
    """

    def __init__(self, blueprint: Blueprint, rng: Random, words: Mapping[str, Sequence[Any]], today: str) -> None:
        self.blueprint, self.rng, self.words, self.today = blueprint, rng, words, today
        self.tables: dict[str, dict[str, Row]] = {entity.plural: {} for entity in blueprint.entities}
        self._owners: dict[tuple[str, str], str | None] = {}
        self._undo: list[tuple[str, str, Row | None]] = []

    @classmethod
    def of(
        cls,
        contents: Mapping[str, Mapping[str, Row]],
        blueprint: Blueprint,
        rng: Random,
        words: Mapping[str, Sequence[Any]],
        today: str,
    ) -> Rows:
        """Return rows that a world holds, to go on from."""
        found = cls(blueprint, rng, words, today)
        found.tables = {table: dict(rows) for table, rows in contents.items()}
        for entity in blueprint.entities:
            for row in found.tables[entity.plural].values():
                found._note_owner(entity, row)
        return found

    def _note_owner(self, entity: Entity, row: Row) -> None:
        if entity.name == self.blueprint.person:
            owner: str | None = row["id"]
        elif entity.owner is None:
            owner = None
        else:  # a parent is there before its child
            owner = self._owners[self.blueprint.by_name[entity.owner.parent].plural, row[entity.owner.name]]
        self._owners[entity.plural, row["id"]] = owner

    def owner(self, entity: Entity, row: Row) -> str | None:
        """Return the id of the person to whom a row belongs; None where nobody owns it."""
        return self._owners[entity.plural, row["id"]]

    def mark(self) -> int:
        """Return a place that `undo` can go back to."""
        return len(self._undo)

    def since(self, mark: int) -> list[tuple[str, Row]]:
        """Return the rows that were added or changed since, as they are now, with their tables."""
        names = dict.fromkeys((table, row_id) for table, row_id, _ in self._undo[mark:])
        return [(table, self.tables[table][row_id]) for table, row_id in names]

    def undo(self, mark: int) -> None:
        """Forget what was added and changed since."""
        while len(self._undo) > mark:
            table, row_id, before = self._undo.pop()
            if before is None:
                del self.tables[table][row_id]
            else:
                self.tables[table][row_id] = before

    def set(self, table: str, row_id: str, **changes: Any) -> None:
        """Change columns of a row."""
        before = self.tables[table][row_id]
        self._undo.append((table, row_id, before))
        self.tables[table][row_id] = {**before, **changes}

    def make(self, name: str, *, owner: str | None = None, fixed: Mapping[str, Any] | None = None) -> Row:
        """Add a realistic row.

        Args:
            name: of the entity.
            owner: the person whom it shall belong to; parents that they lack are made.
            fixed: columns that are given; a tuple of values is drawn from.

        Raises:
            PluginError: no unique value was found.
        """
        entity, fixed = self.blueprint.by_name[name], fixed or {}
        row: Row = {"id": self._new_id(entity)}
        draw = Draw(self, entity, row)
        for column in entity.columns:
            given = fixed.get(column.name)
            if given is not None:
                row[column.name] = self.rng.choice(given) if isinstance(given, tuple) else given
            elif column.parent:
                row[column.name] = self._parent(column, owner)
            else:
                row[column.name] = self._draw(entity, column, draw)
        table = self.tables[entity.plural]
        table[row["id"]] = row
        self._undo.append((entity.plural, row["id"], None))
        self._note_owner(entity, row)
        if entity.added:
            entity.added(self, row)
        return table[row["id"]]

    def find(
        self,
        name: str,
        *,
        owner: str | None = None,
        needs: Mapping[str, Sequence[Any]] | None = None,
        where: Callable[[Row], bool] | None = None,
    ) -> list[Row]:
        """Return the rows of an entity that belong to `owner` (if anybody owns them) and meet the conditions."""
        entity = self.blueprint.by_name[name]
        found = list(self.tables[entity.plural].values())
        if owner is not None and (entity.owner is not None or name == self.blueprint.person):
            owners, plural = self._owners, entity.plural
            found = [row for row in found if owners[plural, row["id"]] == owner]
        for column, allowed in (needs or {}).items():
            found = [row for row in found if row[column] in allowed]
        return [row for row in found if where(row)] if where else found

    def _parent(self, column: Column, owner: str | None) -> str:
        parent = self.blueprint.by_name[column.parent]
        if column.own and parent.name == self.blueprint.person and owner is not None:
            return owner
        found = self.find(parent.name, owner=owner if column.own else None)
        return str((self.rng.choice(found) if found else self.make(parent.name, owner=owner))["id"])

    def _draw(self, entity: Entity, column: Column, draw: Draw) -> Any:
        if column.draw is None:
            raise PluginError(f"{entity.name}.{column.name} cannot be drawn")
        if not column.unique:
            return column.draw(draw)
        taken = {row[column.name] for row in self.tables[entity.plural].values()}
        for _ in range(MAX_DRAWS):
            if (value := column.draw(draw)) not in taken:
                return value
        raise PluginError(f"{entity.name}.{column.name}: no unique value in {MAX_DRAWS} draws", where="draw")

    def _new_id(self, entity: Entity) -> str:
        while (found := write_id(entity.prefix, self.rng.getrandbits(60))) in self.tables[entity.plural]:
            pass
        return found
