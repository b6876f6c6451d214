"""The schema in a real PostgreSQL: what Prisma relies on, and additions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import inf, nan
from typing import Any

import asyncpg
import pytest
from sqlalchemy import URL

from streamer.ingest.copy_rows import id_floor, location_id
from streamer.storage import drift
from streamer.storage.models import METADATA

TIME = "timestamp(3) without time zone"
NOW = "CURRENT_TIMESTAMP"

# the columns of Prisma's models: name, type, whether NULL is allowed, default
Column = tuple[str, str, bool, str | None]
PRISMA_COLUMNS: dict[str, list[Column]] = {
    "users": [
        ("id", "text", False, None),
        ("clerkId", "text", False, None),
        ("email", "text", False, None),
        ("firstName", "text", True, None),
        ("lastName", "text", True, None),
        ("createdAt", TIME, False, NOW),
        ("updatedAt", TIME, False, None),
    ],
    "subscriptions": [
        ("id", "text", False, None),
        ("userId", "text", False, None),
        ("provider", "text", False, None),
        ("productId", "text", False, None),
        ("status", "text", False, None),
        ("startDate", TIME, False, None),
        ("endDate", TIME, True, None),
        ("createdAt", TIME, False, NOW),
        ("updatedAt", TIME, False, None),
    ],
    "vendors": [
        ("id", "text", False, None),
        ("name", "text", False, None),
        ("description", "text", True, None),
        ("phone", "text", True, None),
        ("email", "text", True, None),
        ("website", "text", True, None),
        ("open", "boolean", False, "true"),
        ("primaryImage", "text", True, None),
        ("lat", "double precision", True, None),
        ("long", "double precision", True, None),
        ("userId", "text", False, None),
        ("createdAt", TIME, False, NOW),
        ("updatedAt", TIME, False, None),
    ],
    "locations": [
        ("id", "text", False, None),
        ("vendorId", "text", False, None),
        ("lat", "double precision", False, None),
        ("long", "double precision", False, None),
        ("timestamp", TIME, False, NOW),
    ],
    "integrations": [
        ("id", "text", False, None),
        ("service", "text", False, None),
        ("externalId", "text", False, None),
        ("internalId", "text", False, None),
        ("metadata", "jsonb", True, None),
        ("createdAt", TIME, False, NOW),
        ("updatedAt", TIME, False, None),
    ],
}
ADDED_COLUMNS: dict[str, list[Column]] = {
    "users": [("deletedAt", TIME, True, None)],
    "vendors": [("locatedAt", TIME, True, None), ("deletedAt", TIME, True, None), ("hidden", "boolean", True, None)],
}

CASCADE = "ON UPDATE CASCADE ON DELETE CASCADE"
CONSTRAINTS = {
    "users_pkey": "PRIMARY KEY (id)",
    "subscriptions_pkey": "PRIMARY KEY (id)",
    "vendors_pkey": "PRIMARY KEY (id)",
    "locations_pkey": "PRIMARY KEY (id)",
    "integrations_pkey": "PRIMARY KEY (id)",
    "subscriptions_userId_fkey": f'FOREIGN KEY ("userId") REFERENCES users(id) {CASCADE}',
    "vendors_userId_fkey": f'FOREIGN KEY ("userId") REFERENCES users(id) {CASCADE}',
    "locations_vendorId_fkey": f'FOREIGN KEY ("vendorId") REFERENCES vendors(id) {CASCADE}',
}
CHECKS = {
    "vendors_lat_check",
    "vendors_long_check",
    "locations_lat_check",
    "locations_long_check",
    "subscriptions_endDate_check",
}

INDEXES = {
    "users_pkey": "UNIQUE users (id)",
    "subscriptions_pkey": "UNIQUE subscriptions (id)",
    "vendors_pkey": "UNIQUE vendors (id)",
    "locations_pkey": "UNIQUE locations (id)",
    "integrations_pkey": "UNIQUE integrations (id)",
    "users_clerkId_key": 'UNIQUE users ("clerkId")',
    "users_email_key": "UNIQUE users (email)",
    "integrations_service_externalId_key": 'UNIQUE integrations (service, "externalId")',
    "idx_users_clerk_id": 'users ("clerkId")',
    "idx_users_email": "users (email)",
    "idx_vendors_user_id": 'vendors ("userId")',
    "idx_vendors_location": "vendors USING brin (lat, long)",
    "idx_vendors_name_search": "vendors USING gin (streamer_search_words(name))",
    "idx_vendors_created_at": 'vendors ("createdAt")',
    "idx_locations_vendor_id": 'locations ("vendorId", "timestamp")',
    "idx_locations_timestamp": 'locations ("timestamp")',
    "idx_subscriptions_user_id": 'subscriptions ("userId")',
    "idx_subscriptions_status": "subscriptions (status)",
    "idx_subscriptions_end_date": 'subscriptions ("endDate")',
    "idx_integrations_service": "integrations (service)",
    "idx_integrations_external_id": 'integrations ("externalId")',
}

# Prisma does not use the audit's table: tests/integration/storage/test_audit.py
OURS = (
    "relnamespace = 'public'::regnamespace AND NOT relispartition "
    "AND relname NOT LIKE 'alembic_version%' AND relname !~ 'streamer_(audit|alert)'"
)


async def add_location(connection: Any, id: str, lat: float = 52.2, long: float = 21.0) -> None:
    """Like the statements of a Prisma client, which name only the columns of its model."""
    await connection.execute(
        'INSERT INTO "locations" ("id", "vendorId", "lat", "long") VALUES ($1, $2, $3, $4)', id, "v1", lat, long
    )


async def test_tables_and_columns_are_prismas_and_ours_are_nullable(connection: Any) -> None:
    """A Prisma client in another service fails if a column is renamed, has another type, or is newly required."""
    rows = await connection.fetch(
        f"""
        SELECT relname, attname, format_type(atttypid, atttypmod), NOT attnotnull, pg_get_expr(adbin, adrelid)
        FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE {OURS} AND relkind IN ('r', 'p') ORDER BY relname, attnum
        """
    )
    found: dict[str, list[tuple[Any, ...]]] = {}
    for table, *column in rows:
        found.setdefault(table, []).append(tuple(column))
    assert found == {table: columns + ADDED_COLUMNS.get(table, []) for table, columns in PRISMA_COLUMNS.items()}


async def test_constraints_have_prismas_names(connection: Any) -> None:
    """`prisma migrate diff` and code that catches a constraint by its name know these names."""
    rows = await connection.fetch(
        f"""
        SELECT conname, contype, pg_get_constraintdef(pg_constraint.oid), convalidated
        FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid WHERE {OURS} AND contype <> 'n'
        """
    )
    assert {name: definition for name, kind, definition, _ in rows if kind != b"c"} == CONSTRAINTS
    assert {name for name, kind, _, _ in rows if kind == b"c"} == CHECKS
    assert all(validated for *_, validated in rows)


async def test_every_documented_index_is_there(connection: Any) -> None:
    """Without its index, a backend's fast query would scan the table."""
    rows = await connection.fetch(
        f"""
        SELECT relname, pg_get_indexdef(pg_class.oid) FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid
        WHERE {OURS} AND indisvalid
        """
    )
    found = {}
    for name, definition in rows:
        unique = "UNIQUE " if definition.startswith("CREATE UNIQUE") else ""
        table, _, columns = definition.split(" ON ", 1)[1].partition(" USING btree ")
        found[name] = f"{unique}{table.removeprefix('ONLY ').removeprefix('public.')} {columns}".strip()
    assert found == INDEXES


async def test_locations_are_partitioned_by_id_in_the_c_collation(connection: Any) -> None:
    """In another collation ids would not sort by time, and pings would be stored in the wrong day."""
    key, collation = await connection.fetchrow(
        """
        SELECT pg_get_partkeydef(attrelid), collname
        FROM pg_attribute JOIN pg_collation ON pg_collation.oid = attcollation
        WHERE attrelid = 'locations'::regclass AND attname = 'id'
        """
    )
    assert (key, collation) == ("RANGE (id)", "C")


async def test_the_models_are_the_database(database_url: str) -> None:
    """A model changed without a migration, or vice versa, fails here."""
    assert await drift.drift(database_url) == []


def test_the_models_have_prismas_columns() -> None:
    """A misspelt column in a model would otherwise be detected only by its users."""
    dialect = URL.create("postgresql+asyncpg").get_dialect()()
    found = {
        name: {column.name: str(column.type.compile(dialect)).split(" COLLATE")[0].lower() for column in table.columns}
        for name, table in METADATA.tables.items()
        if not name.startswith("streamer_")
    }
    assert found == {
        name: {column: type_ for column, type_, *_ in columns + ADDED_COLUMNS.get(name, [])}
        for name, columns in PRISMA_COLUMNS.items()
    }


@pytest.mark.parametrize(
    ("lat", "long"),
    [(90.001, 0), (-90.001, 0), (0, 180.001), (0, -180.001), (nan, 0), (0, nan), (inf, 0), (0, -inf)],
)
async def test_a_position_that_is_nowhere_is_refused(connection: Any, lat: float, long: float) -> None:
    """One NaN in a row makes every distance computed from it NaN."""
    with pytest.raises(asyncpg.CheckViolationError):
        await add_location(connection, "alien", lat, long)
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute('UPDATE "vendors" SET "lat" = $1, "long" = $2', lat, long)


@pytest.mark.parametrize(("lat", "long"), [(90.0, 180.0), (-90.0, -180.0), (0.0, 0.0)])
async def test_the_ends_of_the_earth_are_taken(connection: Any, lat: float, long: float) -> None:
    """A vendor at a pole or on the antimeridian must be stored like any other."""
    await add_location(connection, "alien", lat, long)
    await connection.execute('UPDATE "vendors" SET "lat" = $1, "long" = $2', lat, long)


async def test_a_subscription_does_not_end_before_it_starts(connection: Any) -> None:
    """Such a subscription would never be active, without an explanation."""
    insert = """
        INSERT INTO "subscriptions"
            ("id", "userId", "provider", "productId", "status", "startDate", "endDate", "updatedAt")
        VALUES ($1, 'u1', 'stripe', 'p', 'active', $2, $3, now())
    """
    start = datetime(2026, 11, 24)
    await connection.execute(insert, "open", start, None)
    await connection.execute(insert, "at once", start, start)
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute(insert, "backwards", start, start - timedelta(milliseconds=1))


async def test_deleting_a_user_deletes_all_that_is_theirs(connection: Any) -> None:
    """Otherwise a deleted user's locations would stay."""
    await add_location(connection, location_id("v1", epoch_ms()))
    await add_location(connection, "alien")
    await connection.execute(
        """
        INSERT INTO "subscriptions" ("id", "userId", "provider", "productId", "status", "startDate", "updatedAt")
        VALUES ('s1', 'u1', 'stripe', 'p', 'active', now(), now())
        """
    )
    await connection.execute("""DELETE FROM "users" WHERE "id" = 'u1'""")
    for table in ("vendors", "locations", "subscriptions"):
        assert await connection.fetchval(f'SELECT count(*) FROM "{table}"') == 0, table


async def test_a_new_id_of_a_vendor_reaches_its_locations(connection: Any) -> None:
    """ON UPDATE CASCADE is part of Prisma's relation."""
    await add_location(connection, "alien")
    await connection.execute("""UPDATE "vendors" SET "id" = 'v2'""")
    assert await connection.fetchval('SELECT "vendorId" FROM "locations"') == "v2"


async def test_prismas_ids_land_in_their_day_and_alien_ids_in_the_default(connection: Any) -> None:
    """Otherwise a ping written by another service with Prisma would be dropped with the wrong day, or refused."""
    now = epoch_ms()
    # cuid(): c, time, a counter of 4, a fingerprint of 4, 8 at random
    cuid = id_floor(now) + "000a" + "k7x2" + "q0w9e8r7"
    uuid = "0198f0a2-5b1c-7d3e-8f90-a1b2c3d4e5f6"
    for id in (cuid, location_id("v1", now), uuid, "cshort", "zzz", ""):
        await add_location(connection, id)
    today = f"locations_{datetime.fromtimestamp(now / 1000, UTC):%Y%m%d}"
    found = dict(await connection.fetch('SELECT "id", tableoid::regclass::text FROM "locations"'))
    assert found == {
        cuid: today,
        location_id("v1", now): today,
        **dict.fromkeys((uuid, "cshort", "zzz", ""), "locations_default"),
    }


async def test_a_resent_ping_is_stored_once(connection: Any) -> None:
    """The primary key makes a resend idempotent."""
    id = location_id("v1", epoch_ms())
    await add_location(connection, id)
    with pytest.raises(asyncpg.UniqueViolationError):
        await add_location(connection, id)
    await connection.execute(
        'INSERT INTO "locations" ("id", "vendorId", "lat", "long") VALUES ($1, $2, 0, 0) ON CONFLICT ("id") DO NOTHING',
        id,
        "v1",
    )
    assert await connection.fetchval('SELECT count(*) FROM "locations"') == 1


async def test_a_range_of_ids_reads_only_its_days(connection: Any) -> None:
    """Otherwise history queries would become slower with every day that is kept."""
    start = datetime.fromtimestamp(epoch_ms() / 1000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    lower = int(start.timestamp()) * 1000
    plan = await connection.fetch(
        f"""
        EXPLAIN SELECT * FROM "locations"
        WHERE "vendorId" = 'v1' AND "id" >= '{id_floor(lower + 1)}' AND "id" < '{id_floor(lower + 3_600_000)}'
        """
    )
    text = "\n".join(row[0] for row in plan)
    assert f"locations_{start:%Y%m%d}" in text
    assert f"locations_{start + timedelta(days=1):%Y%m%d}" not in text
    assert f"locations_{start - timedelta(days=1):%Y%m%d}" not in text


def epoch_ms() -> int:
    """Returns the current time in epoch milliseconds."""
    return int(datetime.now(UTC).timestamp() * 1000)
