"""Alerts, the states of vendors in alerts, and webhooks by day.

The webhooks are partitioned like `locations`, by ids that begin with their time, so that a day is deleted by dropping
its partition.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ALERTS = """
CREATE TABLE "streamer_alerts" (
    "id" TEXT NOT NULL,
    "userId" TEXT NOT NULL,
    "slot" SMALLINT NOT NULL,
    "revision" BIGINT NOT NULL,
    "definition" JSONB NOT NULL,
    "quiet" INTEGER NOT NULL,
    "url" TEXT NOT NULL,
    "host" TEXT NOT NULL,
    "secret" BYTEA NOT NULL,
    "expiresAt" TIMESTAMP(3),
    "startedAt" TIMESTAMP(3),
    "failingSince" TIMESTAMP(3),
    "disabledAt" TIMESTAMP(3),
    "disabledReason" TEXT,
    "deletedAt" TIMESTAMP(3),
    "idempotencyKey" TEXT,
    "requestHash" TEXT,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "streamer_alerts_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "streamer_alerts_userId_fkey" FOREIGN KEY ("userId") REFERENCES "users"("id")
        ON DELETE CASCADE ON UPDATE CASCADE
)
"""

STATES = """
CREATE TABLE "streamer_alert_states" (
    "alertId" TEXT NOT NULL,
    "vendorId" TEXT NOT NULL,
    "version" BIGINT NOT NULL,
    "inside" BOOLEAN NOT NULL,
    "open" BOOLEAN NOT NULL,
    "online" BOOLEAN NOT NULL,
    "told" JSONB NOT NULL,
    "card" JSONB NOT NULL,
    "eventAt" BIGINT NOT NULL,
    "quietUntil" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "streamer_alert_states_pkey" PRIMARY KEY ("alertId", "vendorId"),
    CONSTRAINT "streamer_alert_states_alertId_fkey" FOREIGN KEY ("alertId") REFERENCES "streamer_alerts"("id")
        ON DELETE CASCADE ON UPDATE CASCADE
)
"""

EVENTS = """
CREATE TABLE "streamer_alert_events" (
    "id" TEXT COLLATE "C" NOT NULL,
    "alertId" TEXT NOT NULL,
    "vendorId" TEXT NOT NULL,
    "type" TEXT NOT NULL,
    "body" TEXT NOT NULL,
    "at" TIMESTAMP(3) NOT NULL,
    "attempts" INTEGER NOT NULL DEFAULT 0,
    "nextAttempt" TIMESTAMP(3),
    "deliveredAt" TIMESTAMP(3),
    "gaveUpAt" TIMESTAMP(3),
    "log" JSONB NOT NULL DEFAULT '[]',

    CONSTRAINT "streamer_alert_events_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "streamer_alert_events_alertId_fkey" FOREIGN KEY ("alertId") REFERENCES "streamer_alerts"("id")
        ON DELETE CASCADE ON UPDATE CASCADE
) PARTITION BY RANGE ("id")
"""

PROCESSES = """
CREATE TABLE "streamer_alert_processes" (
    "id" TEXT NOT NULL,
    "seenAt" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "streamer_alert_processes_pkey" PRIMARY KEY ("id")
)
"""

INDEXES = (
    'CREATE INDEX "idx_streamer_alerts_user_id" ON "streamer_alerts"("userId", "id")',
    'CREATE UNIQUE INDEX "streamer_alerts_userId_idempotencyKey_key" ON "streamer_alerts"("userId", "idempotencyKey")',
    'CREATE INDEX "idx_streamer_alerts_updated_at" ON "streamer_alerts"("updatedAt")',
    'CREATE INDEX "idx_streamer_alert_states_vendor_id" ON "streamer_alert_states"("vendorId")',
    'CREATE TABLE "streamer_alert_events_default" PARTITION OF "streamer_alert_events" DEFAULT',
    'CREATE INDEX "idx_streamer_alert_events_alert_id" ON "streamer_alert_events"("alertId", "id")',
    'CREATE INDEX "idx_streamer_alert_events_vendor_id" ON "streamer_alert_events"("vendorId")',
    'CREATE INDEX "idx_streamer_alert_events_next_attempt" ON "streamer_alert_events"("nextAttempt")'
    ' WHERE "nextAttempt" IS NOT NULL',
    'CREATE INDEX "idx_streamer_alert_events_order" ON "streamer_alert_events"("alertId", "vendorId", "id")'
    ' WHERE "nextAttempt" IS NOT NULL',
)

# The same rules as in streamer_add_partition (migration 0003), for the other table.
BODY = """
DECLARE
    digits CONSTANT text := '0123456789abcdefghijklmnopqrstuvwxyz';
    name CONSTANT text := 'streamer_alert_events_' || to_char("day", 'YYYYMMDD');
    bounds text[] := '{}';
    rest bigint;
    written text;
BEGIN
    IF "day" NOT BETWEEN DATE '1970-01-01' AND DATE '2059-05-24' THEN
        RAISE 'no id can hold the time %: it is from 1970 to 2059', "day" USING ERRCODE = 'datetime_field_overflow';
    END IF;
    -- whoever may call this, and is not the owner, must not fill the database with tables
    IF "day" NOT BETWEEN current_date - 31 AND current_date + 370
        AND NOT pg_has_role(session_user, current_user, 'USAGE') THEN
        RAISE 'only the owner of the tables makes partitions as far from today as %', "day"
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM pg_advisory_xact_lock(33325572325179401);
    IF EXISTS (
        SELECT FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
        WHERE inhparent = to_regclass('streamer_alert_events') AND c.relname = name
    ) THEN
        RETURN false;
    END IF;
    FOR midnight IN 0..1 LOOP
        rest := (("day" + midnight) - DATE '1970-01-01') * BIGINT '86400000';
        written := '';
        FOR digit IN 1..8 LOOP
            written := substr(digits, (rest % 36)::int + 1, 1) || written;
            rest := rest / 36;
        END LOOP;
        bounds := bounds || ('c' || written);
    END LOOP;
    LOCK TABLE "streamer_alerts" IN SHARE ROW EXCLUSIVE MODE;
    LOCK TABLE ONLY "streamer_alert_events" IN SHARE UPDATE EXCLUSIVE MODE;
    LOCK TABLE "streamer_alert_events_default" IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('CREATE TABLE %I (LIKE "streamer_alert_events" INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format(
        'WITH moved AS (DELETE FROM "streamer_alert_events_default" WHERE "id" >= $1 AND "id" < $2 RETURNING *) '
        'INSERT INTO %I SELECT * FROM moved', name
    ) USING bounds[1], bounds[2];
    EXECUTE format(
        'ALTER TABLE "streamer_alert_events" ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        name, bounds[1], bounds[2]
    );
    RETURN true;
END
"""

CREATE = """
DO $do$ BEGIN
    EXECUTE format(
        'CREATE FUNCTION streamer_add_alert_partition("day" date) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER '
        'SET search_path = %I, pg_temp AS %L', current_schema(), $body${body}$body$
    );
END $do$
"""


def upgrade() -> None:
    for statement in (ALERTS, STATES, EVENTS, PROCESSES, *INDEXES):
        op.execute(statement)
    op.execute(CREATE.replace("{body}", BODY))
    op.execute("REVOKE ALL ON FUNCTION streamer_add_alert_partition(date) FROM PUBLIC")


def downgrade() -> None:
    op.execute("DROP FUNCTION streamer_add_alert_partition(date)")
    for table in ("processes", "events", "states"):
        op.execute(f'DROP TABLE "streamer_alert_{table}"')
    op.execute('DROP TABLE "streamer_alerts"')
