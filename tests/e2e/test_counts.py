"""Counts over real sockets: groups of a zoomed-out map by WebSocket, event stream and HTTP, from two processes."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

import aiohttp
import orjson
import psutil
import pytest

from loadtest.clients.target import Target
from loadtest.clients.websocket import WebSocket, connect
from streamer.accounts.tokens import make_token
from streamer.storage.seed import seed
from tests.conftest import Serve
from tests.support.apps import SECRET, App, VendorApp, circle, eventually
from tests.support.crowd import crowd
from tests.support.process import ServerProcess

WORLD = {"sw": {"lat": -90, "long": -180}, "ne": {"lat": 90, "long": 180}}


def total(groups: dict[str, dict[str, Any]]) -> int:
    """Returns the number of vendors in all groups."""
    return sum(group["count"] for group in groups.values())


async def test_the_world_in_every_notation(serve: Serve, database_url: str) -> None:
    """A map of the world counts all vendors of all processes, in every form of request."""
    vendors = await seed(database_url, 3)
    servers = [await serve(), await serve()]
    async with (
        App(servers[0].url, "/v1/watch", None) as customer,
        VendorApp(servers[0].url, vendors[0].clerk_id) as one,
        VendorApp(servers[1].url, vendors[1].clerk_id) as two,
        VendorApp(servers[1].url, vendors[2].clerk_id) as three,
        aiohttp.ClientSession() as session,
    ):
        await one.ping(52.2, 21.0)
        await two.ping(52.3, 21.1)
        await customer.send({"type": "watch", "id": "z", "area": WORLD, "as": "counts"})

        def shown() -> dict[str, dict[str, Any]]:
            groups: dict[str, dict[str, Any]] = {}
            for message in customer.messages:
                if message["type"] == "snapshot":
                    groups = {}
                groups |= {group["group"]: group for group in message["groups"]}
            return {key: group for key, group in groups.items() if group["count"]}

        await eventually(lambda: total(shown()) == 2, "both vendors counted")
        await three.ping(-33.9, 151.2)
        await eventually(lambda: total(shown()) == 3, "the third one counted")
        assert len(shown()) == 2
        for server in servers:
            url = f"{server.url}/v1/vendors/counts"
            async with session.get(url, params={"area": json.dumps(WORLD)}) as answer:
                assert answer.status == 200
                assert sum(group["count"] for group in (await answer.json())["groups"]) == 3
            async with session.get(url, params={"area": "{}"}) as answer:
                assert answer.status == 400
        params = {"area": json.dumps(WORLD), "as": "counts", "detail": "16"}
        async with session.get(f"{servers[1].url}/v1/watch/events", params=params) as stream:
            while not (line := await stream.content.readline()).startswith(b"data:"):
                pass
            snapshot = orjson.loads(line[5:])
            assert sum(group["count"] for group in snapshot["groups"]) == 3


CROWD = int(os.environ.get("STREAMER_CROWD", "2000"))
CUSTOMERS = 1000 if "STREAMER_CROWD" in os.environ else 20
SETTLING, SECONDS = (2.0, 20.0) if "STREAMER_CROWD" in os.environ else (0.5, 0.5)
"""Seconds before and during the measurement; only the documentation needs exact figures."""


@pytest.mark.timeout(300)
async def test_overviews_of_a_crowd(serving_url: str, redis_url: str) -> None:
    """Customers who watch the world cost little while all vendors move: a few bytes, the same for all.

    `STREAMER_CROWD=100000 pytest -s` measures what docs/map.md says.
    """
    async with crowd(redis_url, CROWD), ServerProcess(serving_url, redis_url, admission_rate=1000) as server:
        process = psutil.Process(server.pid)
        sockets: list[WebSocket] = []
        held: list[dict[str, int]] = []

        async def customer() -> None:
            groups: dict[str, int] = {}

            def take(data: bytes) -> None:
                message = orjson.loads(data)
                if message["type"] in ("snapshot", "update"):
                    groups.update((group["group"], group["count"]) for group in message["groups"])

            socket = await connect(Target.parse(server.url), "/v1/watch", take)
            await socket.opened
            socket.send(orjson.dumps({"type": "watch", "id": "z", "area": WORLD, "as": "counts"}))
            sockets.append(socket)
            held.append(groups)

        async def cost() -> tuple[float, int]:
            """Returns the percentage of a core, and bytes per second to one customer."""
            await asyncio.sleep(SETTLING)
            used, received, began = sum(process.cpu_times()[:2]), sum(one.received for one in sockets), time.monotonic()
            await asyncio.sleep(SECONDS)
            passed = time.monotonic() - began
            got = (sum(one.received for one in sockets) - received) / max(1, len(sockets))
            return round((sum(process.cpu_times()[:2]) - used) / passed * 100, 1), round(got / passed)

        figures = {0: await cost()}
        for number in (1, CUSTOMERS):
            while len(sockets) < number:
                await customer()
            await eventually(lambda: all(sum(groups.values()) == CROWD for groups in held), "the world for all")
            figures[number] = await cost()
        print(f"\n{CROWD} vendors; customers: (% of a core, bytes/s each): {figures}")
        assert all(groups == held[0] for groups in held)
        for socket in sockets:
            socket.close()


async def test_a_refused_watch_takes_no_place(serve: Serve, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A customer with as many counts as are allowed could watch nothing else either after some more tries."""
    monkeypatch.setattr("streamer.broker.subscriptions.MOST_COUNTED", 1)
    (vendor,) = await seed(database_url, 1)
    server = await serve(max_watches=2)
    watch = {"type": "watch", "area": circle(52.2297, 21.0122, 1000)}
    async with App(server.url, "/v1/watch", vendor.clerk_id) as phone:
        await phone.send({**watch, "id": "z", "as": "counts"})
        await phone.expect("snapshot", id="z")
        await phone.send({**watch, "id": "y", "as": "counts"})
        assert (await phone.expect("error", id="y"))["code"] == "ERR_TOO_MANY_WATCHES"
        await phone.send({"type": "unwatch", "id": "y"})
        assert (await phone.expect("error", 5, code="ERR_INVALID_MESSAGE"))["message"] == "there is no watch 'y' to end"
        await phone.send({**watch, "id": "y", "as": "counts"})
        await phone.send({**watch, "id": "w"})
        await phone.expect("snapshot", id="w")


async def test_a_refused_event_stream_says_why(
    serve: Serve, database_url: str, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser reconnects to a stream that ends: without a reason, nobody would know what to change."""
    monkeypatch.setattr("streamer.broker.subscriptions.MOST_COUNTED", 0)
    (vendor,) = await seed(database_url, 1)
    server = await serve()
    token = make_token(SECRET, vendor.clerk_id, 600)
    query = {"lat": "52", "long": "21", "radius": "1000", "as": "counts", "id": "z", "token": token}
    async with session.get(server.url + "/v1/watch/events", params=query) as answer:
        *_, last = (await answer.text()).strip().split("\n\n")
    error = json.loads(last.removeprefix("data: "))
    assert (error["type"], error["code"], error["id"]) == ("error", "ERR_TOO_MANY_WATCHES", "z")
