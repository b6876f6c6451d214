"""The Python client against the real server: what it promises under cut, dead and killed connections."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
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
from tests.support.process import ServerProcess
from tests.support.proxy import Proxy
from venta_client import (
    Card,
    Circle,
    CustomerClient,
    Ended,
    Event,
    Ping,
    SqliteQueue,
    VendorClient,
    Watch,
    WatchRefused,
)

LAT, LONG = 52.2297, 21.0122
HERE: Circle = {"center": {"lat": LAT, "long": LONG}, "radius": 2000}

PHONE = """
import asyncio, sys
from venta_client import SqliteQueue, VendorClient

async def main(url, token, file, first, number, at):
    async with VendorClient(url, token=token, queue=SqliteQueue(file)) as client:
        await asyncio.gather(*(
            client.ping(52.2297 + n / 1e5, 21.0122, timestamp=at + n * 1000) for n in range(first, first + number)
        ))
        print("queued", client.waiting, flush=True)
        await client.stored()
        print("stored", flush=True)
        await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:4], *map(int, sys.argv[4:])))
"""


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


class Told:
    """What an app makes of a watch's events alone; must be what the view is."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.cards: dict[str, Card] = {}
        self.events: list[Event] = []
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.watch:
            self.events.append(event)
            vendor_id = event.card["vendorId"]
            assert self.cards.get(vendor_id) == event.before
            if event.kind == "left":
                del self.cards[vendor_id]
            else:
                self.cards[vendor_id] = event.card

    async def shows(self, expected: dict[str, tuple[float, float]]) -> None:
        """Wait until the view is exactly this, known to be so, and told so."""

        def holds() -> bool:
            assert not self._task.done()
            return (
                self.watch.fresh
                and self.cards == self.watch.vendors
                and {v: (c["lat"], c["long"]) for v, c in self.cards.items()} == expected
            )

        await eventually(holds, f"a view of {expected}, not {self.watch.vendors}", within=30)

    async def end(self) -> None:
        """The watch was closed: the iteration ends by itself."""
        await asyncio.wait_for(self._task, 10)


async def phone(*arguments: object) -> asyncio.subprocess.Process:
    """A vendor's app in a process of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", PHONE, *map(str, arguments), stdout=asyncio.subprocess.PIPE
    )


async def said(process: asyncio.subprocess.Process, what: str) -> None:
    """Wait until it says so."""
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 30)
    assert line.decode().startswith(what), line


async def test_no_ping_is_lost_whatever_is_cut_or_killed(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """The queue's promise: network cut, server killed, phone killed, and each ping is stored once."""
    (one,) = await seed.seed(database_url, 1)
    file, at, key = tmp_path / "queue.db", now_ms() - 3_600_000, token(one.clerk_id)
    async with ServerProcess(database_url, redis_url) as server, Proxy(server.url) as proxy:
        first = await phone(proxy.url, key, file, 0, 1000, at)
        await said(first, "queued")
        proxy.cut()
        await said(first, "stored")
        await server.end(signal.SIGKILL)
        first.kill()
        await first.communicate()
        second = await phone(proxy.url, key, file, 1000, 500, at)
        await said(second, "queued 500")
        second.kill()
        await second.communicate()
        await server.start()
        third = await phone(proxy.url, key, file, 1500, 500, at)
        await said(third, "queued")
        await said(third, "stored")
        assert await stored(database_url, one.vendor_id) == [at + n * 1000 for n in range(2000)]
        third.kill()
        await third.communicate()


async def test_what_is_stored_is_forgotten_on_the_disk(serve: Serve, database_url: str, tmp_path: Path) -> None:
    """A file that only grows would send a month of pings after each restart."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    file = tmp_path / "queue.db"
    async with VendorClient(server.url, token=token(one.clerk_id), queue=SqliteQueue(file)) as client:
        for _ in range(20):
            await client.ping(LAT, LONG, heading=90.0, speed=float("nan"), accuracy=float("inf"))
        await client.stored()
        assert client.acked == 20
    assert len(await stored(database_url, one.vendor_id)) == 20
    left = sqlite3.connect(file)
    assert left.execute("SELECT count(*) FROM pings").fetchone() == (0,)
    left.close()


async def test_the_newest_position_goes_first_after_a_time_offline(serve: Serve, database_url: str) -> None:
    """Customers see where the vendor is now, before hours of its past have been uploaded."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    now = now_ms()
    async with CustomerApp(server.url) as customer, Proxy(server.url) as proxy:
        await customer.watch("w", circle(LAT, LONG, 5000))
        proxy.down()
        async with VendorClient(proxy.url, token=token(one.clerk_id)) as client:
            for n in range(3000):
                await client.ping(LAT + n / 1e5, LONG, timestamp=now - 3_000_000 + n * 1000)
            proxy.up()
            client.retry()
            await asyncio.wait_for(client.stored(), 30)
        await customer.sees("w", {one.vendor_id: (LAT + 2999 / 1e5, LONG)})
        first = next(m for m in customer.messages if m["type"] == "update")["entered"][0]
        assert first["timestamp"] == now - 1000
    assert len(await stored(database_url, one.vendor_id)) == 3000


@pytest.mark.parametrize("wrong", [18_000, -18_000])
async def test_a_wrong_clock_is_mended_before_anything_is_sent(serve: Serve, database_url: str, wrong: float) -> None:
    """A device five hours ahead would have each ping rejected, and one five hours behind never be seen live."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    before = now_ms()
    async with (
        Proxy(server.url) as proxy,
        VendorClient(proxy.url, token=token(one.clerk_id), clock=lambda: now_ms() / 1000 + wrong) as client,
    ):
        proxy.down()
        for _ in range(5):
            await client.ping(LAT, LONG)
        proxy.up()
        client.retry()
        await asyncio.wait_for(client.stored(), 30)
        for _ in range(5):
            await client.ping(LAT, LONG)
        await asyncio.wait_for(client.stored(), 30)
        assert client.rejected == 0
    times = await stored(database_url, one.vendor_id)
    assert len(times) == 10
    assert before - 5000 <= times[0] <= times[-1] <= now_ms() + 5000


async def test_what_can_not_be_stored_is_told_and_forgotten(serve: Serve, database_url: str) -> None:
    """A ping that will never be stored must not be sent for ever, nor hold up the others; a full queue says so."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    now = now_ms()
    rejected: list[tuple[int, str]] = []
    dropped: list[Ping] = []
    client = VendorClient(
        server.url,
        token=token(one.clerk_id),
        limit=3,
        on_rejected=lambda ping, code, message: rejected.append((ping.timestamp, code)),
        on_dropped=dropped.append,
    )
    async with client:
        await eventually(lambda: client.state == "open", "a connection")
        await client.ping(LAT, LONG, timestamp=now + 3_600_000)
        await client.ping(LAT, LONG, timestamp=now)
        await asyncio.wait_for(client.stored(), 30)
    assert rejected == [(now + 3_600_000, "ERR_TIMESTAMP_IN_FUTURE")]
    assert await stored(database_url, one.vendor_id) == [now]
    for n in range(1, 6):
        await client.ping(LAT, LONG, timestamp=now + n)
    assert [ping.timestamp - now for ping in dropped] == [1, 2]
    with pytest.raises(ValueError, match="not 91"):
        await client.ping(91, LONG)


async def test_open_and_closed_survive_a_cut(serve: Serve, database_url: str) -> None:
    """A vendor who closes in a tunnel is closed when it is out of it."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    async with CustomerApp(server.url) as customer, Proxy(server.url) as proxy:
        await customer.watch("w", circle(LAT, LONG, 5000))
        async with VendorClient(proxy.url, token=token(one.clerk_id)) as client:
            await client.ping(LAT, LONG)
            await asyncio.wait_for(client.stored(), 30)
            proxy.down()
            await eventually(lambda: client.state != "open", "the cut")
            client.set_open(False)
            proxy.up()
            await eventually(
                lambda: customer.views["w"].get(one.vendor_id, {}).get("open") is False,
                "closed, as the customer sees",
                within=30,
            )


async def test_a_view_is_true_again_after_every_cut(database_url: str, redis_url: str) -> None:
    """What entered, moved and left while the customer was cut off, told once the connection is back."""
    vendors = await seed.seed(database_url, 3)
    truth: dict[str, tuple[float, float]] = {}
    waits: list[int] = []

    def note(state: str) -> None:
        if state == "waiting" and customer._link.close is not None:
            waits.append(customer._link.close.code)

    async with (
        ServerProcess(database_url, redis_url) as server,
        Proxy(server.url) as proxy,
        CustomerClient(proxy.url, on_state=note) as customer,
    ):
        watch = customer.watch(HERE)
        told = Told(watch)
        for round_ in range(3):
            for n, vendor in enumerate(vendors):
                if n == 2 and round_ % 2:
                    at = (LAT + 0.1, LONG)  # outside
                    truth.pop(vendor.vendor_id, None)
                else:
                    at = (LAT + n / 1000, LONG + round_ / 1000)
                    truth[vendor.vendor_id] = at
                async with VendorApp(server.url, vendor.clerk_id) as app:
                    await app.ping(*at)
                    await app.acked(1)
                if n == 1:
                    proxy.cut()
            await told.shows(truth)
        await server.end(signal.SIGTERM)
        await eventually(lambda: 1012 in waits, "a goodbye")
        assert not watch.fresh  # what it shows is old, and it says so
        assert told.cards.keys() == truth.keys()
        await server.start()
        await told.shows(truth)
        watch.move({"center": {"lat": LAT, "long": LONG}, "radius": 150})
        await told.shows({vendors[0].vendor_id: truth[vendors[0].vendor_id]})
        watch.close()
        await told.end()
        refused = customer.watch({"center": {"lat": LAT, "long": LONG}, "radius": 1e9})
        with pytest.raises(WatchRefused, match="ERR_AREA_TOO_LARGE"):
            await refused.exact()


async def test_a_slow_reader_is_late_and_not_wrong(serve: Serve, database_url: str) -> None:
    """An app that looks once a minute must neither miss the outcome nor pile up what came between."""
    one, two = await seed.seed(database_url, 2)
    server = await serve()
    async with CustomerClient(server.url) as customer:
        watch = customer.watch(HERE)
        assert await watch.exact() == {}
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


async def test_a_dead_link_is_noticed(serve: Serve, database_url: str) -> None:
    """A connection on which nothing comes any more, and nothing is said of it, is given up for a new one."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    async with (
        Proxy(server.url) as proxy,
        CustomerClient(proxy.url, heartbeat=1.0) as customer,
        VendorClient(proxy.url, token=token(one.clerk_id), heartbeat=1.0) as vendor,
    ):
        watch = customer.watch(HERE)
        await watch.exact()
        await eventually(lambda: vendor.state == "open", "a connection")
        proxy.freeze()
        await vendor.ping(LAT, LONG)
        await eventually(lambda: customer.state != "open" and vendor.state != "open", "both notice", within=30)
        proxy.thaw()
        await asyncio.wait_for(vendor.stored(), 60)
        await eventually(lambda: watch.fresh and one.vendor_id in watch.vendors, "a true view", within=30)


async def test_tokens_are_renewed_and_a_refused_one_is_not_tried_for_ever(serve: Serve, database_url: str) -> None:
    """A token that ends is replaced on the open connection; with none better the app says so and stays away."""
    first, second = await seed.seed(database_url, 2)
    server = await serve(watch_auth="required", jwt_leeway=0.0)
    asked: list[bool] = []

    async def fresh(refresh: bool) -> str:
        asked.append(refresh)
        return token(first.clerk_id, 600 if refresh else 2)

    async with VendorClient(server.url, token=fresh) as vendor:
        await eventually(lambda: True in asked, "a renewal")
        await asyncio.sleep(4.0)  # past the end of the first, and the server's next look
        assert vendor._link.connections == 1
        await vendor.ping(LAT, LONG)
        await asyncio.wait_for(vendor.stored(), 30)
    async with CustomerClient(server.url, token="no.such.token") as customer:
        with pytest.raises(Ended) as ended:
            await asyncio.wait_for(customer.watch(HERE).exact(), 30)
        assert ended.value.code == 4401
        assert customer._link.connections <= 2
    async with VendorClient(server.url, token=token(first.clerk_id), vendor_id=second.vendor_id) as vendor:
        await vendor.ping(LAT, LONG)
        with pytest.raises(Ended, match="4403"):
            await asyncio.wait_for(vendor.stored(), 30)
        assert vendor.waiting == 1  # nothing is given up


async def test_a_refused_token_is_replaced_by_a_better_one(serve: Serve, database_url: str) -> None:
    """The app was asleep while its token ended: it asks for a new one, and is back."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(watch_auth="required")

    def sleepy(refresh: bool) -> str:
        return token(one.clerk_id) if refresh else "an.old.token"

    async with CustomerClient(server.url, token=sleepy) as customer:
        assert await asyncio.wait_for(customer.watch(vendors=[one.vendor_id]).exact(), 30) == {}


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
        await asyncio.wait_for(client.stored(), 30)
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
        await asyncio.wait_for(client.stored(), 30)
        postgres_server.kill()
        client.set_open(False)
        await asyncio.sleep(2.0)
        await postgres_server.restart()
        await eventually(
            lambda: customer.views["w"][one.vendor_id]["open"] is False, "closed, as the customer sees", within=40
        )


async def test_a_server_that_is_away_is_not_asked_all_the_time(serve: Serve) -> None:
    """A thousand phones without a pause would keep it away, and their batteries empty."""
    server = await serve()
    states: list[str] = []
    async with Proxy(server.url) as proxy:
        proxy.down()
        async with CustomerClient(proxy.url, on_state=states.append) as customer:
            await asyncio.sleep(2.0)
            assert 1 <= states.count("connecting") <= 6
            proxy.up()
            customer.retry()
            await eventually(lambda: customer.state == "open", "a connection")
