"""Whether a written domain works: its own unit tests, its dependency graph, and the acceptance suite of built tasks."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from random import Random
from typing import Any

from stackloom.core.errors import PluginError, StackloomError
from stackloom.core.slots.environment import ToolError
from stackloom.environments.acceptance import accept
from stackloom.environments.domain import Domain
from stackloom.environments.entities import Row
from stackloom.environments.factory import Factory, Recipe
from stackloom.environments.graph import Graph
from stackloom.environments.rows import Rows
from stackloom.environments.sandbox import Sandbox, SandboxRefused
from stackloom.environments.tools import call
from stackloom.environments.world import Contents, World
from stackloom.environments.writing.rules import misfit
from stackloom.environments.writing.sheet import DomainSheet, TestSheet

WORLDS = 2  # tasks that are built and put through the acceptance suite
SHOWN = 12  # problems that one round tells


def problems(sheet: DomainSheet, sandbox: Sandbox, *, worlds: int = WORLDS) -> list[str]:
    """Return what is wrong with a domain, at most `SHOWN`: the first kind of check that fails decides.

    Raises:
        SandboxRefused: the code cannot be contained.
    """
    try:
        domain = sheet.domain(sandbox)
        Graph(domain)
    except PluginError as cause:
        return [str(cause)]
    found = [
        f"test {test.name!r} of {action.name}: {why}"
        for action in sheet.actions
        for test in action.tests
        if (why := failure(domain, action.name, test))
    ]
    return found[:SHOWN] or list(_unaccepted(domain, worlds))[:SHOWN]


def failure(domain: Domain, action: str, test: TestSheet) -> str:
    """Run one unit test in a world of its own; return why it fails, or ""."""
    tool = domain.tools[action]
    rows = Rows(domain.blueprint, Random(f"{action}/{test.name}"), domain.words, domain.today)
    try:
        ids = _rows(domain, rows, test)
        arguments = _arguments(domain, action, test, ids)
    except PluginError as cause:
        return str(cause)
    world = World(domain.schema, salt=test.name)
    try:
        world.load({table: list(found.values()) for table, found in rows.tables.items()})
        before = world.contents()
        try:
            answer = call(world, tool, tool.write(arguments), domain.today).answers[0]
        except ToolError as refused:
            return "" if test.refused else f"the call was refused: {refused}"
        if test.refused:
            return "the call was done; it should have been refused"
        return "; ".join([*_difference(domain, before, world.contents(), test, ids), *_answered(test, answer, ids)])
    except SandboxRefused:
        raise
    except (StackloomError, sqlite3.Error) as cause:
        return str(cause)
    finally:
        world.close()


def _rows(domain: Domain, rows: Rows, test: TestSheet) -> dict[str, str]:
    """Make the test's rows; return their ids by the names that the test gives them."""
    ids: dict[str, str] = {}
    for name, given in test.rows.items():
        entity = domain.blueprint.by_name.get(str(given["entity"]))
        if entity is None:
            raise PluginError(f"row {name!r} is of no entity {given['entity']!r}")
        fixed: dict[str, Any] = {}
        for key, value in given.items():
            if key == "entity":
                continue
            column = entity.by_name.get(key)
            if column is None:
                raise PluginError(f"{entity.name} has no column {key!r}")
            fixed[key] = ids.get(str(value)) if column.parent else value
            if fixed[key] is None:
                raise PluginError(f"row {name!r}: {key} names no row above it: {value!r}")
            if why := misfit(column.kind, fixed[key], choices=column.choices, low=column.low, high=column.high):
                raise PluginError(f"row {name!r}: {key} {why}")
        ids[name] = str(rows.make(entity.name, fixed=fixed)["id"])
    return ids


def _arguments(domain: Domain, action: str, test: TestSheet, ids: dict[str, str]) -> dict[str, Any]:
    parameters = {item.key: item for item in domain.tools[action].parameters}
    if set(test.given) != set(parameters):
        raise PluginError(f"given has {', '.join(sorted(test.given))}; {action} takes {', '.join(parameters)}")
    found: dict[str, Any] = {}
    for key, item in parameters.items():
        value = test.given[key]
        if item.table and str(value) not in ids:
            raise PluginError(f"given.{key} names no row of the test: {value!r}")
        if not item.table and (why := misfit(item.kind, value, choices=item.choices)):
            raise PluginError(f"given.{key} {why}")
        found[item.name] = ids[str(value)] if item.table else value
    return found


def _difference(
    domain: Domain, before: Contents, after: Contents, test: TestSheet, ids: dict[str, str]
) -> Iterator[str]:
    """Yield how the world differs from what the test wants: every row, every column."""
    names = {row_id: name for name, row_id in ids.items()}
    wanted = [dict(row) for row in test.added]
    for entity in domain.blueprint.entities:
        old, new = before[entity.plural], after[entity.plural]
        for row_id, row in old.items():
            name = names.get(row_id, f"another {entity.name}")
            if row_id not in new:
                if name not in test.removed:
                    yield f"{name} was removed"
                continue
            if name in test.removed:
                yield f"{name} was not removed"
                continue
            changes = {key: ids.get(str(value), value) for key, value in test.changes.get(name, {}).items()}
            for column, value in new[row_id].items():
                if value != (should := changes.get(column, row[column])):
                    yield f"{name}.{column} is {value!r}, it should be {should!r}"
        for row_id in new.keys() - old.keys():
            match = next((want for want in wanted if _fits(want, entity.name, new[row_id], ids)), None)
            if match is None:
                yield f"an unexpected {entity.name} was added: {new[row_id]!r}"
            else:
                wanted.remove(match)
    yield from (f"no row was added like {want!r}" for want in wanted)


def _fits(want: dict[str, Any], entity: str, row: Row, ids: dict[str, str]) -> bool:
    return want.get("entity") == entity and all(
        row.get(key) in (value, ids.get(str(value))) for key, value in want.items() if key != "entity"
    )


def _answered(test: TestSheet, answer: Row, ids: dict[str, str]) -> Iterator[str]:
    for key, value in test.answer.items():
        if answer.get(key) not in (value, ids.get(str(value), value)):
            yield f"the answer's {key} is {answer.get(key)!r}, it should be {value!r}"


def _unaccepted(domain: Domain, worlds: int) -> Iterator[str]:
    """Build tasks and yield what goes wrong on the way, and attempts that the verifier misjudges."""
    tools = min(24, len(domain.tools))
    for seed in range(worlds):
        try:
            built = Factory(domain, Recipe(tools=tools)).build(str(seed))
            for judged in accept(built):
                if not judged.as_wanted:
                    yield f"{judged.attempt.kind}, {judged.attempt.name}: {judged.verdict.reason}"
        except SandboxRefused:
            raise
        except (StackloomError, sqlite3.Error, LookupError) as cause:
            yield f"a task cannot be built: {type(cause).__name__}: {cause}"
