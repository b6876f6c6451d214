"""A graceful stop: an upgrade must lose no pings, and no customer's map may freeze."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from loadtest.clients.target import Identity, Target
from loadtest.engine import verification as truth
from loadtest.engine.database import Database
from streamer.storage import seed
from tests.chaos.balancer import Balancer
from tests.chaos.crowd import Crowd
from tests.conftest import Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually, now_ms
from tests.support.process import ServerProcess
from tests.support.running import settled

AREA = circle(52.2297, 21.0122, 5000)


async def test_pings_read_are_acked_before_the_bye(database_url: str, redis_url: str) -> None:
    """SIGTERM during a stream of pings: all read pings are acked, each app gets `bye`, the exit status is 0."""
    vendors = await seed.seed(database_url, 3)
    async with ServerProcess(database_url, redis_url) as server:
        apps = [await VendorApp(server.url, vendor.clerk_id).__aenter__() for vendor in vendors]
        started = now_ms()

        async def stream(app: VendorApp) -> None:
            for seq in range(1, 2000):
                if app.close_code is not None or any(m["type"] == "bye" for m in app.messages):
                    return
                await app.ping(52.2297 + seq * 1e-6, 21.0122, seq=seq, timestamp=started - 300_000 + seq)
                await asyncio.sleep(0.001)

        try:
            streams = [asyncio.create_task(stream(app)) for app in apps]
            for app in apps:
                await app.acked(20)
            await server.end(signal.SIGTERM)
            assert server.status == 0
            await asyncio.gather(*streams, return_exceptions=True)
            acked = {}
            for app, vendor in zip(apps, vendors, strict=True):
                assert await app.closed() == 1012
                kinds = [message["type"] for message in app.messages]
                assert kinds[-1] == "bye"
                assert 100 <= app.messages[-1]["reconnectAfterMs"] < 1000
                acked[vendor.vendor_id] = max(m["seq"] for m in app.messages if m["type"] == "ack")
        finally:
            for app in apps:
                await app.close()
    async with Database(database_url) as stored:
        for vendor_id, last in acked.items():
            rows = await stored.stored([vendor_id], started - 300_000, started)
            assert {row.timestamp - started + 300_000 for row in rows} == set(range(1, len(rows) + 1))
            # All read pings are acked: none is stored without its ack.
            assert last == len(rows)


async def test_clients_are_sent_away_one_after_the_other(serve: Serve, database_url: str) -> None:
    """Closes are spread over time: each client is served until its close, so reconnects are no storm."""
    (vendor,) = await seed.seed(database_url, 1)
    leaving, staying = await serve(admission_rate=40.0, drain_timeout=4.0), await serve()
    async with VendorApp(staying.url, vendor.clerk_id) as app:
        await app.ping(52.2297, 21.0122)
        customers = [await CustomerApp(leaving.url).__aenter__() for _ in range(40)]
        try:
            for customer in customers:
                await customer.watch("w", AREA)
            draining = asyncio.create_task(leaving.server.drain())
            began, left = time.monotonic(), dict[CustomerApp, float]()
            last = 0
            while not draining.done():
                now = time.monotonic() - began
                left.update({c: now for c in customers if c not in left and c.close_code is not None})
                await app.ping(52.2297, 21.0122 + len(left) * 1e-5)
                last = len(left)
                await asyncio.sleep(0.02)
            await draining
            backs = sorted(
                left.get(c, now) + next(m["reconnectAfterMs"] for m in c.messages if m["type"] == "bye") / 1000
                for c in customers
            )
            assert last >= 30
            assert backs[-1] - backs[0] > 0.6, "all at once"
            late = max(customers, key=lambda c: left.get(c, now))
            assert late.views["w"][vendor.vendor_id]["long"] > 21.0122 + 5e-5, "not served while others left"
        finally:
            for customer in customers:
                await customer.close()


async def test_a_client_that_takes_no_goodbye_does_not_hold_up_the_stop(serve: Serve, database_url: str) -> None:
    """An app that does not answer is closed, and the stop keeps its time limit."""
    running = await serve(drain_timeout=1.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rsplit(":", 1)[1]))
    writer.write(
        b"GET /v1/watch HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    began = time.monotonic()
    await running.server.drain()
    assert time.monotonic() - began < 8
    await eventually(lambda: not running.server.connections, "no connection left")
    writer.transport.abort()


async def test_a_rolling_restart_is_invisible(database_url: str, redis_url: str) -> None:
    """Two processes restarted one after the other under load: no acked ping lost, no map wrong for over 2 s."""
    identities = [Identity(*v) for v in await seed.seed(database_url, 10)]
    began = now_ms()
    async with (
        ServerProcess(database_url, redis_url) as one,
        ServerProcess(database_url, redis_url) as two,
        Balancer([one.url, two.url]) as balancer,
    ):
        crowd = Crowd(Target.parse(balancer.url), identities, watchers=10, secret=SECRET, random=Random(1), hz=5.0)
        async with crowd.about():
            await eventually(lambda: crowd.late_now() < 1.0, "views that are true")
            crowd.latest = 0.0
            await asyncio.sleep(1.0)
            calm, crowd.latest = crowd.latest, 0.0
            for server in (one, two):
                await server.end(signal.SIGTERM)
                assert server.status == 0
                await server.start()
                await asyncio.sleep(0.5)
            crowd.moving = False
            assert await settled([mover.app for mover in crowd.movers], 10) == 0
            await eventually(lambda: crowd.late_now() == 0.0, "views that are the truth")
            # In addition to the delay of a busy machine.
            assert crowd.latest < 2.0 + 4 * calm, f"a map was wrong for {crowd.latest:.1f} s, before {calm:.1f} s"
            assert sum(watcher.closes[1012] for watcher in crowd.watchers) >= 10
            assert crowd.violations == []
        await check_stored(database_url, crowd, began)


async def check_stored(database_url: str, crowd: Crowd, began: int) -> None:
    """Checks that every acked ping is stored once and unchanged, and that vendors have their newest position."""
    acked: Mapping[str, Sequence[Any]] = {m.app.identity.vendor_id: m.app.acked for m in crowd.movers}
    assert all(len(m.app.acked) == len(m.pings) for m in crowd.movers)
    async with Database(database_url) as stored:
        rows = await stored.stored(list(acked), began - 1000, now_ms() + 1000)
        assert truth.stored_differences(rows, acked, {}) == []
        newest = await stored.newest(list(acked))

        async def positioned() -> bool:
            return not truth.position_differences(await stored.positions(list(acked)), newest, acked)

        await eventually(positioned, "vendors.lat/long newest")
