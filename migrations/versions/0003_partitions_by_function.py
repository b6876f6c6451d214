"""A SECURITY DEFINER function creates a day's partition, so that a server need not own the tables.

The day is its only argument: a role that may call it can create the partitions around today, and no other table.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# The bounds are those of streamer.storage.partitions.partition_bounds: `c` and the first millisecond in base 36.
BODY = """
DECLARE
    digits CONSTANT text := '0123456789abcdefghijklmnopqrstuvwxyz';
    name CONSTANT text := 'locations_' || to_char("day", 'YYYYMMDD');
    bounds text[] := '{}';
    rest bigint;
    written text;
BEGIN
    IF "day" NOT BETWEEN DATE '1970-01-01' AND DATE '2059-05-24' THEN
        RAISE 'no id of a location can hold the time %: it is from 1970 to 2059', "day"
            USING ERRCODE = 'datetime_field_overflow';
    END IF;
    -- whoever may call this, and is not the owner, must not fill the database with tables
    IF "day" NOT BETWEEN current_date - 31 AND current_date + 370
        AND NOT pg_has_role(session_user, current_user, 'USAGE') THEN
        RAISE 'only the owner of the tables makes partitions as far from today as %', "day"
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM pg_advisory_xact_lock(33325572325179394);
    IF EXISTS (
        SELECT FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
        WHERE inhparent = to_regclass('locations') AND c.relname = name
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
    -- A table made by itself and attached leaves `locations` open for COPY, which CREATE … PARTITION OF would not.
    -- Attaching locks vendors for its foreign key. In this order, that of a statement which reads or deletes
    -- locations by vendor, the two can't wait for each other.
    LOCK TABLE "vendors" IN SHARE ROW EXCLUSIVE MODE;
    LOCK TABLE ONLY "locations" IN SHARE UPDATE EXCLUSIVE MODE;
    LOCK TABLE "locations_default" IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('CREATE TABLE %I (LIKE "locations" INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format(
        'WITH moved AS (DELETE FROM "locations_default" WHERE "id" >= $1 AND "id" < $2 RETURNING *) '
        'INSERT INTO %I SELECT * FROM moved', name
    ) USING bounds[1], bounds[2];
    EXECUTE format(
        'ALTER TABLE "locations" ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, bounds[1], bounds[2]
    );
    RETURN true;
END
"""

# The search_path is fixed, with the temporary schema last, so that the caller can't substitute other tables.
CREATE = """
DO $do$ BEGIN
    EXECUTE format(
        'CREATE FUNCTION streamer_add_partition("day" date) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER '
        'SET search_path = %I, pg_temp AS %L', current_schema(), $body${body}$body$
    );
END $do$
"""


def upgrade() -> None:
    op.execute(CREATE.replace("{body}", BODY))
    op.execute("REVOKE ALL ON FUNCTION streamer_add_partition(date) FROM PUBLIC")


def downgrade() -> None:
    op.execute("DROP FUNCTION streamer_add_partition(date)")
