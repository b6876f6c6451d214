"""All SQL of the server and its commands, by name. Migrations have their own.

Parameters are asyncpg's ($1). Timestamps in the tables are TIMESTAMP(3), in UTC.
"""

from __future__ import annotations

from streamer.clocks import CLOCK_TOLERANCE

# The server (store.py)

# Override synchronous_commit=off: an ack promises durability. A session keeps the value it began with, as the
# configuration may be reloaded with another one. Behind a pooler each transaction overrides it, as it may be in another
# session.
COMMITS = "replace(current_setting('synchronous_commit'), 'off', 'on')"
KEEP_COMMITS_DURABLE = f"SELECT set_config('synchronous_commit', {COMMITS}, false)"
BEGIN_DURABLE = f"BEGIN; SELECT set_config('synchronous_commit', {COMMITS}, true)"

# One per connection, created on first use: creating one each time would bloat the catalogs.
CREATE_STAGING = """
CREATE TEMP TABLE IF NOT EXISTS "streamer_staging" (
    "id" TEXT COLLATE "C", "vendorId" TEXT, "lat" DOUBLE PRECISION, "long" DOUBLE PRECISION, "timestamp" TIMESTAMP(3)
) ON COMMIT DELETE ROWS
"""

# The vendors are locked against deletion until the commit. Of two rows with the same id the first to arrive is stored:
# the staging table is empty at the start of each transaction, so ctid is the order of arrival.
STORE_STAGED = """
WITH existing AS MATERIALIZED (
    SELECT "id" FROM "vendors" WHERE "id" IN (SELECT "vendorId" FROM pg_temp."streamer_staging")
    ORDER BY "id" FOR KEY SHARE
), stored AS (
    INSERT INTO "locations" ("id", "vendorId", "lat", "long", "timestamp")
    SELECT s."id", s."vendorId", s."lat", s."long", s."timestamp"
    FROM pg_temp."streamer_staging" s JOIN existing ON existing."id" = s."vendorId"
    ORDER BY s."id", s.ctid
    ON CONFLICT DO NOTHING
)
SELECT DISTINCT s."vendorId" FROM pg_temp."streamer_staging" s
WHERE NOT EXISTS (SELECT FROM existing WHERE existing."id" = s."vendorId")
"""

VERSION = "SHOW server_version"
CLOCK = "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint"

STORED = """SELECT "id", "lat", "long" FROM "locations" WHERE "id" = ANY($1::text[])"""

# The rules of `ingest/position.py`; "locatedAt" is the version of the position. A position from a server with a wrong
# clock is replaced by every other: otherwise it would hide all others until that time.
TOLERANCE = f"INTERVAL '{CLOCK_TOLERANCE} milliseconds'"
LATEST = f"(now() AT TIME ZONE 'UTC' + {TOLERANCE})"
DUE = f"""(
    v."locatedAt" IS NULL OR v."locatedAt" < newest."at" OR v."locatedAt" > {LATEST}
    OR (newest."ahead" AND v."locatedAt" <= newest."at" + {TOLERANCE})
)"""

# The rows are locked in the order of their ids first, so that two such statements can't deadlock.
WRITE_NEWEST = f"""
, due AS MATERIALIZED (
    SELECT v."id" FROM "vendors" v JOIN newest ON newest."id" = v."id"
    WHERE {DUE}
    ORDER BY v."id" FOR NO KEY UPDATE OF v
)
UPDATE "vendors" v
SET "lat" = newest."lat", "long" = newest."long",
    "locatedAt" = CASE WHEN newest."ahead" AND v."locatedAt" <= newest."at" + {TOLERANCE}
        THEN greatest(v."locatedAt", newest."at") ELSE newest."at" END,
    "updatedAt" = date_trunc('milliseconds', now() AT TIME ZONE 'UTC')
FROM newest JOIN due ON due."id" = newest."id"
WHERE v."id" = newest."id" AND {DUE}
"""

UPDATE_POSITIONS = (
    """
WITH newest AS MATERIALIZED (
    SELECT n."id", TIMESTAMP 'epoch' + n."ms" * INTERVAL '1 millisecond' AS "at", n."lat", n."long", n."ahead"
    FROM unnest($1::text[], $2::bigint[], $3::float8[], $4::float8[], $5::boolean[])
        AS n("id", "ms", "lat", "long", "ahead")
)"""
    + WRITE_NEWEST
)

# By vendor and index, some vendors at a time: reading a busy hour by time would exceed the statement timeout. The index
# needs the bound of the timestamp: with only the id's bound PostgreSQL reads all pings since $1 for each vendor.
RECONCILE_POSITIONS = (
    f"""
WITH newest AS MATERIALIZED (
    SELECT v."id", l."at", l."lat", l."long", false AS "ahead"
    FROM "vendors" v, LATERAL (
        SELECT l."timestamp" AS "at", l."lat", l."long" FROM "locations" l
        WHERE l."vendorId" = v."id" AND l."id" >= $1 AND l."id" < 'd'
          AND l."timestamp" <= now() AT TIME ZONE 'UTC'
          AND l."timestamp" > greatest(
            TIMESTAMP 'epoch' + $2::bigint * INTERVAL '1 millisecond',
            CASE WHEN v."locatedAt" <= {LATEST} THEN v."locatedAt" END
          )
        ORDER BY l."timestamp" DESC, l."id" DESC LIMIT 1
    ) l
    WHERE v."id" > $3 AND v."id" <= $4
)"""
    + WRITE_NEWEST
)

LAST_OF_SOME = """
SELECT max("id") FROM (SELECT "id" FROM "vendors" WHERE "id" > $1 ORDER BY "id" LIMIT $2) AS "some"
"""

VENDORS = """
SELECT v."id", u."clerkId", v."name", v."open", v."primaryImage",
    (EXTRACT(EPOCH FROM v."locatedAt") * 1000)::bigint, coalesce(v."hidden", false)
FROM "vendors" v JOIN "users" u ON u."id" = v."userId"
WHERE v."deletedAt" IS NULL AND u."deletedAt" IS NULL AND
"""

VENDORS_OF = VENDORS + 'u."clerkId" = ANY($1::text[]) ORDER BY v."id"'

CARDS = VENDORS + 'v."id" = ANY($1::text[])'
SEARCH = (
    VENDORS
    + """
"streamer_search_words"(v."name") @@ to_tsquery('simple', $1)
AND (v."open" OR NOT $2) AND (v."name" COLLATE "C", v."id") > ($3::text COLLATE "C", $4::text)
ORDER BY v."name" COLLATE "C", v."id" LIMIT $5
"""
)

# One snapshot for the whole statement: a change that is not in it is from the oldest running transaction or a later
# one.
CHANGES = """
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
    coalesce((SELECT max("id") FROM "streamer_changes"), 0), c."id", c."table", c."rowId", c."action", c."clerkId"
FROM (SELECT) AS always LEFT JOIN LATERAL (
    SELECT * FROM "streamer_changes" WHERE "id" > $1 AND "transaction" >= $2 ORDER BY "id" LIMIT $3
) c ON true
ORDER BY c."id"
"""

USERS = """
SELECT u."clerkId", v."id" FROM "users" u LEFT JOIN "vendors" v ON v."userId" = u."id" WHERE u."id" = ANY($1::text[])
"""

EXISTING_USERS = """SELECT "clerkId" FROM "users" WHERE "clerkId" = ANY($1::text[]) AND "deletedAt" IS NULL"""

DELETED_USERS = """
SELECT "clerkId" FROM "users" WHERE "deletedAt" IS NOT NULL
UNION
SELECT c."clerkId" FROM "streamer_changes" c
WHERE c."table" = 'users' AND c."action" = 'delete' AND c."at" > now() AT TIME ZONE 'UTC' - INTERVAL '1 day'
    AND NOT EXISTS (SELECT FROM "users" u WHERE u."clerkId" = c."clerkId")
"""

PAYING = """
SELECT v."id" FROM "vendors" v WHERE v."id" = ANY($1::text[]) AND EXISTS (
    SELECT FROM "subscriptions" s WHERE s."userId" = v."userId" AND s."status" = 'active'
        AND s."startDate" <= now() AT TIME ZONE 'UTC'
        AND (s."endDate" IS NULL OR s."endDate" > now() AT TIME ZONE 'UTC')
)
"""

# The audit trigger reads the actor, which is set for this statement only.
SET_OPEN = """
UPDATE "vendors" SET "open" = $2, "hidden" = $4, "updatedAt" = date_trunc('milliseconds', now() AT TIME ZONE 'UTC')
FROM (SELECT set_config('streamer.actor', $3, true) AS "actor") AS said
WHERE "id" = $1 AND ("open" <> $2 OR coalesce("hidden", false) <> $4) AND said."actor" = $3
"""

# vendors."locatedAt" lags by about a second: only locations newer than "since" are read.
NEWEST_STORED = """
SELECT a."id", a."located", (EXTRACT(EPOCH FROM n."at") * 1000)::bigint
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) AS a("id", "located", "since", "floor")
CROSS JOIN LATERAL (
    SELECT max(l."timestamp") AS "at" FROM "locations" l
    WHERE l."vendorId" = a."id" AND l."id" >= a."floor" AND l."timestamp" <= now() AT TIME ZONE 'UTC'
        AND l."timestamp" >= TIMESTAMP 'epoch' + a."since" * INTERVAL '1 millisecond'
) n
WHERE n."at" IS NOT NULL
"""

# The range of ids lets PostgreSQL skip whole days. Ids that contain no time (below 'cg', which is 2009, or not
# beginning with c) are in the default partition and are always read.
LOCATIONS = """
SELECT "id", (EXTRACT(EPOCH FROM "timestamp") * 1000)::bigint, "lat", "long"
FROM "locations"
WHERE "vendorId" = $1
  AND "timestamp" >= TIMESTAMP 'epoch' + $2::bigint * INTERVAL '1 millisecond'
  AND "timestamp" < TIMESTAMP 'epoch' + $3::bigint * INTERVAL '1 millisecond'
  AND ("timestamp", "id") > (TIMESTAMP 'epoch' + $4::bigint * INTERVAL '1 millisecond', $5::text)
  AND ("id" >= $6 AND "id" < $7 OR "id" < 'cg' OR "id" >= 'd')
ORDER BY "timestamp", "id"
LIMIT $8
"""

# reltuples is the estimate of the last ANALYZE or VACUUM: counting would read the tables.
TABLE_SIZES = """
SELECT COALESCE(parent.relname, c.relname), SUM(GREATEST(c.reltuples, 0))::bigint,
    SUM(pg_total_relation_size(c.oid))::bigint
FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class parent ON parent.oid = i.inhparent
WHERE c.relkind = 'r' AND COALESCE(parent.oid, c.oid) = ANY(
    SELECT to_regclass(quote_ident(name)) FROM unnest($1::text[]) AS name
)
GROUP BY 1 ORDER BY 1
"""


# Partitions and migrations

PARTITION_NAMES = "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = to_regclass($1)"
IS_PARTITIONED = "SELECT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = to_regclass('locations'))"
ADDS_PARTITIONS = "SELECT to_regprocedure('streamer_add_partition(date)') IS NOT NULL"
ADDS_ALERT_PARTITIONS = "SELECT to_regprocedure('streamer_add_alert_partition(date)') IS NOT NULL"

PRISMA_TABLES = ("users", "subscriptions", "vendors", "locations", "integrations")
TABLES = (
    *PRISMA_TABLES,
    *("streamer_audit", "streamer_alerts", "streamer_alert_states", "streamer_alert_events"),
    "streamer_alert_processes",
)
"""All tables of the models; a partition belongs to its table."""

OUR_TABLES = r"""
SELECT relname FROM pg_class
WHERE relnamespace = to_regnamespace(quote_ident(current_schema())) AND relkind IN ('r', 'p')
  AND (relname = ANY(:tables) OR relname = 'alembic_version' OR relname ~ '^locations_(default|\d{8})$')
ORDER BY relkind, relname
"""

# regprocedure quotes where it is needed.
OUR_FUNCTIONS = r"""
SELECT oid::regprocedure::text FROM pg_proc
WHERE pronamespace = to_regnamespace(quote_ident(current_schema())) AND proname ^@ 'streamer_'
"""


# Database roles

MISSING_RIGHTS = """
SELECT r.privilege || ' on ' || r.name || ' (' || string_agg(r.col, ', ' ORDER BY r.col) || ')'
FROM unnest($2::text[], $3::text[], $4::text[]) AS r(name, privilege, col)
WHERE NOT coalesce(has_column_privilege($1::name, to_regclass(quote_ident(r.name)), r.col, r.privilege), false)
GROUP BY r.privilege, r.name
UNION ALL SELECT 'USAGE on schema ' || current_schema()
    WHERE NOT has_schema_privilege($1::name, current_schema(), 'USAGE')
UNION ALL SELECT privilege || ' on database ' || current_database()
    FROM unnest(ARRAY['CONNECT', 'TEMPORARY']) AS privilege
    WHERE NOT has_database_privilege($1::name, current_database(), privilege)
UNION ALL SELECT 'EXECUTE on function ' || name FROM unnest($5::text[]) AS name
    WHERE NOT coalesce(has_function_privilege($1::name, to_regprocedure(name), 'EXECUTE'), false)
ORDER BY 1
"""

# The tables of these names that exist, and their partitions: a role may have rights on a partition of its own.
TABLES_TO_GRANT = """
SELECT c.relname FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
WHERE c.relnamespace = to_regnamespace(quote_ident(current_schema())) AND c.relkind IN ('r', 'p', 'v')
  AND (c.relname = ANY($1::text[]) OR i.inhparent = ANY(
    SELECT to_regclass(quote_ident(name)) FROM unnest($1::text[]) AS name
  ))
ORDER BY 1
"""

# Includes the rights of PUBLIC and of roles that this one is a member of.
HELD_RIGHTS = """
SELECT c.relname, privilege, a.attname
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped,
    unnest($3::text[]) AS privilege
WHERE c.relnamespace = to_regnamespace(quote_ident(current_schema())) AND c.relname = ANY($2::text[])
  AND has_column_privilege($1::name, c.oid, a.attnum, privilege)
UNION ALL
SELECT c.relname, privilege, NULL FROM pg_class c, unnest($4::text[]) AS privilege
WHERE c.relnamespace = to_regnamespace(quote_ident(current_schema())) AND c.relname = ANY($2::text[])
  AND has_table_privilege($1::name, c.oid, privilege)
"""

ROLE_POWER = """
SELECT rolcanlogin AS login,
    CASE WHEN rolsuper THEN 'is a superuser' WHEN rolcreaterole THEN 'may create and change roles'
        WHEN rolreplication THEN 'may replicate, and so read everything'
        WHEN pg_has_role(oid, (SELECT relowner FROM pg_class WHERE oid = to_regclass('locations')), 'MEMBER')
        THEN 'owns the tables, or is a member of the role that does' END AS power
FROM pg_roles WHERE rolname = $1
"""

RIGHTS_HOLDERS = """
SELECT DISTINCT r.rolname FROM pg_proc p, aclexplode(p.proacl) a JOIN pg_roles r ON r.oid = a.grantee
WHERE p.oid = to_regprocedure($1) AND a.grantee <> p.proowner
"""


# The audit

AUDIT_ENTRIES = """
SELECT "id", "at", "table", "rowId", "action", "before", "after", "user", "actor", "application", "address"
FROM "streamer_audit"
WHERE ($1::timestamp IS NULL OR "at" >= $1) AND ($2::text IS NULL OR "table" = $2)
  AND ($3::text IS NULL OR "rowId" = $3)
ORDER BY "at" DESC, "id" DESC LIMIT $4
"""

PRUNE_AUDIT = """
DELETE FROM "streamer_audit" WHERE "id" IN (
    SELECT "id" FROM "streamer_audit" WHERE "at" < $1 ORDER BY "at", "id" LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

COUNT_AUDIT = 'SELECT count(*) FROM "streamer_audit" WHERE "at" < $1'

AUDIT_TRIGGERS = """
SELECT t.tgrelid::regclass::text, t.tgname, t.tgenabled <> 'D', ARRAY(
    SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = t.tgrelid AND a.attnum = ANY(t.tgattr::int2[])
)
FROM pg_trigger t WHERE t.tgfoid = to_regprocedure('streamer_audit()')
"""


# Maintenance

PARTITION_SIZES = """
SELECT c.relname, GREATEST(c.reltuples, 0)::bigint, pg_total_relation_size(c.oid)
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass($1) ORDER BY 1
"""

OLD_ROWS = 'SELECT count(*) FROM "locations_default" WHERE "timestamp" < $1'

DELETE_OLD_ROWS = """
DELETE FROM "locations_default" WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM "locations_default" WHERE "timestamp" < $1 LIMIT $2
))
"""

TABLE_STATS = """
WITH ours AS (
    SELECT c.oid, COALESCE(p.relname, c.relname) AS name
    FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class p ON p.oid = i.inhparent
    WHERE c.relkind = 'r' AND COALESCE(p.oid, c.oid) = ANY(
        SELECT to_regclass(quote_ident(name)) FROM unnest($1::text[]) AS name
    )
)
SELECT name, SUM(GREATEST(c.reltuples, 0))::bigint, COALESCE(SUM(s.n_dead_tup), 0)::bigint,
    SUM(pg_table_size(c.oid))::bigint, SUM(pg_indexes_size(c.oid))::bigint,
    MAX(GREATEST(s.last_autovacuum, s.last_vacuum)), MAX(GREATEST(s.last_autoanalyze, s.last_analyze))
FROM ours JOIN pg_class c USING (oid) LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
GROUP BY name ORDER BY 4 DESC, 1
"""

# Indexes of partitions are summed up in the index of the whole table.
INDEX_STATS = """
SELECT t.relname, COALESCE(p.relname, x.relname), SUM(pg_relation_size(x.oid))::bigint,
    COALESCE(SUM(s.idx_scan), 0)::bigint
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid AND x.relkind = 'i'
JOIN pg_class own ON own.oid = i.indrelid
LEFT JOIN pg_inherits up ON up.inhrelid = own.oid
JOIN pg_class t ON t.oid = COALESCE(up.inhparent, own.oid)
LEFT JOIN pg_inherits xi ON xi.inhrelid = x.oid LEFT JOIN pg_class p ON p.oid = xi.inhparent
LEFT JOIN pg_stat_user_indexes s ON s.indexrelid = x.oid
WHERE t.oid = ANY(SELECT to_regclass(quote_ident(name)) FROM unnest($1::text[]) AS name)
GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2
"""

DATABASE_STATS = """
SELECT pg_database_size(datname), blks_hit, blks_read, numbackends, xact_commit, xact_rollback, deadlocks, temp_bytes,
    stats_reset
FROM pg_stat_database WHERE datname = current_database()
"""

OLDEST_TRANSACTION = """
SELECT EXTRACT(EPOCH FROM max(now() - xact_start))::float8 FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
"""

HAS_STATEMENTS = "SELECT to_regclass('pg_stat_statements') IS NOT NULL"

SLOW_STATEMENTS = """
SELECT regexp_replace(query, '\\s+', ' ', 'g'), calls, total_exec_time, mean_exec_time, rows
FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY total_exec_time DESC LIMIT $1
"""

INVALID_INDEXES = """
SELECT t.relname, x.relname
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
WHERE NOT i.indisvalid AND t.relnamespace = to_regnamespace(quote_ident(current_schema())) ORDER BY 1, 2
"""

PARTITION_BOUNDS = """
SELECT c.relname, pg_get_expr(c.relpartbound, c.oid)
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass($1) ORDER BY 1
"""

UNVALIDATED = """
SELECT t.relname, c.conname FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
WHERE NOT c.convalidated AND t.relnamespace = to_regnamespace(quote_ident(current_schema())) ORDER BY 1, 2
"""


# Backups

# From the snapshot that is dumped. The sum of hashes does not depend on the order of rows.
ROW_CHECKSUM = "SELECT count(*), COALESCE(sum(hashtextextended(t::text, 0)), 0)::text FROM {} t"

ALL_TABLES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND ($1::text IS NULL OR n.nspname = $1)
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, 2
"""


# Seeds

NOW = "date_trunc('milliseconds', now() AT TIME ZONE 'UTC')"

SEED_TEST_USER = f"""
INSERT INTO "users" ("id", "clerkId", "email", "firstName", "lastName", "updatedAt")
VALUES ('ctestuser0000000000000000', 'clerk_test_user', 'test@example.com', 'Test', 'User', {NOW})
ON CONFLICT DO NOTHING
"""

# Prisma's own seed may have added the test vendor before, with another id.
SEED_TEST_VENDOR = f"""
INSERT INTO "vendors" ("id", "name", "description", "userId", "lat", "long", "updatedAt")
SELECT 'ctestvendor00000000000000', 'Test Vendor', 'A test vendor for development', u."id", 40.7128, -74.0060, {NOW}
FROM "users" u
WHERE u."clerkId" = 'clerk_test_user'
  AND NOT EXISTS (SELECT FROM "vendors" v WHERE v."userId" = u."id" AND v."name" = 'Test Vendor')
ON CONFLICT DO NOTHING
"""

TEST_VENDOR = """
SELECT v."id", u."clerkId", v."name" FROM "vendors" v JOIN "users" u ON u."id" = v."userId"
WHERE u."clerkId" = 'clerk_test_user' ORDER BY v."name" <> 'Test Vendor', v."createdAt", v."id" LIMIT 1
"""

SEED_USERS = f"""
INSERT INTO "users" ("id", "clerkId", "email", "firstName", "lastName", "updatedAt")
SELECT "id", "clerkId", "email", 'Seed', "number", {NOW}
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS given("id", "clerkId", "email", "number")
ON CONFLICT DO NOTHING
"""

SEED_VENDORS = f"""
INSERT INTO "vendors" ("id", "name", "description", "userId", "updatedAt")
SELECT given."id", given."name", 'A seeded vendor', u."id", {NOW}
FROM unnest($1::text[], $2::text[], $3::text[]) AS given("id", "name", "clerkId")
JOIN "users" u ON u."clerkId" = given."clerkId"
ON CONFLICT DO NOTHING
"""

SEEDED = """
SELECT v."id", u."clerkId", v."name" FROM "vendors" v JOIN "users" u ON u."id" = v."userId"
WHERE v."id" = ANY($1::text[]) ORDER BY v."id"
"""

# Erasure and export

# Of rows that the user deleted before, the audit still has the values.
WHOM_TO_ERASE = """
WITH u AS (SELECT "id", "clerkId" FROM "users" WHERE "id" = $1 OR "clerkId" = $1),
    deleted AS (SELECT "table", "rowId", "before" FROM "streamer_audit" WHERE "action" = 'delete'),
    v AS (
        SELECT "id" FROM "vendors" WHERE "id" = $1 OR "userId" IN (SELECT "id" FROM u)
        UNION SELECT "rowId" FROM deleted
            WHERE "table" = 'vendors' AND "before"->>'userId' IN (SELECT "id" FROM u)
                AND NOT EXISTS (SELECT FROM "vendors" WHERE "id" = "rowId")
    )
SELECT ARRAY(SELECT "id" FROM v) AS "vendors", ARRAY(SELECT "id" FROM u) AS "users",
    ARRAY(SELECT "clerkId" FROM u) AS "clerkIds", ARRAY(
        SELECT "id" FROM "subscriptions" WHERE "userId" IN (SELECT "id" FROM u)
        UNION SELECT "id" FROM "integrations"
            WHERE "internalId" IN (SELECT "id" FROM u UNION SELECT "id" FROM v)
        UNION SELECT "rowId" FROM deleted
            WHERE "table" = 'subscriptions' AND "before"->>'userId' IN (SELECT "id" FROM u)
                OR "table" = 'integrations'
                    AND "before"->>'internalId' IN (SELECT "id" FROM u UNION SELECT "id" FROM v)
    ) AS "others"
"""
MARK_DELETED = """
WITH v AS (
    UPDATE "vendors" SET "deletedAt" = now() AT TIME ZONE 'UTC', "updatedAt" = now() AT TIME ZONE 'UTC'
    WHERE "id" = ANY($1::text[]) AND "deletedAt" IS NULL
)
UPDATE "users" SET "deletedAt" = now() AT TIME ZONE 'UTC', "updatedAt" = now() AT TIME ZONE 'UTC'
WHERE "id" = ANY($2::text[]) AND "deletedAt" IS NULL
"""
ERASE_LOCATIONS = """
DELETE FROM "locations" WHERE "id" = ANY(ARRAY(
    SELECT "id" FROM "locations" WHERE "vendorId" = ANY($1::text[]) LIMIT $2
))
"""
# Subscriptions go with their user.
ERASE_ROWS = {
    "streamer_alert_events": """
DELETE FROM "streamer_alert_events" WHERE "vendorId" = ANY($1::text[])
    OR "alertId" IN (SELECT "id" FROM "streamer_alerts" WHERE "userId" = ANY($1::text[]))
""",
    "streamer_alert_states": """
DELETE FROM "streamer_alert_states" WHERE "vendorId" = ANY($1::text[])
    OR "alertId" IN (SELECT "id" FROM "streamer_alerts" WHERE "userId" = ANY($1::text[]))
""",
    "streamer_alerts": 'DELETE FROM "streamer_alerts" WHERE "userId" = ANY($1::text[])',
    "integrations": 'DELETE FROM "integrations" WHERE "internalId" = ANY($1::text[])',
    "vendors": 'DELETE FROM "vendors" WHERE "id" = ANY($1::text[])',
    "users": 'DELETE FROM "users" WHERE "id" = ANY($1::text[])',
}
ERASE_AUDIT = """
DELETE FROM "streamer_audit" WHERE "rowId" = ANY($1::text[])
    OR coalesce("before", '{}')->>'clerkId' = ANY($2::text[]) OR coalesce("after", '{}')->>'clerkId' = ANY($2::text[])
"""
# Another user's alert is deleted when its list becomes empty.
UNLIST = """
UPDATE "streamer_alerts" SET
    "definition" = jsonb_set("definition", '{vendors}', ("definition"->'vendors') - $1::text[]),
    "deletedAt" = CASE WHEN ("definition"->'vendors') - $1::text[] = '[]' THEN now() AT TIME ZONE 'UTC' END,
    "revision" = "revision" + 1, "updatedAt" = now() AT TIME ZONE 'UTC'
WHERE "definition"->'vendors' ?| $1::text[]
"""
ERASE_ACTOR = 'UPDATE "streamer_audit" SET "actor" = NULL WHERE "actor" = ANY($1::text[])'

EXPORT_VENDOR = 'SELECT to_jsonb(v)::text FROM "vendors" v WHERE v."id" = $1'
EXPORT_LOCATIONS = """
SELECT "id", "timestamp", (EXTRACT(EPOCH FROM "timestamp") * 1000)::bigint AS "ms", "lat", "long" FROM "locations"
WHERE "vendorId" = $1 AND ($2::timestamp IS NULL OR ("timestamp", "id") > ($2, $3::text))
ORDER BY "timestamp", "id" LIMIT $4
"""

# Thinning: the first fix of each vendor and time span stays. $1 and $2 are the bounds of the ids.
THIN = """
DELETE FROM "locations" WHERE "id" >= $1 AND "id" < $2 AND "id" NOT IN (
    SELECT DISTINCT ON ("vendorId", floor(EXTRACT(EPOCH FROM "timestamp") / $3)) "id" FROM "locations"
    WHERE "id" >= $1 AND "id" < $2
    ORDER BY "vendorId", floor(EXTRACT(EPOCH FROM "timestamp") / $3), "timestamp", "id"
)
"""
PARTITION_COMMENTS = """
SELECT c.relname, coalesce(obj_description(c.oid, 'pg_class'), '')
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass('locations') ORDER BY 1
"""
