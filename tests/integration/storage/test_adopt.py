"""A database created by Prisma is adopted while its gateway writes, and reverted.

`ADOPT_ROWS=1000000 pytest -s tests/integration/storage/test_adopt.py` uses a million rows.
"""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from streamer.errors import DatabaseError, Unavailable
from streamer.ingest.copy_rows import id_floor
from streamer.operations import maintenance
from streamer.storage import adopt, migrate, revisions, roles
from streamer.storage.drift import drift
from tests.conftest import connected
from tests.support.apps import eventually
from tests.support.paths import ROOT
from tests.support.prisma import prisma_schema

ROWS = int(os.environ.get("ADOPT_ROWS", "20000"))
OTHER_IDS = ROWS // 100
DAYS = 10

USERS = """
INSERT INTO "users" ("id", "clerkId", "email", "updatedAt")
SELECT 'u' || n, 'clerk_' || n, n || '@example.com', now() FROM generate_series(1, 20) n;
INSERT INTO "vendors" ("id", "name", "userId", "lat", "long", "updatedAt")
SELECT 'v' || n, 'Truck ' || n, 'u' || n, 52, 21, now() FROM generate_series(1, 20) n;
CREATE TABLE "_prisma_migrations" ("id" TEXT PRIMARY KEY);
INSERT INTO "_prisma_migrations" VALUES ('20250101_init');
"""

Rows = dict[str, tuple[Any, ...]]


@pytest.fixture
async def prisma_url(empty_database_url: str) -> str:
    """A database as created by `prisma migrate` and a gateway, with rows of ten days."""
    async with connected(empty_database_url) as connection:
        await connection.execute(prisma_schema())
        await connection.execute(USERS)
        await connection.copy_records_to_table(
            "locations", records=locations(), columns=["id", "vendorId", "lat", "long", "timestamp"]
        )
        await connection.execute("ANALYZE")
    return empty_database_url


def locations() -> Iterator[tuple[Any, ...]]:
    """Rows with ids of cuid(); one in a hundred has an id without a time."""
    now = datetime.now(UTC)
    for n in range(ROWS):
        at = now - timedelta(seconds=DAYS * 86_400 * n / ROWS)
        id = str(uuid.uuid4()) if n % 100 == 0 else f"{id_floor(int(at.timestamp() * 1000))}{n:016}"
        yield id, f"v{n % 20 + 1}", 52 + n % 100 / 100, 21.0, at.replace(tzinfo=None)


@asynccontextmanager
async def writing(url: str, prefix: str) -> AsyncIterator[dict[str, float]]:
    """A gateway that continues to write like Prisma: inserts, changes, deletions; yields latitudes by id."""
    written: dict[str, float] = {}
    stopping = asyncio.Event()

    async def write() -> None:
        n, loop, slowest = 0, asyncio.get_running_loop(), 0.0
        async with connected(url) as connection:
            while not stopping.is_set():
                n += 1
                began = loop.time()
                await connection.execute(
                    'INSERT INTO "locations" ("id", "vendorId", "lat", "long") VALUES ($1, $2, 52, 21)',
                    *(f"{prefix}{n}", "v1"),
                )
                written[f"{prefix}{n}"] = 52.0
                if n % 7 == 0 and (changed := f"{prefix}{n // 2}") in written:
                    await connection.execute('UPDATE "locations" SET "lat" = 10 WHERE "id" = $1', changed)
                    written[changed] = 10.0
                if n % 11 == 0 and (deleted := f"{prefix}{n // 3}") in written:
                    await connection.execute('DELETE FROM "locations" WHERE "id" = $1', deleted)
                    del written[deleted]
                slowest = max(slowest, loop.time() - began)
                await asyncio.sleep(0.002)
        print(f"the gateway's slowest write took {slowest:.3f} s")

    task = asyncio.create_task(write())
    try:
        await eventually(lambda: len(written) > 20, "a gateway that writes")
        yield written
        so_far = len(written)
        await eventually(lambda: task.done() or len(written) > so_far, "a gateway that goes on writing")
    finally:
        stopping.set()
        await task


async def everything(url: str, without: str = "-") -> Rows:
    """Returns all locations except those of a gateway."""
    async with connected(url) as connection:
        rows = await connection.fetch('SELECT "id", "vendorId", "lat", "long", "timestamp" FROM "locations"')
    return {row[0]: tuple(row) for row in rows if not row[0].startswith(without)}


async def of_gateway(url: str, prefix: str) -> dict[str, float]:
    """Returns the latitudes of a gateway's locations."""
    async with connected(url) as connection:
        rows = await connection.fetch('SELECT "id", "lat" FROM "locations" WHERE starts_with("id", $1)', prefix)
    return dict(tuple(row) for row in rows)


async def schema(url: str) -> list[tuple[Any, ...]]:
    """Returns all columns, indexes and constraints, except the documented indexes, which stay."""
    async with connected(url) as connection:
        rows = await connection.fetch(
            """
            SELECT table_name::text, column_name::text, data_type::text FROM information_schema.columns
                WHERE table_schema = 'public'
            UNION ALL SELECT tablename, indexname, indexdef FROM pg_indexes
                WHERE schemaname = 'public' AND NOT starts_with(indexname, 'idx_')
            UNION ALL SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
                WHERE connamespace = 'public'::regnamespace
            ORDER BY 1, 2, 3
            """
        )
    return [tuple(row) for row in rows]


async def test_nothing_is_lost_on_the_way_there_and_back(prisma_url: str) -> None:
    """Neither months of history nor the pings of that minute may be lost."""
    made_by_prisma, before = await schema(prisma_url), await everything(prisma_url)
    async with writing(prisma_url, "first-") as first:
        done = await adopt.adopt(prisma_url)
        print(f"adopted {ROWS:,} rows, the tables were locked for {done.held:.3f} s")
    assert await everything(prisma_url, "first-") == before
    assert await of_gateway(prisma_url, "first-") == first
    assert await drift(prisma_url) == []
    assert await maintenance.check(prisma_url) == []
    assert await revisions.revision(prisma_url) == revisions.head()
    async with connected(prisma_url) as connection:
        assert await connection.fetchval('SELECT "id" FROM "_prisma_migrations"') == "20250101_init"
        in_default = await connection.fetchval(
            """SELECT count(*) FROM "locations_default" WHERE "id" LIKE '%-%-%-%-%'"""
        )
        assert in_default == OTHER_IDS
    adopted = await everything(prisma_url)
    async with writing(prisma_url, "second-") as second:
        back = await adopt.revert(prisma_url)
        print(f"went back, the tables were locked for {back.held:.3f} s")
    assert await everything(prisma_url, "second-") == adopted
    assert await of_gateway(prisma_url, "second-") == second
    assert await schema(prisma_url) == made_by_prisma


def test_the_guide_names_each_added_column() -> None:
    """Otherwise `prisma migrate` would propose to drop a column that the Prisma schema lacks."""
    guide = (ROOT / "docs/from-nestjs.md").read_text()
    for _, column in migrate.added_columns():
        assert re.search(rf"`{column} \w+\?`", guide), column


async def test_the_dry_run_names_the_rows_in_the_way(prisma_url: str) -> None:
    """An operator must be able to see before the migration which rows to correct."""
    async with connected(prisma_url) as connection:
        await connection.execute(
            """
            INSERT INTO "locations" ("id", "vendorId", "lat", "long")
            VALUES ('far', 'v1', 91, 0), ('nan', 'v1', 0, 'NaN');
            UPDATE "vendors" SET "long" = 200 WHERE "id" = 'v7';
            INSERT INTO "subscriptions"
            VALUES ('s1', 'u1', 'p', 'x', 'active', now(), now() - INTERVAL '1 day', now(), now());
            CREATE VIEW "latest" AS SELECT max("timestamp") FROM "locations";
            """
        )
    made_by_prisma = await schema(prisma_url)
    plan = await adopt.plan(prisma_url)
    lines = "\n".join(obstacle.line() for obstacle in plan.obstacles)
    for expected in ("2 rows, by id far, nan", "by id v7", "by id s1", "view latest depends"):
        assert expected in lines
    assert (plan.other_ids, len(plan.days) in (DAYS, DAYS + 1)) == (OTHER_IDS + 2, True)
    with pytest.raises(DatabaseError, match="far, nan"):
        await adopt.adopt(prisma_url)
    assert await schema(prisma_url) == made_by_prisma


async def test_an_adoption_that_was_interrupted_continues(prisma_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks in the third hour must not lose the first two, and reverting is still possible."""
    made_by_prisma, before = await schema(prisma_url), await everything(prisma_url)
    monkeypatch.setattr(adopt, "BATCH", max(1, ROWS // 10))

    async def interrupted(after: int) -> None:
        """Adopts until this many batches are copied, then loses the connection."""
        task = asyncio.create_task(adopt.adopt(prisma_url))
        async with connected(prisma_url) as connection:

            async def copied() -> bool:
                if await connection.fetchval("SELECT to_regclass('streamer_adopt') IS NULL"):
                    return False
                return bool(await connection.fetchval('SELECT "last" IS NOT NULL FROM "streamer_adopt"'))

            await eventually(copied, "a batch that is copied")
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid()"
            )
        with pytest.raises((Unavailable, asyncpg.PostgresError)):
            await task

    await interrupted(1)
    await adopt.revert(prisma_url)
    assert await schema(prisma_url) == made_by_prisma
    assert await everything(prisma_url) == before
    await interrupted(1)
    done = await adopt.adopt(prisma_url)
    assert done.copied < ROWS
    assert await everything(prisma_url) == before
    assert await drift(prisma_url) == []


async def test_an_index_that_was_interrupted_is_made_again(prisma_url: str) -> None:
    """An interrupted CREATE INDEX CONCURRENTLY leaves an invalid index, which costs each write and helps no query."""
    async with connected(prisma_url) as reader, connected(prisma_url) as connection, reader.transaction():
        await reader.execute('UPDATE "users" SET "firstName" = "firstName"')
        await connection.execute("SET statement_timeout = 200")
        with pytest.raises(asyncpg.QueryCanceledError):
            await connection.execute('CREATE INDEX CONCURRENTLY "idx_users_email" ON "users"("email")')
    await adopt.adopt(prisma_url)
    assert await maintenance.check(prisma_url) == []


async def test_the_gateways_role_keeps_its_rights(prisma_url: str) -> None:
    """A gateway with a role other than the owner must not lose access when the tables change."""
    role = f"gateway_{os.getpid()}"
    async with connected(prisma_url) as connection:
        await connection.execute(f"CREATE ROLE {role}")
        try:
            await connection.execute(
                f'GRANT SELECT, INSERT ON "locations" TO {role}; GRANT SELECT ON "vendors" TO {role}'
            )
            await adopt.adopt(prisma_url)
            await connection.execute(f"SET ROLE {role}")
            await connection.execute(
                """INSERT INTO "locations" ("id", "vendorId", "lat", "long") VALUES ('g', 'v1', 1, 2)"""
            )
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute('DELETE FROM "locations"')
            await connection.execute("RESET ROLE")
        finally:
            await connection.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")


async def test_the_old_table_goes_when_it_is_said(prisma_url: str) -> None:
    """Reverting is possible until the operator drops the old table; afterwards no second copy of locations is left."""
    with pytest.raises(DatabaseError, match="no adopted table"):
        await adopt.finish(prisma_url)
    await adopt.adopt(prisma_url)
    await adopt.finish(prisma_url)
    assert await drift(prisma_url) == []
    with pytest.raises(DatabaseError, match="was not adopted"):
        await adopt.revert(prisma_url)
    with pytest.raises(DatabaseError, match="nothing to adopt"):
        await adopt.adopt(prisma_url)
    await migrate.upgrade(prisma_url)
    await roles.require_rights(prisma_url)


async def test_rows_with_nulls_are_in_the_way(prisma_url: str) -> None:
    """A column that once was optional: the dry run must name its rows, not the copy of the third hour fail."""
    async with connected(prisma_url) as connection:
        for column in ("lat", "timestamp"):
            await connection.execute(f'ALTER TABLE "locations" ALTER "{column}" DROP NOT NULL')
            await connection.execute(
                f"""UPDATE "locations" SET "{column}" = NULL WHERE "id" = (SELECT min("id") FROM "locations")"""
            )
        id = await connection.fetchval('SELECT min("id") FROM "locations"')
    plan = await adopt.plan(prisma_url)
    assert [obstacle.ids for obstacle in plan.obstacles] == [[id]]
    with pytest.raises(DatabaseError, match="locations without a vendor, position or time: 1 rows"):
        await adopt.adopt(prisma_url)
