"""The SQL of alerts. Times are passed and returned as epoch milliseconds; the clock is PostgreSQL's."""

from __future__ import annotations

NOW = "date_trunc('milliseconds', clock_timestamp() AT TIME ZONE 'UTC')"
STARTED = NOW.replace("clock", "statement")
"""When the statement began. Unlike NOW it is the same for all rows, so that an index finds what is due."""

# The columns of an alert that its owner sees.
COLUMNS = """
a."id", a."definition", a."quiet", a."url", (EXTRACT(EPOCH FROM a."expiresAt") * 1000)::bigint AS "expires",
(EXTRACT(EPOCH FROM a."createdAt") * 1000)::bigint AS "created",
(EXTRACT(EPOCH FROM a."updatedAt") * 1000)::bigint AS "updated",
(EXTRACT(EPOCH FROM a."startedAt") * 1000)::bigint AS "started",
(EXTRACT(EPOCH FROM a."failingSince") * 1000)::bigint AS "failing",
(EXTRACT(EPOCH FROM a."disabledAt") * 1000)::bigint AS "disabled", a."disabledReason", a."secret", a."requestHash"
"""

# A lock per user: concurrent requests cannot exceed the limit.
LOCK_USER = """
SELECT pg_advisory_xact_lock(hashtextextended('streamer_alerts' || "id", 0)), "id" FROM "users"
WHERE "clerkId" = $1 AND "deletedAt" IS NULL
"""
BY_KEY = f"""
SELECT {COLUMNS} FROM "streamer_alerts" a WHERE a."userId" = $1 AND a."idempotencyKey" = $2 AND a."deletedAt" IS NULL
"""
COUNT_OF_USER = f"""
SELECT count(*) FROM "streamer_alerts" a
WHERE a."userId" = $1 AND a."deletedAt" IS NULL AND (a."expiresAt" IS NULL OR a."expiresAt" > {NOW})
"""
CREATE = f"""
INSERT INTO "streamer_alerts" AS a ("id", "userId", "slot", "revision", "definition", "quiet", "url", "host", "secret",
    "expiresAt", "disabledAt", "disabledReason", "idempotencyKey", "requestHash", "createdAt", "updatedAt")
SELECT $1, $2, $3, 1, $4::jsonb, $5, $6, $7, $8, TIMESTAMP 'epoch' + $9::bigint * INTERVAL '1 millisecond',
    CASE WHEN $10::text IS NULL THEN NULL ELSE {NOW} END, $10::text, $11, $12, {NOW}, {NOW}
RETURNING {COLUMNS}
"""
LIST = f"""
SELECT {COLUMNS} FROM "streamer_alerts" a JOIN "users" u ON u."id" = a."userId"
WHERE u."clerkId" = $1 AND a."deletedAt" IS NULL AND a."id" > $2 ORDER BY a."id" LIMIT $3
"""
GET = f"""
SELECT {COLUMNS} FROM "streamer_alerts" a JOIN "users" u ON u."id" = a."userId"
WHERE u."clerkId" = $1 AND a."id" = $2 AND a."deletedAt" IS NULL
"""
# With the lock that CHANGE takes: a change is made of what the one before left, and foreign keys do not wait.
GET_TO_CHANGE = f"{GET} FOR NO KEY UPDATE OF a"
# A new area or list starts again: vendors that are inside already are no events.
CHANGE = f"""
UPDATE "streamer_alerts" a SET "definition" = $2::jsonb, "quiet" = $3, "url" = $4, "host" = $5,
    "expiresAt" = TIMESTAMP 'epoch' + $6::bigint * INTERVAL '1 millisecond',
    "disabledAt" = CASE WHEN $7::text IS NULL THEN NULL ELSE coalesce("disabledAt", {NOW}) END, "disabledReason" = $7,
    "failingSince" = CASE WHEN "url" = $4 AND "disabledAt" IS NULL THEN "failingSince" END,
    "startedAt" = CASE WHEN $8::boolean THEN "startedAt" END, "revision" = "revision" + 1, "updatedAt" = {NOW}
WHERE a."id" = $1 AND a."deletedAt" IS NULL RETURNING {COLUMNS}
"""
# The row stays for the processes that evaluate the alert, without the user's data.
DELETE = f"""
UPDATE "streamer_alerts" a SET "deletedAt" = {NOW}, "updatedAt" = {NOW}, "revision" = "revision" + 1, "url" = '',
    "host" = '', "secret" = '', "definition" = '{{}}', "idempotencyKey" = NULL, "requestHash" = NULL
FROM "users" u WHERE u."id" = a."userId" AND u."clerkId" = $1 AND a."id" = $2 AND a."deletedAt" IS NULL
RETURNING a."id"
"""
DROP_EVENTS = f"""
UPDATE "streamer_alert_events" SET "nextAttempt" = NULL, "gaveUpAt" = {NOW}
WHERE "alertId" = $1 AND "nextAttempt" IS NOT NULL
"""
DELIVERIES = """
SELECT e."id", e."vendorId", e."type", (EXTRACT(EPOCH FROM e."at") * 1000)::bigint AS "at", e."attempts",
    (EXTRACT(EPOCH FROM e."nextAttempt") * 1000)::bigint AS "next",
    (EXTRACT(EPOCH FROM e."deliveredAt") * 1000)::bigint AS "delivered",
    (EXTRACT(EPOCH FROM e."gaveUpAt") * 1000)::bigint AS "gaveUp", e."log"
FROM "streamer_alert_events" e WHERE e."alertId" = $1 AND ($2 = '' OR e."id" < $2) ORDER BY e."id" DESC LIMIT $3
"""
ADD_EVENT = """
INSERT INTO "streamer_alert_events" ("id", "alertId", "vendorId", "type", "body", "at", "nextAttempt")
SELECT $1, $2, $3, $4, $5, t, t FROM (SELECT TIMESTAMP 'epoch' + $6::bigint * INTERVAL '1 millisecond' AS t) AS at
"""

# Evaluation

BEAT = f"""
WITH me AS (
    INSERT INTO "streamer_alert_processes" ("id", "seenAt") VALUES ($1, {NOW})
    ON CONFLICT ("id") DO UPDATE SET "seenAt" = EXCLUDED."seenAt" RETURNING "id"
)
SELECT "id" FROM "streamer_alert_processes" WHERE "seenAt" > {NOW} - $2::bigint * INTERVAL '1 millisecond'
UNION SELECT "id" FROM me
"""
LEAVE = """UPDATE "streamer_alert_processes" SET "seenAt" = 'epoch' WHERE "id" = $1"""

# By (updatedAt, id). A running statement writes an updatedAt that is earlier than visible ones, so the reader starts
# further back than a statement may take.
CHANGED = f"""
SELECT a."id", a."revision", a."definition"::text, a."quiet", (EXTRACT(EPOCH FROM a."expiresAt") * 1000)::bigint,
    a."startedAt" IS NOT NULL, a."deletedAt" IS NOT NULL OR a."disabledAt" IS NOT NULL,
    (EXTRACT(EPOCH FROM a."updatedAt") * 1000)::bigint, a."slot"
FROM "streamer_alerts" a
WHERE a."slot" = ANY($1::smallint[])
    AND (a."updatedAt", a."id") > (TIMESTAMP 'epoch' + $2::bigint * INTERVAL '1 millisecond', $3::text)
    AND ($5 OR (a."deletedAt" IS NULL AND a."disabledAt" IS NULL
        AND (a."expiresAt" IS NULL OR a."expiresAt" > {NOW})))
ORDER BY a."updatedAt", a."id" LIMIT $4
"""
STATES = """
SELECT "alertId", "vendorId", "version", "inside", "open", "online", "told"::text, "card"::text, "eventAt"
FROM "streamer_alert_states" WHERE "alertId" = ANY($1::text[])
"""
START = f"""
UPDATE "streamer_alerts" SET "startedAt" = {NOW}
WHERE ("id", "revision") IN (SELECT * FROM unnest($1::text[], $2::bigint[])) AND "startedAt" IS NULL
"""
# An event is stored only together with its new state, and only if the stored state is the one that the process knew: of
# two processes that evaluate one alert, one is refused. An obsolete row (not inside, no quiet time) counts as none.
COMMIT = f"""
WITH given AS (
    SELECT g.* FROM jsonb_to_recordset($1::jsonb) AS g(
        "alertId" text, "vendorId" text, "revision" bigint, "version" bigint, "inside" boolean, "open" boolean,
        "online" boolean, "told" jsonb, "card" jsonb, "eventAt" bigint, "quietUntil" bigint
    )
    JOIN "streamer_alerts" a ON a."id" = g."alertId" AND a."revision" = g."revision"
    WHERE a."deletedAt" IS NULL AND a."disabledAt" IS NULL
    ORDER BY g."alertId", g."vendorId"
), kept AS (
    INSERT INTO "streamer_alert_states" AS s
        ("alertId", "vendorId", "version", "inside", "open", "online", "told", "card", "eventAt", "quietUntil")
    SELECT "alertId", "vendorId", "version", "inside", "open", "online", "told", "card", "eventAt",
        TIMESTAMP 'epoch' + "quietUntil" * INTERVAL '1 millisecond'
    FROM given
    ON CONFLICT ("alertId", "vendorId") DO UPDATE SET "version" = s."version" + 1, "inside" = EXCLUDED."inside",
        "open" = EXCLUDED."open", "online" = EXCLUDED."online", "told" = EXCLUDED."told", "card" = EXCLUDED."card",
        "eventAt" = EXCLUDED."eventAt", "quietUntil" = EXCLUDED."quietUntil"
    WHERE s."version" = EXCLUDED."version" - 1
        OR (EXCLUDED."version" = 1 AND NOT s."inside" AND s."quietUntil" < {NOW})
    RETURNING s."alertId", s."vendorId", s."version"
), told AS (
    INSERT INTO "streamer_alert_events" ("id", "alertId", "vendorId", "type", "body", "at", "nextAttempt")
    SELECT e."id", e."alertId", e."vendorId", e."type", e."body",
        TIMESTAMP 'epoch' + e."at" * INTERVAL '1 millisecond', {NOW}
    FROM jsonb_to_recordset($2::jsonb) AS e(
        "id" text, "alertId" text, "vendorId" text, "type" text, "body" text, "at" bigint
    )
    JOIN kept USING ("alertId", "vendorId")
)
SELECT "alertId", "vendorId", "version" FROM kept
"""

# Delivery

# Only the oldest undelivered webhook of a vendor and alert is due. Each candidate costs an index scan, so few are read
# of a backlog, and hosts that have their share of the process's requests are excluded the next time. $3 and $4 are the
# hosts with running requests, and their numbers. A plan from when the day's partition was empty would read all of it;
# OFFSET 0 keeps the planner, which has no statistics of a new partition, from starting with the alerts. Either took 30
# to 100 ms instead of 2 with 6,000 events.
PLAN_ANEW = "SET LOCAL plan_cache_mode = force_custom_plan"
CLAIM = f"""
WITH due AS (
    SELECT e."id", a."host", e."nextAttempt"
    FROM "streamer_alert_events" e CROSS JOIN LATERAL (
        SELECT a."host" FROM "streamer_alerts" a
        WHERE a."id" = e."alertId" AND a."deletedAt" IS NULL AND a."disabledAt" IS NULL OFFSET 0
    ) a
    WHERE e."nextAttempt" <= {STARTED} AND a."host" <> ALL($5::text[])
        AND NOT EXISTS (
            SELECT FROM "streamer_alert_events" p
            WHERE p."alertId" = e."alertId" AND p."vendorId" = e."vendorId" AND p."id" < e."id"
                AND p."nextAttempt" IS NOT NULL
        )
    ORDER BY e."nextAttempt" LIMIT 100
), shares AS (
    SELECT "id", row_number() OVER (PARTITION BY "host" ORDER BY "nextAttempt") + coalesce((
        SELECT b."count" FROM unnest($3::text[], $4::bigint[]) AS b("host", "count") WHERE b."host" = due."host"
    ), 0) AS "share", "nextAttempt"
    FROM due
), claimed AS (
    SELECT e."id" FROM "streamer_alert_events" e
    WHERE e."id" = ANY(ARRAY(SELECT "id" FROM shares WHERE "share" <= $2 ORDER BY "nextAttempt" LIMIT $1))
        AND e."nextAttempt" <= {STARTED}
    FOR UPDATE OF e SKIP LOCKED
)
UPDATE "streamer_alert_events" e
SET "nextAttempt" = {NOW} + $6::bigint * INTERVAL '1 millisecond', "attempts" = e."attempts" + 1
FROM claimed, "streamer_alerts" a WHERE e."id" = claimed."id" AND a."id" = e."alertId"
RETURNING e."id", e."alertId", e."body", (EXTRACT(EPOCH FROM e."at") * 1000)::bigint AS "at", e."attempts",
    a."url", a."host", a."secret"
"""
# `next` null: delivered or given up. Only the newest attempt is recorded.
RECORD = f"""
WITH given AS (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS g(
        "id" text, "alert_id" text, "attempts" int, "next" bigint, "delivered" boolean, "entry" jsonb
    )
), events AS (
    UPDATE "streamer_alert_events" e SET
        "nextAttempt" = TIMESTAMP 'epoch' + g."next" * INTERVAL '1 millisecond',
        "deliveredAt" = CASE WHEN g."delivered" THEN {NOW} END,
        "gaveUpAt" = CASE WHEN g."next" IS NULL AND NOT g."delivered" THEN {NOW} END, "log" = e."log" || g."entry"
    FROM given g WHERE e."id" = g."id" AND e."deliveredAt" IS NULL AND e."gaveUpAt" IS NULL
        AND (g."delivered" OR e."attempts" = g."attempts")
), works AS (
    UPDATE "streamer_alerts" a SET "failingSince" = NULL
    WHERE a."id" IN (SELECT "alert_id" FROM given WHERE "delivered") AND a."failingSince" IS NOT NULL
)
UPDATE "streamer_alerts" a SET "failingSince" = {NOW}
WHERE a."id" IN (SELECT "alert_id" FROM given WHERE NOT "delivered")
    AND a."id" NOT IN (SELECT "alert_id" FROM given WHERE "delivered") AND a."failingSince" IS NULL
"""
DISABLE = f"""
UPDATE "streamer_alerts" SET "disabledAt" = {NOW}, "disabledReason" = $2, "updatedAt" = {NOW},
    "revision" = "revision" + 1
WHERE "id" = $1 AND "disabledAt" IS NULL AND "deletedAt" IS NULL
    AND ($3::bigint IS NULL OR "failingSince" < {NOW} - $3::bigint * INTERVAL '1 millisecond')
    AND ($4::text IS NULL OR "url" = $4)
RETURNING "id"
"""
WAITING = f"""
SELECT count(*), coalesce(EXTRACT(EPOCH FROM {NOW} - min("at")), 0)::float8
FROM (SELECT "at" FROM "streamer_alert_events" WHERE "nextAttempt" IS NOT NULL LIMIT 100000) AS waiting
"""
COUNTS = """
SELECT count(*) FILTER (WHERE "disabledAt" IS NULL), count(*) FILTER (WHERE "disabledAt" IS NOT NULL)
FROM "streamer_alerts" WHERE "deletedAt" IS NULL
"""

# Maintenance

# The conditions are repeated outside: a row that another transaction changes meanwhile is examined again only there.
PRUNE = {
    "streamer_alerts": """
DELETE FROM "streamer_alerts" WHERE "id" = ANY(ARRAY(
    SELECT "id" FROM "streamer_alerts" WHERE "deletedAt" < $1 OR "expiresAt" < $1 LIMIT $2
)) AND ("deletedAt" < $1 OR "expiresAt" < $1)
""",
    "streamer_alert_states": """
DELETE FROM "streamer_alert_states" s WHERE (s."alertId", s."vendorId") IN (
    SELECT "alertId", "vendorId" FROM "streamer_alert_states" o
    WHERE NOT o."inside" AND o."quietUntil" < $1 LIMIT $2
) AND NOT s."inside" AND s."quietUntil" < $1
""",
    "streamer_alert_events": """
DELETE FROM "streamer_alert_events_default" WHERE "id" = ANY(ARRAY(
    SELECT "id" FROM "streamer_alert_events_default" WHERE "at" < $1 LIMIT $2
))
""",
    "streamer_alert_processes": """
DELETE FROM "streamer_alert_processes" WHERE "id" = ANY(ARRAY(
    SELECT "id" FROM "streamer_alert_processes" WHERE "seenAt" < $1 LIMIT $2
))
""",
}
