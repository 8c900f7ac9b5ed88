"""The registry's tables.

What discovery finds is stored per *snapshot*: one state of one environment's plugins, keyed by its fingerprint and
never changed afterwards, so that several virtual environments and machines share one registry without seeing each
other's plugins. Evidence and the ledger belong to no snapshot. Lists and tables inside a row are JSON text, instants
are ISO 8601 in UTC.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, ForeignKeyConstraint, Index, Integer, MetaData, Table, Text

metadata = MetaData()
TEXT = Text().with_variant(Text(collation="C"), "postgresql")  # sorts by code point everywhere, as Python does


def _texts(*names: str, key: bool = False) -> list[Column[str]]:
    return [Column(name, TEXT, nullable=False, primary_key=key) for name in names]


def _snapshot() -> Column[int]:
    return Column("snapshot", Integer, ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True)


snapshots = Table(
    "snapshots",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("fingerprint", TEXT, nullable=False, unique=True),
    *_texts("created"),
)

# origin: the distribution; search: everything that search looks into, case-folded
plugins = Table(
    "plugins",
    metadata,
    _snapshot(),
    *_texts("id", key=True),
    *_texts("slot", "version", "lifecycle", "paper", "origin", "dist_version", "package", "folder", "summary"),
    *_texts("keywords", "dtypes", "devices", "search", "manifest"),
    Index("plugins_by_slot", "snapshot", "slot", "id"),
)

slots = Table(
    "slots",
    metadata,
    _snapshot(),
    *_texts("api", key=True),
    *_texts("name"),
    Column("plugins", Integer, nullable=False),
)

claims = Table("claims", metadata, _snapshot(), *_texts("plugin", "name", key=True), *_texts("claim"))

problems = Table(
    "problems",
    metadata,
    _snapshot(),
    Column("position", Integer, primary_key=True),
    *_texts("plugin", "source", "distribution", "version", "message"),
)

evidence = Table(
    "evidence",
    metadata,
    *_texts("digest", key=True),
    *_texts("plugin", "claim", "scale", "verdict", "instant", "content"),
    Index("evidence_by_plugin", "plugin", "claim", "instant"),
)

runs = Table(
    "runs",
    metadata,
    *_texts("id", key=True),
    *_texts("name", "plan", "plan_digest", "status", "created"),
    Column("finished", TEXT),
    *_texts("folder", "host"),
    Column("pid", Integer, nullable=False),
    Column("failure", TEXT),
    Index("runs_by_created", "created"),
)

stages = Table(
    "stages",
    metadata,
    Column("run", TEXT, ForeignKey("runs.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    *_texts("kind", "status", "key", "started"),
    Column("finished", TEXT),
    Index("stages_by_key", "key"),
)

artifacts = Table(
    "artifacts",
    metadata,
    *_texts("digest", "run", key=True),
    Column("stage", Integer, primary_key=True),
    *_texts("kind", "path"),
    ForeignKeyConstraint(["run", "stage"], ["stages.run", "stages.position"]),
)

# value: absent for NaN, which SQLite cannot hold
metrics = Table(
    "metrics",
    metadata,
    Column("id", Integer, primary_key=True),
    *_texts("run"),
    Column("stage", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    *_texts("name"),
    Column("value", Float),
    Column("time", Float, nullable=False),
    ForeignKeyConstraint(["run", "stage"], ["stages.run", "stages.position"]),
    Index("metrics_by_name", "run", "stage", "name", "step"),
)

KEPT = (evidence, runs, stages, artifacts, metrics)
"""Tables that cannot be found again by looking at the environment, parents before children."""
