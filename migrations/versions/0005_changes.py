"""What of the audit a server needs in order to see who was deleted or changed: a view, without anybody's data.

The audit holds what was in the rows, email addresses too. Of that a server gets to see the `clerkId` only, by the view
owner's rights.
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
