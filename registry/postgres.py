"""The registry in PostgreSQL, for a team or a cluster: `STACKLOOM_REGISTRY=postgresql+psycopg://...`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from stackloom.core.errors import ConfigError
from stackloom.registry.errors import StorageError
from stackloom.registry.storage import Store, T, create, migrate, needs_migration

_LOCK = 0x5741_4C4F  # any number, the same in every process: serialises index writers and migrations
# to_regclass() would be shorter, but answers from a cache that may not know yet what another process just committed
_IS_SET_UP = (
    "SELECT 1 FROM information_schema.tables WHERE table_name = 'alembic_version' AND table_schema = current_schema()"
)


class PostgresStore(Store):
    """A PostgreSQL database; each read takes a connection of the pool, which checks that it is alive.

    Raises:
        ConfigError: the driver is not installed or the URL is none.
        StorageError: the server cannot be reached, or holds a newer schema.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            self._engine = create_engine(parsed, pool_pre_ping=True)
        except ImportError as cause:
            raise ConfigError(
                f"PostgreSQL needs its driver: {cause}", where="STACKLOOM_REGISTRY", fix="pip install 'psycopg[binary]'"
            ) from cause
        except (SQLAlchemyError, ValueError) as cause:
            raise ConfigError(
                "not a database URL", where="STACKLOOM_REGISTRY", fix="write postgresql+psycopg://user@host/database"
            ) from cause
        super().__init__(parsed.render_as_string(hide_password=True))
        if self._outdated():
            self.index(self._bring_up_to_date)

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query with `?` placeholders."""
        try:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                rows = connection.exec_driver_sql(sql.replace("?", "%s"), tuple(parameters)).all()
        except DBAPIError as error:
            raise self._typed(error) from error
        return [tuple(row) for row in rows]

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction."""
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            raise self._typed(error) from error

    def index(self, work: Callable[[Connection], T]) -> T:
        """Like `write`, after every other process that indexes or migrates."""

        def after_the_others(connection: Connection) -> T:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            return work(connection)

        return self.write(after_the_others)

    def check(self) -> bool:
        """PostgreSQL looks after its files itself; this asks whether it answers."""
        return self.read("SELECT 1") == [(1,)]

    def close(self) -> None:
        """Close the pool."""
        self._engine.dispose()

    def _outdated(self) -> bool:
        if not self.read(_IS_SET_UP):
            return True
        stored = self.read("SELECT version_num FROM alembic_version")
        return needs_migration(str(stored[0][0]) if stored else "", self.name)

    def _bring_up_to_date(self, connection: Connection) -> None:
        """Create or migrate, unless another process did while we waited for the lock."""
        if connection.execute(text(_IS_SET_UP)).first() is None:
            create(connection)
        elif needs_migration(
            str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or ""), self.name
        ):
            migrate(connection)

    def _typed(self, error: DBAPIError) -> StorageError:
        fix = "see that the server runs and accepts this user" if isinstance(error, OperationalError) else ""
        return StorageError(str(error.orig).strip(), where=self.name, fix=fix)
