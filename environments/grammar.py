"""Tools that follow from the entities alone: find, list, show, count and edit, named the way people name an API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackloom.environments.entities import Blueprint, Column, Entity, Row
from stackloom.environments.tools import Output, Parameter, WorldTool
from stackloom.environments.values import show
from stackloom.environments.world import View


def generated(blueprint: Blueprint) -> Iterator[WorldTool]:
    """Yield an entity's tools: details, fields, lookups by known columns, by parents and by choices, counts, edits.

    Example:
        >>> [tool.name for tool in generated(blueprint)][:3]
        ['get_customer', 'find_customer_by_email', 'find_customer_by_phone']
    """
    for entity in blueprint.entities:
        yield _details(entity, blueprint)
        for column in entity.columns:
            if column.unique and column.known:
                yield _lookup(entity, (column,), blueprint)
        for names in entity.lookups:
            yield _lookup(entity, tuple(entity.by_name[name] for name in names), blueprint)
        choices = [column for column in entity.columns if column.choices and column.shown]
        for parent in (column for column in entity.columns if column.parent):
            yield _lookup(entity, (parent,), blueprint)
            for choice in choices:
                yield _lookup(entity, (parent, choice), blueprint)
            if entity.counted:
                yield _count(entity, parent, blueprint)
                for choice in choices:
                    yield _tally(entity, parent, choice, blueprint)
        if entity.owner is None and entity.name != blueprint.person:
            for choice in choices:
                yield _lookup(entity, (choice,), blueprint)
        for column in entity.columns:
            if not column.shown and not column.parent and not column.known:
                yield _field(entity, column)
            if column.edit:
                yield _edit(entity, column)


def a(entity: Entity) -> str:
    """Return what an entity is called, with its article: "an order"."""
    return f"{'an' if entity.spoken[0] in 'aeio' else 'a'} {entity.spoken}"


def id_parameter(entity: Entity) -> Parameter:
    """Return the parameter that names a row of an entity."""
    return Parameter(entity.id_name, "id", entity.id_fact, f"id of the {entity.spoken}", entity.name, entity.plural)


def _outputs(entity: Entity, blueprint: Blueprint, *, all_columns: bool) -> tuple[Output, ...]:
    shown = [column for column in entity.columns if column.shown or all_columns]
    return (
        Output("id", "id", entity.id_fact, f"{entity.spoken} number"),
        *(Output(column.name, column.kind, entity.fact(column.name), column.spoken) for column in shown),
    )


def _details(entity: Entity, blueprint: Blueprint) -> WorldTool:
    return WorldTool(
        name=f"get_{entity.name}",
        description=f"Show everything about one {entity.spoken}",
        form="details",
        parameters=(id_parameter(entity),),
        outputs=_outputs(entity, blueprint, all_columns=True),
        run=lambda db, given: given[entity.name],
        reads=frozenset({entity.plural}),
        entity=entity.name,
    )


def _field(entity: Entity, column: Column) -> WorldTool:
    return WorldTool(
        name=f"get_{entity.name}_{column.name}",
        description=f"Show the {column.spoken} of {a(entity)}",
        form="field",
        parameters=(id_parameter(entity),),
        outputs=(Output(column.name, column.kind, entity.fact(column.name), column.spoken),),
        run=lambda db, given: {column.name: given[entity.name][column.name]},
        reads=frozenset({entity.plural}),
        entity=entity.name,
        column=column.name,
    )


def _by(entity: Entity, column: Column, blueprint: Blueprint) -> Parameter:
    if column.parent:
        return id_parameter(blueprint.by_name[column.parent])
    return Parameter(
        column.name,
        column.kind,
        entity.fact(column.name),
        column.spoken,
        noun=column.spoken,
        choices=column.choices,
        low=column.low,
        high=column.high,
    )


def _lookup(entity: Entity, by: tuple[Column, ...], blueprint: Blueprint) -> WorldTool:
    parameters = tuple(_by(entity, column, blueprint) for column in by)
    parents = [blueprint.by_name[column.parent] for column in by if column.parent]
    plain = [column for column in by if not column.parent]
    words = " and ".join(column.spoken for column in plain)
    single = len(by) == 1 and by[0].unique

    def values(given: dict[str, Any]) -> dict[str, Any]:
        return {
            column.name: given[item.key]["id"] if item.table else given[item.key]
            for column, item in zip(by, parameters, strict=True)
        }

    def run(db: View, given: dict[str, Any]) -> Any:
        found = [_part(row, outputs) for row in db.select(entity.plural, **values(given))]
        return found[0] if single else found

    def pre(db: View, given: dict[str, Any]) -> str:
        if single and not db.select(entity.plural, **values(given)):
            return f"no {entity.spoken} has this {words}"
        return ""

    outputs = _outputs(entity, blueprint, all_columns=False)
    suffix = f"_by_{'_and_'.join(column.name for column in plain)}" if plain else ""
    if parents:
        whose = " and ".join(a(parent) for parent in parents)
        name = f"list_{'_'.join(parent.name for parent in parents)}_{entity.plural}{suffix}"
        description = f"List the {entity.spoken_plural} of {whose}{f' with a certain {words}' if plain else ''}"
    elif single:
        name, description = f"find_{entity.name}{suffix}", f"Find {a(entity)} by {words}"
    else:
        name, description = f"search_{entity.plural}{suffix}", f"Search {entity.spoken_plural} by {words}"
    return WorldTool(
        name=name,
        description=description,
        form="lookup",
        parameters=parameters,
        outputs=outputs,
        run=run,
        pre=pre,
        many="" if single else entity.plural,
        reads=frozenset({entity.plural, *(parent.plural for parent in parents)}),
        entity=entity.name,
        by=tuple(column.name for column in by),
    )


def _part(row: Row, outputs: tuple[Output, ...]) -> Row:
    return {output.name: row[output.name] for output in outputs}


def _count(entity: Entity, by: Column, blueprint: Blueprint) -> WorldTool:
    parent = blueprint.by_name[by.parent]
    return WorldTool(
        name=f"count_{parent.name}_{entity.plural}",
        description=f"Count the {entity.spoken_plural} of {a(parent)}",
        form="count",
        parameters=(id_parameter(parent),),
        outputs=(
            Output("count", "integer", f"{parent.name}.{entity.name}_count", f"number of {entity.spoken_plural}"),
        ),
        run=lambda db, given: {"count": len(db.select(entity.plural, **{by.name: given[parent.name]["id"]}))},
        reads=frozenset({entity.plural, parent.plural}),
        entity=parent.name,
        by=(by.name,),
    )


def _tally(entity: Entity, by: Column, choice: Column, blueprint: Blueprint) -> WorldTool:
    parent = blueprint.by_name[by.parent]
    return WorldTool(
        name=f"count_{parent.name}_{entity.plural}_by_{choice.name}",
        description=f"Count the {entity.spoken_plural} of {a(parent)} with a certain {choice.spoken}",
        form="tally",
        parameters=(id_parameter(parent), _by(entity, choice, blueprint)),
        outputs=(Output("count", "integer", f"{parent.name}.{entity.name}_{choice.name}_count"),),
        run=lambda db, given: {
            "count": len(
                db.select(entity.plural, **{by.name: given[parent.name]["id"], choice.name: given[choice.name]})
            )
        },
        reads=frozenset({entity.plural, parent.plural}),
        entity=parent.name,
        by=(by.name, choice.name),
    )


def _edit(entity: Entity, column: Column) -> WorldTool:
    key = column.name

    def pre(db: View, given: dict[str, Any]) -> str:
        if given[entity.name][key] == given[key]:
            return f"the {column.spoken} is {show(column.kind, given[key])} already"
        if column.unique and db.select(entity.plural, **{key: given[key]}):
            return f"another {entity.spoken} has this {column.spoken}"
        return ""

    def run(db: View, given: dict[str, Any]) -> Row:
        db.update(entity.plural, given[entity.name]["id"], **{key: given[key]})
        return {"id": given[entity.name]["id"], key: given[key]}

    def post(db: View, given: dict[str, Any], out: Row) -> bool:
        row = db.get(entity.plural, given[entity.name]["id"])
        return row is not None and row[key] == given[key]

    value = Parameter(
        key,
        column.kind,
        entity.fact(key),
        f"the new {column.spoken}",
        said=True,
        noun=f"new {column.spoken}",
        choices=column.choices,
        low=column.low,
        high=column.high,
    )
    return WorldTool(
        name=f"change_{entity.name}_{key}",
        description=f"Change the {column.spoken} of {a(entity)}",
        form="edit",
        parameters=(id_parameter(entity), value),
        outputs=(
            Output("id", "id", entity.id_fact, f"{entity.spoken} number"),
            Output(key, column.kind, entity.fact(key), column.spoken),
        ),
        run=run,
        pre=pre,
        post=post,
        reads=frozenset({entity.plural}),
        writes=frozenset({entity.plural}),
        entity=entity.name,
        column=key,
    )
