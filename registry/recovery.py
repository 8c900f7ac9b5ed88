"""Bring evidence and the ledger back from a damaged or read-only database file, as far as it can be read."""

from __future__ import annotations

import contextlib
import glob
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, Table, insert

from stackloom.core.errors import StackloomError
from stackloom.core.rows import EvidenceRow
from stackloom.registry.evidence import add, digest_of, read_folder
from stackloom.registry.schema import KEPT, artifacts, evidence, metrics, stages


def set_aside(path: Path) -> Path:
    """Rename the database and its log to `<name>.corrupt-<timestamp>` and return the new path."""
    aside = path.with_name(f"{path.name}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
    path.rename(aside)
    with contextlib.suppress(FileNotFoundError):
        path.with_name(f"{path.name}-wal").rename(aside.with_name(f"{aside.name}-wal"))
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    return aside


def last_set_aside(path: Path) -> Path | None:
    """The newest file that `set_aside` made of the database at `path`."""
    return max(path.parent.glob(f"{glob.escape(path.name)}.corrupt-*Z"), default=None)


def bring_back(connection: Connection, file: Path | None, evidence_folder: Path) -> str:
    """Copy the rows of `file` and the files of `evidence_folder` into a new, empty database.

    Returns:
        What came back and what did not, in a sentence.
    """
    report: list[str] = []
    kept: dict[str, set[Any]] = {}
    for table in KEPT if file else ():
        rows, lost = _rows(file, table) if file else ([], "")
        whole = [row for row in rows if _holds(table, row, kept)]
        lost = lost or (f"{len(rows) - len(whole)} damaged or without their run" if len(whole) < len(rows) else "")
        if whole:
            connection.execute(insert(table), whole)
        kept[table.name] = {_key(table, row) for row in whole}
        report.append(f"{table.name} {len(whole)}" + (f" ({lost})" if lost else ""))
    found, problems = read_folder(evidence_folder, named_by_digest=True)
    added = sum(add(connection, row) for row in found)
    report += [f"{added} more rows of evidence from their files", *(f"not read: {problem}" for problem in problems)]
    return f"rows brought back: {', '.join(report)}."


def _holds(table: Table, row: dict[str, Any], kept: dict[str, set[Any]]) -> bool:
    """Whether a salvaged row is whole: evidence is what its digest says, and nothing lacks the run that it is of."""
    if table is evidence:
        try:
            return digest_of(EvidenceRow.model_validate_json(row["content"])) == str(row["digest"])
        except (ValidationError, StackloomError):
            return False
    if table is stages:
        return row["run"] in kept["runs"]
    return table not in (artifacts, metrics) or (row["run"], row["stage"]) in kept["stages"]


def _key(table: Table, row: dict[str, Any]) -> Any:
    key = tuple(row[column.name] for column in table.primary_key)
    return key if len(key) > 1 else key[0]


def _rows(file: Path, table: Table) -> tuple[list[dict[str, Any]], str]:
    """The readable rows of a table, from its start to the damage and from its end back to it, and what is missing."""
    found: dict[Any, dict[str, Any]] = {}
    failure = ""
    try:
        with contextlib.closing(_open(file)) as connection:
            there = {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table.name})")}
            wanted = [column for column in table.columns if column.name in there or not column.nullable]  # older files
            columns = ", ".join(column.name for column in wanted)
            for order in ("ASC", "DESC"):
                try:
                    for values in connection.execute(f"SELECT {columns} FROM {table.name} ORDER BY rowid {order}"):
                        row = dict(zip((column.name for column in wanted), values, strict=True))
                        if all(
                            value is not None or column.nullable for value, column in zip(values, wanted, strict=True)
                        ):
                            found.setdefault(_key(table, row), row)
                except (sqlite3.DatabaseError, UnicodeDecodeError) as cause:
                    failure = str(cause)
                else:
                    break
    except sqlite3.DatabaseError as cause:
        failure = str(cause)
    return list(found.values()), f"others unreadable: {failure}" if failure else ""


def _open(file: Path) -> sqlite3.Connection:
    """Open a file that we must not change: with its log, or without where the folder refuses that."""
    for option in ("mode=ro", "immutable=1"):
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?{option}", uri=True)
        try:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        except sqlite3.OperationalError:
            connection.close()
        else:
            return connection
    raise sqlite3.OperationalError("it cannot be opened")
