"""The sender of ready frames: it must keep the server busy, and never more than it is told."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
import pytest
from aiohttp import web

from loadtest.benchmarks.stream import Stream, frames
from loadtest.clients.identity import Identity
from loadtest.clients.ping import Ping
from loadtest.clients.target import Target
from loadtest.errors import RunFailed
from loadtest.measure.histogram import Histogram
from tests.support.loadtest_stand_in import standing_in
from venta_client.errors import Violation

IDENTITY = Identity("v", "clerk", "")


def pings(count: int) -> list[Ping]:
    """Pings at rising times."""
    return [Ping(step, 52.0, 21.0, step) for step in range(count)]


def stream(target: Target, delays: Histogram | None = None) -> Stream:
    """A stream whose token does not matter."""
    return Stream(target, IDENTITY, lambda: "token", delays)


async def hello(socket: web.WebSocketResponse) -> None:
    """Greet."""
    await send(socket, type="hello", vendorId="v", time=0, durable=None, maxBatch=500)


async def send(socket: web.WebSocketResponse, **message: Any) -> None:
    """Send a message as JSON."""
    await socket.send_str(orjson.dumps(message).decode())


async def test_all_frames_go_out_in_order_within_the_window() -> None:
    """More than the window un-acked would measure this machine's memory instead of the server."""
    got: list[int] = []
    most = 0

    async def acking_late(socket: web.WebSocketResponse) -> None:
        nonlocal most
        await hello(socket)
        acked = 0
        while len(got) < 1000:
            try:
                message = await asyncio.wait_for(socket.receive(), 0.02)
                got.extend(item["seq"] for item in orjson.loads(message.data)["pings"])
                most = max(most, len(got) - acked)
            except TimeoutError:
                acked = len(got)
                await send(socket, type="ack", seq=acked)
        await send(socket, type="ack", seq=1000)
        await socket.receive()

    async with standing_in({"/v1/vendor": acking_late}) as target, stream(target) as sending:
        await sending.drive(frames(pings(1000), 50), 50, 3, 30, 1)
        assert (sending.sent, sending.acked, sending.rejected) == (1000, 1000, 0)
    assert got == list(range(1, 1001))
    assert most == 150


async def test_when_time_is_over_what_is_under_way_is_still_awaited() -> None:
    """A part is bounded in time, and yet every ping that was sent is accounted for."""

    async def slow(socket: web.WebSocketResponse) -> None:
        await hello(socket)
        async for message in socket:
            await asyncio.sleep(0.05)
            await send(socket, type="ack", seq=orjson.loads(message.data)["seq"])

    async with standing_in({"/v1/vendor": slow}) as target, stream(target) as sending:
        await sending.drive(frames(pings(1000), 1), 1, 4, 0.2, 10)
        assert 0 < sending.sent < 1000
        assert sending.acked == sending.sent


async def test_single_pings_are_timed_from_when_they_were_due() -> None:
    """A ping that could not be sent in time waited for the server: leaving that out would flatter it."""

    async def count_rejects(socket: web.WebSocketResponse) -> None:
        await hello(socket)
        async for message in socket:
            seq = orjson.loads(message.data)["seq"]
            if seq == 2:
                await send(socket, type="reject", seq=seq, code="ERR_INVALID_COORDINATES", message="no")
            await send(socket, type="ack", seq=seq)

    delays = Histogram()
    async with standing_in({"/v1/vendor": count_rejects}) as target, stream(target, delays) as sending:
        for ping in pings(3):
            sending.ping(ping, time.perf_counter() - 60)
        assert await sending.answered(10)
        assert (sending.sent, sending.acked, sending.rejected) == (3, 3, 1)
    assert delays.summary()["count"] == 3
    assert delays.summary()["p50_ms"] >= 60_000 * 0.999


async def test_no_two_stamps_are_the_same() -> None:
    """Two pings in one millisecond are one ping to the server, and one would be missing in the database."""
    sending = stream(Target("127.0.0.1", 1, False))
    stamps = [sending.stamp() for _ in range(1000)]
    assert stamps == sorted(set(stamps))


async def test_a_connection_that_ends_ends_the_run_with_its_close() -> None:
    """A closed connection acks nothing: waiting for the time limit would hide why."""

    async def close(socket: web.WebSocketResponse) -> None:
        await hello(socket)
        await socket.receive()
        await socket.close(code=4429, message=b"too much")

    async with standing_in({"/v1/vendor": close}) as target, stream(target) as sending:
        with pytest.raises(RunFailed, match="too much"):
            await sending.drive(frames(pings(10), 1), 1, 1, 30, 1)


async def test_an_error_of_the_server_ends_the_run_with_its_words() -> None:
    """`ERR_OVERLOADED` is a finding, not a reason to wait."""

    async def overloaded(socket: web.WebSocketResponse) -> None:
        await hello(socket)
        await socket.receive()
        await send(socket, type="error", code="ERR_OVERLOADED", message="later")
        await socket.receive()

    async with standing_in({"/v1/vendor": overloaded}) as target, stream(target) as sending:
        with pytest.raises(Violation, match="ERR_OVERLOADED"):
            await sending.drive(frames(pings(10), 1), 1, 1, 30, 1)


async def test_no_server_no_stream() -> None:
    """The message says so."""
    with pytest.raises(RunFailed, match="is the server up"):
        async with stream(Target("127.0.0.1", 1, False)):
            pass
