"""Rules of a written domain: untrusted Python that sees the rows it may read and returns the changes it wants."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stackloom.core.errors import PluginError
from stackloom.core.manifest import dotted, explain
from stackloom.core.slots.environment import ToolError
from stackloom.environments.domain import Given, Tells
from stackloom.environments.entities import Blueprint, Column, Row
from stackloom.environments.sandbox import MIB, Limits, Sandbox
from stackloom.environments.values import MAX_TEXT, Kind, parse
from stackloom.environments.world import View

LIMITS = Limits(seconds=5, memory=256 * MIB, processes=4, disk=MIB, output=256 * 1024)
KEPT = 4096  # answers of rules; a rule sees nothing but its input, so equal inputs have equal answers
NEW = "new-"
_PROGRAM = """
import json, sys

asked = json.loads(sys.stdin.read())
tables, log, made = asked["tables"], [], [0]


class World:
    today = asked["today"]

    def rows(self, table):
        if table not in tables:
            raise LookupError(f"table {table!r} stands in neither reads nor writes")
        return tables[table]

    def get(self, table, row_id):
        row = self.rows(table).get(row_id)
        log.append(["get", table, row_id])
        return None if row is None else dict(row)

    def select(self, table, **where):
        rows = sorted(self.rows(table).values(), key=lambda row: row["id"])
        log.append(["select", table])
        return [dict(row) for row in rows if all(row[name] == value for name, value in where.items())]

    def insert(self, table, **values):
        made[0] += 1
        row = {"id": f"new-{made[0]}", **values}
        self.rows(table)[row["id"]] = row
        log.append(["insert", table, row["id"], values])
        return dict(row)

    def update(self, table, row_id, **changes):
        self.rows(table)[row_id].update(changes)
        log.append(["update", table, row_id, changes])

    def delete(self, table, row_id):
        del self.rows(table)[row_id]
        log.append(["delete", table, row_id])


space = {}
out = sys.stdout
sys.stdout = sys.stderr  # what the rule prints is no answer
try:
    exec(compile(asked["code"], "rule.py", "exec"), space)
    db, given = World(), asked["given"]
    refused = space["pre"](db, dict(given)) if "pre" in space else ""
    seen = len(log)
    answer = None if refused else space["run"](db, dict(given))
    found = {"refused": refused or "", "seen": seen, "log": log, "answer": answer}
except BaseException as error:
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "rule.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    found = {"error": f"line {line}: {type(error).__name__}: {error}"}
out.write(json.dumps(found))
"""


class _Found(BaseModel):
    """What the program answers. Nothing in it is trusted."""

    model_config = ConfigDict(extra="forbid", strict=True)
    refused: str = ""
    seen: int = 0
    log: list[
        tuple[Literal["get"], str, str]
        | tuple[Literal["select"], str]
        | tuple[Literal["insert"], str, str, dict[str, Any]]
        | tuple[Literal["update"], str, str, dict[str, Any]]
        | tuple[Literal["delete"], str, str]
    ] = []
    answer: dict[str, Any] | None = None
    error: str = ""


@dataclass
class Rules:
    """Runs the rules of one domain in a sandbox.

    A rule gets the rows of the tables that its action declares, and nothing else. What it read and what it changed
    comes back as a log, is checked against the columns' types, and is then done again in the world.

    Args:
        sandbox: where the code runs.
        domain: its name, for errors.
        blueprint: its entities.
    """

    sandbox: Sandbox
    domain: str
    blueprint: Blueprint
    _known: OrderedDict[bytes, _Found] = field(default_factory=OrderedDict, repr=False)

    def pre(self, action: str, code: str, db: View, given: Given) -> str:
        """Return why the rule refuses, or "".

        Raises:
            PluginError: the code is broken, takes too long or answers out of shape.
        """
        found = self._ask(action, code, db, given)
        if any(verb not in ("get", "select") for verb, *_ in found.log[: found.seen]):
            raise PluginError("pre changes the world", where=f"{self.domain}.{action}")
        self._replay(action, db, found.log[: found.seen])
        return found.refused[:MAX_TEXT]

    def run(self, action: str, code: str, tells: Sequence[Tells], db: View, given: Given) -> Row:
        """Do what the rule does, and return its answer.

        Raises:
            PluginError: as for `pre`; also for a value that its column cannot hold.
        """
        found = self._ask(action, code, db, given)
        where = f"{self.domain}.{action}"
        if found.refused or found.answer is None:
            raise PluginError("run returned no dict", where=where)
        new = self._replay(action, db, found.log[found.seen :])
        answer = {
            name: new.get(value, value) if isinstance(value, str) else value for name, value in found.answer.items()
        }
        for tell in tells:
            if tell.name in answer and (why := misfit(tell.kind, answer[tell.name])):
                raise PluginError(f"the answer's {tell.name} {why}", where=where)
        return answer

    def _ask(self, action: str, code: str, db: View, given: Given) -> _Found:
        asked = {"code": code, "tables": db.peek(), "given": given, "today": db.today}
        text = json.dumps(asked, sort_keys=True).encode()
        if (known := self._known.get(text)) is not None:
            self._known.move_to_end(text)
            return known
        where = f"{self.domain}.{action}"
        outcome = self.sandbox.run(_PROGRAM, stdin=text, limits=LIMITS)
        if outcome.status != "ok":
            why = {"timeout": f"took over {LIMITS.seconds:g} s", "output": "wrote too much"}.get(
                outcome.status, f"died: {outcome.stderr.strip()[-200:]}"
            )
            raise PluginError(f"the rule {why}", where=where)
        try:
            found = _Found.model_validate_json(outcome.stdout)
        except ValidationError as cause:
            raise PluginError(f"the rule answers out of shape: {_first(cause)}", where=where) from None
        if found.error:
            raise PluginError(f"the rule fails, {found.error[:MAX_TEXT]}", where=where)
        self._known[text] = found
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return found

    def _replay(self, action: str, db: View, log: Sequence[Any]) -> dict[str, str]:
        """Read and change in the world what the rule read and changed; return the ids of new rows."""
        new: dict[str, str] = {}
        for verb, table, *rest in log:
            where = f"{self.domain}.{action}"
            if table not in self.blueprint.by_table:
                raise PluginError(f"there is no table {str(table)[:40]!r}", where=where)
            if verb == "select":
                db.select(table)
                continue
            row_id = new.get(rest[0], rest[0])
            if verb == "get":
                db.get(table, row_id)
            elif verb == "delete":
                db.delete(table, row_id)
            else:
                values = {
                    name: new.get(value, value) if isinstance(value, str) else value for name, value in rest[1].items()
                }
                self._check(where, table, values, whole=verb == "insert")
                if verb == "insert":
                    new[row_id] = db.insert(table, **values)["id"]
                else:
                    db.update(table, row_id, **values)
        return new

    def _check(self, where: str, table: str, values: Mapping[str, Any], *, whole: bool) -> None:
        columns = self.blueprint.by_table[table].by_name
        if unknown := sorted(set(values) - set(columns)):
            raise PluginError(f"{table} has no column {unknown[0][:40]!r}", where=where)
        if whole and (lost := sorted(set(columns) - set(values))):
            raise PluginError(f"a new row of {table} lacks {', '.join(lost)}", where=where)
        for name, value in values.items():
            column: Column = columns[name]
            if why := misfit(column.kind, value, choices=column.choices, low=column.low, high=column.high):
                raise PluginError(f"{table}.{name} {why}", where=where)


def misfit(kind: Kind, value: Any, *, choices: Sequence[str] = (), low: int = -(10**9), high: int = 10**9) -> str:
    """Return why a world cannot store a value of a kind, or "".

    Example:
        >>> misfit("money", 12.5), misfit("date", "2026-05-01")
        ('is a whole number, of cents for an amount; got 12.5', '')
    """
    number = kind in ("integer", "money")
    if number and type(value) is not int:
        return f"is a whole number, of cents for an amount; got {str(value)[:40]}"
    written: Kind = "integer" if number else "text" if kind == "choice" and not choices else kind
    try:
        parse(written, value, "", choices=choices, low=low, high=high)
    except ToolError as cause:
        return str(cause).strip()
    return ""


def _first(cause: ValidationError) -> str:
    error = cause.errors()[0]
    return f"{dotted(error['loc'][:3])}: {explain(error, _Found)}"[:MAX_TEXT]
