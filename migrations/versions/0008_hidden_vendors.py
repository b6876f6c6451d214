"""Vendors that hide themselves while they are closed. The column is nullable: a Prisma client need not know it."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ADDED_COLUMNS = (("vendors", "hidden"),)


def upgrade() -> None:
    for table, column in ADDED_COLUMNS:
        op.execute(f'ALTER TABLE "{table}" ADD COLUMN "{column}" BOOLEAN')


def downgrade() -> None:
    for table, column in ADDED_COLUMNS:
        op.execute(f'ALTER TABLE "{table}" DROP COLUMN "{column}"')
