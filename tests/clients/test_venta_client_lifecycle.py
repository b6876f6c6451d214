"""The Python clients with calls in any order: no ping is lost, and all waiting calls end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from streamer.dev.conformance.server import CaseServer, Connection
from tests.support.apps import eventually, now_ms
from venta_client import (
    Circle,
    CustomerClient,
    Event,
    MemoryQueue,
    Ping,
    QueueFailed,
    RequestRefused,
    SqliteQueue,
    VendorClient,
    WatchRefused,
    link,
    sign_in,
    sync,
)
from venta_client.alerts import Alerts

HERE: Circle = {"center": {"lat": 1.0, "long": 2.0}, "radius": 500}
CARD = {"vendorId": "v", "name": "v", "open": True, "online": True, "lat": 1.0, "long": 2.0, "timestamp": 1}


@pytest.fixture
async def server() -> AsyncIterator[CaseServer]:
    """A server that sends what a test specifies."""
    async with CaseServer() as started:
        yield started


async def accepted(server: CaseServer, *, greeted: bool = False) -> Connection:
    """Returns the next open connection, after a hello if it is a vendor's."""
    async with asyncio.timeout(10):
        connection = await server.arrivals.get()
    connection.accept()
    if greeted:
        connection.send({"type": "hello", "vendorId": "v", "time": now_ms(), "durable": None, "maxBatch": 500})
    return connection


class SlowQueue(MemoryQueue):
    """A queue that opens slowly; `opened`: whether it is open."""

    def __init__(self) -> None:
        self.opened = False

    async def load(self) -> list[Ping]:
        await asyncio.sleep(0.05)
        self.opened = True
        return []

    async def close(self) -> None:
        await asyncio.sleep(0.05)
        self.opened = False


async def test_a_vendor_goes_and_comes_back_with_its_file(server: CaseServer, tmp_path: Path) -> None:
    """An app that disconnects at night and connects in the morning must keep its first ping, too."""
    client = VendorClient(server.url, queue=SqliteQueue(tmp_path / "queue.db"))
    await client.connect()
    await accepted(server, greeted=True)
    await asyncio.wait_for(client.ready(), 10)
    await client.ping(1, 2, timestamp=now_ms() - 5000)
    await client.disconnect()
    await client.connect()
    connection = await accepted(server, greeted=True)
    await client.ping(1, 2)
    first, second = [await asyncio.wait_for(connection.messages.get(), 10) for _ in range(2)]
    assert {first["seq"], second["seq"]} == {1, 2}
    connection.send({"type": "ack", "seq": 2})
    await asyncio.wait_for(client.flushed(), 10)
    assert client.waiting == 0
    await client.disconnect()


async def test_a_ping_before_connect_is_kept(tmp_path: Path) -> None:
    """A position before the first connection must be durable, together with the pings of an earlier run."""
    for at in (1, 2):
        client = VendorClient("http://127.0.0.1:9", queue=SqliteQueue(tmp_path / "queue.db"))
        await client.ping(1, 2, timestamp=at)
        assert client.waiting == at
        await client.disconnect()
    queue = SqliteQueue(tmp_path / "queue.db")
    assert [ping.timestamp for ping in await queue.load()] == [1, 2]
    await queue.close()


async def test_disconnecting_while_it_connects_ends_it(server: CaseServer) -> None:
    """A client that disconnects while connecting must not stay connected."""
    queue = SlowQueue()
    client = VendorClient(server.url, queue=queue)
    connecting = asyncio.create_task(client.connect())
    await asyncio.sleep(0)
    await client.disconnect()
    await connecting
    assert (client.state, queue.opened) == ("disconnected", False)
    await asyncio.sleep(0.1)
    assert server.arrivals.empty()


async def test_a_full_queue_of_an_earlier_run_keeps_the_newest_pings(server: CaseServer, tmp_path: Path) -> None:
    """After a long outage a phone must report where it is now, and tell which of its oldest pings it drops."""
    queue = SqliteQueue(tmp_path / "queue.db")
    await queue.load()
    await queue.write([Ping(at, 1, 2) for at in range(1, 6)], [])
    await queue.close()
    dropped: list[Ping] = []
    client = VendorClient(server.url, queue=queue, limit=5, on_dropped=dropped.append)
    await client.ping(1, 2, timestamp=now_ms())
    await client.connect()
    connection = await accepted(server, greeted=True)
    sent = [await asyncio.wait_for(connection.messages.get(), 10) for _ in range(2)]
    assert [len(message.get("pings", [message])) for message in sent] == [1, 4]
    assert ([ping.timestamp for ping in dropped], client.dropped, client.waiting) == ([1], 1, 5)
    connection.send({"type": "ack", "seq": 5})
    await asyncio.wait_for(client.flushed(), 10)
    await client.disconnect()
    assert await queue.load() == []
    await queue.close()


async def test_a_ping_whose_timestamp_is_corrected_is_stored_with_its_ack() -> None:
    """`ping` returned the timestamp before the hello; the app must not take the ping for stored because of that."""
    client = VendorClient("http://127.0.0.1:9", queue=MemoryQueue())
    at = await client.ping(1, 2)
    client.took({"type": "hello", "vendorId": "v", "time": now_ms() + 3_600_000, "durable": None, "maxBatch": 500})
    waiting = asyncio.create_task(client.when_stored(at))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert client._next() is not None
    client.took({"type": "ack", "seq": 1})
    await asyncio.wait_for(waiting, 10)
    await asyncio.wait_for(client.when_stored(at), 10)
    await client.disconnect()


async def test_who_waits_for_a_connection_ends_with_its_client(server: CaseServer) -> None:
    """A client that disconnects before its first attempt, or while its queue opens, must not leave waiting tasks."""
    vendor, customer = VendorClient(server.url, queue=SlowQueue()), CustomerClient(server.url)
    connecting = asyncio.create_task(vendor.connect())
    waiting = [asyncio.create_task(client.ready()) for client in (vendor, customer)]
    await asyncio.sleep(0.01)
    for client in (vendor, customer):
        await client.disconnect()
    await connecting
    ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    assert [getattr(error, "code", error) for error in ended] == [1000, 1000]


async def test_a_refused_token_is_the_failure_also_after_a_lost_one(server: CaseServer) -> None:
    """An app that asks its user to sign in at 4401 must get this code, even if a request for a token failed between."""
    asked: list[bool] = []

    def token(refresh: bool) -> str:
        asked.append(refresh)
        if len(asked) == 2:
            raise OSError("offline")
        return "t"

    client = CustomerClient(server.url, token=token, min_delay=0.01, max_delay=0.01)
    await client.connect()
    connection = await accepted(server)
    connection.close(4401, "expired")
    await eventually(lambda: client.state == "failed", "the failure")
    assert client.failure is not None
    assert (client.failure.code, client.failure.reason, asked) == (4401, "expired", [False, True, True])
    await client.disconnect()


@pytest.mark.parametrize("kind", [VendorClient, CustomerClient])
async def test_connecting_while_it_disconnects_connects(
    server: CaseServer, kind: type[VendorClient | CustomerClient]
) -> None:
    """A client that disconnects and immediately connects again must be connected."""
    queue = SlowQueue()
    client = VendorClient(server.url, queue=queue) if kind is VendorClient else CustomerClient(server.url)
    await client.connect()
    await accepted(server, greeted=kind is VendorClient)
    await asyncio.wait_for(client.ready(), 10)
    leaving = asyncio.create_task(client.disconnect())
    await asyncio.sleep(0)
    await client.connect()
    await leaving
    await accepted(server, greeted=kind is VendorClient)
    await asyncio.wait_for(client.ready(), 10)
    assert queue.opened is (kind is VendorClient)
    await client.disconnect()


async def test_all_waiters_of_a_refused_watch_get_the_error(server: CaseServer) -> None:
    """Two parts of an app wait for one watch: both, and also later callers, must get the refusal."""
    async with CustomerClient(server.url, on_error=lambda _: None) as customer:
        connection = await accepted(server)
        watch = customer.watch(HERE, id="w")
        waiting = [asyncio.create_task(watch.ready()) for _ in range(2)]

        async def followed() -> Event:
            return await anext(aiter(watch))

        following = asyncio.create_task(followed())
        await asyncio.wait_for(connection.messages.get(), 10)
        connection.send({"type": "error", "id": "w", "code": "ERR_AREA_TOO_LARGE", "message": "no"})
        async with asyncio.timeout(10):
            for each in (*waiting, following, watch.ready(), anext(watch.views())):
                with pytest.raises(WatchRefused):
                    await each
            watch.move(HERE)
            await connection.messages.get()
            connection.send({"type": "snapshot", "id": "w", "vendors": [CARD]})
            assert await watch.ready() == {"v": CARD}


async def test_a_watch_that_is_moved_and_closed_at_once_ends_at_the_server(server: CaseServer) -> None:
    """Otherwise its updates would continue while the app is open, and it would count as one of the 32 watches."""
    async with CustomerClient(server.url) as customer:
        connection = await accepted(server)
        watch = customer.watch(HERE, id="w")
        assert (await asyncio.wait_for(connection.messages.get(), 10))["type"] == "watch"
        watch.move(HERE)
        watch.close()
        assert await asyncio.wait_for(connection.messages.get(), 10) == {"type": "unwatch", "id": "w"}


async def test_a_view_stays_as_it_is_while_an_app_works_on_it(server: CaseServer) -> None:
    """`for card in view.values(): await draw(card)` must not fail when a vendor enters meanwhile."""
    async with CustomerClient(server.url) as customer:
        connection = await accepted(server)
        watch = customer.watch(HERE, id="w")
        connection.send({"type": "snapshot", "id": "w", "vendors": [CARD]})
        view = await asyncio.wait_for(watch.ready(), 10)
        for _ in view.values():
            connection.send({"type": "update", "id": "w", "entered": [{**CARD, "vendorId": "u"}]})
            await eventually(lambda: "u" in watch.vendors, "one more")
        assert view == {"v": CARD}


async def test_a_token_that_never_comes_is_asked_for_again(server: CaseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for a token that hangs in a dead network must not keep the app offline until a restart."""
    monkeypatch.setattr(link, "CONNECT_TIMEOUT", 0.1)
    asked = 0

    async def token(_: bool) -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()
        return "t"

    async with CustomerClient(server.url, token=token, min_delay=0.01) as customer:
        assert (await accepted(server)).token == "t"
        await asyncio.wait_for(customer.ready(), 10)


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """A thread with some work, and its result."""
    came: list[Any] = []

    def run() -> None:
        try:
            came.append(work())
        except BaseException as error:
            came.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, came


@pytest.mark.parametrize("what", ["events", "views", "ready"])
async def test_a_thread_that_waits_ends_with_its_client(server: CaseServer, what: str) -> None:
    """If the main thread disconnects, another thread must not wait forever for the ended loop."""

    def script() -> tuple[threading.Thread, list[Any]]:
        with sync.CustomerClient(server.url) as customer:
            watch = customer.watch(HERE)
            waits: dict[str, Callable[[], Any]] = {
                "events": lambda: list(watch),
                "views": lambda: list(watch.views()),
                "ready": watch.ready,
            }
            thread, came = in_thread(waits[what])
            time.sleep(0.1)
        thread.join(5)
        return thread, came

    for _ in range(5):
        thread, came = await asyncio.to_thread(script)
        assert not thread.is_alive()
        assert came == [[]] if what != "ready" else isinstance(came[0], Exception)


async def test_a_callback_of_a_script_that_would_wait_for_itself_is_told_so(server: CaseServer) -> None:
    """A callback that calls its own client must get an error rather than a silent deadlock."""

    def script() -> list[Any]:
        came: list[Any] = []

        def stored(_: object) -> None:
            try:
                came.append(vendor.ping(1, 2))
            except RuntimeError as error:
                came.append(error)

        with sync.VendorClient(server.url, queue=MemoryQueue(), on_stored=stored) as vendor:
            vendor.ping(1, 2)
            vendor.flushed(timeout=10)
        return came

    running = asyncio.create_task(asyncio.to_thread(script))
    connection = await accepted(server, greeted=True)
    await asyncio.wait_for(connection.messages.get(), 10)
    connection.send({"type": "ack", "seq": 1})
    (error,) = await asyncio.wait_for(running, 20)
    assert "from a callback" in str(error)


async def test_a_script_that_can_not_open_its_file_leaves_no_thread(tmp_path: Path) -> None:
    """A loop that retries each minute must not leave a thread behind each time."""

    def script() -> None:
        before = threading.active_count()
        with (
            pytest.raises(QueueFailed),
            sync.VendorClient("http://127.0.0.1:9", queue=sync.SqliteQueue(tmp_path / "none" / "queue.db")),
        ):
            pass
        assert threading.active_count() <= before + 1  # the queue's threads

    await asyncio.to_thread(script)


class HttpServer:
    """Answers all requests by a handler."""

    def __init__(self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
        self._runner = web.ServerRunner(web.Server(handler))  # type: ignore[arg-type]
        self.url = ""

    async def __aenter__(self) -> HttpServer:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


async def test_a_script_waits_for_a_page_of_alerts_no_longer_than_it_says() -> None:
    """`timeout` applies to each request, or a list that hangs would block the script."""

    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(3)
        return web.json_response({"alerts": [], "deliveries": [], "next": None})

    async with HttpServer(hang) as server:

        def script() -> None:
            with sync.Alerts(server.url, timeout=0.1) as alerts:
                for pages in (alerts.list(), alerts.deliveries("a")):
                    with pytest.raises(TimeoutError):
                        next(pages)

        await asyncio.wait_for(asyncio.to_thread(script), 2)


async def test_what_a_proxy_refuses_is_a_refusal_too() -> None:
    """While a server restarts, a proxy answers with its own page: an app catches the same error for both."""

    async def down(_: web.Request) -> web.Response:
        return web.Response(status=502, text="<html>Bad Gateway</html>", content_type="text/html")

    async with HttpServer(down) as server:
        with pytest.raises(RequestRefused, match="502"):
            await sign_in(server.url, "code")
        async with Alerts(server.url) as alerts:
            with pytest.raises(RequestRefused, match="502"):
                await alerts.get("a")
