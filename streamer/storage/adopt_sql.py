"""The SQL of adoption (adopt.py)."""

from __future__ import annotations

from streamer.storage.models import LAT_CHECK, LONG_CHECK

OLD = "locations"
NEW = "streamer_adopt_locations"
BEFORE = "locations_before_adopt"

CHECKS = (
    ("vendors", "vendors_lat_check", LAT_CHECK),
    ("vendors", "vendors_long_check", LONG_CHECK),
    ("subscriptions", "subscriptions_endDate_check", '"endDate" >= "startDate"'),
)

# Looking

COLUMNS = """
SELECT table_name, column_name FROM information_schema.columns
WHERE table_schema = current_schema() AND table_name = ANY($1::text[])
"""

OBSTACLES = {
    "locations out of range (lat -90 to 90, long -180 to 180)": f"""
SELECT "id", count(*) OVER () AS count FROM "locations" WHERE NOT ({LAT_CHECK} AND {LONG_CHECK})
ORDER BY "id" LIMIT $1
""",
    "locations without a vendor, position or time": """
SELECT "id", count(*) OVER () AS count FROM "locations"
WHERE "vendorId" IS NULL OR "lat" IS NULL OR "long" IS NULL OR "timestamp" IS NULL ORDER BY "id" LIMIT $1
""",
    "locations of a vendor that does not exist": """
SELECT "id", count(*) OVER () AS count FROM "locations" l
WHERE "vendorId" IS NOT NULL AND NOT EXISTS (SELECT FROM "vendors" v WHERE v."id" = l."vendorId") ORDER BY "id" LIMIT $1
""",
    "vendors out of range (lat -90 to 90, long -180 to 180)": f"""
SELECT "id", count(*) OVER () AS count FROM "vendors" WHERE NOT ({LAT_CHECK} AND {LONG_CHECK}) ORDER BY "id" LIMIT $1
""",
    "subscriptions that end before they start": """
SELECT "id", count(*) OVER () AS count FROM "subscriptions" WHERE "endDate" < "startDate" ORDER BY "id" LIMIT $1
""",
}

DEPENDENTS = """
SELECT 'trigger ' || tgname FROM pg_trigger
WHERE tgrelid = to_regclass('locations') AND NOT tgisinternal AND NOT starts_with(tgname, $1)
UNION ALL SELECT DISTINCT 'view ' || r.ev_class::regclass::text FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
WHERE d.classid = 'pg_rewrite'::regclass AND d.refobjid = to_regclass('locations')
UNION ALL SELECT 'foreign key ' || conname || ' of ' || conrelid::regclass::text FROM pg_constraint
WHERE contype = 'f' AND confrelid = to_regclass('locations')
UNION ALL SELECT 'policy ' || polname FROM pg_policy WHERE polrelid = to_regclass('locations')
ORDER BY 1
"""

ABOUT_ROWS = "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass('locations')"
OTHER_IDS = """SELECT count(*) FROM "locations" WHERE "id" !~ '^c[0-9a-z]{24}$'"""
DAYS = """
SELECT DISTINCT "timestamp"::date FROM "locations"
WHERE "id" ~ '^c[0-9a-z]{8}' AND "timestamp" >= DATE '2009-01-01' AND "timestamp" < DATE '2059-05-24'
ORDER BY 1
"""
SOFT_DELETED = """
SELECT (SELECT count(*) FROM "users" WHERE "deletedAt" IS NOT NULL)
    + (SELECT count(*) FROM "vendors" WHERE "deletedAt" IS NOT NULL)
"""

# The new table

STATE = 'CREATE TABLE IF NOT EXISTS "streamer_adopt" ("phase" TEXT NOT NULL, "last" TEXT)'
BEGIN_STATE = """
INSERT INTO "streamer_adopt" ("phase") SELECT 'preparing' WHERE NOT EXISTS (SELECT FROM "streamer_adopt")
"""

CREATE_NEW = (
    f"""
CREATE TABLE IF NOT EXISTS "streamer_adopt_locations" (
    "id" TEXT COLLATE "C" NOT NULL,
    "vendorId" TEXT NOT NULL,
    "lat" DOUBLE PRECISION NOT NULL,
    "long" DOUBLE PRECISION NOT NULL,
    "timestamp" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "adopt_locations_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "locations_lat_check" CHECK ({LAT_CHECK}),
    CONSTRAINT "locations_long_check" CHECK ({LONG_CHECK}),
    CONSTRAINT "locations_vendorId_fkey" FOREIGN KEY ("vendorId") REFERENCES "vendors"("id")
        ON DELETE CASCADE ON UPDATE CASCADE
) PARTITION BY RANGE ("id")
""",
    'CREATE INDEX IF NOT EXISTS "adopt_idx_locations_vendor_id" ON "streamer_adopt_locations"("vendorId", "timestamp")',
    'CREATE INDEX IF NOT EXISTS "adopt_idx_locations_timestamp" ON "streamer_adopt_locations"("timestamp")',
    'CREATE TABLE IF NOT EXISTS "locations_default" PARTITION OF "streamer_adopt_locations" DEFAULT',
)

OWNER = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass('locations')"
GRANTS = """
SELECT format('GRANT %s%s ON %I TO %s', privilege, column_name, $1::text, coalesce(quote_ident(rolname), 'PUBLIC'))
FROM (
    SELECT a.grantee, a.privilege_type AS privilege, '' AS column_name FROM pg_class c, aclexplode(c.relacl) a
    WHERE c.oid = to_regclass('locations') AND a.grantee <> c.relowner
    UNION ALL
    SELECT a.grantee, a.privilege_type, format(' (%I)', t.attname) FROM pg_attribute t, aclexplode(t.attacl) a
    WHERE t.attrelid = to_regclass('locations') AND t.attnum > 0 AND NOT t.attisdropped
) held LEFT JOIN pg_roles ON pg_roles.oid = held.grantee
"""

# Mirroring: SECURITY DEFINER, as a role that writes the old table may have no rights on the new one.

MIRROR = "zz_streamer_adopt"
"""Prefix of the names of the triggers."""
MIRROR_FUNCTION = """
DO $do$ BEGIN
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION streamer_adopt_mirror() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER '
        'SET search_path = %I, pg_temp AS %L', current_schema(), $body$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        EXECUTE format('TRUNCATE %I', TG_ARGV[0]);
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        EXECUTE format('DELETE FROM %I WHERE "id" = $1', TG_ARGV[0]) USING OLD."id";
    END IF;
    IF TG_OP <> 'DELETE' THEN
        EXECUTE format(
            'INSERT INTO %I ("id", "vendorId", "lat", "long", "timestamp") VALUES ($1, $2, $3, $4, $5) '
            'ON CONFLICT ("id") DO NOTHING', TG_ARGV[0]
        ) USING NEW."id", NEW."vendorId", NEW."lat", NEW."long", NEW."timestamp";
    END IF;
    RETURN NULL;
END
$body$);
END $do$
"""


def _mirrored_to(target: str) -> tuple[str, ...]:
    """Returns the statements that make a trigger mirror every change of `locations` into another table."""
    return (
        f'CREATE TRIGGER "{MIRROR}" AFTER INSERT OR UPDATE OR DELETE ON "locations" '
        f"FOR EACH ROW EXECUTE FUNCTION streamer_adopt_mirror('{target}')",
        f'CREATE TRIGGER "{MIRROR}_truncate" AFTER TRUNCATE ON "locations" '
        f"FOR EACH STATEMENT EXECUTE FUNCTION streamer_adopt_mirror('{target}')",
    )


UNMIRROR = (
    f'DROP TRIGGER IF EXISTS "{MIRROR}" ON "locations"',
    f'DROP TRIGGER IF EXISTS "{MIRROR}_truncate" ON "locations"',
)
BEGIN_COPYING = (
    *_mirrored_to(NEW),
    """UPDATE "streamer_adopt" SET "phase" = 'copying', "last" = NULL""",
)
BEGIN_REVERTING = (
    *_mirrored_to(BEFORE),
    """UPDATE "streamer_adopt" SET "phase" = 'reverting', "last" = NULL""",
)

# Copying: {0} is the source, {1} the target, {2} > or >=.

COPY_BATCH = """
WITH batch AS MATERIALIZED (
    SELECT max(s."id") AS "last", count(*) AS "seen"
    FROM (SELECT "id" FROM {0} WHERE "id" {2} $1 ORDER BY "id" LIMIT $2) s
), held AS MATERIALIZED (
    SELECT "id", "vendorId", "lat", "long", "timestamp" FROM {0}
    WHERE "id" {2} $1 AND "id" <= (SELECT "last" FROM batch) FOR SHARE
), copied AS (
    INSERT INTO {1} AS t ("id", "vendorId", "lat", "long", "timestamp")
    SELECT "id", "vendorId", "lat", "long", "timestamp" FROM held
    ON CONFLICT ("id") DO UPDATE SET "vendorId" = excluded."vendorId", "lat" = excluded."lat", "long" = excluded."long",
        "timestamp" = excluded."timestamp"
    WHERE (t."vendorId", t."lat", t."long", t."timestamp")
        IS DISTINCT FROM (excluded."vendorId", excluded."lat", excluded."long", excluded."timestamp")
    RETURNING 1
)
SELECT "last", "seen", (SELECT count(*) FROM copied) AS "copied" FROM batch
"""

REMOVE_VANISHED = """
DELETE FROM "locations_before_adopt" b
WHERE NOT EXISTS (SELECT FROM "locations" l WHERE l."id" = b."id" COLLATE "C")
"""

# The other tables

INDEX_PLACES = {
    "idx_users_clerk_id": '"users"("clerkId")',
    "idx_users_email": '"users"("email")',
    "idx_vendors_user_id": '"vendors"("userId")',
    "idx_vendors_location": '"vendors"("lat", "long")',
    "idx_vendors_created_at": '"vendors"("createdAt")',
    "idx_subscriptions_user_id": '"subscriptions"("userId")',
    "idx_subscriptions_status": '"subscriptions"("status")',
    "idx_subscriptions_end_date": '"subscriptions"("endDate")',
    "idx_integrations_service": '"integrations"("service")',
    "idx_integrations_external_id": '"integrations"("externalId")',
}
INDEXES = tuple(f'CREATE INDEX CONCURRENTLY IF NOT EXISTS "{name}" ON {place}' for name, place in INDEX_PLACES.items())
INVALID_INDEXES = """
SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE NOT i.indisvalid AND c.relname = ANY($1::text[]) AND c.relnamespace = current_schema()::regnamespace
"""
CHECK_NAMES = "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = current_schema()::regnamespace"
UNVALIDATED_CHECKS = """
SELECT c.relname, conname FROM pg_constraint JOIN pg_class c ON c.oid = conrelid
WHERE contype = 'c' AND NOT convalidated AND conname = ANY($1::text[])
    AND connamespace = current_schema()::regnamespace
"""

# The exchange. Index names are unique in the schema, so the old table's get a suffix.

RENAME_INDEXES = """
DO $$ DECLARE index record; BEGIN
    FOR index IN SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = to_regclass('{table}')
    LOOP
        EXECUTE format('ALTER INDEX %I RENAME TO %I', index.relname, {name});
    END LOOP;
END $$
"""
WITH_SUFFIX = "left(index.relname, 55) || '_before'"
WITHOUT_SUFFIX = "regexp_replace(index.relname, '_before$', '')"
WITH_PREFIX = "'adopt_' || index.relname"
WITHOUT_PREFIX = "regexp_replace(index.relname, '^adopt_', '')"

LOCK_AND_UNMIRROR = ('LOCK TABLE "locations" IN ACCESS EXCLUSIVE MODE', *UNMIRROR)
CUT_OVER = (
    *LOCK_AND_UNMIRROR,
    'ALTER TABLE "locations" RENAME TO "locations_before_adopt"',
    RENAME_INDEXES.format(table=BEFORE, name=WITH_SUFFIX),
    'ALTER TABLE "streamer_adopt_locations" RENAME TO "locations"',
    RENAME_INDEXES.format(table=OLD, name=WITHOUT_PREFIX),
    'CREATE TABLE "alembic_version" ("version_num" VARCHAR(32) NOT NULL, '
    'CONSTRAINT "alembic_version_pkc" PRIMARY KEY ("version_num"))',
    """INSERT INTO "alembic_version" VALUES ('0002')""",
    """UPDATE "streamer_adopt" SET "phase" = 'adopted', "last" = NULL""",
)

CUT_BACK = (
    *LOCK_AND_UNMIRROR,
    'ALTER TABLE "locations" RENAME TO "streamer_adopt_locations"',
    RENAME_INDEXES.format(table=NEW, name=WITH_PREFIX),
    'ALTER TABLE "locations_before_adopt" RENAME TO "locations"',
    RENAME_INDEXES.format(table=OLD, name=WITHOUT_SUFFIX),
    'ALTER TABLE "vendors" DROP CONSTRAINT IF EXISTS "vendors_lat_check"',
    'ALTER TABLE "vendors" DROP CONSTRAINT IF EXISTS "vendors_long_check"',
    'ALTER TABLE "subscriptions" DROP CONSTRAINT IF EXISTS "subscriptions_endDate_check"',
    'ALTER TABLE "vendors" DROP COLUMN IF EXISTS "locatedAt"',
    'ALTER TABLE "vendors" DROP COLUMN IF EXISTS "deletedAt"',
    'ALTER TABLE "users" DROP COLUMN IF EXISTS "deletedAt"',
    'DROP TABLE IF EXISTS "alembic_version"',
    """UPDATE "streamer_adopt" SET "phase" = 'reverted'""",
)

CLEAN_UP = ("DROP FUNCTION IF EXISTS streamer_adopt_mirror() CASCADE", 'DROP TABLE "streamer_adopt"')
REMOVE_NEW = ('DROP TABLE IF EXISTS "streamer_adopt_locations"', *CLEAN_UP)
FINISH = ('DROP TABLE "locations_before_adopt"', *CLEAN_UP)
