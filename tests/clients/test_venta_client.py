"""The Python client against the real server: what it promises under cut, dead and killed connections."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from streamer.accounts.tokens import make_token
from streamer.operations.embedded import PostgresServer
from streamer.storage import migrate, seed
from tests.conftest import Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually, now_ms
from venta_client import (
    Circle,
    CustomerClient,
    Ping,
    SqliteQueue,
    VendorClient,
)

LAT, LONG = 52.2297, 21.0122
HERE: Circle = {"center": {"lat": LAT, "long": LONG}, "radius": 2000}


def token(clerk_id: str, lifetime: int = 600) -> str:
    """A token as the issuer makes them."""
    return make_token(SECRET, clerk_id, lifetime)


async def stored(url: str, vendor_id: str) -> list[int]:
    """The times of what is in `locations`."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            'SELECT (EXTRACT(EPOCH FROM "timestamp") * 1000)::bigint AS at FROM "locations"'
            ' WHERE "vendorId" = $1 ORDER BY 1',
            vendor_id,
        )
    finally:
        await connection.close()
    return [row["at"] for row in rows]


async def test_what_is_stored_is_forgotten_on_the_disk(serve: Serve, database_url: str, tmp_path: Path) -> None:
    """A file that only grows would send a month of pings after each restart."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    file = tmp_path / "queue.db"
    async with VendorClient(server.url, token=token(one.clerk_id), queue=SqliteQueue(file)) as client:
        for _ in range(20):
            await client.ping(LAT, LONG, heading=90.0, speed=float("nan"), accuracy=float("inf"))
        await client.flushed()
        assert client.acked == 20
    assert len(await stored(database_url, one.vendor_id)) == 20
    left = sqlite3.connect(file)
    assert left.execute("SELECT count(*) FROM pings").fetchone() == (0,)
    left.close()


async def test_a_slow_reader_is_late_and_not_wrong(serve: Serve, database_url: str) -> None:
    """An app that looks once a minute must neither miss the outcome nor pile up what came between."""
    one, two = await seed.seed(database_url, 2)
    server = await serve()
    async with CustomerClient(server.url) as customer:
        watch = customer.watch(HERE)
        assert await watch.ready() == {}
        async with VendorApp(server.url, one.clerk_id) as first, VendorApp(server.url, two.clerk_id) as second:
            at = now_ms() - 1000
            for n in range(200):
                await first.ping(LAT + n / 1e5, LONG, timestamp=at + n)
            await second.ping(LAT, LONG)
            await eventually(lambda: two.vendor_id in watch.vendors, "the second vendor")
            await second.ping(LAT + 1, LONG)
            await eventually(lambda: two.vendor_id not in watch.vendors, "its leaving")
            await eventually(
                lambda: one.vendor_id in watch.vendors and watch.vendors[one.vendor_id]["lat"] == LAT + 199 / 1e5,
                "the last position",
            )
        events = aiter(watch)
        event = await asyncio.wait_for(anext(events), 10)
        assert (event.kind, event.card["vendorId"]) == ("entered", one.vendor_id)
        assert event.card["lat"] == LAT + 199 / 1e5
        assert len(watch._dirty) == 0  # of the one that came and left nothing is told


async def test_a_refused_token_is_replaced_by_a_better_one(serve: Serve, database_url: str) -> None:
    """The app was asleep while its token ended: it asks for a new one, and is back."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(watch_auth="required")

    def sleepy(refresh: bool) -> str:
        return token(one.clerk_id) if refresh else "an.old.token"

    async with CustomerClient(server.url, token=sleepy) as customer:
        assert await asyncio.wait_for(customer.watch(vendors=[one.vendor_id]).ready(), 30) == {}


async def test_one_file_has_one_client(tmp_path: Path) -> None:
    """Two processes on one queue would each forget what the other has not sent."""
    file = tmp_path / "queue.db"
    queue, other = SqliteQueue(file), SqliteQueue(file)
    other.busy = 0.1
    await queue.load()
    await queue.write([Ping(1, LAT, LONG)], [])
    with pytest.raises(Exception, match="is another client using it"):
        await other.load()
    await queue.close()
    assert await other.load() == [Ping(1, LAT, LONG)]
    await other.close()


async def test_an_apps_own_mistake_does_not_cost_it_the_connection(
    serve: Serve, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that raises is the app's to mend: its pings go on."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()

    def broken(*_: Any) -> None:
        raise RuntimeError("of the app")

    refused: Callable[..., None] = broken
    async with VendorClient(server.url, token=token(one.clerk_id), on_rejected=refused, on_state=refused) as client:
        await client.ping(LAT, LONG, timestamp=now_ms() + 10**9)
        await client.ping(LAT, LONG)
        await asyncio.wait_for(client.flushed(), 30)
        assert (client.acked, client.rejected) == (1, 1)
    assert "of the app" in caplog.text


async def test_closing_survives_an_outage_of_the_database(serve: Serve, postgres_server: PostgresServer) -> None:
    """A vendor who closes while PostgreSQL is away is closed once it is back, without a tap more."""
    await migrate.upgrade(postgres_server.url)
    (one,) = await seed.seed(postgres_server.url, 1)
    server = await serve(database_url=postgres_server.url, pool_timeout=1.0, statement_timeout=1.0)
    async with (
        CustomerApp(server.url) as customer,
        VendorClient(server.url, token=token(one.clerk_id)) as client,
    ):
        await customer.watch("w", circle(LAT, LONG, 5000))
        await client.ping(LAT, LONG)
        await asyncio.wait_for(client.flushed(), 30)
        postgres_server.kill()
        client.set_open(False)
        await asyncio.sleep(2.0)
        await postgres_server.restart()
        await eventually(
            lambda: customer.views["w"][one.vendor_id]["open"] is False, "closed, as the customer sees", within=40
        )
