"""The Python client against the real server: its guarantees with closed, dead and killed connections."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from streamer.accounts.sign_in import make_link
from streamer.accounts.tokens import make_token
from streamer.operations.embedded import PostgresServer
from streamer.storage import migrate, seed
from tests.conftest import Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually, now_ms
from tests.support.clients import stored
from tests.support.process import free_port
from venta_client import (
    Box,
    Circle,
    ConnectionFailed,
    CustomerClient,
    MemoryQueue,
    Ping,
    PingRejected,
    RequestRefused,
    ServerError,
    SqliteQueue,
    VendorClient,
    WatchRefused,
    sign_in,
    sync,
)

LAT, LONG = 52.2297, 21.0122
HERE: Circle = {"center": {"lat": LAT, "long": LONG}, "radius": 2000}


def token(clerk_id: str, lifetime: int = 600) -> str:
    """Returns a token like the issuer's."""
    return make_token(SECRET, clerk_id, lifetime)


async def test_what_is_stored_is_forgotten_on_the_disk(serve: Serve, database_url: str, tmp_path: Path) -> None:
    """Acked pings must be removed from the file, or each restart would resend a month of pings."""
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
    """An app that reads once a minute must get the result, without accumulating intermediate events."""
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
        assert len(watch._dirty) == 0  # no event for the one that entered and left


async def test_a_refused_token_is_replaced_by_a_better_one(serve: Serve, database_url: str) -> None:
    """The app was asleep while its token expired: it requests a new one and reconnects."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(watch_auth="required")

    def sleepy(refresh: bool) -> str:
        return token(one.clerk_id) if refresh else "an.old.token"

    async with CustomerClient(server.url, token=sleepy) as customer:
        assert await asyncio.wait_for(customer.watch(vendors=[one.vendor_id]).ready(), 30) == {}


async def test_one_file_has_one_client(tmp_path: Path) -> None:
    """Two processes on one queue would each remove pings that the other has not sent."""
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
    """If a callback of the app raises, its pings must still be sent."""
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
    """A vendor who closes while PostgreSQL is down must be closed once it is back, without another action."""
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


async def test_counts_and_views_are_followed(serve: Serve, database_url: str) -> None:
    """A zoomed-out map shows counts; a script that iterates over views ends with the newest one."""
    one, two = await seed.seed(database_url, 2)
    server = await serve()
    async with (
        VendorApp(server.url, one.clerk_id) as first,
        VendorApp(server.url, two.clerk_id) as second,
        CustomerClient(server.url) as customer,
    ):
        await first.ping(LAT, LONG)
        world: Box = {"sw": {"lat": -90, "long": -180}, "ne": {"lat": 90, "long": 180}}
        counts, watch = customer.counts(world, detail=16), customer.watch(HERE)
        await counts.ready()
        await eventually(lambda: sum(group["count"] for group in counts.groups.values()) == 1, "one counted", within=30)
        await second.ping(LAT + 0.001, LONG)
        async with asyncio.timeout(30):
            async for vendors in watch.views():
                if vendors.keys() == {one.vendor_id, two.vendor_id}:
                    break
            async for groups in counts.views():
                if sum(group["count"] for group in groups.values()) == 2:
                    break
        counts.move({"center": {"lat": -LAT, "long": LONG}, "radius": 1000})
        assert not counts.fresh
        assert await asyncio.wait_for(counts.ready(), 30) == {}


@pytest.mark.parametrize("compress", [True, False])
async def test_compression_is_offered_unless_it_is_off(serve: Serve, database_url: str, compress: bool) -> None:
    """With compression a phone gets the same view with a third of the bytes."""
    vendors = await seed.seed(database_url, 20)
    server = await serve()
    async with CustomerClient(server.url, compress=compress) as customer:
        watch = customer.watch(HERE)
        await watch.ready()
        for n, vendor in enumerate(vendors):
            async with VendorApp(server.url, vendor.clerk_id) as app:
                await app.ping(LAT + n / 1e4, LONG)
                await app.acked(1)
        await eventually(lambda: len(watch.vendors) == 20, "all of them")
        watch.move({"center": {"lat": LAT, "long": LONG}, "radius": 2001})
        assert len(await asyncio.wait_for(watch.ready(), 30)) == 20
        (socket,) = server.server.connections
        assert socket._reader._deflate is compress  # type: ignore[attr-defined]


async def test_a_sign_in_link_becomes_a_client(serve: Serve, database_url: str) -> None:
    """A script with a sign-in link reports for the vendor; a used link is refused with its code."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    link = make_link(SECRET, one.vendor_id, server.url, time.time())
    code = unquote(link.url.partition("#code=")[2])
    signed_in = await sign_in(server.url, code)
    assert signed_in["vendorId"] == one.vendor_id
    async with VendorClient(server.url, token=signed_in["token"], queue=MemoryQueue()) as client:
        at = await client.ping(LAT, LONG)
        await asyncio.wait_for(client.when_stored(at), 30)
    with pytest.raises(RequestRefused) as refused:
        await sign_in(server.url, code)
    assert refused.value.code == "ERR_INVALID_TOKEN"


async def test_promises_raise_their_reason(serve: Serve, database_url: str) -> None:
    """An app that waits for an impossible event must get an exception with the reason."""
    one, other = await seed.seed(database_url, 2)
    server = await serve()
    async with VendorClient(server.url, token=token(one.clerk_id), queue=MemoryQueue(), on_rejected=ignore) as client:
        await asyncio.wait_for(client.ready(), 30)
        late = await client.ping(LAT, LONG, timestamp=now_ms() + 3_600_000)
        with pytest.raises(PingRejected) as rejected:
            await asyncio.wait_for(client.when_stored(late), 30)
        assert rejected.value.code == "ERR_TIMESTAMP_IN_FUTURE"
    options: dict[str, Any] = {"token": token(one.clerk_id), "queue": MemoryQueue(), "on_state": ignore}
    async with VendorClient(server.url, vendor_id=other.vendor_id, **options) as client:
        at = await client.ping(LAT, LONG)
        for waiting in (client.ready(), client.when_stored(at), client.flushed()):
            with pytest.raises(ConnectionFailed) as failed:
                await asyncio.wait_for(waiting, 30)
            assert failed.value.code == 4403


def ignore(*_: object) -> None:
    """A listener, so that the event is not logged."""


async def test_what_no_listener_hears_is_logged_once(
    serve: Serve, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A developer's first mistakes must be reported: too large an area, a wrong token, a server that is down."""
    server = await serve()
    far: Circle = {"center": {"lat": LAT, "long": LONG}, "radius": 1e9}
    async with CustomerClient(server.url) as customer:
        for _ in range(2):
            with pytest.raises(WatchRefused):
                await asyncio.wait_for(customer.watch(far).ready(), 30)
        assert caplog.text.count("(ERR_AREA_TOO_LARGE): watch a smaller area") == 1
        heard: list[str] = []

        def note(error: ServerError) -> None:
            heard.append(error.code)

        customer.on("error", note)
        customer._warned.clear()
        with pytest.raises(WatchRefused):
            await asyncio.wait_for(customer.watch(far).ready(), 30)
        assert heard == ["ERR_AREA_TOO_LARGE"]
        assert caplog.text.count("ERR_AREA_TOO_LARGE") == 1
        customer.off("error", note)
    with pytest.raises(KeyError):
        customer.on("no such event", note)
    async with CustomerClient(f"http://127.0.0.1:{free_port()}", min_delay=0.01):
        await eventually(lambda: "(1006): check the URL and the network" in caplog.text, "a word of the server away")
    VendorClient(server.url)
    assert "pings are kept in memory only" in caplog.text


def test_a_script_needs_no_asyncio(tmp_path: Path) -> None:
    """A cron job reports and reads with synchronous calls; errors are exceptions within the timeout."""
    with sync.CustomerClient(f"http://127.0.0.1:{free_port()}", on_state=ignore) as customer:
        with pytest.raises(TimeoutError, match=r"not done within 0\.2 s"):
            customer.ready(timeout=0.2)
        assert customer.state in ("connecting", "reconnecting")
    customer.disconnect()  # a duplicate is stored once
    with pytest.raises(ValueError, match="is no server"):
        sync.VendorClient("nonsense")


async def test_the_clients_for_scripts(serve: Serve, database_url: str, tmp_path: Path) -> None:
    """A complete script against a server: report, wait, watch, iterate."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()

    def script() -> None:
        with sync.VendorClient(
            server.url, token=token(one.clerk_id), queue=SqliteQueue(tmp_path / "queue.db"), on_stored=ignore
        ) as vendor:
            vendor.ready(timeout=30)
            vendor.set_open(True)
            vendor.when_stored(vendor.ping(LAT, LONG), timeout=30)
            vendor.flushed(timeout=30)
            assert (vendor.waiting, vendor.state, vendor.failure) == (0, "connected", None)
            with sync.CustomerClient(server.url) as customer:
                watch = customer.watch(HERE)
                assert set(watch.ready(timeout=30)) == {one.vendor_id}
                assert next(iter(watch)).kind == "entered"
                assert next(watch.views()) == watch.vendors
                assert watch.fresh
                watch.close()
                assert list(watch) == []
                counts = customer.counts({"center": {"lat": LAT, "long": LONG}, "radius": 3000})
                assert counts.ready(timeout=30) == counts.groups
                with pytest.raises(WatchRefused):
                    customer.watch({"center": {"lat": LAT, "long": LONG}, "radius": 1e9}, id="far").ready(timeout=30)
        with pytest.raises(RequestRefused):
            sync.sign_in(server.url, "no code")

    await asyncio.to_thread(script)
