"""Evidence: what `stackloom repro` measured. Rows are appended, never changed; the newest one speaks.

Every row is kept twice: in the database, and as `<digest>.json` in the home's evidence folder, from which a damaged
database is rebuilt. A row's digest is the sha256 of its content, so importing the same row twice changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from stackloom.core.catalogue import PluginRecord
from stackloom.core.errors import EngineError
from stackloom.core.rows import EvidenceRow
from stackloom.registry.atomic import write_atomic
from stackloom.registry.errors import StorageError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from stackloom.registry.storage import Store

MAX_FILE_BYTES = 16 * 1024 * 1024
_COLUMNS = "digest, plugin, claim, scale, verdict, instant, content"
_INSERT = f"INSERT INTO evidence ({_COLUMNS}) VALUES (:{_COLUMNS.replace(', ', ', :')}) ON CONFLICT DO NOTHING"


@dataclass(frozen=True)
class Imported:
    """What an import did: rows added, rows known already, and files that are not evidence with the reason."""

    added: int
    known: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Stale:
    """Evidence of another state of the plugin than the installed one."""

    row: EvidenceRow
    reason: str


class Evidence:
    """The evidence of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def append(self, row: EvidenceRow) -> str:
        """Keep a row for good and return its digest.

        Raises:
            EngineError: the row holds a number or a date that JSON cannot.
            StorageError: it could not be kept; nothing of it was.
        """
        digest = digest_of(row)
        folder = self._store.evidence_folder
        file = folder / f"{digest}.json" if folder else None
        existed = file is not None and file.exists()

        def work(connection: Connection) -> None:
            add(connection, row)
            if file and not existed:
                write_atomic(file, _document(row))

        try:
            self._store.record(work)
        except StorageError:
            if file and not existed:  # the file was written, but the database refused to commit
                _remove(file)
            raise
        return digest

    def rows(
        self, plugin: str | None = None, claim: str | None = None, *, limit: int | None = None, offset: int = 0
    ) -> list[EvidenceRow]:
        """Return evidence, the newest first."""
        wanted = {"plugin": plugin, "claim": claim}
        chosen = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in chosen) or "1 = 1"
        page = " LIMIT ? OFFSET ?" if limit is not None else ""
        found = self._store.read(
            f"SELECT content FROM evidence WHERE {where} ORDER BY instant DESC, digest{page}",
            (*chosen.values(), *((limit, offset) if limit is not None else ())),
        )
        return [EvidenceRow.model_validate_json(content) for (content,) in found]

    def plugins(self) -> set[str]:
        """The ids that any evidence is about."""
        return {plugin for (plugin,) in self._store.read("SELECT DISTINCT plugin FROM evidence")}

    def import_folder(self, folder: Path) -> Imported:
        """Take in committed evidence: every `*.json` below `folder`, each one row or a list of rows.

        Raises:
            StorageError: the store cannot be written.
        """
        rows, problems = read_folder(folder)
        known = {digest for (digest,) in self._store.read("SELECT digest FROM evidence")}
        fresh = {digest: row for row in rows if (digest := digest_of(row)) not in known}
        for digest, row in fresh.items():
            if self._store.evidence_folder and not self._store.read_only:
                write_atomic(self._store.evidence_folder / f"{digest}.json", _document(row))
        if fresh:
            self._store.index(lambda connection: [add(connection, row) for row in fresh.values()])
        return Imported(len(fresh), len(rows) - len(fresh), tuple(problems))

    def stale(self, record: PluginRecord) -> list[Stale]:
        """Return the evidence about `record` that was measured on something else than what is installed.

        A row tells by its `versions`: the distribution's version under the distribution's name, and, where the writer
        put it there, the digest of the plugin's folder under the plugin's id.
        """
        found = []
        for row in self.rows(record.id):
            measured = row.versions.get(record.distribution)
            digest = row.versions.get(record.id)
            if measured is not None and measured != record.version:
                found.append(
                    Stale(row, f"measured with {record.distribution} {measured}, installed is {record.version}")
                )
            elif digest is not None and digest != record.digest:
                found.append(Stale(row, "the plugin's files have changed since"))
        return found


def digest_of(row: EvidenceRow) -> str:
    """The sha256 of a row's content."""
    return hashlib.sha256(_content(row).encode()).hexdigest()


def add(connection: Connection, row: EvidenceRow) -> int:
    """Insert a row unless it is there; says how many rows that added."""
    from sqlalchemy import text

    values = {"digest": digest_of(row), "instant": _instant(row), "content": _content(row)}
    return connection.execute(
        text(_INSERT), values | row.model_dump(include={"plugin", "claim", "scale", "verdict"})
    ).rowcount


def read_folder(folder: Path, *, named_by_digest: bool = False) -> tuple[list[EvidenceRow], list[str]]:
    """Read every evidence file below `folder`.

    Args:
        folder: where to look; may be absent.
        named_by_digest: whether each file must bear its row's digest as its name, as the registry's own files do.

    Returns:
        The rows, and one line for each file that is damaged or something else.
    """
    rows: list[EvidenceRow] = []
    problems: list[str] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            found = list(rows_in(path))
            if named_by_digest and [digest_of(row) for row in found] != [path.stem]:
                raise ValueError("content does not match the name")
        except ValidationError as error:
            problems.append(f"{path}: not an evidence row: {error.errors()[0]['loc']} {error.errors()[0]['msg']}")
        except (OSError, ValueError, RecursionError, EngineError) as cause:
            problems.append(f"{path}: {cause}")
        else:
            rows += found
    return rows, problems


def rows_in(path: Path) -> Iterator[EvidenceRow]:
    """Yield the rows of one file, a row or a list of rows.

    Raises:
        OSError, ValueError, RecursionError, EngineError: it is no evidence.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
    document = json.loads(path.read_bytes())
    for item in document if isinstance(document, list) else [document]:
        row = EvidenceRow.model_validate(item)
        digest_of(row)
        _instant(row)
        yield row


def _content(row: EvidenceRow) -> str:
    """Canonical JSON; refuses what would not read back equal."""
    try:  # the fields as they are: a dump turns NaN into null
        json.dumps([row.paper, row.ours, row.baseline, row.seconds, row.interval, row.details], allow_nan=False)
    except (TypeError, ValueError) as cause:
        raise EngineError(
            f"evidence holds what JSON cannot ({cause}); leave `ours` out and give the verdict 'error'",
            where=f"{row.plugin} {row.claim}",
        ) from cause
    content = json.dumps(_plain(row), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if "\\u0000" in content or not _encodable(content):
        raise EngineError("evidence holds text that a database cannot", where=ascii(f"{row.plugin} {row.claim}"))
    return content


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _instant(row: EvidenceRow) -> str:
    try:
        instant = datetime.fromisoformat(row.date)
    except ValueError as cause:
        raise EngineError(
            f"evidence has a date that is not ISO 8601: {row.date!r}", where=f"{row.plugin} {row.claim}"
        ) from cause
    return (
        (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="microseconds")
    )


def write_rows(path: Path, rows: Iterable[EvidenceRow]) -> None:
    """Write rows to one file that `import_folder` takes in.

    Raises:
        StorageError: it cannot be written; what was there is still there.
    """
    write_atomic(path, _text([_plain(row) for row in rows]))


def _document(row: EvidenceRow) -> bytes:
    return _text(_plain(row))


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _plain(row: EvidenceRow) -> dict[str, Any]:
    """A row's fields without those at their defaults, so that a field added later changes no older row's digest."""
    return row.model_dump(mode="json", exclude_defaults=True)


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as cause:
        raise StorageError(
            f"refused evidence cannot be removed: {cause.strerror}", where=str(file), fix="delete the file"
        ) from cause
