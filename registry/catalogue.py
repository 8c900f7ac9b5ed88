"""The catalogue: which plugins are installed, served from an index that follows the environment."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from stackloom.core.catalogue import PluginRecord
from stackloom.core.errors import ConfigError, PluginError, did_you_mean
from stackloom.core.manifest import Claim, Manifest
from stackloom.core.rows import PluginRow
from stackloom.registry.discovery import Discovery, Problem, locate, read_manifests
from stackloom.registry.evidence import Evidence
from stackloom.registry.ledger import Ledger
from stackloom.registry.storage import Store, open_store

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

    from stackloom.registry.search import SearchResult

SNAPSHOTS_KEPT = 8
_ROW = "id, slot, version, lifecycle, paper, origin"
_PROBLEM = "source, distribution, version, message"
_RECORD = "SELECT manifest, origin, dist_version, package, folder FROM plugins WHERE snapshot = ? AND id = ?"


@dataclass(frozen=True)
class Slot:
    """A slot as the installed plugins speak it: its name, the version of its contract, how many plugins."""

    name: str
    api: str
    plugins: int


class Registry:
    """Installed plugins, evidence and runs. Implements `core.catalogue.Catalogue`; no plugin code ever runs here.

    Attributes:
        evidence: what was measured.
        ledger: what ran.
        search_path: where distributions are looked for; `sys.path` if absent.
    """

    def __init__(self, store: Store, search_path: Sequence[str] | None = None) -> None:
        self.evidence, self.ledger = Evidence(store), Ledger(store)
        self._store, self.search_path = store, search_path
        self._snapshot = -1
        self._fingerprint = ""
        self._generation = store.generation
        self._records: dict[str, PluginRecord] = {}

    @property
    def notices(self) -> list[str]:
        """What a user should be told once: a read-only home, a rebuilt file."""
        return self._store.notices

    def refresh(self) -> None:
        """Look at the environment and index it again if a plugin came, went or changed; a few stats when none did."""
        located = locate(self.search_path)
        if located.fingerprint == self._fingerprint and self._store.generation == self._generation:
            return
        snapshot = self._snapshot_of(located.fingerprint)
        if snapshot is None:
            self._store.check()
            discovery = read_manifests(located)
            snapshot = self._store.index(lambda connection: _store_snapshot(connection, located.fingerprint, discovery))
        self._snapshot, self._fingerprint, self._generation = snapshot, located.fingerprint, self._store.generation
        self._records.clear()

    def get(self, plugin: str) -> PluginRecord:
        """Return the record of `plugin`.

        Raises:
            ConfigError: not installed; suggests the nearest id.
            PluginError: installed, but broken, or claimed by two distributions; names them.
        """
        if record := self._records.get(plugin):
            return record
        if not (found := self._read(_RECORD, plugin)):
            raise self._absent(plugin)
        manifest, distribution, version, package, folder = found[0]
        record = PluginRecord(Manifest.model_validate_json(manifest), distribution, version, package, Path(folder))
        self._records[plugin] = record
        return record

    def ids(self) -> list[str]:
        """All ids that can be asked for, sorted."""
        return [plugin for (plugin,) in self._read("SELECT id FROM plugins WHERE snapshot = ? ORDER BY id")]

    def rows(
        self,
        slot: str | None = None,
        paper: str | None = None,
        lifecycle: str | None = None,
        origin: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[PluginRow]:
        """Return the plugins that match every given facet, sorted by id."""
        wanted = {"slot": slot, "paper": paper, "lifecycle": lifecycle, "origin": origin}
        chosen = {name: value for name, value in wanted.items() if value is not None}
        where = "".join(f" AND {name} = ?" for name in chosen)
        page, window = (" LIMIT ? OFFSET ?", (limit, offset)) if limit is not None else ("", ())
        found = self._read(
            f"SELECT {_ROW} FROM plugins WHERE snapshot = ?{where} ORDER BY id{page}", *chosen.values(), *window
        )
        return [plugin_row(values) for values in found]

    def search(self, text: str, *, limit: int | None = None, **facets: str | bool | None) -> SearchResult:
        """Return the plugins whose id, summary, keywords, paper or claims hold every word of `text`, the best first.

        Args:
            text: words, in any case; empty for all plugins.
            limit: how many rows to return at most; totals and facets count all.
            facets: slot, paper, dtype, device, lifecycle, origin, evidence (a bool).

        Raises:
            ConfigError: an unknown facet.
        """
        from stackloom.registry.search import search

        return search(self._read, self.evidence.plugins, text, facets, limit)

    def slots(self) -> list[Slot]:
        """Return the slots that any installed plugin fills."""
        return [
            Slot(*row) for row in self._read("SELECT name, api, plugins FROM slots WHERE snapshot = ? ORDER BY api")
        ]

    def claims(self, plugin: str | None = None) -> list[tuple[str, Claim]]:
        """Return (plugin id, claim) of one plugin or of all, in the order of id and name."""
        chosen, parameters = (" AND plugin = ?", (plugin,)) if plugin is not None else ("", ())
        found = self._read(
            f"SELECT plugin, claim FROM claims WHERE snapshot = ?{chosen} ORDER BY plugin, name", *parameters
        )
        return [(owner, Claim.model_validate_json(claim)) for owner, claim in found]

    def problems(self) -> list[Problem]:
        """Return what keeps plugins out of the catalogue."""
        return [
            Problem(*row)
            for row in self._read(f"SELECT {_PROBLEM}, plugin FROM problems WHERE snapshot = ? ORDER BY position")
        ]

    def check(self) -> bool:
        """Look for silent damage of the database and repair it; says whether all was well, `notices` what was done."""
        return self._store.check()

    def export(self, path: Path) -> Path:
        """Write plugins, slots, claims, evidence and problems to one JSON file; equal content gives equal bytes."""
        from stackloom.registry.export import export

        return export(self, path)

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, sql: str, *parameters: Any) -> list[Any]:
        """Query the snapshot; index anew if the store was repaired or another process dropped the snapshot."""
        while True:
            if self._store.generation != self._generation:
                self.refresh()
            found = self._store.read(sql, (self._snapshot, *parameters))
            if self._store.generation != self._generation:
                continue
            if found or self._store.read("SELECT 1 FROM snapshots WHERE id = ?", (self._snapshot,)):
                return found
            self._fingerprint = ""
            self.refresh()

    def _snapshot_of(self, fingerprint: str) -> int | None:
        found = self._store.read("SELECT id FROM snapshots WHERE fingerprint = ?", (fingerprint,))
        return int(found[0][0]) if found else None

    def _absent(self, plugin: str) -> ConfigError | PluginError:
        found = self._read(f"SELECT {_PROBLEM} FROM problems WHERE snapshot = ? AND plugin = ?", plugin)
        if found:
            source, distribution, version, message = found[0]
            return PluginError(
                f"{plugin!r} is installed but cannot be used: {message}",
                where=f"{distribution} {version}, {source}",
                fix=f"tell the author of {distribution}, or uninstall it; `stackloom doctor` lists every such plugin",
            )
        near = did_you_mean(plugin, self.ids())
        return ConfigError(
            f"no plugin {plugin!r} is installed",
            where=plugin,
            fix=near or "`stackloom list` shows what is installed; install the distribution that ships it with pip",
        )


def open_registry(
    url: str | None = None, home: Path | None = None, search_path: Sequence[str] | None = None
) -> Registry:
    """Open the registry and bring its index up to date.

    Args:
        url: database URL; `STACKLOOM_REGISTRY`, or a file in the home folder, if absent.
        home: the home folder; `STACKLOOM_HOME`, or the user's data folder, if absent.
        search_path: folders to look for distributions in; `sys.path` if absent.

    Raises:
        ConfigError: the URL is none.
        StorageError: the database cannot be used at all.

    Example:
        >>> with open_registry() as registry:
        ...     rows = registry.rows(slot="optimizer")
    """
    store = open_store(url, home)
    try:
        registry = Registry(store, search_path)
        registry.refresh()
    except BaseException:
        store.close()
        raise
    return registry


def plugin_row(values: Sequence[str]) -> PluginRow:
    """A row from its stored columns, which were validated when they were indexed."""
    return PluginRow.model_construct(None, **dict(zip(PluginRow.model_fields, values, strict=True)))


def _store_snapshot(connection: Connection, fingerprint: str, discovery: Discovery) -> int:
    """Insert what discovery found, unless another process just did; returns the snapshot's id."""
    from sqlalchemy import insert, select

    from stackloom.registry.schema import claims, plugins, problems, slots, snapshots

    known = connection.execute(select(snapshots.c.id).where(snapshots.c.fingerprint == fingerprint)).scalar()
    if known is not None:
        return int(known)
    created = datetime.now(UTC).isoformat(timespec="microseconds")
    snapshot = connection.execute(
        insert(snapshots).returning(snapshots.c.id), {"fingerprint": fingerprint, "created": created}
    ).scalar_one()
    spoken = Counter((record.manifest.slot_api, record.manifest.slot) for record in discovery.records)
    content: dict[Table, list[dict[str, Any]]] = {
        plugins: [_columns(record) for record in discovery.records],
        slots: [{"api": api, "name": slot, "plugins": count} for (api, slot), count in spoken.items()],
        claims: [
            {"plugin": record.id, "name": claim.name, "claim": claim.model_dump_json()}
            for record in discovery.records
            for claim in record.manifest.claims
        ],
        problems: [{"position": position, **vars(problem)} for position, problem in enumerate(discovery.problems)],
    }
    for table, rows in content.items():
        if rows:
            connection.execute(insert(table), [{"snapshot": snapshot, **row} for row in rows])
    newest = select(snapshots.c.id).order_by(snapshots.c.id.desc()).limit(SNAPSHOTS_KEPT)
    connection.execute(snapshots.delete().where(snapshots.c.id.not_in(newest)))
    return int(snapshot)


def _columns(record: PluginRecord) -> dict[str, str]:
    manifest = record.manifest
    paper = manifest.paper
    searched = [
        manifest.id,
        manifest.summary,
        *manifest.keywords,
        *((paper.page, paper.title) if paper else ()),
        *(f"{claim.statement} {claim.metric}" for claim in manifest.claims),
    ]
    return {
        "id": manifest.id,
        "slot": manifest.slot,
        "version": manifest.version or record.version,
        "lifecycle": manifest.lifecycle,
        "paper": (paper.page or paper.title) if paper else "",
        "origin": record.distribution,
        "dist_version": record.version,
        "package": record.package,
        "folder": str(record.folder),
        "summary": manifest.summary,
        "keywords": json.dumps(manifest.keywords),
        "dtypes": json.dumps(manifest.can.dtypes),
        "devices": json.dumps(manifest.can.devices),
        "search": "\n".join(searched).casefold(),
        "manifest": manifest.model_dump_json(by_alias=True, exclude_defaults=True),
    }
