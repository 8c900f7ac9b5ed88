"""Why a run failed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add the column."""
    op.add_column("runs", sa.Column("failure", TEXT))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("runs", "failure")
