"""The first schema: snapshots of installed plugins, evidence, and the run ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "snapshots",
        _integer("id", key=True),
        sa.Column("fingerprint", TEXT, nullable=False, unique=True),
        *_texts("created"),
    )
    op.create_table(
        "plugins",
        _snapshot(),
        *_texts("id", key=True),
        *_texts("slot", "version", "lifecycle", "paper", "origin", "dist_version", "package", "folder", "summary"),
        *_texts("keywords", "dtypes", "devices", "search", "manifest"),
    )
    op.create_index("plugins_by_slot", "plugins", ["snapshot", "slot", "id"])
    op.create_table("slots", _snapshot(), *_texts("api", key=True), *_texts("name"), _integer("plugins"))
    op.create_table("claims", _snapshot(), *_texts("plugin", "name", key=True), *_texts("claim"))
    op.create_table(
        "problems",
        _snapshot(),
        _integer("position", key=True),
        *_texts("plugin", "source", "distribution", "version", "message"),
    )
    op.create_table(
        "evidence",
        *_texts("digest", key=True),
        *_texts("plugin", "claim", "scale", "verdict", "instant", "content"),
    )
    op.create_index("evidence_by_plugin", "evidence", ["plugin", "claim", "instant"])
    op.create_table(
        "runs",
        *_texts("id", key=True),
        *_texts("name", "plan", "plan_digest", "status", "created"),
        sa.Column("finished", TEXT),
        *_texts("folder", "host"),
        _integer("pid"),
    )
    op.create_index("runs_by_created", "runs", ["created"])
    op.create_table(
        "stages",
        sa.Column("run", TEXT, sa.ForeignKey("runs.id"), primary_key=True),
        _integer("position", key=True),
        *_texts("kind", "status", "key", "started"),
        sa.Column("finished", TEXT),
    )
    op.create_index("stages_by_key", "stages", ["key"])
    op.create_table(
        "artifacts",
        *_texts("digest", "run", key=True),
        _integer("stage", key=True),
        *_texts("kind", "path"),
        sa.ForeignKeyConstraint(["run", "stage"], ["stages.run", "stages.position"]),
    )
    op.create_table(
        "metrics",
        _integer("id", key=True),
        *_texts("run"),
        _integer("stage"),
        _integer("step"),
        *_texts("name"),
        sa.Column("value", sa.Float),
        sa.Column("time", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(["run", "stage"], ["stages.run", "stages.position"]),
    )
    op.create_index("metrics_by_name", "metrics", ["run", "stage", "name", "step"])


def downgrade() -> None:
    """Drop every table."""
    for table in (
        "metrics", "artifacts", "stages", "runs", "evidence", "problems", "claims", "slots", "plugins", "snapshots"
    ):
        op.drop_table(table)


def _texts(*names: str, key: bool = False) -> list[sa.Column[str]]:
    return [sa.Column(name, TEXT, nullable=False, primary_key=key) for name in names]


def _integer(name: str, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, primary_key=key)


def _snapshot() -> sa.Column[int]:
    return sa.Column("snapshot", sa.Integer, sa.ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True)
