"""Check constraints, and our own columns: the time of a vendor's position, and soft deletion.

The columns are nullable, so a Prisma client that does not know them still reads and writes.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ADDED_COLUMNS = (
    ("users", "deletedAt"),
    ("vendors", "locatedAt"),
    ("vendors", "deletedAt"),
)

# NaN sorts above every number, so BETWEEN refuses it too.
CHECKS = (
    ("vendors", "vendors_lat_check", '"lat" BETWEEN -90 AND 90'),
    ("vendors", "vendors_long_check", '"long" BETWEEN -180 AND 180'),
    ("locations", "locations_lat_check", '"lat" BETWEEN -90 AND 90'),
    ("locations", "locations_long_check", '"long" BETWEEN -180 AND 180'),
    ("subscriptions", "subscriptions_endDate_check", '"endDate" >= "startDate"'),
)


def upgrade() -> None:
    for table, column in ADDED_COLUMNS:
        op.execute(f'ALTER TABLE "{table}" ADD COLUMN "{column}" TIMESTAMP(3)')
    for table, name, condition in CHECKS:
        op.execute(f'ALTER TABLE "{table}" ADD CONSTRAINT "{name}" CHECK ({condition})')


def downgrade() -> None:
    for table, name, _ in reversed(CHECKS):
        op.execute(f'ALTER TABLE "{table}" DROP CONSTRAINT "{name}"')
    for table, column in reversed(ADDED_COLUMNS):
        op.execute(f'ALTER TABLE "{table}" DROP COLUMN "{column}"')
