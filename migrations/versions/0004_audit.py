"""The audit: triggers record who changed users, vendors, subscriptions and integrations, when, and the values.

Every writer of these tables, a Prisma client too, causes entries without a right on the audit table: the function is
SECURITY DEFINER. An update of only a vendor's position does not fire the trigger.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLE = """
CREATE TABLE "streamer_audit" (
    "id" BIGINT GENERATED ALWAYS AS IDENTITY,
    "at" TIMESTAMP(3) NOT NULL,
    "table" TEXT NOT NULL,
    "rowId" TEXT,
    "action" TEXT NOT NULL,
    "before" JSONB,
    "after" JSONB,
    "user" TEXT NOT NULL,
    "actor" TEXT,
    "application" TEXT,
    "address" TEXT,
    "transaction" BIGINT NOT NULL,

    CONSTRAINT "streamer_audit_pkey" PRIMARY KEY ("id")
)
"""

INDEXES = (
    'CREATE INDEX "idx_streamer_audit_at" ON "streamer_audit"("at")',
    'CREATE INDEX "idx_streamer_audit_row_id" ON "streamer_audit"("rowId", "at")',
)

# `user` is the role that logged in; `actor` is the person it acts for, if set by SET LOCAL streamer.actor = '…'.
BODY = """
DECLARE
    old_row jsonb;
    new_row jsonb;
    row_id text;
BEGIN
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        old_row := to_jsonb(OLD);
        row_id := OLD."id";
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        new_row := to_jsonb(NEW);
        row_id := coalesce(row_id, NEW."id");
    END IF;
    IF TG_OP = 'UPDATE' THEN
        SELECT jsonb_object_agg(key, o.value), jsonb_object_agg(key, n.value) INTO old_row, new_row
        FROM jsonb_each(old_row) o JOIN jsonb_each(new_row) n USING (key)
        WHERE o.value IS DISTINCT FROM n.value;
        -- the arguments are the columns whose change alone is no entry
        IF new_row IS NULL OR new_row - TG_ARGV = '{}' THEN
            RETURN NULL;
        END IF;
    END IF;
    INSERT INTO "streamer_audit"
        ("at", "table", "rowId", "action", "before", "after", "user", "actor", "application", "address", "transaction")
    VALUES (
        now() AT TIME ZONE 'UTC', TG_TABLE_NAME, row_id, lower(TG_OP), old_row, new_row, session_user,
        nullif(current_setting('streamer.actor', true), ''), nullif(current_setting('application_name'), ''),
        host(inet_client_addr()), pg_current_xact_id()::text::bigint
    );
    RETURN NULL;
END
"""

CREATE = """
DO $do$ BEGIN
    EXECUTE format(
        'CREATE FUNCTION streamer_audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER '
        'SET search_path = %I, pg_temp AS %L', current_schema(), $body${body}$body$
    );
END $do$
"""

# Columns whose change alone makes no entry.
UNAUDITED = {
    "users": ("updatedAt",),
    "subscriptions": ("updatedAt",),
    "vendors": ("updatedAt", "lat", "long", "locatedAt"),
    "integrations": ("updatedAt",),
}

# An update of vendors that names none of these columns does not call the trigger, so positions cost nothing. The other
# tables have no such list, so that columns which a backend adds are recorded too.
VENDORS_WATCHED = (
    "id",
    "name",
    "description",
    "phone",
    "email",
    "website",
    "open",
    "primaryImage",
    "userId",
    "createdAt",
    "deletedAt",
)


def triggers(table: str) -> tuple[str, ...]:
    """The triggers of a table; `zz` so that they come after what others have there."""
    watched = " OF " + ", ".join(f'"{column}"' for column in VENDORS_WATCHED) if table == "vendors" else ""
    ignored = ", ".join(f"'{column}'" for column in UNAUDITED[table])
    return (
        f'CREATE TRIGGER "zz_streamer_audit" AFTER INSERT OR DELETE ON "{table}" '
        "FOR EACH ROW EXECUTE FUNCTION streamer_audit()",
        f'CREATE TRIGGER "zz_streamer_audit_update" AFTER UPDATE{watched} ON "{table}" '
        f"FOR EACH ROW EXECUTE FUNCTION streamer_audit({ignored})",
        f'CREATE TRIGGER "zz_streamer_audit_truncate" AFTER TRUNCATE ON "{table}" '
        "FOR EACH STATEMENT EXECUTE FUNCTION streamer_audit()",
    )


def upgrade() -> None:
    for statement in (TABLE, *INDEXES):
        op.execute(statement)
    op.execute(CREATE.replace("{body}", BODY))
    op.execute("REVOKE ALL ON FUNCTION streamer_audit() FROM PUBLIC")
    for table in UNAUDITED:
        for statement in triggers(table):
            op.execute(statement)


def downgrade() -> None:
    for table in reversed(UNAUDITED):
        for name in ("zz_streamer_audit", "zz_streamer_audit_update", "zz_streamer_audit_truncate"):
            op.execute(f'DROP TRIGGER "{name}" ON "{table}"')
    op.execute("DROP FUNCTION streamer_audit()")
    op.execute('DROP TABLE "streamer_audit"')
