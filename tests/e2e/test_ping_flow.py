"""The path of a ping from a vendor's phone to the disk and to the customers nearby, through real parts."""

from __future__ import annotations

import asyncpg

from streamer.storage import seed
from tests.conftest import Serve
from tests.support.apps import CustomerApp, VendorApp, circle, eventually, now_ms

WARSAW = (52.2297, 21.0122)


async def stored(url: str, vendor_id: str) -> list[tuple[float, float]]:
    """Returns the positions of a vendor in `locations`, by time."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            'SELECT lat, long FROM locations WHERE "vendorId" = $1 ORDER BY timestamp', vendor_id
        )
    finally:
        await connection.close()
    return [(row["lat"], row["long"]) for row in rows]


async def test_a_ping_is_acked_when_stored_and_seen_nearby(serve: Serve, database_url: str) -> None:
    """The main task: a vendor reports, its acked ping is in PostgreSQL, and a customer nearby sees it."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    async with CustomerApp(server.url) as customer, VendorApp(server.url, one.clerk_id) as vendor:
        await customer.watch("w1", circle(*WARSAW, 5000))
        assert customer.views["w1"] == {}
        hello = await vendor.expect("hello")
        assert hello["vendorId"] == one.vendor_id
        assert hello["durable"] is None
        assert hello["maxBatch"] == 500
        at = now_ms()
        await vendor.ping(52.23, 21.01, seq=7, timestamp=at, heading=90, speed=4.2, accuracy=8)
        await vendor.acked(7)
        assert await stored(database_url, one.vendor_id) == [(52.23, 21.01)]
        await customer.sees("w1", {one.vendor_id: (52.23, 21.01)})
        assert customer.views["w1"][one.vendor_id] == {
            "vendorId": one.vendor_id,
            "name": one.name,
            "open": True,
            "primaryImage": None,
            "lat": 52.23,
            "long": 21.01,
            "timestamp": at,
            "heading": 90.0,
            "speed": 4.2,
            "online": True,
        }
        await vendor.ping(52.24, 21.02, seq=8)
        await customer.sees("w1", {one.vendor_id: (52.24, 21.02)})
        await vendor.ping(53.0, 22.0, seq=9)
        await customer.sees("w1", {})
        await vendor.acked(9)

    connection = await asyncpg.connect(database_url)
    try:

        async def newest() -> bool:
            row = await connection.fetchrow("SELECT lat, long FROM vendors WHERE id = $1", one.vendor_id)
            return tuple(row) == (53.0, 22.0)

        await eventually(newest, "vendors.lat/long at the newest fix")
    finally:
        await connection.close()


async def test_a_vendor_on_one_process_is_seen_on_another(serve: Serve, database_url: str) -> None:
    """With two processes on one database and Redis a customer sees vendors of both, whichever it is connected to."""
    first, second = await seed.seed(database_url, 2)
    here, there = await serve(), await serve()
    async with (
        CustomerApp(here.url) as customer,
        CustomerApp(there.url) as other,
        VendorApp(here.url, first.clerk_id) as one,
        VendorApp(there.url, second.clerk_id) as two,
    ):
        await customer.watch("w", circle(*WARSAW, 3000))
        await one.ping(52.23, 21.01)
        await two.ping(52.231, 21.011)
        both = {first.vendor_id: (52.23, 21.01), second.vendor_id: (52.231, 21.011)}
        await customer.sees("w", both)
        await other.watch("w", circle(*WARSAW, 3000))
        await other.sees("w", both)
        await two.ping(52.2312, 21.0112)
        both[second.vendor_id] = (52.2312, 21.0112)
        await customer.sees("w", both)
        await other.sees("w", both)
        await two.ping(54.0, 18.0)  # another broker cell, which nobody watches
        del both[second.vendor_id]
        await customer.sees("w", both)
        await other.sees("w", both)
        await two.ping(52.2313, 21.0113)
        both[second.vendor_id] = (52.2313, 21.0113)
        await customer.sees("w", both)
        await other.sees("w", both)
        await one.send({"type": "status", "open": False})
        await eventually(lambda: customer.views["w"][first.vendor_id]["open"] is False, "closed, seen here")
        await eventually(lambda: other.views["w"][first.vendor_id]["open"] is False, "closed, seen there")
        await other.watch("w", circle(*WARSAW, 3000), open=True)
        await other.sees("w", {second.vendor_id: (52.2313, 21.0113)})


async def test_a_customer_can_follow_listed_vendors(serve: Serve, database_url: str) -> None:
    """A watch of a list shows its vendors wherever they are, from any process, and from their first ping on."""
    first, second = await seed.seed(database_url, 2)
    here, there = await serve(), await serve()
    async with (
        CustomerApp(here.url) as customer,
        VendorApp(there.url, first.clerk_id) as one,
        VendorApp(there.url, second.clerk_id) as two,
    ):
        await one.ping(-33.86, 151.2)
        await one.acked(1)
        await customer.watch("mine", vendors=[first.vendor_id, second.vendor_id])
        await customer.sees("mine", {first.vendor_id: (-33.86, 151.2)})
        await two.ping(10.0, 10.0)
        await customer.sees("mine", {first.vendor_id: (-33.86, 151.2), second.vendor_id: (10.0, 10.0)})
        await one.ping(-30.0, 140.0)
        await customer.sees("mine", {first.vendor_id: (-30.0, 140.0), second.vendor_id: (10.0, 10.0)})
        await one.ping(-30.001, 140.0)
        await customer.sees("mine", {first.vendor_id: (-30.001, 140.0), second.vendor_id: (10.0, 10.0)})
