"""Slow and silent clients: clients that only hold connections must not block others."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import psutil
import pytest

from streamer.accounts.tokens import make_token
from streamer.storage.seed import SeededVendor
from tests.conftest import Serve
from tests.support.apps import SECRET, App, CustomerApp, VendorApp, circle, eventually, now_ms

LAT, LONG = 52.2297, 21.0122
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
"""Headers of a WebSocket handshake, to read a refusal's body, which aiohttp's WebSocket client does not expose."""


class Raw:
    """A TCP connection that sends raw bytes."""

    def __init__(self, url: str) -> None:
        self._at = urlsplit(url).hostname, urlsplit(url).port

    async def __aenter__(self) -> Raw:
        self.reader, self.writer = await asyncio.open_connection(*self._at)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def cut(self, within: float = 10.0) -> float:
        """Returns the seconds until the server ends the connection; reads and ignores data before that."""
        started = time.monotonic()
        with suppress(ConnectionError):
            async with asyncio.timeout(within):
                while await self.reader.read(65536):
                    pass
        return time.monotonic() - started


# slowloris


async def test_a_silent_connection_is_closed(serve: Serve) -> None:
    """A thousand connections that never finish their first line are closed after the deadline; others are served."""
    server = await serve(handshake_timeout=0.5)
    async with Raw(server.url) as silent, Raw(server.url) as slow, CustomerApp(server.url) as customer:
        await customer.watch("w", circle(LAT, LONG, 1000))

        async def drip() -> None:
            for byte in b"GET /v1/watch HTTP/1.1\r\nHost: x\r\n" * 100:
                slow.writer.write(bytes((byte,)))
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert await silent.cut() < 9
        assert await slow.cut() < 9
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        assert server.server.slow_clients.cut == 2
        await customer.watch("w2", circle(LAT, LONG, 1000))
        assert customer.close_code is None


async def test_a_body_that_does_not_come(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A request whose body arrives byte by byte must not hold a connection forever; a long response may."""
    server = await serve(request_timeout=0.5, handshake_timeout=0.2)
    token = make_token(SECRET, vendors[0].clerk_id, 60)
    head = f"POST /v1/vendors/{vendors[0].vendor_id}/locations?token={token} HTTP/1.1\r\nHost: x\r\n"
    async with Raw(server.url) as slow, VendorApp(server.url, vendors[0].clerk_id) as vendor:
        slow.writer.write(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        assert await slow.cut() < 9
        await vendor.ping(LAT, LONG, seq=1)
        await vendor.acked(1)


async def test_an_answer_that_is_not_taken(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A client that requests a long history but does not read it must not keep it in the server's memory."""
    server = await serve(request_timeout=0.5)
    one = vendors[0]
    token = make_token(SECRET, one.clerk_id, 60)
    now = now_ms()
    async with aiohttp.ClientSession() as session:
        for part in range(20):
            pings = [{"lat": LAT, "long": LONG, "timestamp": now - 1000 * (500 * part + n)} for n in range(500)]
            path = f"{server.url}/v1/vendors/{one.vendor_id}/locations?token={token}"
            async with session.post(path, data=orjson.dumps(pings)) as response:
                assert response.status == 200
    ask = f"GET /v1/vendors/{one.vendor_id}/locations?limit=10000&token={token} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with Raw(server.url) as deaf:
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport of a socket has it
        for _ in range(20):
            deaf.writer.write(ask)
        before = server.server.slow_clients.cut
        await eventually(lambda: server.server.slow_clients.cut > before, "the end of the deaf one")


async def test_when_there_are_too_many(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """During a flood of connections without a request, connections with one are admitted."""
    monkeypatch.setattr("streamer.app.OTHER_CONNECTIONS", 4)
    server = await serve(handshake_timeout=60.0, max_connections=1)
    flood = [await Raw(server.url).__aenter__() for _ in range(10)]
    try:
        # four that connected after the others were closed may stay
        await eventually(lambda: server.server.slow_clients.cut >= 6, "room again")
        async with CustomerApp(server.url) as customer:
            await customer.watch("w", circle(LAT, LONG, 1000))
    finally:
        for raw in flood:
            await raw.__aexit__()


# numbers of connections


async def test_the_most_connections(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A full process refuses connections beyond its limit; when one closes, another is admitted."""
    server = await serve(max_connections=2)
    async with CustomerApp(server.url), VendorApp(server.url, vendors[0].clerk_id) as leaves:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{server.url}/v1/watch")
            assert refused.value.status == 503
            async with session.get(f"{server.url}/v1/watch", headers=HANDSHAKE) as response:
                problem = orjson.loads(await response.read())
                assert (problem["code"], response.headers["Retry-After"]) == ("ERR_OVERLOADED", "2")
            async with session.get(f"{server.url}/livez") as response:
                assert response.status == 200
        await leaves.close()
        await eventually(lambda: len(server.server.connections) < 2, "room")
        async with CustomerApp(server.url) as customer:
            await customer.watch("w", circle(LAT, LONG, 1000))


async def turned_away(app: App) -> str:
    async with app:
        error = await app.expect("error")
        assert error["code"] == "ERR_RATE_LIMITED"
        assert await app.closed() == 4429
        return str(error["message"])


async def test_the_most_connections_of_a_user(serve: Serve, vendors: list[SeededVendor]) -> None:
    """An app that opens sockets in a loop, or a shared token, must not block others."""
    server = await serve(user_connections=2)
    one, other, *_ = vendors
    async with VendorApp(server.url, one.clerk_id) as vendor, CustomerApp(server.url, one.clerk_id) as customer:
        await vendor.expect("hello")
        await customer.watch("w", circle(LAT, LONG, 1000))
        assert repr(one.clerk_id) in await turned_away(CustomerApp(server.url, one.clerk_id))
        assert repr(one.clerk_id) in await turned_away(VendorApp(server.url, one.clerk_id))
        async with CustomerApp(server.url, other.clerk_id) as another:
            await another.watch("w", circle(LAT, LONG, 1000))
        await customer.send({"type": "auth", "token": make_token(SECRET, one.clerk_id, 60)})
        await customer.watch("w2", circle(LAT, LONG, 1000))
    await eventually(lambda: not server.server.admission.limits.users, "no seat left taken")


async def test_the_most_connections_of_an_address(serve: Serve) -> None:
    """One machine can't use up all connections; behind a trusted proxy each client is counted separately."""
    server = await serve(address_connections=2, trusted_hops=1)

    def at(address: str) -> CustomerApp:
        app = CustomerApp(server.url)
        app.headers = {"X-Forwarded-For": f"6.6.6.6, {address}"}
        return app

    async with at("198.51.100.1") as first, at("198.51.100.1") as second:
        for app in (first, second):
            await app.watch("w", circle(LAT, LONG, 1000))
        assert "198.51.100.1" in await turned_away(at("198.51.100.1"))
        async with at("198.51.100.2") as other:
            await other.watch("w", circle(LAT, LONG, 1000))
    async with at("198.51.100.1") as again:
        await again.watch("w", circle(LAT, LONG, 1000))


async def test_whose_pages_may_connect(serve: Serve) -> None:
    """Another site's page must not open a socket through its visitor's browser."""
    server = await serve(origins="https://app.example, https://www.example")
    host = server.url.removeprefix("http://")
    async with aiohttp.ClientSession() as session:
        for origin in ("https://app.example", "https://www.example", f"http://{host}", None):
            headers = {"Origin": origin} if origin else {}
            async with session.ws_connect(f"{server.url}/v1/watch", headers=headers):
                pass
        for path in ("/v1/watch", "/v1/vendor"):
            headers = {**HANDSHAKE, "Origin": "https://evil.example"}
            async with session.get(server.url + path, headers=headers) as response:
                problem = orjson.loads(await response.read())
                assert (response.status, problem["code"]) == (403, "ERR_FORBIDDEN")
                assert "https://evil.example" in problem["detail"]


async def test_too_many_messages_of_a_customer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A customer app in a loop is warned, then closed; its cost is limited."""
    for module in ("ingest.rate_limit", "transport.websocket"):
        monkeypatch.setattr(f"streamer.{module}.PAUSE", 0.01)
    server = await serve(watch_messages=10)
    async with CustomerApp(server.url) as customer:
        for _ in range(60):
            await customer.send({"type": "watch", "id": "w", "area": circle(LAT, LONG, 1000)})
        assert await customer.closed() == 4429
        codes = [m["code"] for m in customer.messages if m["type"] == "error"]
        assert set(codes) == {"ERR_RATE_LIMITED"}


CORNERS = [[21.0, 52.0], [21.1, 52.0], [21.1, 52.1], [21.0, 52.1]]
BOUNDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_radius": 100.0}, {"area": circle(LAT, LONG, 101)}),
    ({"max_extent": 1000.0}, {"area": {"ne": {"lat": LAT + 0.1, "long": LONG}, "sw": {"lat": LAT, "long": LONG}}}),
    ({"max_vertices": 3}, {"area": {"polygon": CORNERS}}),
    ({"max_listed": 2}, {"vendors": ["a", "b", "c"]}),
]


async def test_the_bounds_of_a_watch(serve: Serve) -> None:
    """Each limit is a setting and named in its error, and does not end the connection."""
    settings = {name: value for setting, _ in BOUNDS for name, value in setting.items()}
    server = await serve(max_watches=2, **settings)
    async with CustomerApp(server.url) as customer:
        for id in ("a", "b"):
            await customer.watch(id, circle(LAT, LONG, 10))
        await customer.send({"type": "watch", "id": "c", "area": circle(LAT, LONG, 10)})
        error = await customer.expect("error", id="c")
        assert error["code"] == "ERR_TOO_MANY_WATCHES"
        assert "2" in error["message"]
        await customer.send({"type": "unwatch", "id": "b"})
        for number, (setting, wanted) in enumerate(BOUNDS):
            await customer.send({"type": "watch", "id": f"d{number}", **wanted})
            error = await customer.expect("error", id=f"d{number}")
            assert error["code"] == "ERR_AREA_TOO_LARGE"
            assert str(round(next(iter(setting.values())))) in error["message"]
        await customer.watch("a", circle(LAT, LONG, 20))


# decompression bombs


async def test_a_message_that_inflates_to_much(serve: Serve, session: aiohttp.ClientSession) -> None:
    """The size limit applies to the decompressed message, which is not decompressed beyond it."""
    server = await serve()
    before = psutil.Process().memory_info().rss
    async with session.ws_connect(f"{server.url}/v1/watch", compress=15) as socket:
        assert socket.compress
        await socket.send_bytes(b" " * (32 << 20))
        message = await socket.receive(10)
        assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 1009)
    assert psutil.Process().memory_info().rss - before < 150 << 20


async def test_a_body_that_unpacks_to_much(
    serve: Serve, vendors: list[SeededVendor], session: aiohttp.ClientSession
) -> None:
    """The size limit applies to the decompressed body, which is not decompressed beyond it."""
    server = await serve()
    much = b" " * (150 << 20)
    bombs = {"gzip": gzip.compress(much, 1), "deflate": zlib.compress(much, 1)}
    del much
    bearer = {"Authorization": f"Bearer {make_token(SECRET, vendors[0].clerk_id, 60)}"}
    path = f"{server.url}/v1/vendors/{vendors[0].vendor_id}/locations"
    before = psutil.Process().memory_info().rss
    for encoding, bomb in bombs.items():
        async with session.post(path, data=bomb, headers={**bearer, "Content-Encoding": encoding}) as response:
            assert (response.status, orjson.loads(await response.read())["code"]) == (413, "ERR_INVALID_MESSAGE")
    assert psutil.Process().memory_info().rss - before < 50 << 20
    good = gzip.compress(orjson.dumps({"lat": LAT, "long": LONG}))
    async with session.post(path, data=good, headers={**bearer, "Content-Encoding": "gzip"}) as response:
        assert response.status == 200
