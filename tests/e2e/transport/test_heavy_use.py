"""Legitimate heavy use: limits against attackers must not affect it."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from streamer.accounts.tokens import make_token
from streamer.ingest.cost import ClientCost
from streamer.live.fix import Fix
from streamer.live.vendor import Card, Presence
from streamer.protocol import trackers
from streamer.storage import seed
from streamer.storage.seed import SeededVendor
from tests.conftest import Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, now_ms

LAT, LONG = 52.2297, 21.0122
DAY = 86_400_000
MOVES = 40
"""The number of measured moves of a map, fewer than the limit per second."""


async def test_a_backlog_of_a_day(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A phone that was offline for a day sends a ping for each 10 s at once: all are acked, without a warning."""
    server, began = await serve(), now_ms() - DAY
    async with VendorApp(server.url, vendors[0].clerk_id) as vendor:
        for batch in range(18):
            numbers = range(batch * 480, batch * 480 + 480)
            pings = [{"lat": LAT + n % 100 * 1e-4, "long": LONG, "timestamp": began + n * 10_000} for n in numbers]
            await vendor.send({"type": "pings", "pings": pings})
        await vendor.acked(8_640, within=120.0)
        assert {m["type"] for m in vendor.messages} == {"hello", "ack"}
    assert server.server.counters.refused.total() == 0


async def test_two_hundred_vendors_behind_one_address(serve: Serve, database_url: str) -> None:
    """The trucks of a market share a router: after it restarts all reconnect at once, and each is admitted."""
    vendors = await seed.seed(database_url, 200)
    server = await serve(trusted_hops=1)

    async def reconnect(session: aiohttp.ClientSession, vendor: SeededVendor) -> list[str]:
        token = make_token(SECRET, vendor.clerk_id, 600)
        headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": "203.0.113.9"}
        heard: list[str] = []
        while not heard:
            try:
                async with session.ws_connect(f"{server.url}/v1/vendor", headers=headers) as socket:
                    await socket.send_json({"lat": LAT, "long": LONG})
                    while "ack" not in heard:
                        heard.append((await socket.receive_json())["type"])
            except aiohttp.WSServerHandshakeError as refused:
                # On a busy machine some are asked to retry, whatever their address.
                if refused.status != 503 or refused.headers is None:
                    raise
                await asyncio.sleep(float(refused.headers["Retry-After"]))
        return heard

    async with asyncio.timeout(60), aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        heard = await asyncio.gather(*(reconnect(session, vendor) for vendor in vendors))
    assert heard == [["hello", "ack"]] * 200


@pytest.mark.parametrize("shape", ["circle", "box"])
async def test_a_map_that_is_dragged(
    serve: Serve, vendors: list[SeededVendor], monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    """Ten moves a second over a busy town, continuously, are within the budget of a connection."""
    server, now = await serve(), now_ms()
    for number in range(300):
        id = f"moving{number}"
        server.server.index.put_card(id, Card(now, "Ice cream", True, None), now)
        server.server.index.put_presence(id, Presence(now, server.server.index.me, 0), now)
        place = LAT + number % 20 * 2e-3, LONG + number // 20 * 3e-3
        server.server.index.put_fix(id, Fix(now, *place), now)
    charged: list[float] = []
    charge = ClientCost.charge

    def counted(self: ClientCost, seconds: float, at: float) -> None:
        charged.append(seconds)
        charge(self, seconds, at)

    monkeypatch.setattr(ClientCost, "charge", counted)
    async with CustomerApp(server.url, vendors[0].clerk_id) as customer:
        await customer.watch("map", circle(LAT, LONG, 4000))
        charged.clear()
        for move in range(MOVES):
            lat, long = LAT + move * 1e-3, LONG + move * 1e-3
            area: dict[str, Any] = circle(lat, long, 4000)
            if shape == "box":
                area = {"sw": {"lat": lat, "long": long}, "ne": {"lat": lat + 0.06, "long": long + 0.08}}
            await customer.watch("map", area)
        assert {m["type"] for m in customer.messages} <= {"snapshot", "update"}
    each = sum(charged) / MOVES
    assert 10 * each < server.server.settings.connection_cost / 1000, f"{each * 1000:.2f} ms a move"


async def test_a_body_of_thousands_of_locations_gives_way(
    serve: Serve, vendors: list[SeededVendor], session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body of one MiB blocked the server for two seconds, even if sent without a token."""
    server, loop = await serve(), asyncio.get_running_loop()
    turn, most, total = 0, 0, 0

    def counted(location: Any) -> trackers.Item:
        nonlocal turn, total
        turn, total = turn + 1, total + 1
        return one(location)

    def next_turn() -> None:
        nonlocal turn, most
        turn, most = 0, max(most, turn)
        if not stopped.is_set():
            loop.call_soon(next_turn)

    one, stopped = trackers._json_item, asyncio.Event()
    monkeypatch.setattr(trackers, "_json_item", counted)
    loop.call_soon(next_turn)
    body: list[dict[str, Any]] = [{}] * 5000
    async with session.post(f"{server.url}/v1/osmand", json=body) as response:
        assert (response.status, total) == (401, 0)
    token = make_token(SECRET, vendors[0].clerk_id, 600)
    async with session.post(f"{server.url}/v1/osmand", params={"token": token}, json=body) as response:
        assert (response.status, total) == (200, 5000)
    stopped.set()
    assert most <= server.server.settings.max_batch
