"""A domain: entities, what can be done with them, and how people ask for it. Its tools follow from that."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stackloom.core.errors import PluginError
from stackloom.environments.entities import Blueprint, Row
from stackloom.environments.grammar import generated
from stackloom.environments.rows import Draw
from stackloom.environments.tools import Output, Parameter, WorldTool
from stackloom.environments.values import Kind
from stackloom.environments.world import Schema, View

TODAY = "2026-05-18"  # a Monday
Given = dict[str, Any]


@dataclass(frozen=True)
class Wants:
    """An argument that names a row.

    Attributes:
        entity: what the row is.
        needs: values that its columns may have; a call with another row is refused.
        where: a further condition on the row and on the arguments before it.
        why: the refusal's words if `where` is false.
    """

    entity: str
    needs: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    where: Callable[[Row, Given], bool] | None = None
    why: str = "these do not go together"


@dataclass(frozen=True)
class Says:
    """An argument that only the person can decide.

    Attributes:
        fact: the type of its value; the column where it ends up, such as "order.cancel_reason".
        kind: how it is written (see `values`).
        draw: draws one, given the rows of the arguments before it; None rejects them.
        noun: how people call it.
        choices, low, high: bounds.
    """

    fact: str
    kind: Kind
    draw: Callable[[Draw, Given], Any]
    noun: str
    choices: tuple[str, ...] = ()
    low: int = 0
    high: int = 10**9


@dataclass(frozen=True)
class Tells:
    """A field of an action's answer that a person may ask for."""

    name: str
    kind: Kind
    fact: str
    noun: str


@dataclass(frozen=True)
class Action:
    """Something that changes the world by the domain's rules.

    Attributes:
        name, description: for the agent.
        takes: its arguments by name, in order; "order" becomes the parameter order_id.
        run: does it and returns the fields of `tells`.
        asks: requests with the arguments' names in braces; what stands in brackets may be left out until asked.
        done: "your order is cancelled"; without digits.
        tells: fields of the answer.
        reads, writes: tables besides those of the arguments.
        pre: why it is refused although every argument is right, or "".
        after: what must hold afterwards: argument to columns and values.
        post: a further condition on (view, arguments, answer).
    """

    name: str
    description: str
    takes: Mapping[str, Wants | Says]
    run: Callable[[View, Given], Row]
    asks: tuple[str, ...]
    done: str
    tells: tuple[Tells, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    pre: Callable[[View, Given], str] | None = None
    after: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    post: Callable[[View, Given, Row], bool] | None = None


@dataclass(frozen=True)
class Domain:
    """A template from which worlds are made.

    Attributes:
        name, title: "retail", "An online shop".
        role: who the agent is, in one or two sentences; its system prompt begins with it.
        blueprint: entities; `person` are the users.
        actions: what changes the world by rules.
        words: lists of names and texts.
        greetings: how users introduce themselves, with their known columns in braces.

    Raises:
        PluginError: tools named twice, or an action on an unknown entity.
    """

    name: str
    title: str
    role: str
    blueprint: Blueprint
    actions: tuple[Action, ...]
    words: Mapping[str, Sequence[Any]]
    greetings: tuple[str, ...]
    today: str = TODAY

    @cached_property
    def schema(self) -> Schema:
        """Its tables."""
        return Schema(self.blueprint)

    @cached_property
    def tools(self) -> dict[str, WorldTool]:
        """Every tool by name: generated from the entities, and one per action."""
        found: dict[str, WorldTool] = {}
        for tool in (*generated(self.blueprint), *(self._tool(action) for action in self.actions)):
            if tool.name in found:
                raise PluginError("a tool is named twice", where=f"{self.name}.{tool.name}")
            found[tool.name] = tool
        return found

    @cached_property
    def by_tool(self) -> dict[str, Action]:
        """Actions by name."""
        return {action.name: action for action in self.actions}

    def _tool(self, action: Action) -> WorldTool:
        where, parameters = f"{self.name}.{action.name}", []
        tables: set[str] = set()
        for name, item in action.takes.items():
            if isinstance(item, Says):
                parameters.append(
                    Parameter(
                        name,
                        item.kind,
                        item.fact,
                        item.noun,
                        said=True,
                        noun=item.noun,
                        choices=item.choices,
                        low=item.low,
                        high=item.high,
                    )
                )
                continue
            if item.entity not in self.blueprint.by_name:
                raise PluginError(f"no entity {item.entity!r}", where=f"{where}.takes[{name}]")
            entity = self.blueprint.by_name[item.entity]
            tables.add(entity.plural)
            parameters.append(
                Parameter(f"{name}_id", "id", entity.id_fact, f"id of the {entity.spoken}", entity.name, entity.plural)
            )
        for table in (*action.reads, *action.writes):
            if table not in self.blueprint.by_table:
                raise PluginError(f"no table {table!r}", where=f"{where}.reads or writes")
        return WorldTool(
            name=action.name,
            description=action.description,
            form="action",
            parameters=tuple(parameters),
            outputs=tuple(Output(tell.name, tell.kind, tell.fact, tell.noun) for tell in action.tells),
            run=action.run,
            pre=lambda db, given: _refusal(action, db, given),
            post=lambda db, given, out: self._holds(action, db, given, out),
            reads=frozenset({*action.reads, *tables}),
            writes=frozenset(action.writes),
        )

    def _holds(self, action: Action, db: View, given: Given, out: Row) -> bool:
        for name, expected in action.after.items():
            wants = action.takes[name]
            assert isinstance(wants, Wants)
            row = db.get(self.blueprint.by_name[wants.entity].plural, given[name]["id"])
            if row is None or any(row[column] != value for column, value in expected.items()):
                return False
        return action.post is None or action.post(db, given, out)


def _refusal(action: Action, db: View, given: Given) -> str:
    earlier: Given = {}
    for name, item in action.takes.items():
        if isinstance(item, Wants):
            row = given[name]
            for column, allowed in item.needs.items():
                if row[column] not in allowed:
                    spoken, wanted = column.replace("_", " "), " or ".join(map(str, allowed))
                    return f"the {item.entity.replace('_', ' ')}'s {spoken} is {row[column]}, it must be {wanted}"
            if item.where and not item.where(row, earlier):
                return item.why
        earlier[name] = given[name]
    return action.pre(db, given) if action.pre else ""


def read_words(folder: Path) -> dict[str, list[Any]]:
    """Return the lists of a domain's words.toml, joined with those that all domains share (people, places, streets).

    Raises:
        PluginError: the file is missing or no TOML.
    """
    found: dict[str, list[Any]] = {}
    for path in (folder.parent / "words.toml", folder / "words.toml"):
        try:
            found |= tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as cause:
            raise PluginError(f"cannot be read: {cause}", where=str(path)) from cause
    return found
