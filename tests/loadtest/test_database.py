"""What the load test reads from and writes into the server's real schema."""

from __future__ import annotations

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import RunFailed, WrongUse
from loadtest.clients.target import Identity
from loadtest.engine.database import Database, Stored, base36, location_id, measure_copy, milliseconds, moment, row
from loadtest.measure.server import parent

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
        await database.copy([row(vendor_id, NOW + step, 52.0 + step) for step in range(3)])
        assert sorted(await database.stored([vendor_id, "other"], NOW, NOW + 1)) == [
            Stored(vendor_id, NOW, 52.0, 21.0),
            Stored(vendor_id, NOW + 1, 53.0, 21.0),
        ]
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
def test_times_survive_encoding_and_decoding(timestamp: int) -> None:
    """A millisecond lost to a float would look like a lost ping."""
    assert milliseconds(moment(timestamp)) == timestamp
    assert int(base36(timestamp), 36) == timestamp


def test_bare_ids_have_the_shape_and_order_of_the_servers() -> None:
    """Otherwise the two would not fill the same index and partition."""
    assert len(location_id("v", NOW)) == 25
    assert location_id("v", NOW)[:9] == "c" + base36(NOW).rjust(8, "0")
    assert location_id("a", NOW) < location_id("z", NOW + 1)
    assert location_id("a", NOW) != location_id("b", NOW)


async def test_a_run_has_vendors_of_its_own_and_takes_them_away(database_url: str, vendor_id: str) -> None:
    """Beside others' vendors, whatever these are called; nothing of the run stays in a development database."""
    async with Database(database_url) as database:
        made = await database.add_vendors("0a1b2c3d", 3)
        assert len({one.vendor_id for one in made} | {vendor_id}) == 4
        await database.copy([row(made[0].vendor_id, NOW, 52.0), row(vendor_id, NOW, 1.0, 2.0)])
        owners = await database.connection.fetch(
            'SELECT u."clerkId" FROM vendors v JOIN users u ON u.id = v."userId"'
            " WHERE v.id = ANY($1::text[]) ORDER BY 1",
            [one.vendor_id for one in made],
        )
        assert [row[0] for row in owners] == [one.clerk_id for one in made]
        await database.remove_vendors(made)
        assert await database.positions([made[0].vendor_id, vendor_id]) == {vendor_id: (None, None)}
        assert [row.vendor_id for row in await database.stored([made[0].vendor_id, vendor_id], NOW, NOW)] == [vendor_id]


async def test_postgresql_alone_is_measured(database_url: str, vendor_id: str) -> None:
    """The server's rate is compared with this one: rows of the same table, really committed."""
    async with Database(database_url) as database:
        found = await measure_copy(database, [Identity(vendor_id, "clerk", "")], 500)
        assert await database.connection.fetchval("SELECT count(*) FROM locations") == 700
    assert found["rows_per_s"] > 0
    assert 0 < found["commit_p50_ms"] <= found["commit_p99_ms"]
