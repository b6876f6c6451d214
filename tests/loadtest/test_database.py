"""What the load test reads from and writes into the server's real schema."""

from __future__ import annotations

import random

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.benchmarks.ingest import Calendar, wander
from loadtest.clients.ping import Ping
from loadtest.engine.database import Database, Stored, base36, location_id, milliseconds, moment, rows
from loadtest.errors import RunFailed, WrongUse
from loadtest.measure.process import parent

NOW = 1_732_467_600_123


@pytest.fixture
async def vendor_id(database_url: str) -> str:
    """A vendor in the database, put there as Prisma would."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            """INSERT INTO users (id, "clerkId", email, "updatedAt") VALUES ('u', 'clerk', 'u@example.com', now());
            INSERT INTO vendors (id, name, "userId", "updatedAt") VALUES ('v', 'Ice cream', 'u', now())"""
        )
    finally:
        await connection.close()
    return "v"


async def test_bare_rows_are_stored_and_read_back(database_url: str, vendor_id: str) -> None:
    """The bare COPY must fill the very table that the server fills, and the check must read exact times."""
    # as Prisma writes it, with settings that PostgreSQL does not know
    async with Database(f"{database_url}?connection_limit=20&schema=public") as database:
        await database.copy(rows([(vendor_id, Ping(NOW + step, 52.0 + step, 21.0, 0)) for step in range(3)]))
        assert sorted(await database.stored([vendor_id, "other"], NOW, NOW + 1)) == [
            Stored(vendor_id, NOW, 52.0, 21.0),
            Stored(vendor_id, NOW + 1, 53.0, 21.0),
        ]
        assert await database.count({vendor_id: range(NOW, NOW + 2), "other": range(NOW, NOW + 9)}) == 2
        assert await database.newest([vendor_id, "other"]) == {vendor_id: NOW + 2}
        assert await database.positions([vendor_id]) == {vendor_id: (None, None)}
        assert parent(await database.backend(), "postgres") is not None


async def test_a_database_that_is_not_there_ends_in_a_message() -> None:
    """Not in a traceback of the driver."""
    with pytest.raises(RunFailed, match="can't be reached"):
        async with Database("postgresql://nobody@127.0.0.1:1/none"):
            pass
    with pytest.raises(WrongUse, match="postgresql://"):
        Database("mysql://127.0.0.1/venta")


@given(st.integers(0, 36**8 - 1))
def test_times_survive_the_way_into_a_row_and_back(timestamp: int) -> None:
    """A millisecond lost to a float would look like a lost ping."""
    assert milliseconds(moment(timestamp)) == timestamp
    assert int(base36(timestamp), 36) == timestamp


def test_bare_ids_have_the_shape_and_order_of_the_servers() -> None:
    """Otherwise the two would not fill the same index and partition."""
    assert len(location_id("v", NOW)) == 25
    assert location_id("v", NOW)[:9] == "c" + base36(NOW).rjust(8, "0")
    assert location_id("a", NOW) < location_id("z", NOW + 1)
    assert location_id("a", NOW) != location_id("b", NOW)


def test_a_calendar_gives_no_time_twice_and_none_in_the_future() -> None:
    """A timestamp used twice would be a duplicate, stored in another and slower way; one in the future is rejected."""
    calendar = Calendar({"used": NOW - 10}, NOW)
    first, second = calendar.take("new", 1000), calendar.take("new", 1000)
    assert first[-1] < second[0]
    assert first[0] > NOW - 600_000
    assert calendar.take("used", 5)[0] == NOW - 9
    with pytest.raises(RunFailed, match="has no 100000 free milliseconds"):
        calendar.take("used", 100_000)


def test_wandering_pings_have_the_given_times_and_stay_in_town() -> None:
    """Vendors that left the city would leave the grid cells under test."""
    pings = wander(range(NOW, NOW + 20_000), random.Random(1))
    assert [ping.timestamp for ping in pings] == list(range(NOW, NOW + 20_000))
    assert all(52.1 < ping.lat < 52.4 and 20.8 < ping.long < 21.2 for ping in pings)
