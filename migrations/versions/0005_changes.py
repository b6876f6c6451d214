"""A view of the audit for servers, with the ids of deleted and changed rows and without personal data.

The audit contains the values of the rows, email addresses too. Through the view a server sees only the `clerkId`.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

CREATE = """
CREATE VIEW "streamer_changes" AS
SELECT "id", "at", "transaction", "table", "rowId", "action", "before"->>'clerkId' AS "clerkId"
FROM "streamer_audit" WHERE "table" IN ('users', 'vendors')
"""


def upgrade() -> None:
    op.execute(CREATE)


def downgrade() -> None:
    op.execute('DROP VIEW "streamer_changes"')
