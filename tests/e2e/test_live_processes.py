"""Two processes and Redis through real sockets: killed, and without Redis."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import aiohttp
import asyncpg

from streamer.storage import seed
from tests.conftest import Serve
from tests.support.apps import CustomerApp, VendorApp, circle, eventually, now_ms
from tests.support.process import ServerProcess
from tests.support.proxy import Proxy

HERE = (52.2297, 21.0122)
NEAR = (52.2310, 21.0130)
AROUND = circle(*HERE, 3_000)


async def test_killed(serve: Serve, database_url: str, redis_url: str) -> None:
    """kill -9: vendors that reconnect elsewhere are never offline, and the others expire, on every map."""
    back, gone = await seed.seed(database_url, 2)
    times: dict[str, Any] = {"offline_after": 3.0, "leave_after": 2.0}
    running = await serve(**times)
    async with (
        ServerProcess(database_url, redis_url, **times) as dying,
        CustomerApp(running.url) as customer,
        VendorApp(dying.url, back.clerk_id) as first,
        VendorApp(dying.url, gone.clerk_id) as second,
    ):
        await customer.watch("w", AROUND)
        await first.ping(*HERE)
        await second.ping(*NEAR)
        await customer.sees("w", {back.vendor_id: HERE, gone.vendor_id: NEAR})
        await dying.end(signal.SIGKILL)
        async with VendorApp(running.url, back.clerk_id) as again, CustomerApp(running.url) as late:
            await again.expect("hello")
            await eventually(lambda: customer.views["w"][gone.vendor_id]["online"] is False, "the one gone offline")
            await late.watch("w", AROUND)
            for each in (customer, late):
                await each.sees("w", {back.vendor_id: HERE})
                assert each.views["w"][back.vendor_id]["online"]
            offline = [
                card["vendorId"]
                for message in customer.messages
                for card in (*message.get("entered", ()), *message.get("vendors", ()))
                if not card["online"]
            ]
            assert offline == [gone.vendor_id]
            await again.ping(*NEAR)
            for each in (customer, late):
                await each.sees("w", {back.vendor_id: NEAR})


async def test_redis_away(serve: Serve, database_url: str, redis_url: str) -> None:
    """A process without Redis still serves its vendors and customers and stores pings; afterwards both agree again."""
    one, two = await seed.seed(database_url, 2)
    async with Proxy(redis_url) as proxy:
        cut, whole = await serve(redis_url=proxy.url), await serve()
        async with (
            CustomerApp(cut.url) as own,
            CustomerApp(whole.url) as other,
            VendorApp(cut.url, one.clerk_id) as vendor,
        ):
            await own.watch("w", AROUND)
            await other.watch("w", AROUND)
            await vendor.ping(*HERE)
            await other.sees("w", {one.vendor_id: HERE})
            proxy.down()
            await eventually(lambda: not cut.server.broker.up, "Redis found away")
            async with aiohttp.ClientSession() as session, session.get(f"{cut.url}/readyz") as answer:
                assert answer.status == 503
                assert "redis" in (await answer.json())["causes"]
            stamp = now_ms()
            await vendor.ping(*NEAR, timestamp=stamp)
            await vendor.acked(2)
            await own.sees("w", {one.vendor_id: NEAR})
            async with VendorApp(cut.url, two.clerk_id) as newcomer, CustomerApp(cut.url) as late:
                await newcomer.ping(*HERE)
                await newcomer.acked(1)
                await late.watch("w", AROUND)
                for each in (own, late):
                    await each.sees("w", {one.vendor_id: NEAR, two.vendor_id: HERE})
                connection = await asyncpg.connect(database_url)
                try:
                    assert await connection.fetchval('SELECT count(*) FROM "locations"') == 3
                finally:
                    await connection.close()
                assert other.views["w"][one.vendor_id]["timestamp"] < stamp
                proxy.up()
                for each in (own, late, other):
                    await each.sees("w", {one.vendor_id: NEAR, two.vendor_id: HERE})
                await asyncio.sleep(0)
