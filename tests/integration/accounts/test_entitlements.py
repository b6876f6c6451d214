"""Plans: users without a plan must not be live continuously, and their history must have no gap because of that."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from streamer.accounts import entitlements
from streamer.accounts.tokens import make_token
from streamer.errors import Unavailable
from streamer.storage.database import Database
from streamer.storage.seed import SeededVendor
from streamer.storage.store import Store
from tests.conftest import Running, Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, now_ms

LAT, LONG = 52.2297, 21.0122
HERE = circle(LAT, LONG, 5000)


async def subscribe(
    direct: Any, vendor: SeededVendor, status: str = "active", start: str = "-1 day", end: str | None = None
) -> None:
    """Gives a vendor's user a subscription; `start` and `end` are intervals from now."""
    await direct.execute(
        """
        INSERT INTO "subscriptions"
            ("id", "userId", "provider", "productId", "status", "startDate", "endDate", "updatedAt")
        SELECT md5(random()::text), u."id", 'stripe', 'pro', $2,
            (now() AT TIME ZONE 'UTC') + $3::text::interval, (now() AT TIME ZONE 'UTC') + $4::text::interval, now()
        FROM "users" u WHERE u."clerkId" = $1
        """,
        vendor.clerk_id,
        status,
        start,
        end,
    )


@pytest.fixture
async def servers(serve: Serve, vendors: list[SeededVendor]) -> list[Running]:
    return [await serve(free_interval=3600) for _ in range(2)]


async def stored(direct: Any, vendor: SeededVendor) -> int:
    """Returns the number of a vendor's pings in the history."""
    return int(await direct.fetchval('SELECT count(*) FROM "locations" WHERE "vendorId" = $1', vendor.vendor_id))


async def test_a_user_who_does_not_pay_goes_live_once(
    servers: list[Running], vendors: list[SeededVendor], direct: Any
) -> None:
    """The first position is shown, the next ones are only stored, also after a reconnect to another process."""
    free, pays = vendors[:2]
    await subscribe(direct, pays)
    async with CustomerApp(servers[1].url) as customer:
        await customer.watch("w", HERE)
        for number, server in enumerate(servers):
            async with VendorApp(server.url, free.clerk_id) as app, VendorApp(server.url, pays.clerk_id) as paying:
                for step in range(3):
                    lat = LAT + 0.001 * (3 * number + step)
                    await app.ping(lat, LONG, seq=step + 1)
                    await paying.ping(lat, LONG, seq=step + 1)
                    await app.acked(step + 1)
                    await paying.acked(step + 1)
                    await customer.sees("w", {free.vendor_id: (LAT, LONG), pays.vendor_id: (lat, LONG)})
        assert await stored(direct, free) == await stored(direct, pays) == 6


async def test_the_same_over_http(servers: list[Running], vendors: list[SeededVendor], direct: Any) -> None:
    """A tracker app over HTTP must not bypass the plan."""
    free = vendors[0]
    bearer = {"Authorization": f"Bearer {make_token(SECRET, free.clerk_id, 60)}"}
    async with CustomerApp(servers[1].url) as customer, aiohttp.ClientSession(headers=bearer) as session:
        await customer.watch("w", HERE)
        for number, server in enumerate((*servers, *servers)):
            body = {"lat": LAT + 0.001 * number, "long": LONG, "timestamp": now_ms()}
            async with session.post(f"{server.url}/v1/vendors/{free.vendor_id}/locations", json=body) as response:
                assert response.status == 200
            await customer.sees("w", {free.vendor_id: (LAT, LONG)})
        assert await stored(direct, free) == 4


SUBSCRIPTIONS: list[tuple[str, str, str | None, bool]] = [
    ("active", "-1 day", "1 day", True),
    ("active", "-1 day", "-1 second", False),
    ("active", "1 hour", None, False),
    ("cancelled", "-1 day", "1 day", False),
    ("expired", "-1 day", None, False),
]


async def test_which_subscriptions_are_active(database_url: str, vendors: list[SeededVendor], direct: Any) -> None:
    """A subscription applies exactly from its first to its last second."""
    for vendor, (status, start, end, _) in zip(vendors, SUBSCRIPTIONS, strict=True):
        await subscribe(direct, vendor, status, start, end)
    store = Store(await Database.open(database_url))
    try:
        paying = await store.paying([vendor.vendor_id for vendor in vendors] + ["nobody", "\0"])
    finally:
        await store.database.close()
    expected = {vendor.vendor_id for vendor, (*_, counts) in zip(vendors, SUBSCRIPTIONS, strict=True) if counts}
    assert paying == expected


async def test_the_interval_ends(serve: Serve, vendors: list[SeededVendor]) -> None:
    """After the interval the vendor goes live again."""
    server = await serve(free_interval=0.5)
    async with CustomerApp(server.url) as customer, VendorApp(server.url, vendors[0].clerk_id) as app:
        await customer.watch("w", HERE)
        await app.ping(LAT, LONG)
        await customer.sees("w", {vendors[0].vendor_id: (LAT, LONG)})
        await asyncio.sleep(0.6)
        await app.ping(LAT + 0.01, LONG)
        await customer.sees("w", {vendors[0].vendor_id: (LAT + 0.01, LONG)})


async def test_a_user_who_starts_to_pay(
    servers: list[Running], vendors: list[SeededVendor], direct: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vendor goes live soon after its user subscribes, without a reconnect, and stops when the plan ends."""
    server, one = servers[0], vendors[0]
    async with CustomerApp(server.url) as customer, VendorApp(server.url, one.clerk_id) as app:
        await customer.watch("w", HERE)
        await app.ping(LAT, LONG)
        await customer.sees("w", {one.vendor_id: (LAT, LONG)})
        assert server.server.entitlements is not None
        await subscribe(direct, one)
        await server.server.entitlements._refresh()
        await app.ping(LAT + 0.01, LONG)
        await customer.sees("w", {one.vendor_id: (LAT + 0.01, LONG)})
        await direct.execute("""UPDATE "subscriptions" SET "status" = 'cancelled'""")
        await server.server.entitlements._refresh()
        await app.ping(LAT + 0.02, LONG, seq=9)
        await app.acked(9)
        await asyncio.sleep(0.3)
        await customer.sees("w", {one.vendor_id: (LAT + 0.01, LONG)})


async def test_without_postgresql(
    servers: list[Running], vendors: list[SeededVendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage of PostgreSQL must not take a paying vendor off the map."""

    async def away(_: Any) -> Any:
        raise Unavailable("PostgreSQL is held by the test")

    server = servers[0]
    monkeypatch.setattr(server.server.store, "paying", away)
    async with CustomerApp(server.url) as customer, VendorApp(server.url, vendors[0].clerk_id) as app:
        await customer.watch("w", HERE)
        await app.ping(LAT, LONG)
        await customer.sees("w", {vendors[0].vendor_id: (LAT, LONG)})


async def test_plans_are_off(serve: Serve, vendors: list[SeededVendor]) -> None:
    """Without a configured plan no vendor is limited."""
    server = await serve()
    assert server.server.entitlements is None
    async with CustomerApp(server.url) as customer, VendorApp(server.url, vendors[0].clerk_id) as app:
        await customer.watch("w", HERE)
        for step in range(3):
            await app.ping(LAT + step * 0.001, LONG)
            await customer.sees("w", {vendors[0].vendor_id: (LAT + step * 0.001, LONG)})
    assert entitlements.REFRESH <= 60
