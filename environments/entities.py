"""What a domain is made of: entities with typed columns, which become SQL tables, realistic rows and tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from stackloom.core.errors import PluginError
from stackloom.environments.values import Kind

if TYPE_CHECKING:
    from stackloom.environments.rows import Draw, Rows

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: its SQL name and its name in tools' answers.
        kind: see `values`; "id" holds another entity's id and needs `parent`.
        draw: how a realistic value is drawn; None for a parent, which is picked or made.
        noun: how people call it ("delivery address"); the default is its name with spaces.
        parent: name of the entity that it refers to.
        own: whether the parent is (or leads to) the person who owns the row.
        known: whether the row's owner would know the value and may be expected to say it.
        shown: whether lists show it; what is not shown takes a look at the row itself, so it can be asked for.
        unique: no two rows share it.
        edit: a request to change it ("change my email address to {value}"); empty if no tool changes it.
        choices: of kind "choice".
        low, high: bounds of an integer or of an amount in cents.
        asked: whether a question may be about it.
    """

    name: str
    kind: Kind
    draw: Callable[[Draw], Any] | None = None
    noun: str = ""
    parent: str = ""
    own: bool = False
    known: bool = False
    shown: bool = False
    unique: bool = False
    edit: str = ""
    choices: tuple[str, ...] = ()
    low: int = 0
    high: int = 10**9
    asked: bool = True

    @property
    def spoken(self) -> str:
        """How people call it."""
        return self.noun or self.name.removesuffix("_id").replace("_", " ")


@dataclass(frozen=True)
class Handle:
    """A way in which a person points at a row: the columns that tell it apart, and the words.

    The words name columns and, in braces too, a parent entity: "the {product_name} in {order}".
    """

    columns: tuple[str, ...]
    words: str


@dataclass(frozen=True)
class Entity:
    """A kind of thing, stored in a table of its own.

    Attributes:
        name, plural: "order", "orders"; the plural names the table.
        prefix: of its ids, such as "RO" in RO-48213; "" makes six letters, as airlines print them.
        columns: all but the id.
        handles: how people point at a row of it.
        count: rows in a world before its task's own rows.
        known_id: whether people know the id, as they know a booking reference.
        lookups: tuples of columns by which rows are found, besides those of unique known columns and of parents.
        counted: whether a tool counts the rows of a parent.
        added: called with the rows and a new row, to keep others consistent with it (an order's total).
        noun: how people call it; the default is its name with spaces.
    """

    name: str
    plural: str
    prefix: str
    columns: tuple[Column, ...]
    handles: tuple[Handle, ...] = ()
    count: int = 4
    known_id: bool = False
    lookups: tuple[tuple[str, ...], ...] = ()
    counted: bool = True
    added: Callable[[Rows, Row], None] | None = None
    noun: str = ""

    @property
    def spoken(self) -> str:
        """How people call it."""
        return self.noun or self.name.replace("_", " ")

    @property
    def spoken_plural(self) -> str:
        """How people call several."""
        return self.plural.replace("_", " ")

    @property
    def id_name(self) -> str:
        """What tools call its id: "order_id"."""
        return f"{self.name}_id"

    @property
    def id_fact(self) -> str:
        """The type of its id as a fact: "order.id"."""
        return f"{self.name}.id"

    @cached_property
    def by_name(self) -> dict[str, Column]:
        """Columns by name."""
        return {column.name: column for column in self.columns}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All columns in storage order, the id first."""
        return ("id", *self.by_name)

    @cached_property
    def owner(self) -> Column | None:
        """The column that leads to the person who owns a row; None for what belongs to nobody."""
        return next((column for column in self.columns if column.own), None)

    def fact(self, column: str) -> str:
        """Return the type of a column's value as a fact; a parent's id is a fact of the parent."""
        if column == "id":
            return self.id_fact
        parent = self.by_name[column].parent
        return f"{parent}.id" if parent else f"{self.name}.{column}"


@dataclass(frozen=True)
class Blueprint:
    """The entities of a domain, checked.

    Attributes:
        entities: parents before children.
        person: name of the entity whose rows are the users.

    Raises:
        PluginError: a duplicate, an unknown parent, a parent after its child; the message holds the place.
    """

    entities: tuple[Entity, ...]
    person: str
    by_name: Mapping[str, Entity] = field(init=False, repr=False)
    by_table: Mapping[str, Entity] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        seen: dict[str, Entity] = {}
        for place, entity in enumerate(self.entities):
            where = f"entities[{place}] {entity.name}"
            if entity.name in seen or entity.plural in {other.plural for other in seen.values()}:
                raise PluginError("named twice", where=where)
            if len(entity.by_name) != len(entity.columns) or "id" in entity.by_name:
                raise PluginError("a column is named twice, or named id", where=where)
            for column in entity.columns:
                _check_column(column, entity, seen, f"{where}.{column.name}")
            for handle in entity.handles:
                if lost := [name for name in handle.columns if name not in entity.names]:
                    raise PluginError(f"a handle names no column {lost[0]!r}", where=where)
            for by in entity.lookups:
                if lost := [name for name in by if name not in entity.names]:
                    raise PluginError(f"a lookup names no column {lost[0]!r}", where=where)
            seen[entity.name] = entity
        if self.person not in seen:
            raise PluginError(f"no entity {self.person!r} for the users", where="person")
        object.__setattr__(self, "by_name", seen)
        object.__setattr__(self, "by_table", {entity.plural: entity for entity in self.entities})


def _check_column(column: Column, entity: Entity, seen: Mapping[str, Entity], where: str) -> None:
    if column.parent and (column.parent not in seen or column.kind != "id"):
        raise PluginError(f"parent {column.parent!r} is no entity above this one, or the kind is not id", where=where)
    if not column.parent and (column.kind == "id" or column.draw is None):
        raise PluginError("an id needs a parent, anything else a draw", where=where)
    if (column.kind == "choice") != bool(column.choices):
        raise PluginError("choices go with kind choice", where=where)


def columns_of(entity: Entity, names: Sequence[str]) -> list[Column]:
    """Return the columns of these names, the id left out."""
    return [entity.by_name[name] for name in names if name != "id"]
