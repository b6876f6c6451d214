"""The inlet: what is wrong here loses a vendor's pings, or makes a busy server wake for each of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from math import inf
from typing import Any

import pytest_asyncio
from aiohttp.base_protocol import BaseProtocol

from streamer.transport.inlet import CHUNK, MOST, Inlet, Tap
from tests.support.apps import eventually


class Vendor(BaseProtocol):
    """The server's side of a connection, by what it was given."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self._upgraded = True
        self.got = b""
        self.calls = 0
        self.lost = False
        self.wrong: Exception | None = None

    def data_received(self, data: bytes) -> None:
        if self.wrong is not None:
            raise self.wrong
        self.got += data
        self.calls += 1

    async def said(self, message: bytes) -> None:
        """Wait until the app's newest words are these."""
        await eventually(lambda: self.got.endswith(message), f"{message!r} taken in")

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.lost = True


class Stage:
    """An inlet that need not read before `when`, and connections over real sockets."""

    def __init__(self) -> None:
        self.when = 0.0
        self.inlet = Inlet(lambda: self.when, longest=60.0)
        self.vendors: list[Vendor] = []
        self.apps: list[socket.socket] = []

    async def open(self) -> None:
        self.server = await asyncio.get_running_loop().create_server(self._vendor, "127.0.0.1", 0, backlog=2 * MOST)

    def _vendor(self) -> Vendor:
        self.vendors.append(Vendor())
        return self.vendors[-1]

    async def connect(self) -> tuple[socket.socket, Vendor, Tap]:
        app = socket.create_connection(self.server.sockets[0].getsockname(), timeout=10)
        self.apps.append(app)
        await eventually(lambda: len(self.vendors) == len(self.apps) and self.vendors[-1].connected, "connected")
        vendor = self.vendors[-1]
        tap = self.inlet.join(vendor)
        assert tap is not None
        return app, vendor, tap

    async def close(self) -> None:
        self.inlet.close()
        for app in self.apps:
            app.close()
        for vendor in self.vendors:
            if vendor.transport is not None:
                vendor.transport.abort()
        self.server.close()
        await self.server.wait_closed()


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    await stage.open()
    yield stage
    await stage.close()


async def test_a_quiet_server_reads_at_once(stage: Stage) -> None:
    """A ping that is of use now is read now."""
    app, vendor, _ = await stage.connect()
    for message in (b"one", b"two"):
        app.sendall(message)
        await vendor.said(message)


async def test_what_is_of_no_use_yet_is_read_together(stage: Stage) -> None:
    """Pings of many vendors that come one by one cost one look."""
    connected = [await stage.connect() for _ in range(5)]
    connected[0][0].sendall(b"first")
    await stage.vendors[0].said(b"first")
    connected[0][1].got, connected[0][1].calls = b"", 0
    stage.when = asyncio.get_running_loop().time() + 0.5
    for app, _, _ in connected:
        app.sendall(b"a")
        await asyncio.sleep(0.01)
        app.sendall(b"b")
    await eventually(lambda: any(vendor.calls for _, vendor, _ in connected), "a look")
    assert asyncio.get_running_loop().time() >= stage.when
    assert [(vendor.got, vendor.calls) for _, vendor, _ in connected] == [(b"ab", 1)] * 5


async def test_a_tick_that_is_due_looks_before(stage: Stage) -> None:
    """Whoever needs what was held back gets it, and is told whether there was any."""
    app, vendor, _ = await stage.connect()
    app.sendall(b"first")
    await vendor.said(b"first")
    stage.when = inf
    assert not stage.inlet.look()
    app.sendall(b"held back")
    await asyncio.sleep(0.1)
    assert vendor.got == b"first"
    assert stage.inlet.look()
    assert vendor.got == b"firstheld back"
    assert not stage.inlet.look()
    app.sendall(b", again")
    await asyncio.sleep(0.1)
    assert stage.inlet.look()
    assert vendor.got.endswith(b", again")


async def test_nobody_is_forgotten(stage: Stage) -> None:
    """However far off the next use is said to be, a look comes after a while."""
    stage.inlet = Inlet(lambda: inf, longest=0.3)
    app, vendor, _ = await stage.connect()
    for message in (b"one", b"two", b"three"):
        app.sendall(message)
        await vendor.said(message)


async def test_an_app_that_pours_out_its_outbox(stage: Stage) -> None:
    """Hours of offline pings are not taken in by one chunk a tick."""
    app, vendor, _ = await stage.connect()
    app.sendall(b"first")
    await vendor.said(b"first")
    size = 40 * CHUNK
    sending = asyncio.create_task(asyncio.to_thread(app.sendall, b"x" * size))
    await asyncio.sleep(0.1)
    began = asyncio.get_running_loop().time()
    looks = 0
    while not sending.done() or len(vendor.got) < size:
        stage.when = asyncio.get_running_loop().time() + 5.0
        looks += stage.inlet.look()
        await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() < began + 60
    await sending
    assert looks < 20, "each chunk had to be asked for"


async def test_an_app_that_goes(stage: Stage) -> None:
    """Its end, in good order or not, is noticed, and what it had said before is not lost."""
    app, vendor, _ = await stage.connect()
    cut, broken, _ = await stage.connect()
    app.sendall(b"last words")
    app.shutdown(socket.SHUT_RDWR)
    cut.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    cut.close()
    await eventually(lambda: vendor.lost and broken.lost, "both ends noticed")
    assert vendor.got == b"last words"


async def test_reading_can_be_held_up(stage: Stage) -> None:
    """A vendor beyond its rate waits in the network, not in memory, and goes on where it was."""
    app, vendor, _ = await stage.connect()
    other, neighbour, _ = await stage.connect()
    vendor.pause_reading()
    vendor.pause_reading()
    app.sendall(b"patience")
    other.sendall(b"as ever")
    await neighbour.said(b"as ever")
    assert not vendor.got
    vendor.resume_reading()
    vendor.resume_reading()
    await eventually(lambda: vendor.got == b"patience", "what had waited")


async def test_one_that_leaves_reads_itself(stage: Stage) -> None:
    """When the vendor's part is over its connection is as any other, and leaving twice is harmless."""
    app, vendor, tap = await stage.connect()
    stage.inlet.leave(tap)
    stage.inlet.leave(tap)
    stage.when = inf
    app.sendall(b"alone")
    await eventually(lambda: vendor.got == b"alone", "read by itself")
    assert vendor.transport is tap.transport
    tap.pause_reading()
    app.sendall(b", later")
    await asyncio.sleep(0.1)
    assert vendor.got == b"alone"
    tap.resume_reading()
    await eventually(lambda: vendor.got == b"alone, later", "read by itself again")


async def test_a_closed_connection_is_not_read(stage: Stage) -> None:
    """What comes after the server's goodbye is not taken in, and who comes next is not taken for the one before."""
    app, vendor, tap = await stage.connect()
    number = tap.fd
    assert vendor.transport is not None
    vendor.transport.close()
    app.sendall(b"too late")
    await eventually(lambda: vendor.lost, "the connection ended")
    assert not vendor.got
    again, next_vendor, next_tap = await stage.connect()
    for _ in range(20):
        if next_tap.fd == number:
            break
        again, next_vendor, next_tap = await stage.connect()
    stage.inlet.leave(tap)
    again.sendall(b"I am another")
    await eventually(lambda: next_vendor.got == b"I am another", "the next one read")


async def test_a_message_that_breaks_something(stage: Stage) -> None:
    """The connection ends and the error is told; the others are read on."""
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    try:
        app, vendor, _ = await stage.connect()
        other, neighbour, _ = await stage.connect()
        vendor.wrong = ZeroDivisionError("broken")
        app.sendall(b"x")
        await eventually(lambda: vendor.lost, "the connection ended")
        other.sendall(b"y")
        await eventually(lambda: neighbour.got == b"y", "the neighbour read")
    finally:
        loop.set_exception_handler(None)
    assert [context["exception"] for context in told] == [vendor.wrong]


async def test_more_than_one_look_takes(stage: Stage) -> None:
    """With more vendors than are read in one turn nobody starves."""
    count = MOST + 50
    for _ in range(count):
        stage.apps.append(socket.create_connection(stage.server.sockets[0].getsockname(), timeout=10))
    await eventually(
        lambda: len(stage.vendors) == count and all(one.connected for one in stage.vendors), "all connected"
    )
    for vendor in stage.vendors:
        assert stage.inlet.join(vendor) is not None
    for app in stage.apps:
        app.sendall(b"z")
    await eventually(lambda: all(vendor.got == b"z" for vendor in stage.vendors), "all read")
