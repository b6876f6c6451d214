"""Watches as Server-Sent Events: a bug here would give pages with `EventSource` a wrong map."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest

from streamer.accounts.tokens import make_token
from streamer.storage.seed import SeededVendor
from streamer.transport.connection import Connection
from tests.conftest import Running, Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, eventually

HERE = (52.2297, 21.0122)
NEAR = (52.2301, 21.0130)
AROUND = {"lat": "52.23", "long": "21.01", "radius": "3000"}


def streams(running: Running) -> list[Connection]:
    """Returns the open event streams."""
    return [connection for connection in running.server.connections if connection.kind == "events"]


class EventSource(CustomerApp):
    """A page with an EventSource: reads the stream by the standard, and keeps a customer app's views."""

    def __init__(self, url: str, clerk_id: str | None = None, *, version: aiohttp.HttpVersion | None = None) -> None:
        super().__init__(url, clerk_id)
        self.at = f"{url}/v1/watch/events"
        self.bearer = {"Authorization": f"Bearer {make_token(SECRET, clerk_id, 600)}"} if clerk_id else {}
        self.retry: int | None = None
        self.comments = 0
        self.version = version or aiohttp.HttpVersion11

    async def open(self, **query: str) -> aiohttp.ClientResponse:
        """Opens the stream, or opens it again."""
        if self._session is not None:
            await self.close()
        self._session = aiohttp.ClientSession(version=self.version, read_bufsize=1 << 16)
        self.response = await self._session.get(self.at, params=query, headers=self.bearer)
        if self.response.status == 200:
            self._reader = asyncio.create_task(self._events())
        return self.response

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is None:
            return
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self.response.close()
        await self._session.close()

    async def _events(self) -> None:
        data: list[bytes] = []
        while line := await self.response.content.readline():
            field, _, value = line.rstrip(b"\n").partition(b":")
            value = value.removeprefix(b" ")
            if not field and line == b"\n":
                if data:
                    self.took(orjson.loads(b"\n".join(data)))
                data = []
            elif not field:
                self.comments += 1
            elif field == b"data":
                data.append(value)
            elif field == b"retry":
                self.retry = int(value)


@pytest.fixture
async def running(serve: Serve) -> Running:
    return await serve(heartbeat=0.5)


@pytest.fixture
async def truck(running: Running, vendors: list[SeededVendor]) -> AsyncIterator[VendorApp]:
    """A parked truck."""
    async with VendorApp(running.url, vendors[0].clerk_id) as app:
        await app.ping(*HERE)
        await app.acked(1)
        yield app


@pytest.mark.parametrize("version", [aiohttp.HttpVersion11, aiohttp.HttpVersion10])
async def test_the_same_watch(
    running: Running, vendors: list[SeededVendor], truck: VendorApp, version: aiohttp.HttpVersion
) -> None:
    """A snapshot, then each change, as over a WebSocket; also through a proxy that speaks HTTP/1.0."""
    id = vendors[0].vendor_id
    async with EventSource(running.url, version=version) as page:
        response = await page.open(**AROUND, id="map")
        assert response.content_type == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Accel-Buffering"] == "no"
        await page.sees("map", {id: HERE})
        assert page.retry is not None
        await truck.ping(*NEAR)
        await page.sees("map", {id: NEAR})
        await truck.send({"type": "status", "open": False})
        await eventually(lambda: page.views["map"][id]["open"] is False, "the truck closed")
        await truck.ping(53.0, 21.0)
        await page.sees("map", {})
        await eventually(lambda: page.comments > 0, "a sign of life")


async def test_a_snapshot_on_reconnect(running: Running, vendors: list[SeededVendor], truck: VendorApp) -> None:
    """After a reconnect the client gets a full snapshot; the previous stream leaves nothing behind."""
    id = vendors[0].vendor_id
    async with EventSource(running.url) as page:
        await page.open(**AROUND)
        await page.sees("events", {id: HERE})
        await page.close()
        await truck.ping(*NEAR)
        await page.open(**AROUND)
        await page.sees("events", {id: NEAR})
        assert [message["type"] for message in page.messages[-2:]].count("snapshot") >= 1
        await eventually(lambda: len(streams(running)) == 1, "the old stream forgotten")
        assert len(running.server.watches) == 1
    await eventually(lambda: not streams(running) and not len(running.server.watches), "all forgotten")


async def test_every_kind_of_watch(running: Running, vendors: list[SeededVendor], truck: VendorApp) -> None:
    """All kinds of a watch fit into a query string."""
    id = vendors[0].vendor_id
    for query in (
        {"area": '{"ne":{"lat":52.3,"long":21.1},"sw":{"lat":52.1,"long":20.9}}'},
        {"area": '{"polygon":[[20.9,52.1],[21.1,52.1],[21.1,52.3],[20.9,52.3]]}'},
        {"vendors": f"nobody,{id}"},
        {"latitude": "52.23", "lng": "21.01", "radius": "3000", "open": "true", "interval": "50"},
    ):
        async with EventSource(running.url) as page:
            await page.open(**query)
            await page.sees("events", {id: HERE})


REFUSED: tuple[tuple[dict[str, str], str], ...] = (
    ({}, "ERR_MISSING_FIELD"),
    ({"lat": "52", "long": "21"}, "ERR_MISSING_FIELD"),
    ({"lat": "52", "radius": "5"}, "ERR_MISSING_FIELD"),
    ({"lat": "x", "long": "21", "radius": "5"}, "ERR_INVALID_COORDINATES"),
    ({"lat": "nan", "long": "21", "radius": "5"}, "ERR_INVALID_COORDINATES"),
    ({"lat": "52", "long": "21", "radius": "inf"}, "ERR_INVALID_AREA"),
    ({"lat": "52", "long": "21", "radius": "100001"}, "ERR_AREA_TOO_LARGE"),
    ({**AROUND, "area": "{}"}, "ERR_INVALID_MESSAGE"),
    ({**AROUND, "vendors": "a"}, "ERR_INVALID_MESSAGE"),
    ({**AROUND, "open": "perhaps"}, "ERR_INVALID_MESSAGE"),
    ({**AROUND, "interval": "soon"}, "ERR_INVALID_MESSAGE"),
    ({**AROUND, "id": "x" * 300}, "ERR_INVALID_MESSAGE"),
    ({"area": "{"}, "ERR_INVALID_JSON"),
    ({"area": "[" * 2000}, "ERR_INVALID_JSON"),
    ({"vendors": ",".join(f"v{n}" for n in range(201))}, "ERR_AREA_TOO_LARGE"),
)


async def test_refusals(running: Running) -> None:
    """An invalid watch is refused before the stream begins, with the reason."""
    async with EventSource(running.url) as page:
        for query, code in REFUSED:
            response = await page.open(**query)
            problem = await response.json(content_type="application/problem+json")
            assert (response.status, problem["code"]) == (400, code), (query, problem)
        assert not streams(running)


async def test_tokens(serve: Serve, vendors: list[SeededVendor]) -> None:
    """Every way for a page to send a token; without one, or with a bad or expired one, the stream ends."""
    running = await serve(watch_auth="required")
    clerk_id = vendors[0].clerk_id
    async with EventSource(running.url) as page:
        response = await page.open(**AROUND)
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert (await page.open(**AROUND, token="nonsense")).status == 401
        assert (await page.open(**AROUND, token=make_token(SECRET, clerk_id, -600))).status == 401
        assert (await page.open(**AROUND, token=make_token(SECRET, clerk_id, 600))).status == 200
        await page.sees("events", {})
    async with EventSource(running.url, clerk_id) as page:
        assert (await page.open(**AROUND)).status == 200
        await page.sees("events", {})
        running.server.connections._clock = lambda: 1 << 42  # long after every token expired
        error = await page.expect("error", code="ERR_INVALID_TOKEN")
        assert "token" in error["message"]
        await eventually(lambda: not page.reading, "the end of the stream")


async def test_streams_count_as_connections(serve: Serve, vendors: list[SeededVendor]) -> None:
    """The streams of a user or address must not use up others' connections; an ended stream releases its own."""
    running = await serve(user_connections=1, address_connections=1, trusted_hops=1)
    ids = [vendor.clerk_id for vendor in vendors]
    numbers = iter(range(1, 255))

    def page(clerk_id: str | None, address: str = "") -> EventSource:
        source = EventSource(running.url, clerk_id)
        source.bearer["X-Forwarded-For"] = address or f"198.51.100.{next(numbers)}"
        return source

    async def refused(source: EventSource) -> str:
        async with source as late:
            response = await late.open(**AROUND)
            problem = await response.json(content_type="application/problem+json")
            assert (response.status, problem["code"]) == (429, "ERR_RATE_LIMITED")
            assert int(response.headers["Retry-After"]) >= 1
            return str(problem["detail"])

    async with page(ids[0]) as first, page(ids[1]) as other, page(None, "192.0.2.9") as anonymous:
        for source in (first, other, anonymous):
            assert (await source.open(**AROUND)).status == 200
        assert ids[0] in await refused(page(ids[0]))
        assert "192.0.2.9" in await refused(page(None, "192.0.2.9"))
        await first.close()
        await eventually(lambda: len(streams(running)) == 2, "the first one forgotten")
        async with page(ids[0]) as again:
            assert (await again.open(**AROUND)).status == 200


async def test_no_room(serve: Serve) -> None:
    """Streams count as connections: a full server refuses them with a retry time before the stream begins."""
    running = await serve(max_connections=1)
    async with EventSource(running.url) as first, EventSource(running.url) as second:
        assert (await first.open(**AROUND)).status == 200
        response = await second.open(**AROUND)
        problem = await response.json(content_type="application/problem+json")
        assert (response.status, problem["code"]) == (503, "ERR_OVERLOADED")
        assert response.headers["Retry-After"] == "2"
        async with aiohttp.ClientSession() as session, session.get(f"{running.url}/metrics") as metrics:
            assert "streamer_handshakes_refused_total 1.0" in await metrics.text()


async def test_the_server_stops(running: Running) -> None:
    """All pages get `bye` and `retry`, and the stream ends cleanly."""
    async with EventSource(running.url) as page:
        await page.open(**AROUND)
        await page.sees("events", {})
        await running.server.connections.drain(1.0)
        bye = await page.expect("bye")
        assert bye["reconnectAfterMs"] == page.retry
        await eventually(lambda: not page.reading, "the end of the stream")
        assert page._reader is not None
        assert page._reader.exception() is None


async def test_a_page_that_reads_nothing(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A page that does not read is never waited for, costs a bounded amount of memory, and is finally closed."""
    running = await serve(stall=1.0)
    url = urlsplit(running.url)
    seen: dict[str, Any] = {}
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect((url.hostname, url.port))
        deaf.sendall(b"GET /v1/watch/events?lat=52.23&long=21.01&radius=3000 HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: len(streams(running)) == 1, "the stream")
        (stream,) = streams(running)
        transport = stream.writer._transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        async with VendorApp(running.url, vendors[0].clerk_id) as truck, CustomerApp(running.url) as customer:
            await customer.watch("w", {"center": {"lat": 52.23, "long": 21.01}, "radius": 3000})
            for number in range(400):
                at = (52.22 + number * 1e-5, 21.01)
                await truck.ping(*at)
                await customer.sees("w", {vendors[0].vendor_id: at})
                seen["most"] = max(seen.get("most", 0), stream.writer.unread)
                if not stream.writer.ready():
                    break
            else:
                pytest.fail("the system's buffers took it all")
            for number in range(50):
                await truck.ping(52.22 - number * 1e-5, 21.01)
            assert stream.writer.unread <= seen["most"]
            await eventually(lambda: not streams(running), "the deaf page cut")
        await eventually(lambda: len(running.server.watches) == 0, "nothing left of it")
