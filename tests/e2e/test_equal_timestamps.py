"""Two pings of one vendor and timestamp at different positions: one is stored, and all customers must see that one."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import asyncpg
import orjson
import pytest
import redis.asyncio

from streamer.accounts.tokens import make_token
from streamer.broker.redis_schema import positions_key
from streamer.errors import Unavailable
from streamer.geo.grid import bus_cell
from streamer.live.fix import fix_of_register
from streamer.storage import seed
from tests.conftest import Running, Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually, now_ms
from tests.support.proxy import Proxy

HERE = (52.2300, 21.0100)
AROUND = circle(*HERE, 5_000)


async def post(server: Running, vendor: Any, pings: list[dict[str, Any]]) -> dict[str, Any]:
    """Reports over HTTP; the answer."""
    headers = {"Authorization": f"Bearer {make_token(SECRET, vendor.clerk_id, 600)}"}
    url = f"{server.url}/v1/vendors/{vendor.vendor_id}/locations"
    async with aiohttp.ClientSession(headers=headers) as session, session.post(url, json=pings) as answer:
        assert answer.status == 200
        return dict(await answer.json())


async def stored(url: str, vendor_id: str, timestamp: int) -> tuple[float, float]:
    """Returns the position in `locations`."""
    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(
            """SELECT "lat", "long" FROM "locations" WHERE "vendorId" = $1
            AND "timestamp" = TIMESTAMP 'epoch' + $2::bigint * INTERVAL '1 millisecond'""",
            vendor_id,
            timestamp,
        )
        return row["lat"], row["long"]
    finally:
        await connection.close()


async def in_redis(url: str, vendor_id: str, position: tuple[float, float]) -> None:
    """Waits until Redis has this position for snapshots."""
    async with redis.asyncio.Redis.from_url(url) as client:

        async def there() -> bool:
            held = await client.hget(positions_key(bus_cell(*position)), f"f{vendor_id}")
            return held is not None and fix_of_register(orjson.loads(held[13:]))[1][1:3] == position

        await eventually(there, f"Redis at {position}")


async def in_vendors(url: str, vendor_id: str, position: tuple[float, float]) -> None:
    """Waits until `vendors` has this position, and checks that it keeps it."""
    connection = await asyncpg.connect(url)
    try:

        async def there() -> bool:
            row = await connection.fetchrow('SELECT "lat", "long" FROM "vendors" WHERE "id" = $1', vendor_id)
            return (row["lat"], row["long"]) == position

        await eventually(there, f"vendors.lat/long at {position}")
    finally:
        await connection.close()


async def test_on_one_socket(serve: Serve, database_url: str) -> None:
    """An app that sends a position twice, corrected in between, must not make the table and the map differ."""
    (vendor,) = await seed.seed(database_url, 1)
    running = await serve()
    async with CustomerApp(running.url) as customer, VendorApp(running.url, vendor.clerk_id) as app:
        await customer.watch("w", circle(10.5, 21.0, 90_000))
        await app.expect("hello")
        at = now_ms()
        for lat, timestamp in ((10.3, at), (10.4, at + 10), (10.5, at + 10)):
            await app.ping(lat, 21.0, timestamp=timestamp)
        await app.acked(3)
        assert await stored(database_url, vendor.vendor_id, at + 10) == (10.4, 21.0)
        await customer.sees("w", {vendor.vendor_id: (10.4, 21.0)})
        await in_vendors(database_url, vendor.vendor_id, (10.4, 21.0))


async def test_one_after_the_other_on_two_processes(serve: Serve, database_url: str) -> None:
    """Only PostgreSQL detects that the second process's ping is a duplicate; the process must then correct it."""
    (vendor,) = await seed.seed(database_url, 1)
    servers = [await serve(), await serve()]
    async with CustomerApp(servers[0].url) as one, CustomerApp(servers[1].url) as other:
        for customer in (one, other):
            await customer.watch("w", AROUND)
        at, second = now_ms(), (HERE[0] + 0.01, HERE[1])
        ping, other_ping = ({"lat": lat, "long": long, "timestamp": at} for lat, long in (HERE, second))
        assert (await post(servers[0], vendor, [ping]))["stored"] == 1
        answer = await post(servers[1], vendor, [other_ping])
        assert (answer["stored"], answer["duplicates"]) == (0, 1)
        answer = await post(servers[1], vendor, [ping, {**other_ping, "timestamp": at - 1}, other_ping])
        assert (answer["stored"], answer["duplicates"]) == (2, 1)
        assert "duplicates" not in await post(servers[0], vendor, [ping])
        assert await stored(database_url, vendor.vendor_id, at) == HERE
        for customer in (one, other):
            await customer.sees("w", {vendor.vendor_id: HERE})
        await in_vendors(database_url, vendor.vendor_id, HERE)
    async with CustomerApp(servers[1].url) as late:
        await late.watch("w", AROUND)
        await late.sees("w", {vendor.vendor_id: HERE})


async def test_a_backlog_after_a_live_ping_of_a_phone_ahead(serve: Serve, database_url: str) -> None:
    """Half of all phones are some milliseconds ahead: their backlog must not move the vendor back."""
    (vendor,) = await seed.seed(database_url, 1)
    running = await serve(position_interval=0.1)
    async with CustomerApp(running.url) as customer:
        await customer.watch("w", AROUND)
        at = now_ms()
        await post(running, vendor, [{"lat": HERE[0], "long": HERE[1], "timestamp": at + 4_000}])
        await in_vendors(database_url, vendor.vendor_id, HERE)
        backlog = [{"lat": 52.2 + n / 1000, "long": 21.0, "timestamp": at - 1000 * n} for n in range(1, 20)]
        await post(running, vendor, backlog)
        await eventually(lambda: not running.server.positions.pending, "positions that are written")
        await in_vendors(database_url, vendor.vendor_id, HERE)
        await customer.sees("w", {vendor.vendor_id: HERE})


@pytest.mark.parametrize("aside", [-0.01, 0.01])
async def test_a_process_that_never_finds_out(
    serve: Serve, database_url: str, monkeypatch: pytest.MonkeyPatch, aside: float
) -> None:
    """A process killed between showing a duplicate and storing it must not leave a wrong position on any map."""
    (vendor,) = await seed.seed(database_url, 1)
    servers = [await serve(), await serve()]

    async def never(chunks: Any, retry: bool) -> Any:
        raise Unavailable("held by the test")

    async with CustomerApp(servers[0].url) as one, CustomerApp(servers[1].url) as other:
        for customer in (one, other):
            await customer.watch("w", AROUND)
        monkeypatch.setattr(servers[1].server.batcher, "_store", never)
        async with (
            VendorApp(servers[0].url, vendor.clerk_id) as app,
            VendorApp(servers[1].url, vendor.clerk_id) as later,
        ):
            for phone in (app, later):
                await phone.expect("hello")
            at = now_ms()
            await asyncio.gather(app.ping(*HERE, timestamp=at), later.ping(HERE[0] + aside, HERE[1], timestamp=at))
            await app.acked(1)
            await eventually(lambda: servers[1].server.batcher.retries > 0, "an attempt to store")
            held = [server.server.index.vendors[vendor.vendor_id] for server in servers]
            await eventually(lambda: all(each.fix.stored for each in held), "the stored position on both")
            for customer in (one, other):
                await customer.sees("w", {vendor.vendor_id: HERE})


async def test_after_a_restart_of_all(serve: Serve, database_url: str, redis_url: str) -> None:
    """Servers that have just started consider the duplicate new, and must detect that it is not."""
    (vendor,) = await seed.seed(database_url, 1)
    first, at = await serve(), now_ms()
    await post(first, vendor, [{"lat": HERE[0], "long": HERE[1], "timestamp": at}])
    await first.server.stop()
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.flushall()
    servers = [await serve(), await serve()]
    async with CustomerApp(servers[0].url) as one, CustomerApp(servers[1].url) as other:
        for customer in (one, other):
            await customer.watch("w", AROUND)
        await post(servers[0], vendor, [{"lat": HERE[0] + 0.01, "long": HERE[1], "timestamp": at}])
        for customer in (one, other):
            await customer.sees("w", {vendor.vendor_id: HERE})
        await in_vendors(database_url, vendor.vendor_id, HERE)


async def test_after_a_gap(serve: Serve, database_url: str, serving_redis_url: str) -> None:
    """A server that missed which ping is stored must read it from Redis."""
    (vendor,) = await seed.seed(database_url, 1)
    async with Proxy(serving_redis_url) as proxy:
        servers = [await serve(), await serve(), await serve(redis_url=proxy.url)]
        async with CustomerApp(servers[2].url) as customer:
            await customer.watch("w", AROUND)
            at = now_ms()
            await post(servers[0], vendor, [{"lat": 52.2, "long": 21.0, "timestamp": at - 1000}])
            await customer.sees("w", {vendor.vendor_id: (52.2, 21.0)})
            proxy.down()
            await eventually(lambda: not servers[2].server.broker.up, "a gap")
            await post(servers[0], vendor, [{"lat": HERE[0], "long": HERE[1], "timestamp": at}])
            await post(servers[1], vendor, [{"lat": HERE[0] + 0.01, "long": HERE[1], "timestamp": at}])
            proxy.up()
            await customer.sees("w", {vendor.vendor_id: HERE})


@pytest.mark.timeout(60)
async def test_two_phones_at_once_on_two_processes(serve: Serve, database_url: str, redis_url: str) -> None:
    """Ten vendors, each with two phones that report the same second: every map ends with the stored positions."""
    vendors = await seed.seed(database_url, 10)
    servers = [await serve(), await serve()]
    async with CustomerApp(servers[0].url) as one, CustomerApp(servers[1].url) as other:
        for customer in (one, other):
            await customer.watch("w", AROUND)
        phones = [[VendorApp(server.url, vendor.clerk_id) for server in servers] for vendor in vendors]
        try:
            for phone in [phone for pair in phones for phone in pair]:
                await phone.__aenter__()
                await phone.expect("hello")
            at = now_ms()
            await asyncio.gather(
                *[
                    phone.ping(HERE[0] + number / 1000, HERE[1] + side / 100, timestamp=at)
                    for number, pair in enumerate(phones)
                    for side, phone in enumerate(pair)
                ]
            )
            for phone in [phone for pair in phones for phone in pair]:
                await phone.acked(1)
            truth = {vendor.vendor_id: await stored(database_url, vendor.vendor_id, at) for vendor in vendors}
            for customer in (one, other):
                await customer.sees("w", truth)
            for vendor in vendors:
                await in_vendors(database_url, vendor.vendor_id, truth[vendor.vendor_id])
            async with aiohttp.ClientSession() as session:
                for server in servers:
                    for vendor in vendors:
                        async with session.get(f"{server.url}/v1/vendors/{vendor.vendor_id}") as answer:
                            card = await answer.json()
                        assert (card["lat"], card["long"]) == truth[vendor.vendor_id]
        finally:
            for phone in [phone for pair in phones for phone in pair]:
                await phone.close()


# Well beyond the tolerance of 5 s, as a busy machine may read the ping some seconds later.
@pytest.mark.parametrize("ahead", [30_000, 59_000])
@pytest.mark.parametrize("over", [(0, 0), (0, 1)], ids=["one process", "two processes"])
async def test_a_ping_ahead_of_its_time_yields(
    serve: Serve, database_url: str, redis_url: str, ahead: int, over: tuple[int, int]
) -> None:
    """One ping of a clock 59 s ahead must not hide correct pings for a minute, on any process."""
    (vendor,) = await seed.seed(database_url, 1)
    servers = [await serve(), await serve()]
    first, second = (servers[number] for number in over)
    async with (
        CustomerApp(servers[0].url) as one,
        CustomerApp(servers[1].url) as other,
        VendorApp(first.url, vendor.clerk_id) as app,
        VendorApp(second.url, vendor.clerk_id) as later,
    ):
        wrong = (HERE[0] + 0.01, HERE[1])
        for customer in (one, other):
            await customer.watch("w", AROUND)
        await app.ping(*wrong, timestamp=(ahead_at := now_ms() + ahead))
        for customer in (one, other):
            await customer.sees("w", {vendor.vendor_id: wrong})
        await in_vendors(database_url, vendor.vendor_id, wrong)
        await later.ping(*HERE, timestamp=now_ms())
        for customer in (one, other):
            await customer.sees("w", {vendor.vendor_id: HERE})
        await in_vendors(database_url, vendor.vendor_id, HERE)
        await in_redis(redis_url, vendor.vendor_id, HERE)
        assert await stored(database_url, vendor.vendor_id, ahead_at) == wrong, "what was sent is kept as it was sent"
    async with CustomerApp(servers[0].url) as late:
        await late.watch("w", AROUND)
        await late.sees("w", {vendor.vendor_id: HERE})
    async with VendorApp(servers[1].url, vendor.clerk_id) as again:
        hello = await again.expect("hello")
        assert hello["durable"] <= now_ms(), "an app would take its true pings for stored"
