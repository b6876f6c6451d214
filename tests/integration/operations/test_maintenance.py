"""Maintenance by operators: exactly the requested days are dropped, and figures are correct."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from streamer.errors import SettingsError, Unavailable
from streamer.operations import maintenance
from streamer.operations.maintenance import check, days_of, prune, stats
from streamer.storage import drift, partitions, queries, seed
from tests.support.commands import run

TODAY = date(2031, 3, 31)


@pytest.fixture
async def days(database_url: str, direct: Any) -> list[date]:
    """Sixty days of partitions with a row each, and two rows in the default partition with Prisma's ids."""
    vendor = (await seed.seed(database_url, 1))[0].vendor_id
    days = [TODAY - timedelta(days=n) for n in range(60)]
    for day in days:
        name, lower, upper = partitions.partition_bounds(day)
        await direct.execute(
            f"CREATE TABLE {name} PARTITION OF locations FOR VALUES FROM ('{lower}') TO ('{upper}');"
            f"INSERT INTO locations VALUES ('{lower}aaaaaaaaaaaaaaaa', '{vendor}', 1, 2, '{day} 12:00')"
        )
    for id, day in (("zz-old", days[59]), ("zz-new", TODAY)):
        await direct.execute(f"INSERT INTO locations VALUES ('{id}', '{vendor}', 1, 2, '{day} 12:00')")
    return days


async def left(direct: Any) -> list[date]:
    return [row[0].date() for row in await direct.fetch('SELECT "timestamp" FROM locations ORDER BY 1')]


@pytest.mark.parametrize(("age", "days"), [("30d", 30), ("1d", 1), ("12w", 84), (" 2W ", 14)])
def test_ages(age: str, days: int) -> None:
    assert days_of(age) == days


@pytest.mark.parametrize("age", ["", "0d", "30", "d", "1h", "-1d", "1.5d", "30days", "999999d"])
def test_invalid_ages_are_refused(age: str) -> None:
    """`30` could be hours or days; a command that deletes must not guess."""
    with pytest.raises(SettingsError, match="30d or 12w"):
        days_of(age)


async def test_prune_drops_whole_days_that_are_older(database_url: str, direct: Any, days: list[date]) -> None:
    """All rows of the last thirty days are kept; the dry run reports exactly that and changes nothing."""
    before = await left(direct)
    planned = await prune(database_url, 30, dry_run=True, today=TODAY)
    assert await left(direct) == before
    done = await prune(database_url, 30, today=TODAY)
    assert [p.name for p in done.partitions] == [p.name for p in planned.partitions]
    assert done.rows == planned.rows == 1
    assert sum(p.name >= "locations_2031" for p in done.partitions) == 29
    assert await left(direct) == sorted([*days[:31], TODAY])
    again = await prune(database_url, 30, today=TODAY)
    assert (again.partitions, again.rows) == ([], 0)
    assert await drift.drift(database_url) == []


async def test_two_do_not_meet(database_url: str, direct: Any) -> None:
    """If cron and an operator prune at the same time, the second gets an error and the first continues."""
    await direct.fetchval("SELECT pg_advisory_lock($1)", maintenance.PRUNING)
    with pytest.raises(Unavailable, match="is being pruned or thinned by another process"):
        await prune(database_url, 30, today=TODAY)
    await direct.fetchval("SELECT pg_advisory_unlock($1)", maintenance.PRUNING)
    await prune(database_url, 30, today=TODAY)


async def test_pings_are_stored_while_days_are_dropped(database_url: str, direct: Any, days: list[date]) -> None:
    """Dropping takes short locks: concurrent pings wait briefly, and none is lost."""
    vendor = await direct.fetchval('SELECT "id" FROM "vendors"')
    _, lower, _ = partitions.partition_bounds(TODAY)
    waits: list[float] = []
    pruning = asyncio.create_task(prune(database_url, 30, today=TODAY))
    loop = asyncio.get_running_loop()
    number = 0
    while not pruning.done():
        began = loop.time()
        await direct.execute(
            "INSERT INTO locations VALUES ($1, $2, 1, 2, '2031-03-31')", f"{lower}b{number:015}", vendor
        )
        waits.append(loop.time() - began)
        number += 1
    await pruning
    assert number > 0
    assert await direct.fetchval("SELECT count(*) FROM locations WHERE id LIKE $1", f"{lower}b%") == number


async def test_a_reader_in_the_way(database_url: str, direct: Any, days: list[date], monkeypatch: Any) -> None:
    """A report that reads for hours is named in the error, and days dropped before stay dropped."""
    monkeypatch.setattr(maintenance, "MOST_TRIES", 2)
    monkeypatch.setattr(maintenance, "LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(maintenance, "TRY_AGAIN", 0.01)
    async with direct.transaction():
        await direct.fetchval("SELECT count(*) FROM locations")
        with pytest.raises(Unavailable, match=r"could not be dropped in 2 tries.*pg_stat_activity"):
            await prune(database_url, 30, today=TODAY)
    await prune(database_url, 30, today=TODAY)


async def test_stats(database_url: str, direct: Any, days: list[date]) -> None:
    """Sizes by table with its partitions, dead rows, used and unused indexes, open transactions."""
    await direct.execute("ANALYZE")
    await direct.execute('SELECT * FROM "vendors" WHERE "id" = $1', "x")
    found = await stats(database_url)
    tables = {table.table: table for table in found.tables}
    assert set(tables) >= set(queries.TABLES)
    assert tables["locations"].rows == 62
    assert tables["locations"].table_bytes > 60 * 8192
    assert tables["vendors"].analyzed is not None
    assert {index.name for index in found.indexes} >= {"vendors_pkey", "locations_pkey", "users_clerkId_key"}
    assert found.bytes > 1_000_000
    assert found.cache_hits is not None
    assert 0 < found.cache_hits <= 1
    assert len(found.partitions) > 60
    assert found.statements is None, "there is no pg_stat_statements here"


async def test_check_names_each_difference(database_url: str, direct: Any) -> None:
    """A column, an index, a constraint, a partition: changed by hand, or missing after a restore."""
    today = datetime.now(UTC).date()
    assert await check(database_url) == []
    name, _, _ = partitions.partition_bounds(today + timedelta(days=1))
    await direct.execute('ALTER TABLE "vendors" DROP COLUMN "primaryImage" CASCADE')
    await direct.execute('CREATE INDEX "extra" ON "users" ("firstName")')
    await direct.execute(f"DROP TABLE {name}")
    await direct.execute('ALTER TABLE "users" ADD CONSTRAINT "odd" CHECK ("email" <> \'\') NOT VALID')
    await direct.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'extra'::regclass")
    said = "\n".join(await check(database_url))
    for difference in (
        "vendors: column primaryImage is missing",
        "index extra is invalid",
        "users: constraint odd was never validated",
        "there is no partition for tomorrow",
        "users: check odd is in no model",
    ):
        assert difference in said
    await direct.execute("DELETE FROM alembic_version")
    assert await check(database_url) == ["it has no schema of this server: run `streamer db upgrade`"]


async def add_partition_of_two_days(direct: Any, table: str) -> None:
    """Creates a partition that has the name of a day and the bounds of two, as by hand."""
    _, lower, _ = partitions.partition_bounds(date(2033, 1, 1))
    _, _, upper = partitions.partition_bounds(date(2033, 1, 2))
    await direct.execute(
        f"CREATE TABLE {table}_20330101 PARTITION OF {table} FOR VALUES FROM ('{lower}') TO ('{upper}')"
    )


async def test_partitions_with_other_bounds(database_url: str, direct: Any) -> None:
    """A partition with wrong bounds, created by hand, would hide a day's pings."""
    await add_partition_of_two_days(direct, "locations")
    assert any("partition locations_20330101 is FOR VALUES" in line for line in await check(database_url))


async def test_a_partition_or_function_of_webhooks_that_is_missing(database_url: str, direct: Any) -> None:
    """Without the default partition an alert's events are refused on a day that has no partition of its own."""
    await add_partition_of_two_days(direct, "streamer_alert_events")
    await direct.execute("DROP TABLE streamer_alert_events_default")
    await direct.execute("DROP FUNCTION streamer_add_alert_partition(date)")
    said = "\n".join(await check(database_url))
    for difference in (
        "streamer_alert_events: partition streamer_alert_events_20330101 is FOR VALUES",
        "streamer_alert_events: there is no default partition",
        "streamer_alert_events: function streamer_add_alert_partition(date) is missing",
    ):
        assert difference in said


async def test_the_commands(database_url: str, empty_database_url: str, tmp_path: Path, days: list[date]) -> None:
    """The commands as called by cron and people: exit status, text and JSON."""
    nothing, looked, shown = await asyncio.gather(
        run("db", "check", folder=tmp_path, DATABASE_URL=empty_database_url),
        run("db", "stats", "--json", folder=tmp_path, DATABASE_URL=database_url),
        run("db", "stats", folder=tmp_path, DATABASE_URL=database_url),
    )
    assert (nothing.status, "streamer db upgrade" in nothing.out) == (1, True), nothing
    assert {table["table"] for table in json.loads(looked.out)["tables"]} >= {"vendors", "locations"}
    assert "locations_20310331" in shown.out
    assert "pg_stat_statements is not loaded" in shown.out
