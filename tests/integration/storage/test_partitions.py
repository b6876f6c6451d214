"""The partitions of `locations` on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import DatabaseError, Unavailable
from streamer.ingest.copy_rows import id_floor, location_id
from streamer.protocol.fields import LAST_TIMESTAMP
from streamer.storage import partitions
from streamer.storage.drift import drift
from streamer.storage.partitions import partition_bounds
from tests.conftest import connected
from tests.integration.storage.conftest import DAY_MS, TODAY, days, partition_names, without_days


@pytest.fixture
async def connection(connection: Any) -> Any:
    return await without_days(connection)


def noon(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()) * 1000


async def add_ping(connection: Any, timestamp: int) -> str:
    id = location_id("v1", timestamp)
    await connection.execute(
        'INSERT INTO "locations" ("id", "vendorId", "lat", "long") VALUES ($1, $2, 1, 2)', id, "v1"
    )
    return id


@given(st.dates(date(1970, 1, 1), date(2059, 1, 1)), st.integers(0, DAY_MS - 1))
def test_a_day_holds_exactly_the_ids_of_its_milliseconds(day: date, within: int) -> None:
    """A ping in an adjacent day's partition would be dropped with it, or be missing in the history."""
    name, lower, upper = partition_bounds(day)
    start = noon(day) - DAY_MS // 2
    assert name == f"locations_{day.isoformat().replace('-', '')}"
    assert len(lower) == len(upper) == 9
    for vendor_id in ("v1", "another"):
        assert lower <= location_id(vendor_id, start + within) < upper
        assert location_id(vendor_id, start + DAY_MS) >= upper
        assert start == 0 or location_id(vendor_id, start - 1) < lower
    assert partition_bounds(day + timedelta(days=1))[1] == upper


@pytest.mark.parametrize("day", [date(1969, 12, 31), date(2060, 1, 1), date.max - timedelta(days=1)])
def test_a_day_that_no_id_can_hold(day: date) -> None:
    """Otherwise such a day would get another day's bounds."""
    with pytest.raises(ValueError, match=str(day)):
        partition_bounds(day)
    last = datetime.fromtimestamp(LAST_TIMESTAMP / 1000, UTC).date()
    assert partition_bounds(last - timedelta(days=1))[1] < id_floor(LAST_TIMESTAMP)


async def test_missing_days_are_made_and_only_those(connection: Any) -> None:
    """Without tomorrow's partition, tomorrow's pings pile up in the default one."""
    assert sorted(await partitions.ensure_partitions(connection, TODAY, 2)) == days(-2, 2)
    assert await partitions.ensure_partitions(connection, TODAY, 2) == []
    assert await partitions.ensure_partitions(connection, TODAY + timedelta(days=1), 2) == days(3, 3)
    await connection.execute(f'DROP TABLE "{days(-1, -1)[0]}"')
    assert await partitions.ensure_partitions(connection, TODAY, 2) == days(-1, -1)
    assert await partition_names(connection) == [*days(-2, 3), "locations_default"]


async def test_a_made_partition_is_like_the_others(connection: Any, database_url: str) -> None:
    """A day without its key would store pings twice; without its check, NaN."""
    await partitions.ensure_partitions(connection, TODAY, 0)
    await add_ping(connection, noon(TODAY))
    with pytest.raises(asyncpg.UniqueViolationError):
        await add_ping(connection, noon(TODAY))
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute("""UPDATE "locations" SET "lat" = 'NaN'""")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await connection.execute("""UPDATE "locations" SET "vendorId" = 'nobody'""")
    children = await connection.fetchval(
        "SELECT count(*) FROM pg_inherits JOIN pg_index ON inhrelid = indexrelid WHERE indrelid = $1::text::regclass",
        days(0, 0)[0],
    )
    assert children == 3
    await connection.execute("""DELETE FROM "users" """)
    assert await connection.fetchval('SELECT count(*) FROM "locations"') == 0
    assert await drift(database_url) == []


async def test_many_processes_make_them_at_once(connection: Any, database_url: str) -> None:
    """All processes of a deployment create the next day at the same midnight."""

    async def ensure() -> list[str]:
        async with connected(database_url) as own:
            return await partitions.ensure_partitions(own, TODAY, 3)

    made = await asyncio.gather(*(ensure() for _ in range(4)))
    assert sorted(name for names in made for name in names) == days(-2, 3)
    assert await partition_names(connection) == [*days(-2, 3), "locations_default"]


async def test_pings_of_a_day_without_partition_move_into_it(connection: Any) -> None:
    """PostgreSQL refuses a partition whose rows are in the default one; such a day must still get its own."""
    ids = [await add_ping(connection, noon(TODAY) + second * 1000) for second in range(50)]
    other = await add_ping(connection, noon(TODAY + timedelta(days=9)))
    await partitions.ensure_partitions(connection, TODAY, 0)
    found = dict(await connection.fetch('SELECT "id", tableoid::regclass::text FROM "locations"'))
    assert found == {**dict.fromkeys(ids, days(0, 0)[0]), other: "locations_default"}


async def test_pings_are_stored_while_partitions_are_made(connection: Any, database_url: str) -> None:
    """A transaction that stores pings and one that creates partitions must not deadlock."""
    await partitions.ensure_partitions(connection, TODAY, 0)
    async with connected(database_url) as storing, storing.transaction():
        await add_ping(storing, noon(TODAY))
        assert await partitions.ensure_partitions(connection, TODAY, 2) == days(1, 2)
        await add_ping(storing, noon(TODAY) + 1)
    assert await connection.fetchval('SELECT count(*) FROM "locations"') == 2


async def test_a_long_reader_is_not_waited_for(
    connection: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise all others would wait behind the server for as long as the reader reads."""
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT_MS", 100)
    async with connected(database_url) as reading, reading.transaction():
        await reading.fetch('SELECT count(*) FROM "locations"')
        with pytest.raises(Unavailable, match=f"{days(0, 0)[0]}.*try again"):
            await partitions.ensure_partitions(connection, TODAY, 0)
    assert sorted(await partitions.ensure_partitions(connection, TODAY, 0)) == days(-2, 0)
    assert await connection.fetchval("SELECT current_setting('lock_timeout')") == "0"


async def test_a_conflicting_table_is_named_and_the_other_days_are_created(connection: Any) -> None:
    """A detached partition, kept as an archive, must not prevent later partitions."""
    blocked = days(0, 0)[0]
    await connection.execute(f'CREATE TABLE "{blocked}" ("id" TEXT)')
    with pytest.raises(DatabaseError, match=f"{blocked}.*attach, rename or drop"):
        await partitions.ensure_partitions(connection, TODAY, 1)
    assert await partition_names(connection) == [*days(-2, -1), *days(1, 1), "locations_default"]


async def test_a_role_that_does_not_own_the_tables_gets_an_explanation(connection: Any, database_url: str) -> None:
    """A server with fewer permissions must say who creates the partitions instead."""
    await connection.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO pg_monitor")
    await connection.execute("SET ROLE pg_monitor")
    with pytest.raises(DatabaseError, match="owner"):
        await partitions.ensure_partitions(connection, TODAY, 0)
