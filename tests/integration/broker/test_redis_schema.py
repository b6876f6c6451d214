"""The Lua scripts: late writes must not undo newer ones of other processes, in whatever order they arrive."""

from __future__ import annotations

import random
import time
from itertools import permutations
from typing import Any, NamedTuple

import redis.asyncio

from streamer.broker.redis_schema import (
    DROP,
    PLACE,
    READ,
    UNPLACE,
    WRITE,
    CellBatch,
    parse_place,
    place_key,
    place_value,
    positions_key,
)
from streamer.clocks import CLOCK_TOLERANCE
from streamer.geo.grid import bus_cell
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import Part
from streamer.live.vendor import Card, Presence

HERE = bus_cell(52.23, 21.01)
KEY = positions_key(HERE)


class State(NamedTuple):
    """Every register of a vendor."""

    fix: Fix
    card: Card
    presence: Presence
    http: int

    def put(self, index: LiveIndex, now: int) -> Any:
        """Merges it into an index like a message; returns the vendor."""
        index.put_card("truck", self.card, now)
        index.put_presence("truck", self.presence, now)
        index.put_http("truck", self.http, now)
        index.put_fix("truck", self.fix, now)
        return index.vendors["truck"]


def vendor(fix: Fix, now: int) -> Any:
    """A vendor in this state."""
    return State(fix, Card(1, "the truck", True, None), Presence(now - 5, "one", 0), 0).put(LiveIndex("one"), now)


async def held(client: Any, writes: list[list[bytes]]) -> dict[bytes, bytes]:
    """Returns the contents of a cell after these writes."""
    await client.delete(KEY)
    for fields in writes:
        await client.eval(WRITE, 1, KEY, 60, "mark", *fields)
    return await client.hgetall(KEY)  # type: ignore[no-any-return]  # the client is not typed here


async def test_writes_commute_also_at_equal_versions(redis_url: str) -> None:
    """Writes are commutative, associative and idempotent: Redis and every process's index end with the same state."""
    chance = random.Random(7)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        for _ in range(40):
            now = time.time_ns() // 1_000_000
            times = [now - 1000, now - 1000, now, now + CLOCK_TOLERANCE + 60_000, now + 3_600_000]
            states = [
                State(
                    Fix(
                        chance.choice(times),
                        chance.choice([2.0, 10.5]),
                        chance.choice([-9.5, 21.0]),
                        chance.choice([None, 90.0]),
                        stored=chance.random() < 0.3,
                    ),
                    Card(chance.choice(times), chance.choice(["a", "Ä", "ab"]), chance.random() < 0.5, None),
                    Presence(chance.choice(times), chance.choice(["one", "two", "three"]), chance.choice([0, now])),
                    chance.choice(times),
                )
                for _ in range(3)
            ]
            writes = []
            for state in states:
                batch = CellBatch()
                batch.add(state.put(LiveIndex("one"), now), Part.ALL)
                writes.append(batch.fields)
            first = await held(client, writes)
            for order in permutations(writes):
                assert await held(client, [*order, *order]) == first
            index = LiveIndex("reader")
            for state in states:
                found = state.put(index, now)
            batch = CellBatch()
            batch.add(found, Part.ALL)
            assert first == {b"!": b"mark", **dict(zip(batch.fields[::2], batch.fields[1::2], strict=True))}


async def test_an_entry_that_is_newer_is_not_dropped(redis_url: str) -> None:
    """A vendor's old process must not remove it from the map of its new process."""
    now = time.time_ns() // 1_000_000
    batch = CellBatch()
    batch.add(vendor(Fix(now, 1.0, 1.0), now), Part.ALL)
    older, newer = b"%013d" % (now - 10), b"%013d" % (now + 10)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.eval(WRITE, 1, KEY, 60, "mark", *batch.fields)
        assert await client.eval(DROP, 1, KEY, "truck", older, newer, newer) == 0
        assert await client.eval(DROP, 1, KEY, "truck", newer, newer, newer) == 3
        assert await client.hkeys(KEY) == [b"!"]


async def test_an_epoch_shows_that_redis_lost_the_cell(redis_url: str) -> None:
    """Without the epoch, a vendor that is not written again yet would be removed from all maps."""
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        assert await client.eval(READ, 1, KEY, 60, "first") == b"first"
        assert await client.eval(WRITE, 1, KEY, 60, "second") == b"first"
        await client.delete(KEY)
        assert await client.eval(WRITE, 1, KEY, 60, "third") == b"third"


async def test_a_place_is_the_newest_but_never_of_the_future(redis_url: str) -> None:
    """A process whose clock is an hour ahead must not determine a vendor's place for an hour."""
    now = time.time_ns() // 1_000_000
    key, other = place_key("truck"), bus_cell(10.0, 10.0)
    async with redis.asyncio.Redis.from_url(redis_url) as client:

        async def put(version: int, cell: int, process: str = "one", over: bytes = b"") -> Any:
            return await client.eval(PLACE, 1, key, place_value(b"%013d" % version, cell, process), over, 60)

        async def get() -> Any:
            return await client.get(key)

        assert await put(now - 10, HERE) is None
        await put(now - 20, other)
        assert parse_place(await get()) == (b"%013d" % (now - 10), HERE, "one")
        await put(now - 20, other, over=await get())
        assert parse_place(await get()) == (b"%013d" % (now - 20), other, "one")
        await put(now + 3_600_000, HERE, "ahead")
        found = parse_place(await put(now, other))
        assert found is not None
        assert (int(found.version), found.cell) == (0, HERE), "its old cell is named, so that it is dropped there"
        assert parse_place(await get()) == (b"%013d" % now, other, "one")
        assert await client.eval(UNPLACE, 1, key, b"%013d" % now, "two") == 0
        assert await client.eval(UNPLACE, 1, key, b"%013d" % now, "one") == 1
