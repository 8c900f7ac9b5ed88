"""An attempt as a page that a person reads: who said what, what was called, what changed, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stackloom.core.chat import Message
from stackloom.environments.acceptance import Call, as_call
from stackloom.environments.factory import BuiltTask
from stackloom.environments.values import say
from stackloom.environments.verifier import Verdict
from stackloom.environments.world import Contents
from stackloom.worlds.graph_svg import draw


def render(built: BuiltTask, messages: Sequence[Message], verdict: Verdict, after: Contents) -> str:
    """Return the page of one attempt.

    Args:
        built: the task.
        messages: the attempt, after the task's own messages.
        verdict: of it.
        after: the world as the attempt left it.
    """
    opening = Message("user", built.request.opening)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return templates.get_template("transcript.html.tmpl").render(
        built=built,
        turns=[_turn(built, message, messages[place:]) for place, message in enumerate((opening, *messages))],
        verdict=verdict,
        changes=_changes(built, after),
        statements=[(item.noun, say(item.kind, item.value)) for item in built.statements],
        graph=Markup(draw(built)),
    )


def _turn(built: BuiltTask, message: Message, later: Sequence[Message]) -> dict[str, Any]:
    """Return what the template shows of a message; calls of the golden chain have their numbers in it."""
    table = _table(message.content, _passed(later)) if message.role == "tool" else None
    golden = [as_call(built, step) for step in built.golden]
    return {
        "role": message.role,
        "text": message.content,
        "calls": [
            (
                _number(golden, Call(call.name, dict(call.arguments))),
                call.name,
                [(key, _plain(value)) for key, value in call.arguments.items()],
            )
            for call in message.tool_calls
        ],
        "name": message.name,
        "table": table,
        "failed": message.role == "tool" and message.content.startswith("Error:"),
    }


def _number(golden: Sequence[Call], made: Call) -> str:
    """Return a call's place in the golden chain, from 1; "" for any other call."""
    return str(golden.index(made) + 1) if made in golden else ""


def _passed(messages: Sequence[Message]) -> frozenset[str]:
    """Return what calls pass on."""
    calls = (call for message in messages for call in message.tool_calls)
    return frozenset(_plain(value) for call in calls for value in call.arguments.values())


def _table(text: str, passed: frozenset[str]) -> dict[str, Any] | None:
    """Return a tool's JSON answer as columns and rows of (cell, whether it is passed on); None for anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    lists = [item for item in value.values() if isinstance(item, list)]
    rows = lists[0] if len(value) == 1 and lists else [value]
    if not all(isinstance(row, dict) for row in rows):
        return None
    columns = list(rows[0]) if rows else []
    cells = [[_plain(row.get(column)) for column in columns] for row in rows]
    return {"columns": columns, "rows": [[(cell, cell in passed) for cell in row] for row in cells]}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _changes(built: BuiltTask, after: Contents) -> list[dict[str, Any]]:
    """Return every row that differs from the beginning, column by column."""
    found = []
    for entity in built.domain.blueprint.entities:
        before = {row["id"]: row for row in built.rows[entity.plural]}
        now = after[entity.plural]
        for row_id in sorted(before.keys() | now.keys()):
            old, new = before.get(row_id, {}), now.get(row_id, {})
            cells = [
                (column.spoken, _said(column.kind, old.get(column.name)), _said(column.kind, new.get(column.name)))
                for column in entity.columns
                if old.get(column.name) != new.get(column.name)
            ]
            if cells:
                kind = "changed" if old and new else "added" if new else "removed"
                found.append({"entity": entity.spoken, "id": row_id, "kind": kind, "cells": cells})
    return found


def _said(kind: Any, value: Any) -> str:
    return "" if value is None else say(kind, value)
