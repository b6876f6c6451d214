"""The load test's customer apps on a connection: the one that holds a view, and the one that counts."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import orjson
from aiohttp import web

from loadtest.measure.recording import Histogram
from tests.support.apps import eventually
from tests.support.loadtest_stand_in import standing_in
from tests.support.running import running
from tests.support.watchers import CountingWatcher, Watcher

AREA = {"center": {"lat": 52.2, "long": 21.0}, "radius": 5000}
NOW = 1_732_467_600.0


def card(vendor_id: str, timestamp: int) -> dict[str, Any]:
    """A vendor's card."""
    return {
        "vendorId": vendor_id,
        "name": "Ice cream",
        "open": True,
        "primaryImage": None,
        "lat": 52.2,
        "long": 21.0,
        "timestamp": timestamp,
        "online": True,
    }


def fix(vendor_id: str, timestamp: int, lat: float) -> dict[str, Any]:
    """A vendor's fix."""
    return {"vendorId": vendor_id, "lat": lat, "long": 21.0, "timestamp": timestamp}


async def send(socket: web.WebSocketResponse, **message: Any) -> None:
    """Send a message as JSON."""
    await socket.send_str(orjson.dumps(message).decode())


async def test_a_watcher_asks_once_a_connection_and_starts_over_after_a_reconnect() -> None:
    """A view that survived a lost connection would show vendors that have left meanwhile."""
    asked: list[dict[str, Any]] = []
    back = asyncio.Event()

    async def talk(socket: web.WebSocketResponse) -> None:
        asked.append(orjson.loads((await socket.receive()).data))
        if len(asked) == 1:
            await send(socket, type="snapshot", id="w1", vendors=[card("a", int(NOW * 1000))])
            await send(socket, type="update", id="w1", moved=[fix("a", int(NOW * 1000) + 1, 52.3)])
            await send(socket, type="update", id="w1", entered=[card("b", int(NOW * 1000))])
            await send(socket, type="update", id="w1", left=["b"])
            await back.wait()
            await socket.close(code=4508)
        else:
            await send(socket, type="snapshot", id="w1", vendors=[card("c", 1)])
            await socket.receive()

    delays = Histogram()
    async with standing_in({"/v1/watch": talk}) as target:
        app = Watcher(target, AREA, None, Random(0), delays=delays, clock=lambda: NOW + 0.25)
        app.since = int(NOW * 1000)
        async with running([app]):
            await eventually(
                lambda: app.view.keys() == {"a"} and app.view["a"]["lat"] == 52.3 and app.positions == 2, "it moved"
            )
            back.set()
            await eventually(lambda: app.view.keys() == {"c"}, "the new view")
        assert asked == [{"type": "watch", "id": "w1", "area": AREA}] * 2
        assert app.closes == {4508: 1}
        assert app.violations == []
        assert delays.summary()["count"] == 2
        assert 248 <= (delays.summary(strict=False)["p50_ms"] or 0) <= 251


async def test_what_contradicts_the_view_is_kept_as_a_violation() -> None:
    """`Snapshot plus updates is the truth` is checked message by message, not only at the end."""

    async def talk(socket: web.WebSocketResponse) -> None:
        await socket.receive()
        await send(socket, type="snapshot", id="w1", vendors=[card("a", 5)])
        await send(socket, type="update", id="w1", moved=[fix("b", 5, 52.3)])
        await send(socket, type="update", id="w1", left=["c"])
        await send(socket, type="update", id="w1", moved=[fix("a", 4, 52.3)])
        await socket.receive()

    async with standing_in({"/v1/watch": talk}) as target:
        app = Watcher(target, AREA, None, Random(0))
        async with running([app]):
            await eventually(lambda: len(app.violations) == 3, "three violations")
        assert [line.partition(" ")[2].split(", ")[0] for line in app.violations] == [
            "/v1/watch: vendor b moved",
            "/v1/watch: vendor c left",
            "/v1/watch: vendor a went back in time from 5 to 4",
        ]


async def test_a_counting_watcher_counts_every_position_once_and_no_snapshot() -> None:
    """The CPU for one delivered position is the server's CPU divided by this count."""
    stamp = int(NOW * 1000)

    async def talk(socket: web.WebSocketResponse) -> None:
        await socket.receive()
        await send(socket, type="snapshot", id="w1", vendors=[card("a", stamp), card("b", stamp)])
        await send(socket, type="update", id="w1", entered=[card("c", stamp)], moved=[fix("a", stamp, 52.3)])
        await send(socket, id="w1", moved=[fix("a", stamp, 52.3)], entered=[card("lat", stamp)], type="update")
        await send(socket, type="update", id="w1", left=["b"])
        await socket.receive()

    delays = Histogram()
    async with standing_in({"/v1/watch": talk}) as target:
        app = CountingWatcher(target, AREA, None, Random(0), delays, clock=lambda: NOW + 0.1)
        async with running([app]):
            await eventually(lambda: app.frames == 3, "three frames")
        assert app.positions == 4
        assert app.snapshot_delay is not None
        assert delays.summary()["count"] == 4
        assert app.update_bytes > 0
