"""Counts over real sockets: bubbles of a zoomed-out map, by WebSocket, by events and by HTTP, from two processes."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import orjson

from streamer.storage.seed import seed
from tests.conftest import Serve
from tests.support.apps import App, VendorApp, eventually

WORLD = {"sw": {"lat": -90, "long": -180}, "ne": {"lat": 90, "long": 180}}


def total(groups: dict[str, dict[str, Any]]) -> int:
    """Vendors in all groups."""
    return sum(group["count"] for group in groups.values())


async def test_the_world_in_every_notation(serve: Serve, database_url: str) -> None:
    """A map of the world shows every vendor of every process, in whatever notation it asks."""
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
