"""Clients that read slowly or not at all get updates late, but never affect the server or other clients."""

from __future__ import annotations

import asyncio
import socket

import pytest

from streamer.live.fix import Fix
from streamer.live.vendor import Card
from streamer.transport import websocket
from tests.conftest import Running, Serve
from tests.support.apps import CustomerApp, circle, eventually, now_ms

LAT, LONG = 52.23, 21.01
VENDORS = [f"vendor-{number:03}" for number in range(300)]
AROUND = circle(LAT, LONG, 5_000)


class Town:
    """Three hundred trucks on a server, without sockets."""

    def __init__(self, running: Running) -> None:
        self.local_vendors = running.server.broker.local_vendors
        self.round = 0
        for id in VENDORS:
            self.local_vendors.connect(id, Card(now_ms(), id, True, None), now_ms())
        self.move()

    def move(self) -> None:
        """Moves all trucks, by a step that identifies the round."""
        self.round += 1
        now = now_ms()
        for id in VENDORS:
            self.local_vendors.fix(id, Fix(now, LAT + self.round * 1e-5, LONG, None, None), now)

    def shown(self, customer: CustomerApp) -> bool:
        """Returns whether a customer sees all current positions."""
        view = customer.views.get("w", {})
        return len(view) == len(VENDORS) and all(card["lat"] == LAT + self.round * 1e-5 for card in view.values())


def deafen(customer: CustomerApp) -> None:
    """Makes an app stop reading, with a small receive buffer."""
    connection = customer.socket._response.connection
    assert connection is not None
    transport = connection.transport
    assert isinstance(transport, asyncio.Transport)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    transport.pause_reading()


def hear(customer: CustomerApp) -> None:
    """Makes it read again."""
    connection = customer.socket._response.connection
    assert connection is not None
    assert isinstance(connection.transport, asyncio.Transport)
    connection.transport.resume_reading()


async def test_late_but_true(serve: Serve) -> None:
    """A phone in a tunnel must cost only memory for the vendors in its area, and then sees their newest positions."""
    running = await serve()
    town = Town(running)
    async with CustomerApp(running.url) as quick, CustomerApp(running.url) as slow:
        for customer in (quick, slow):
            await customer.watch("w", AROUND)
        deafen(slow)
        before, most = len(slow.messages), 0
        for _ in range(60):
            town.move()
            await eventually(lambda: town.shown(quick), "the others served")
            most = max(most, *(c.writer.unread for c in running.server.connections))
        behind = [c for c in running.server.connections if not c.writer.ready()]
        assert len(behind) == 1
        assert most < 100_000, "more than one frame waits"
        (watch,) = [w for view in running.server.index.views.values() for w in view.watches if w.behind]
        assert len(watch.moved) <= len(VENDORS)
        assert not any(c.server_closed for c in running.server.connections)
        hear(slow)
        await eventually(lambda: town.shown(slow), "the slow one up to date")
        assert len(slow.messages) - before < 40, "all that was, one by one"


async def test_a_dead_client_is_disconnected(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write buffer of a disconnected client is freed before the kernel's timeout."""
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT", 0.3)
    running = await serve(stall=0.3)
    town = Town(running)
    async with CustomerApp(running.url) as dead:
        await dead.watch("w", AROUND)
        (connection,) = running.server.connections
        deafen(dead)

        def closing() -> bool:
            town.move()
            return connection.server_closed

        await eventually(closing, "the dead one closed", 20)
        await eventually(lambda: not running.server.connections, "the dead one forgotten")
        await eventually(lambda: connection.writer.held == 0, "nothing that waits for it")
        hear(dead)


async def test_nothing_taken_for_too_long(serve: Serve) -> None:
    """A client that reads nothing is closed with 4508 and may reconnect; others are not affected."""
    running = await serve(stall=0.5)
    town = Town(running)
    async with CustomerApp(running.url) as quick, CustomerApp(running.url) as deaf:
        for customer in (quick, deaf):
            await customer.watch("w", AROUND)
        deafen(deaf)

        def closing() -> bool:
            town.move()
            connections = running.server.connections
            return len(connections) == 1 or any(c.server_closed for c in connections)

        await eventually(closing, "the deaf one closed", 20)
        hear(deaf)
        assert await deaf.closed() == 4508
        town.move()
        await eventually(lambda: town.shown(quick), "the other served")
        await eventually(lambda: len(running.server.watches) == 1, "nothing left of the deaf one")
    async with CustomerApp(running.url) as back:
        await back.watch("w", AROUND)
        assert town.shown(back)
