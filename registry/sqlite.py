"""The registry in an SQLite file: write-ahead log, one writer, repaired when damaged, memory when read-only."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackloom.registry.errors import StorageError
from stackloom.registry.storage import Store, T, create, migrate, needs_migration

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

WAIT_SECONDS = 30.0
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_UNUSABLE = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_PERM,
}


class SqliteStore(Store):
    """One SQLite file, or memory where `path` is absent.

    Readers never wait for the writer. What a call acknowledged survives kill -9 (write-ahead log, synchronous=NORMAL);
    evidence also survives a loss of power, as a file of its own.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__(str(path or "memory"), path.parent / "evidence" if path else None)
        self.path = path
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._connection: sqlite3.Connection
        self._inode: tuple[int, int] | None = None
        if path is None:
            self._connect_memory(None)
            return
        try:
            try:
                self._connect(path)
                self._ensure_schema(path)
            except sqlite3.DatabaseError as cause:
                if _code(cause) not in _DAMAGED:
                    raise
                self._rebuild(path, str(cause))
        except (OSError, sqlite3.DatabaseError) as cause:
            if isinstance(cause, sqlite3.DatabaseError) and _code(cause) not in _UNUSABLE:
                raise self._typed(cause) from cause
            self._fall_back_to_memory(path, _reason(cause))

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query with `?` placeholders, repairing a damaged file on the way."""
        with self._lock:
            try:
                return self._connection.execute(sql, parameters).fetchall()
            except sqlite3.DatabaseError as cause:
                if self.path is None or _code(cause) not in _DAMAGED:
                    raise self._typed(cause) from cause
                self._repair(self.path, str(cause))
                return self.read(sql, parameters)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` inside BEGIN IMMEDIATE ... COMMIT, once more if the file had to be repaired."""
        from sqlalchemy.exc import DBAPIError

        with self._lock:
            self._follow_replacement()
            try:
                with self._sqlalchemy().begin() as connection:
                    return work(connection)
            except DBAPIError as error:
                cause = error.orig if isinstance(error.orig, sqlite3.Error) else sqlite3.Error(str(error))
                if self.path is None or _code(cause) not in _DAMAGED:
                    raise self._typed(cause) from error
                self._repair(self.path, str(cause))
            return self.write(work)

    def index(self, work: Callable[[Connection], T]) -> T:
        """Like `write`; where the folder turns out to be read-only or full, in memory."""
        try:
            return self.write(work)
        except StorageError as error:
            cause = error.__cause__ and getattr(error.__cause__, "orig", None)
            if self.path is None or self.read_only or _code(cause) not in _UNUSABLE:
                raise
            self._fall_back_to_memory(self.path, _reason(cause))
            return self.write(work)

    def check(self) -> bool:
        """Run SQLite's quick check; a damaged file is set aside and rebuilt."""
        before = self.generation
        verdict = self.read("PRAGMA quick_check(1)")
        if verdict != [("ok",)] and self.path is not None and self.generation == before:
            self._repair(self.path, str(verdict[0][0]))
        return self.generation == before

    def close(self) -> None:
        """Close the connection; the last process to do so folds the log into the file."""
        with self._lock:
            self._connection.close()
            self._engine = None

    def _connect(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            before = _inode(path)
            connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
            self._inode = _inode(path)
            if before in (None, self._inode):  # otherwise the file was replaced while we opened it: which one have we?
                break
            connection.close()
        self._use(connection)

    def _connect_memory(self, instead_of: Path | None) -> None:
        self._inode = None
        self._use(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False))
        with self._sqlalchemy().begin() as connection:
            create(connection)
            if instead_of:
                from stackloom.registry.recovery import bring_back, last_set_aside

                file = instead_of if instead_of.exists() else last_set_aside(instead_of)
                bring_back(connection, file, instead_of.parent / "evidence")

    def _use(self, connection: sqlite3.Connection) -> None:
        with contextlib.suppress(AttributeError):
            self._connection.close()
        self._connection, self._engine = connection, None
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    def _sqlalchemy(self) -> Engine:
        if self._engine is None:
            from sqlalchemy import create_engine, event
            from sqlalchemy.pool import StaticPool

            held = self._connection
            self._engine = create_engine("sqlite://", creator=lambda: held, poolclass=StaticPool)
            event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        return self._engine

    def _ensure_schema(self, path: Path, damage: str = "") -> None:
        stored = self._revision()
        if stored is not None and not needs_migration(stored, self.name):
            return
        from sqlalchemy.exc import DBAPIError

        with _alone(path):  # one process creates or migrates, the others wait and find it done
            stored = self._revision()
            try:
                if stored is None:
                    if self._connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchone():
                        raise StorageError(
                            "is an SQLite database of something else",
                            where=self.name,
                            fix="move it away, or set STACKLOOM_HOME to another folder",
                        )
                    self._connection.execute("PRAGMA journal_mode=WAL")
                    self._create(path, damage)
                elif needs_migration(stored, self.name):
                    with self._sqlalchemy().begin() as connection:
                        migrate(connection)
            except DBAPIError as error:
                if isinstance(error.orig, sqlite3.DatabaseError):
                    raise error.orig from error
                raise

    def _create(self, path: Path, damage: str) -> None:
        """Make the tables and fill them again if a damaged file was set aside here, or evidence lies here, at once."""
        from stackloom.registry.recovery import bring_back, last_set_aside

        aside = last_set_aside(path)
        with self._sqlalchemy().begin() as connection:
            create(connection)
            report = bring_back(connection, aside, path.parent / "evidence")
        if aside:
            cause = f" ({damage})" if damage else ""
            self.notices.append(f"{path} was damaged{cause}, is kept as {aside.name} and was made anew; {report}")

    def _revision(self) -> str | None:
        try:
            row = self._connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError as cause:
            if "no such table" in str(cause):
                return None
            raise
        return str(row[0]) if row else ""

    def _follow_replacement(self) -> None:
        """Another process may have set a damaged file aside: never write into the one that was moved."""
        if self.path is None or self._inode is None:
            return
        if _inode(self.path) != self._inode:
            self._connect(self.path)
            self._ensure_schema(self.path)
            self.generation += 1

    def _repair(self, path: Path, reason: str) -> None:
        try:
            self._rebuild(path, reason)
        except (OSError, sqlite3.DatabaseError) as cause:
            self._fall_back_to_memory(path, _reason(cause))

    def _rebuild(self, path: Path, reason: str) -> None:
        """Set the damaged file aside, start a new one, and bring back evidence and ledger."""
        from stackloom.registry.recovery import set_aside

        with _alone(path):
            self._connection.close()
            if _inode(path) == self._inode:  # otherwise another process was faster
                set_aside(path)
        self._connect(path)
        self._ensure_schema(path, reason)
        self.generation += 1

    def _fall_back_to_memory(self, path: Path, reason: str) -> None:
        self._connect_memory(path)
        self.generation += 1
        if not self.read_only:
            self.notices.append(
                f"{path.parent} cannot be written ({reason}): reading works from memory, recording does not. "
                "Set STACKLOOM_HOME to a folder that you can write."
            )
        self.read_only = reason

    def _typed(self, cause: sqlite3.Error) -> StorageError:
        fix = (
            "free some space or set STACKLOOM_HOME to a folder that you can write" if _code(cause) in _UNUSABLE else ""
        )
        return StorageError(_reason(cause), where=self.name, fix=fix)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_dev, state.st_ino


def _code(cause: BaseException | None) -> int:
    return getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the extended codes carry the primary one in their low byte


def _reason(cause: BaseException | None) -> str:
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock against other processes that dies with ours: an exclusive transaction on a database made for it."""
    lock = sqlite3.connect(os.fspath(path) + ".lock", timeout=WAIT_SECONDS, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        lock.close()
