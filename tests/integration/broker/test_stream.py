"""The position stream for other services: it ends with every vendor's newest state, and has entries for gaps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from streamer.broker.redis_connections import Command
from streamer.broker.stream import CHECK_EVERY, DEAD_AFTER, HEARTBEAT_EVERY, MOST_KNOWN, Feed
from streamer.errors import Unavailable
from streamer.ingest.position import Position
from streamer.operations.embedded import ValkeyServer
from streamer.storage import seed
from tests.conftest import Serve
from tests.support.apps import VendorApp, eventually, now_ms

Client = Any
"""redis-py's types do not include bytes."""
KEY = "venta:feed"
LAT, LONG = 52.2297, 21.0122


class Wire:
    """A connection to Redis that may fail before or after a command was executed."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.cut_after: int | None = None

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Like Nodes.run."""
        answers: list[Any] = []
        for command in commands:
            if self.cut_after is not None:
                if self.cut_after == 0:
                    answers.append(Unavailable("cut"))
                    continue
                self.cut_after -= 1
            answer = await self.client.execute_command(*command.words)
            # as the server's own connections have it
            answers.append([part for pair in answer.items() for part in pair] if isinstance(answer, dict) else answer)
        return answers


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = now_ms()

    def __call__(self) -> int:
        return self.now

    def forward(self, seconds: float) -> None:
        """Advances the clock."""
        self.now += int(seconds * 1000)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with redis.asyncio.Redis.from_url(redis_url) as connected:
        yield connected


async def entries(client: Client) -> list[dict[str, str]]:
    """Returns all entries of the stream."""
    return [{k.decode(): v.decode() for k, v in fields.items()} for _, fields in await client.xrange(KEY)]


def feed(wire: Wire, clock: Clock, process: str = "a", length: int = 1000) -> tuple[Feed, dict[str, tuple[bool, bool]]]:
    """A feed of one process, and the (open, online) of the vendors it serves."""
    statuses: dict[str, tuple[bool, bool]] = {}
    made = Feed(
        wire.run,
        lambda: [(vendor_id, *status) for vendor_id, status in statuses.items()],
        process,
        clock,
        key=KEY,
        length=length,
        interval=1.0,
    )
    return made, statuses


async def test_changes_are_merged_per_vendor(client: Client) -> None:
    """A consumer gets one entry per vendor and interval, the newest, and never an older one after it."""
    one, statuses = feed(Wire(client), Clock())
    for at in (5, 7, 6):
        one.position("v", Position(at, LAT, LONG + at))
    one.position("w", Position(1, -0.1, 1e-7))
    statuses["v"] = (True, True)
    assert await one.flush()
    one.position("v", Position(6, 0.0, 0.0))  # of a backlog
    assert await one.flush()
    found = await entries(client)
    assert [(e["type"], e["vendorId"]) for e in found] == [("location", "v"), ("location", "w"), ("status", "v")]
    statuses["v"] = (False, True)
    assert await one.flush()
    del statuses["v"]  # another process serves it
    assert await one.flush()
    statuses["v"] = (False, True)
    assert await one.flush()
    told = [(e["open"], e["online"]) for e in await entries(client) if e["type"] == "status"]
    assert told == [("true", "true"), ("false", "true"), ("false", "true")]
    assert (float(found[0]["lat"]), float(found[0]["long"]), found[0]["timestamp"]) == (LAT, LONG + 7, "7")
    assert (float(found[1]["lat"]), float(found[1]["long"])) == (-0.1, 1e-7)


async def test_while_redis_is_away_changes_wait_one_a_vendor(client: Client) -> None:
    """An outage of Redis may lose intermediate steps, but not the newest state, and costs only bounded memory."""
    wire, clock = Wire(client), Clock()
    one, _ = feed(wire, clock)
    await one.flush()
    wire.cut_after = 0
    for at in range(500):
        one.position(f"v{at % 5}", Position(at, LAT, float(at)))
        clock.forward(1)
        assert not await one.flush()
    assert one.pending == 5
    assert one.outage == "cut"
    wire.cut_after = None
    one.position("v0", Position(1000, LAT, 1000.0))
    assert await one.flush()
    assert one.outage is None
    found = await entries(client)
    assert {e["vendorId"]: float(e["long"]) for e in found if e["type"] == "location"} == {
        "v0": 1000.0,
        "v1": 496.0,
        "v2": 497.0,
        "v3": 498.0,
        "v4": 499.0,
    }
    assert not [e for e in found if e["type"] == "gap"]  # nothing is missing


@pytest.mark.parametrize("after", range(8))
async def test_a_cut_in_the_middle_loses_nothing(client: Client, after: int) -> None:
    """Whatever Redis had executed when the connection broke, each vendor's last change is in the stream."""
    wire = Wire(client)
    one, statuses = feed(wire, Clock())
    await one.flush()
    for vendor_id in "abc":
        one.position(vendor_id, Position(1, LAT, LONG))
        statuses[vendor_id] = (True, True)
    wire.cut_after = after
    await one.flush()
    wire.cut_after = None
    assert await one.flush()
    found = await entries(client)
    for kind in ("location", "status"):
        assert {e["vendorId"] for e in found if e["type"] == kind} == set("abc")


async def test_a_process_that_died_leaves_one_gap(client: Client) -> None:
    """Committed positions that it had not written may be missing; a consumer then reads the database."""
    wire, clock = Wire(client), Clock()
    (dead, _), (one, _), (two, _) = feed(wire, clock, "dead"), feed(wire, clock, "one"), feed(wire, clock, "two")
    since = clock.now
    for each in (dead, one, two):
        await each.flush()
    dead.position("v", Position(1, LAT, LONG))  # and then it is killed
    for _ in range(int((DEAD_AFTER + CHECK_EVERY + HEARTBEAT_EVERY) / HEARTBEAT_EVERY) + 1):
        clock.forward(HEARTBEAT_EVERY)
        await one.flush()
        await two.flush()
    gaps = [e for e in await entries(client) if e["type"] == "gap"]
    assert len(gaps) == 1
    assert int(gaps[0]["since"]) == since
    assert int(gaps[0]["until"]) > since
    assert gaps[0]["process"] == "dead"


async def test_an_orderly_end_is_no_gap(client: Client) -> None:
    """A restart must not make every consumer read the whole database."""
    wire, clock = Wire(client), Clock()
    (ended, _), (one, _) = feed(wire, clock, "ended"), feed(wire, clock, "one")
    await ended.flush()
    ended.position("v", Position(1, LAT, LONG))
    await ended.close()
    for _ in range(20):
        clock.forward(HEARTBEAT_EVERY)
        await one.flush()
    assert [e["type"] for e in await entries(client)] == ["location"]


async def test_data_lost_by_redis_leaves_a_gap(client: Client) -> None:
    """Redis came back empty, or with an old copy: the gap entry has the time since when entries may be missing."""
    clock = Clock()
    one, statuses = feed(Wire(client), clock)
    statuses["v"] = (True, True)
    one.position("v", Position(1, LAT, LONG))
    await one.flush()
    old = clock.now
    await client.flushall()
    clock.forward(HEARTBEAT_EVERY)
    one.position("v", Position(2, LAT, LONG))
    await one.flush()
    gap, location = await entries(client)
    assert (gap["type"], gap["since"], location["timestamp"]) == ("gap", "0", "2")
    clock.forward(HEARTBEAT_EVERY)
    await one.flush()
    assert [e["type"] for e in await entries(client)] == ["gap", "location", "status"]  # of a status nobody else has
    await client.hset("{venta:feed}:writers", "a", old)  # as an old copy would have it
    clock.forward(HEARTBEAT_EVERY)
    await one.flush()
    assert [e["since"] for e in await entries(client) if e["type"] == "gap"] == ["0", str(old)]


async def test_the_stream_is_bounded(client: Client) -> None:
    """Without a consumer, the stream must not fill up Redis."""
    one, _ = feed(Wire(client), Clock(), length=500)
    for at in range(20):
        for n in range(100):
            one.position(f"v{n}", Position(at, LAT, LONG))
        await one.flush()
    assert one.written == 2000
    assert 500 <= await client.xlen(KEY) <= 700  # whole blocks are dropped


async def test_what_is_known_of_vendors_is_bounded(client: Client) -> None:
    """Memory must not grow with every vendor ever seen."""
    one, _ = feed(Wire(client), Clock())
    one._newest = {f"v{n}": n for n in range(MOST_KNOWN)}
    one.position("v", Position(1, LAT, LONG))
    await one.flush()
    assert len(one._newest) == MOST_KNOWN
    assert "v0" not in one._newest


async def test_the_server_feeds_what_is_committed(serve: Serve, database_url: str, client: Client) -> None:
    """A search index gets positions and statuses from two processes, in one consumer group."""
    first, second = await seed.seed(database_url, 2)
    servers = [await serve(feed="on", feed_interval=0.1), await serve(feed="on", feed_interval=0.1)]
    await client.xgroup_create(KEY, "search", id="0", mkstream=True)
    for vendor, server in zip((first, second), servers, strict=True):
        async with VendorApp(server.url, vendor.clerk_id) as app:
            await app.ping(LAT, LONG, timestamp=now_ms())
            await app.acked(1)
            await app.send({"type": "status", "open": False})
            await app.ping(LAT + 1, LONG, timestamp=now_ms())
            await app.acked(2)
    heard: list[tuple[str, str]] = []

    async def complete() -> bool:
        for _, found in await client.xreadgroup("search", "one", {KEY: ">"}, count=100, block=10):
            for id, fields in found:
                if fields[b"type"] == b"location" and float(fields[b"lat"]) == LAT + 1:
                    heard.append((fields[b"vendorId"].decode(), "there"))
                if fields[b"type"] == b"status" and fields[b"online"] == b"true":
                    heard.append((fields[b"vendorId"].decode(), fields[b"open"].decode()))
                await client.xack(KEY, "search", id)
        return {(v.vendor_id, what) for v in (first, second) for what in ("there", "false")} <= set(heard)

    await eventually(complete, "both vendors in the feed", within=20)
    assert (await client.xpending(KEY, "search"))["pending"] == 0
    async with aiohttp.ClientSession() as session, session.get(f"{servers[0].url}/metrics") as response:
        counted = await response.read()
    assert b"streamer_feed_entries_total " in counted
    assert b"streamer_feed_pending 0.0" in counted


async def test_off_means_nothing_is_written(serve: Serve, database_url: str, client: Client) -> None:
    """Without a consumer the stream costs nothing."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    async with VendorApp(server.url, one.clerk_id) as app:
        await app.ping(LAT, LONG)
        await app.acked(1)
    assert not await client.exists(KEY)


async def test_redis_away_costs_no_ack_and_no_last_position(
    serve: Serve, database_url: str, valkey_server: ValkeyServer
) -> None:
    """Redis is killed and comes back empty while pings are stored and acked: the stream ends with the newest state."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(redis_url=valkey_server.url, feed="on", feed_interval=0.1)
    async with VendorApp(server.url, one.clerk_id) as app:
        await app.ping(LAT, LONG, timestamp=now_ms())
        await app.acked(1)
        assert server.server.feed is not None
        await eventually(lambda: server.server.feed is not None and server.server.feed.written > 0, "an entry")
        valkey_server.kill()
        last = 0
        for n in range(5):
            last = now_ms()
            await app.ping(LAT + n, LONG, timestamp=last)
            await app.acked(n + 2)
            await asyncio.sleep(0.05)
        await valkey_server.restart()
        async with redis.asyncio.Redis.from_url(valkey_server.url) as client:

            async def told() -> bool:
                found = await entries(client)
                return any(e.get("timestamp") == str(last) for e in found)

            await eventually(told, "the last position in the feed", within=30)
