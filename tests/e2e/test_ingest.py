"""Storing pings through the whole server: acked pings are stored once, whatever the network and the database do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import asyncpg
import pytest

from streamer import lifecycle, settings
from streamer.accounts.tokens import make_token
from streamer.operations.embedded import PostgresServer
from streamer.storage import migrate, seed
from tests.conftest import Collected, Running, Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually, now_ms


async def times(url: str, vendor_id: str) -> list[int]:
    """Returns the stored timestamps of a vendor, with duplicates."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            'SELECT (extract(epoch FROM timestamp) * 1000)::bigint AS ms FROM locations WHERE "vendorId" = $1',
            vendor_id,
        )
    finally:
        await connection.close()
    return sorted(row["ms"] for row in rows)


async def test_resent_in_any_mix_it_is_stored_once(serve: Serve, database_url: str) -> None:
    """A phone that reconnects to another process, or an app that also uses HTTP, must not duplicate history."""
    (one,) = await seed.seed(database_url, 1)
    here, there = await serve(), await serve()
    start = now_ms() - 60_000
    pings = [{"lat": 52.2, "long": 21.0 + n / 1e4, "timestamp": start + n} for n in range(400)]
    async with (
        VendorApp(here.url, one.clerk_id) as first,
        VendorApp(there.url, one.clerk_id) as second,
        aiohttp.ClientSession() as http,
    ):
        url = f"{there.url}/v1/vendors/{one.vendor_id}/locations"
        headers = {"Authorization": f"Bearer {make_token(SECRET, one.clerk_id, 600)}"}
        await first.send({"type": "pings", "pings": pings[:300]})
        await second.send({"type": "pings", "pings": pings[100:]})
        async with http.post(url, json=pings[50:350], headers=headers) as answer:
            assert (await answer.json())["stored"] == 300
        for ping in pings[::7]:
            await first.send({"type": "ping", **ping})
        await first.acked(300 + len(pings[::7]))
        await second.acked(300)
    assert await times(database_url, one.vendor_id) == [ping["timestamp"] for ping in pings]
    async with VendorApp(here.url, one.clerk_id) as third:
        assert (await third.expect("hello"))["durable"] == pings[-1]["timestamp"]


async def test_a_vendor_deleted_meanwhile_does_not_affect_others(serve: Serve, database_url: str) -> None:
    """Its pings are rejected and its socket ends with 4404; pings of others in the same batch are stored."""
    gone, stays = await seed.seed(database_url, 2)
    running = await serve()
    async with VendorApp(running.url, gone.clerk_id) as first, VendorApp(running.url, stays.clerk_id) as second:
        await first.expect("hello")
        await second.expect("hello")
        connection = await asyncpg.connect(database_url)
        await connection.execute("DELETE FROM vendors WHERE id = $1", gone.vendor_id)
        await connection.close()
        await asyncio.gather(first.ping(52.0, 21.0, seq=1), second.ping(52.0, 21.0, seq=1))
        await second.acked(1)
        assert (await first.expect("reject"))["code"] == "ERR_VENDOR_NOT_FOUND"
        assert await first.closed() == 4404
    assert len(await times(database_url, stays.vendor_id)) == 1


async def test_an_older_fix_never_replaces_a_newer(serve: Serve, database_url: str) -> None:
    """With two processes and a late phone, history has both pings, and all processes show the newest."""
    (one,) = await seed.seed(database_url, 1)
    here, there = await serve(), await serve()
    at = now_ms()
    async with (
        CustomerApp(here.url) as near,
        CustomerApp(there.url) as far,
        VendorApp(here.url, one.clerk_id) as first,
        VendorApp(there.url, one.clerk_id) as second,
    ):
        for customer in (near, far):
            await customer.watch("w", circle(52.2, 21.0, 5000))
        await first.ping(52.2, 21.0, timestamp=at)
        await first.acked(1)
        await second.ping(52.21, 21.01, timestamp=at - 30_000)
        await second.acked(1)
        await second.ping(52.201, 21.001, timestamp=at + 1)
        await second.acked(2)
        for customer in (near, far):
            await customer.sees("w", {one.vendor_id: (52.201, 21.001)})
        assert not any(fix["timestamp"] < at for m in (*near.messages, *far.messages) for fix in m.get("moved", ()))
    connection = await asyncpg.connect(database_url)
    try:

        async def newest() -> bool:
            row = await connection.fetchrow("SELECT lat, long FROM vendors WHERE id = $1", one.vendor_id)
            return tuple(row) == (52.201, 21.001)

        await eventually(newest, "vendors.lat/long at the newest fix")
    finally:
        await connection.close()
    assert await times(database_url, one.vendor_id) == [at - 30_000, at, at + 1]


@pytest.fixture
async def fragile(postgres_server: PostgresServer, redis_url: str) -> AsyncIterator[Running]:
    """A server with a small buffer and a separate PostgreSQL, which may be paused and killed."""
    await migrate.upgrade(postgres_server.url)
    async with AsyncExitStack() as stack:
        configured = settings.load(
            database_url=postgres_server.url,
            redis_url=redis_url,
            port=0,
            jwt_secret=SECRET,
            watch_auth="optional",
            drain_timeout=4.0,
            buffer_pings=2_000,
            statement_timeout=1.0,
            silence=6.0,
            heartbeat=1.0,
        )
        running = Running(*await stack.enter_async_context(lifecycle.serving(configured)))
        yield running


@pytest.mark.parametrize("how", ["paused", "killed"])
async def test_postgresql_away(
    fragile: Running, postgres_server: PostgresServer, loop_errors: Collected, how: str
) -> None:
    """No acked ping is lost, the buffer keeps its limit, customers see movement; all pings are stored afterwards."""
    vendors = await seed.seed(postgres_server.url, 4)
    batcher = fragile.server.batcher
    async with AsyncExitStack() as stack:
        apps = [await stack.enter_async_context(VendorApp(fragile.url, v.clerk_id)) for v in vendors]
        customer = await stack.enter_async_context(CustomerApp(fragile.url))
        await customer.watch("w", circle(52.2, 21.0, 5000))
        for vendor in apps:
            await vendor.ping(52.2, 21.0)
            await vendor.acked(1)
        (postgres_server.pause if how == "paused" else postgres_server.kill)()
        sent = 1
        most = seen = 0
        until = time.monotonic() + 8.0
        # Twice the buffer's size; the rest stays in the sockets.
        while time.monotonic() < until:
            if sent < 1_000:
                sent += 1
                for vendor in apps:
                    await vendor.ping(52.2 + sent * 1e-6, 21.0)
            else:
                await asyncio.sleep(0.05)
            most = max(most, batcher.pings)
            if sent == 200:
                await eventually(lambda: len(customer.messages) > 2, "movement while PostgreSQL is away")
                seen = len(customer.messages)
            if sent % 50 == 0:
                await asyncio.sleep(0.01)
        assert 500 < most <= 2_000
        assert seen > 2
        assert all(vendor.close_code is None for vendor in apps), "ended although it is the server that does not read"
        acked = [max(m["seq"] for m in vendor.messages if m["type"] == "ack") for vendor in apps]
        assert acked == [1, 1, 1, 1]
        if how == "paused":
            postgres_server.resume()
        else:
            await postgres_server.restart()
        for vendor in apps:
            await vendor.acked(sent, 60)
    for one, vendor in zip(vendors, apps, strict=True):
        stored = await times(postgres_server.url, one.vendor_id)
        assert len(stored) == len(set(stored))
        # Two pings of one vendor in a millisecond are one ping, so there may be fewer than were acked.
        assert 0 < len(stored) <= sent
        assert not [m for m in vendor.messages if m["type"] == "reject"]
    # asyncpg leaves the future of a COPY unretrieved when the server dies; the store has handled the error.
    loop_errors.messages[:] = [m for m in loop_errors.messages if "ConnectionDoesNotExistError" not in m]


async def test_a_hanging_statement_is_given_up(fragile: Running, postgres_server: PostgresServer) -> None:
    """A long-held lock delays acks, but loses no pings."""
    (one,) = await seed.seed(postgres_server.url, 1)
    blocker = await asyncpg.connect(postgres_server.url)
    try:
        async with VendorApp(fragile.url, one.clerk_id) as vendor:
            await vendor.expect("hello")
            await blocker.execute("BEGIN; LOCK TABLE locations IN ACCESS EXCLUSIVE MODE")
            await vendor.ping(52.2, 21.0)
            await eventually(lambda: fragile.server.batcher.retries > 0, "the statement given up and tried again", 30)
            assert not [m for m in vendor.messages if m["type"] == "ack"]
            await blocker.execute("ROLLBACK")
            await vendor.acked(1)
    finally:
        await blocker.close()
    assert len(await times(postgres_server.url, one.vendor_id)) == 1


async def test_live_pings_go_ahead_of_a_backlog(serve: Serve, database_url: str) -> None:
    """Ten thousand offline pings of one vendor must not make the others wait until they are stored."""
    slow, quick = await seed.seed(database_url, 2)
    running = await serve(batch_pings=400)
    start = now_ms() - 3_600_000
    async with VendorApp(running.url, slow.clerk_id) as uploads, VendorApp(running.url, quick.clerk_id) as live:
        for number in range(20):
            pings = [{"lat": 52.0, "long": 21.0, "timestamp": start + number * 500 + n} for n in range(500)]
            await uploads.send({"type": "pings", "pings": pings})
        await live.ping(52.0, 21.0)
        await live.acked(1)
        behind = max((m["seq"] for m in uploads.messages if m["type"] == "ack"), default=0)
        assert behind < 10_000, "the live ping was acked after the whole backlog"
        await uploads.acked(10_000)
    assert len(await times(database_url, slow.vendor_id)) == 10_000


async def test_too_many_messages_get_a_warning_then_a_close(serve: Serve, database_url: str) -> None:
    """A broken app in a loop gets a warning with a time to wait, and is finally closed."""
    (one,) = await seed.seed(database_url, 1)
    running = await serve(vendor_messages=5.0)
    async with VendorApp(running.url, one.clerk_id) as vendor:
        await vendor.expect("hello")
        for _ in range(200):
            await vendor.ping(52.0, 21.0)
        error = await vendor.expect("error")
        assert error["code"] == "ERR_RATE_LIMITED"
        assert error["retryAfterMs"] > 0
        assert await vendor.closed(30) == 4429
