"""Vendors that hide themselves while they are closed. The column is nullable: a Prisma client need not know it."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute('ALTER TABLE "vendors" ADD COLUMN "hidden" BOOLEAN')


def downgrade() -> None:
    op.execute('ALTER TABLE "vendors" DROP COLUMN "hidden"')
