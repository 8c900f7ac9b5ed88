"""Where the registry keeps its rows: a `Store` is an SQLite file, memory, or a PostgreSQL database.

Reads are plain SQL with `?` placeholders, so that a read verb on SQLite needs the standard library alone: importing
SQLAlchemy takes a third of the command line's half second. Writes are functions of an SQLAlchemy connection, run inside
one transaction and, where the store had to be repaired, run again.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stackloom.core.errors import ConfigError
from stackloom.registry.errors import StorageError

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")
REVISIONS = ("0001", "0002")
"""Alembic revisions, oldest first; compared with the stored one in plain SQL, for importing Alembic is dear."""


class Store(ABC):
    """A place for the registry's rows.

    Attributes:
        name: the place as a user would recognise it, without a password.
        evidence_folder: where each row of evidence is kept as a file as well; absent for a server and for memory.
        notices: what a user should be told once.
        generation: counts how often the content was replaced under us (repaired, or swapped for memory).
        read_only: why nothing can be recorded, or empty.
    """

    def __init__(self, name: str, evidence_folder: Path | None = None) -> None:
        self.name, self.evidence_folder = name, evidence_folder
        self.notices: list[str] = []
        self.generation = 0
        self.read_only = ""

    @abstractmethod
    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query with `?` placeholders.

        Raises:
            StorageError: the store cannot be read.
        """

    @abstractmethod
    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction; it may run twice, the first run undone.

        Raises:
            StorageError: nothing was written.
        """

    def index(self, work: Callable[[Connection], T]) -> T:
        """Like `write`, for what discovery finds again: one process at a time, in memory where the disk refuses."""
        return self.write(work)

    def record(self, work: Callable[[Connection], T]) -> T:
        """Like `write`, for evidence and the ledger: when it returns, the rows survive a kill -9.

        Raises:
            StorageError: nothing was written, or the place is read-only.
        """
        if self.read_only:
            raise StorageError(
                f"nothing can be recorded here: {self.read_only}",
                where=self.name,
                fix="set STACKLOOM_HOME to a folder that you can write, or STACKLOOM_REGISTRY to a database",
            )
        return self.write(work)

    @abstractmethod
    def check(self) -> bool:
        """Look for silent damage and repair it; says whether all was well."""

    @abstractmethod
    def close(self) -> None:
        """Give the connections back."""


def default_home() -> Path:
    """`STACKLOOM_HOME`, or the user's data folder."""
    if home := os.environ.get("STACKLOOM_HOME"):
        return Path(home).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("stackloom", appauthor=False)


def open_store(url: str | None = None, home: Path | None = None) -> Store:
    """Open the store at `url`, `STACKLOOM_REGISTRY`, or `registry.db` in the home folder.

    Args:
        url: "sqlite:///relative.db", "sqlite:////absolute.db", "sqlite://" (memory) or "postgresql+psycopg://...".
        home: overrides `STACKLOOM_HOME`.

    Raises:
        ConfigError: a URL of another kind.
        StorageError: the database cannot be used.
    """
    from stackloom.registry.sqlite import SqliteStore

    url = url or os.environ.get("STACKLOOM_REGISTRY")
    if not url:
        return SqliteStore((home or default_home()) / "registry.db")
    scheme, separator, rest = url.partition("://")
    if separator and scheme.partition("+")[0] == "sqlite":
        return SqliteStore(Path(rest[1:]).absolute() if rest not in ("", "/:memory:") else None)
    if separator and scheme.partition("+")[0] in ("postgresql", "postgres"):
        from stackloom.registry.postgres import PostgresStore

        return PostgresStore(f"postgresql+psycopg://{rest}")
    raise ConfigError(
        f"{scheme!r} is no database that the registry can use",
        where="STACKLOOM_REGISTRY",
        fix="write sqlite:///path/registry.db or postgresql+psycopg://user@host/database",
    )


def create(connection: Connection) -> None:
    """Create all tables of the newest revision on an empty database."""
    from sqlalchemy import text

    from stackloom.registry.schema import metadata

    metadata.create_all(connection, checkfirst=False)
    connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": REVISIONS[-1]})


def migrate(connection: Connection) -> None:
    """Bring an older database to the newest revision; the only place that imports Alembic."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def needs_migration(stored: str, name: str) -> bool:
    """Whether a database of revision `stored` is older than this code.

    Raises:
        StorageError: it is newer.
    """
    if stored and stored not in REVISIONS:
        raise StorageError(
            f"was written by a newer stackloom (schema {stored}; this one knows up to {REVISIONS[-1]})",
            where=name,
            fix="upgrade stackloom, or set STACKLOOM_HOME to another folder",
        )
    return stored != REVISIONS[-1]
