"""An attempt as a page that a person reads: who said what, what was called, what changed, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stackloom.core.chat import Message
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
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return templates.get_template("transcript.html.tmpl").render(
        built=built,
        turns=[_turn(message) for message in (Message("user", built.request.opening), *messages)],
        verdict=verdict,
        changes=_changes(built, after),
        statements=[(item.noun, say(item.kind, item.value)) for item in built.statements],
        graph=Markup(draw(built)),
    )


def _turn(message: Message) -> dict[str, Any]:
    table = _table(message.content) if message.role == "tool" else None
    return {
        "role": message.role,
        "text": message.content,
        "calls": [
            (call.name, [(key, _plain(value)) for key, value in call.arguments.items()]) for call in message.tool_calls
        ],
        "name": message.name,
        "table": table,
        "failed": message.role == "tool" and message.content.startswith("Error:"),
    }


def _table(text: str) -> dict[str, Any] | None:
    """Return a tool's JSON answer as columns and rows; None for anything else."""
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
    return {"columns": columns, "rows": [[_plain(row.get(column)) for column in columns] for row in rows]}


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
