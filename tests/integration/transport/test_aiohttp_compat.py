"""Taking a connection over from aiohttp: these tests fail if a new version of aiohttp does it differently.

Otherwise every WebSocket and event stream could break: bytes lost between the handshake and the first message,
connections that are read twice, or memory of aiohttp that is kept for each of them.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trustme
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from streamer.transport.aiohttp_compat import Handover
from tests.support.apps import eventually

REQUEST = b"GET /%s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


class Echo(asyncio.Protocol):
    """Echoes what it receives."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.received = b""
        self.full: list[bool] = []
        self.lost = 0

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.full.append(True)

    def resume_writing(self) -> None:
        self.full.append(False)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost += 1


class Site:
    """An aiohttp server whose one route hands its connections over."""

    def __init__(self) -> None:
        self.echoes: list[Echo] = []
        self.slow = asyncio.Event()
        self.runner: web.AppRunner
        self.port = 0
        self.tls: ssl.SSLContext | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/slow":
            await self.slow.wait()
        response = Handover(status=101, headers={"Upgrade": "websocket", "Connection": "Upgrade"})

        def echo(transport: asyncio.Transport) -> Echo:
            self.echoes.append(Echo(transport))
            return self.echoes[-1]

        await response.take_over(request, echo)
        return response

    async def connect(
        self, path: bytes = b"", behind: bytes = b""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which a request, and further bytes in the same segment, have been sent."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.tls, server_hostname="localhost" if self.tls else None
        )
        writer.write(REQUEST % path + behind)
        return reader, writer


@asynccontextmanager
async def serving(
    server_tls: ssl.SSLContext | None = None, client_tls: ssl.SSLContext | None = None
) -> AsyncIterator[Site]:
    site = Site()
    site.tls = client_tls
    app = web.Application()
    app.router.add_get("/{path:.*}", site.handle)
    site.runner = web.AppRunner(app, access_log=None)
    await site.runner.setup()
    listening = web.TCPSite(site.runner, "127.0.0.1", 0, ssl_context=server_tls)
    await listening.start()
    site.port = site.runner.addresses[0][1]
    try:
        yield site
    finally:
        for echo in site.echoes:
            echo.transport.abort()
        await site.runner.cleanup()


Served = Callable[[], AbstractAsyncContextManager[Site]]


@pytest.fixture(params=["plain", "TLS"])
def served(request: pytest.FixtureRequest) -> Served:
    if request.param == "plain":
        return serving
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return lambda: serving(server, client)


async def test_bytes_behind_the_request(served: Served) -> None:
    """A message sent with the handshake, or while the client waits for admission, is received."""
    async with served() as site:
        reader, writer = await site.connect(behind=b"first")
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b" second")
        assert await reader.readexactly(12) == b"first second"
        late, waiting = await site.connect(b"slow")
        waiting.write(b"early")
        await asyncio.sleep(0.05)
        site.slow.set()
        assert b" 101 " in await late.readuntil(b"\r\n\r\n")
        assert await late.readexactly(5) == b"early"
        for one in (writer, waiting):
            one.transport.abort()
        await eventually(lambda: [echo.lost for echo in site.echoes] == [1, 1], "each end reported once")


async def test_backpressure(served: Served) -> None:
    """The protocol is paused while the client reads too slowly, and resumed afterwards."""
    async with served() as site:
        reader, writer = await site.connect(behind=b"x")
        await reader.readuntil(b"\r\n\r\n")
        await eventually(lambda: bool(site.echoes), "the connection taken over")
        (echo,) = site.echoes
        for _ in range(200):
            if echo.full:
                break
            echo.transport.write(b"x" * 100_000)
            writer.write(b"x")
            await asyncio.sleep(0.001)
        await eventually(lambda: echo.full == [True], "writing paused")

        async def taken() -> bool:
            await reader.read(1 << 20)
            return echo.full == [True, False]

        await eventually(taken, "writing resumed")
        writer.transport.abort()


async def test_nothing_of_aiohttp_stays() -> None:
    """Neither aiohttp's protocol nor a task is kept for a connection: they would be most of the memory."""
    async with serving() as site:
        gc.collect()
        others = handlers()  # of tests before this one
        before = len(asyncio.all_tasks())
        pairs = [await site.connect(behind=b"x") for _ in range(20)]
        for reader, _ in pairs:
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(1) == b"x"
        server = site.runner.server
        assert server is not None
        await eventually(lambda: not server.connections, "no connection of aiohttp's")
        await eventually(lambda: len(asyncio.all_tasks()) == before, "no task")
        gc.collect()
        assert not handlers() - others
        for _, writer in pairs:
            writer.transport.abort()


def handlers() -> set[int]:
    """Returns the ids of aiohttp's live protocol objects."""
    return {id(one) for one in gc.get_objects() if isinstance(one, RequestHandler)}


async def test_a_client_that_is_gone_before_its_turn(served: Served) -> None:
    """A client that disconnected before its handshake was served leaves no resources behind."""
    async with served() as site:
        _, writer = await site.connect(b"slow")
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.sleep(0.05)
        site.slow.set()
        await asyncio.sleep(0.05)
        assert site.echoes == [] or await ended(site.echoes[0])


async def ended(echo: Echo) -> bool:
    await eventually(lambda: echo.lost == 1, "the end reported")
    return True
