"""Migrations, up and down, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory

from streamer.errors import DatabaseError, Unavailable
from streamer.ingest.copy_rows import id_floor, location_id
from streamer.storage import migrate, models, partitions, queries, revisions, seed
from streamer.storage.drift import drift
from tests.conftest import connected
from tests.integration.storage.conftest import DAY_MS, TODAY, days, partition_names, without_days
from tests.support.paths import ROOT


@pytest.fixture
async def connection(connection: Any) -> Any:
    return await without_days(connection)


async def add_ping(connection: Any, timestamp: int) -> str:
    id = location_id("v1", timestamp)
    await connection.execute(
        'INSERT INTO "locations" ("id", "vendorId", "lat", "long") VALUES ($1, $2, 1, 2)', id, "v1"
    )
    return id


def noon(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()) * 1000


async def leftovers(url: str) -> list[str]:
    """Returns all tables, indexes, sequences and types except PostgreSQL's own."""
    async with connected(url) as connection:
        rows = await connection.fetch(
            """
            SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
            UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace
            UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            """
        )
    return sorted(row[0] for row in rows)


async def lasting(url: str) -> list[str]:
    """`leftovers` without the partitions of days, which change."""
    return [name for name in await leftovers(url) if not re.match(r"_?locations_\d{8}", name)]


async def test_up_is_the_newest_and_has_partitions(empty_database_url: str) -> None:
    """A server started after `db upgrade` must find everything it needs."""
    assert await revisions.revision(empty_database_url) is None
    await migrate.upgrade(empty_database_url, today=TODAY, ahead=3)
    assert await revisions.revision(empty_database_url) == revisions.head()
    await revisions.require_newest(empty_database_url)
    async with connected(empty_database_url) as connection:
        assert await partition_names(connection) == [*days(-2, 3), "locations_default"]


async def test_upgrade_makes_the_days_around_now_by_itself(database_url: str) -> None:
    """Otherwise the first ping after the installation would land in the default partition."""
    now = int(datetime.now(UTC).timestamp() * 1000)
    async with connected(database_url) as connection:
        await seed.seed(database_url)
        for offset in (-1, 0, partitions.PARTITIONS_AHEAD - 1):
            id = id_floor(now + offset * DAY_MS) + "0" * 16
            place = await connection.fetchval(
                """
                INSERT INTO "locations" ("id", "vendorId", "lat", "long") VALUES ($1, 'ctestvendor00000000000000', 1, 2)
                RETURNING tableoid::regclass::text
                """,
                id,
            )
            assert place != "locations_default"


async def test_every_migration_goes_up_and_down(empty_database_url: str) -> None:
    """Otherwise a rollback in production would stop half way."""
    before = await leftovers(empty_database_url)
    every = sorted(path.name.split("_")[0] for path in revisions.migrations().glob("versions/*.py"))
    assert every[-1] == revisions.head()
    at: dict[str, list[str]] = {}
    for revision in every:
        await migrate.upgrade(empty_database_url, revision, today=TODAY, ahead=1)
        at[revision] = await lasting(empty_database_url)
    for revision in reversed(every):
        assert await revisions.revision(empty_database_url) == revision
        assert await lasting(empty_database_url) == at[revision]
        await migrate.downgrade(empty_database_url, "-1")
    async with connected(empty_database_url) as connection:
        await connection.execute('DROP TABLE "alembic_version"')
    assert await leftovers(empty_database_url) == before


async def test_up_twice_changes_nothing(database_url: str) -> None:
    """Every deployment runs the upgrade."""
    before = await leftovers(database_url)
    await migrate.upgrade(database_url)
    assert await leftovers(database_url) == before


async def test_two_upgrades_at_once(empty_database_url: str) -> None:
    """Two machines that are deployed at the same time must not collide in CREATE TABLE."""
    programs = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", f"import asyncio; from streamer.storage import migrate as d; asyncio.run({call})"),
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
        )
        for call in [f"d.upgrade({empty_database_url!r})"] * 3
    ]
    for program in programs:
        _, said = await program.communicate()
        assert program.returncode == 0, said.decode()
    assert await drift(empty_database_url) == []


async def test_two_upgrades_of_one_database_in_one_process(empty_database_url: str) -> None:
    """Alembic's context is global to a module: the second upgrade must not enter it before the first has left."""
    await asyncio.gather(*(migrate.upgrade(empty_database_url) for _ in range(3)))
    assert await drift(empty_database_url) == []


async def test_a_schema_of_its_own(empty_database_url: str) -> None:
    """Prisma uses `?schema=` to share a database between applications: nothing may be created in public."""
    url = f"{empty_database_url}?schema=venta%2Drides"
    await migrate.upgrade(url)
    assert await drift(url) == []
    assert await leftovers(empty_database_url) == []
    assert await revisions.revision(empty_database_url) is None
    assert len(await seed.seed(url, 2)) == 2
    await migrate.reset(url)
    async with connected(url) as connection:
        assert await connection.fetchval('SELECT count(*) FROM "vendors"') == 0


async def test_a_server_on_an_old_schema_names_the_remedy(empty_database_url: str) -> None:
    """Otherwise the server would start and fail at the first statement."""
    with pytest.raises(DatabaseError, match=rf"none.*{revisions.head()}.*`streamer db upgrade`"):
        await revisions.require_newest(empty_database_url)
    await migrate.upgrade(empty_database_url, "0001")
    with pytest.raises(DatabaseError, match=rf"0001.*{revisions.head()}.*`streamer db upgrade`"):
        await revisions.require_newest(empty_database_url)


async def test_a_database_of_a_newer_version_is_left_alone(database_url: str) -> None:
    """An old server, rolled back onto a newer schema, must not ask for an upgrade."""
    async with connected(database_url) as connection:
        await connection.execute("""UPDATE "alembic_version" SET "version_num" = 'f00d'""")
    with pytest.raises(DatabaseError, match=rf"f00d.*does not know.*{revisions.head()}"):
        await revisions.require_newest(database_url)
    with pytest.raises(DatabaseError, match="f00d"):
        await migrate.upgrade(database_url)


async def test_an_unknown_revision_is_named(database_url: str) -> None:
    """Alembic's own exception is not a usable error message."""
    with pytest.raises(DatabaseError, match=r"'7777'.*0001, 0002"):
        await migrate.downgrade(database_url, "7777")


async def test_tables_made_by_prisma_are_not_touched(empty_database_url: str) -> None:
    """Otherwise half of a migration would be left on production tables."""
    async with connected(empty_database_url) as connection:
        await connection.execute('CREATE TABLE "users" ("id" TEXT); CREATE TABLE "_prisma_migrations" ("id" TEXT)')
    with pytest.raises(
        DatabaseError, match=r"tables users that `streamer db upgrade` did not make.*db adopt --dry-run"
    ):
        await migrate.upgrade(empty_database_url)
    assert await revisions.revision(empty_database_url) is None


async def test_others_tables_in_the_same_database_are_no_matter(empty_database_url: str) -> None:
    """Otherwise Prisma's migration table, or another application's tables, would be proposed for deletion."""
    async with connected(empty_database_url) as connection:
        await connection.execute('CREATE TABLE "_prisma_migrations" ("id" TEXT PRIMARY KEY)')
        await migrate.upgrade(empty_database_url)
        assert await drift(empty_database_url) == []
        await migrate.reset(empty_database_url)
        assert await connection.fetchval("SELECT to_regclass('_prisma_migrations')") is not None


async def test_a_migration_gives_up_waiting_for_a_lock(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a migration waits for a table's lock, every ping waits behind it."""
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_MS", 100)
    async with connected(database_url) as other, other.transaction():
        await other.execute('LOCK TABLE "vendors" IN ACCESS SHARE MODE')
        with pytest.raises(Unavailable, match="try again when it has ended"):
            await migrate.downgrade(database_url, "0001")
    assert await revisions.revision(database_url) == revisions.head()


async def test_reset_empties_and_rebuilds(database_url: str) -> None:
    """Otherwise yesterday's experiments would stay in a development database."""
    await seed.seed(database_url, 3)
    async with connected(database_url) as connection:
        await connection.execute('DROP INDEX "idx_users_email"; CREATE TABLE "locations_20200101" ("left" TEXT)')
        await migrate.reset(database_url, today=TODAY, ahead=0)
        assert await connection.fetchval('SELECT count(*) FROM "users"') == 0
        assert await partition_names(connection) == [*days(-2, 0), "locations_default"]
        assert await connection.fetchval("SELECT to_regclass('locations_20200101')") is None
    assert await drift(database_url) == []


async def test_drift_is_described_in_words(database_url: str) -> None:
    """After a change by hand exactly the differences are listed."""
    async with connected(database_url) as connection:
        await connection.execute(
            """
            DROP INDEX "idx_vendors_location";
            ALTER TABLE "users" ALTER COLUMN "firstName" SET NOT NULL;
            ALTER TABLE "users" ADD COLUMN "nickname" TEXT;
            ALTER TABLE "vendors" ALTER COLUMN "open" DROP DEFAULT;
            ALTER TABLE "users" ALTER COLUMN "createdAt" TYPE TIMESTAMPTZ;
            ALTER TABLE "vendors" DROP CONSTRAINT "vendors_lat_check";
            ALTER TABLE "vendors" DROP CONSTRAINT "vendors_userId_fkey";
            ALTER TABLE "subscriptions" ADD CONSTRAINT "mine" CHECK ("status" <> '');
            """
        )
    lines = sorted(await drift(database_url))
    expected = [
        "subscriptions: check mine is in no model",
        "users: column nickname is in no model",
        "users: nullable of column firstName",
        "users: type of column createdAt",
        "vendors: check vendors_lat_check is missing",
        "vendors: default of column open",
        "vendors: fk vendors_userId_fkey is missing",
        "vendors: index idx_vendors_location is missing",
    ]
    assert len(lines) == len(expected), lines
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True)), lines


async def test_alembics_own_command_works_from_anywhere(empty_database_url: str, tmp_path: Path) -> None:
    """For the author of a migration, `alembic` must find database and migrations, and report no drift."""
    ini = revisions.migrations().parent / "alembic.ini"
    for arguments in (["upgrade", "head"], ["check"], ["upgrade", "head", "--sql"], ["downgrade", "base"]):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "alembic", "-c", str(ini), *arguments],
            cwd=tmp_path,
            env={**os.environ, "DATABASE_URL": empty_database_url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert await revisions.revision(empty_database_url) is None


def test_a_server_reads_the_revisions_as_alembic_does() -> None:
    """The server checks the schema without Alembic; if it missed a migration, it would refuse a correct database."""
    scripts = ScriptDirectory.from_config(migrate.alembic_config())
    assert revisions.known() == {script.revision for script in scripts.walk_revisions()}
    assert revisions.head() == scripts.get_current_head()
    assert set(queries.TABLES) == set(models.METADATA.tables)


def test_a_server_starts_without_sqlalchemy() -> None:
    """The server does not need it; the import would cost time at the start, and memory."""
    said = "import sys, streamer.cli.serve; print({'sqlalchemy', 'alembic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
