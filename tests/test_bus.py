"""Processes through Redis: what is wrong here shows customers of one server what is not so on another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import redis.asyncio

from streamer.nodes import Command
from streamer.registers import PLACE, WRITE
from tests.apps import circle, eventually
from tests.peers import Peer
from tests.proxy import Proxy

HERE = (52.2300, 21.0100)
NEAR = (52.2310, 21.0120)
AFAR = (53.4300, 14.5500)
"""In another cell of the bus."""


@pytest.fixture
async def way(redis_url: str) -> AsyncIterator[Proxy]:
    """The first process's way to Redis."""
    async with Proxy(redis_url) as proxy:
        yield proxy


@pytest.fixture
async def one(way: Proxy) -> AsyncIterator[Peer]:
    """A process on the way that can be cut."""
    async with Peer(way.url, "one") as peer:
        yield peer


@pytest.fixture
async def other(redis_url: str) -> AsyncIterator[Peer]:
    """Another process, on a way of its own that stays."""
    async with Peer(redis_url, "other") as peer:
        yield peer


@pytest.mark.timeout(30)
async def test_crossing_cells_while_redis_is_away(way: Proxy, one: Peer, other: Peer) -> None:
    """What can't be written is tried again, but not at once and for ever: the process must go on serving."""
    one.serve("truck", HERE)
    there = await other.watch(area=circle(*AFAR, 5_000))
    await (await other.watch(area=circle(*HERE, 5_000))).sees({"truck": HERE})
    own = await one.watch(area=circle(*AFAR, 5_000))
    way.refusing = True
    way.cut()
    await eventually(lambda: not one.bus.up, "Redis found away")
    flushes = 0
    flush = one.bus._flush

    async def counted() -> None:
        nonlocal flushes
        flushes += 1
        if flushes > 1000:
            raise AssertionError("flushes without a pause")  # ends the task, where a loop could be stopped by nobody
        await flush()

    one.bus._flush = counted  # type: ignore[method-assign]
    one.ping("truck", AFAR)
    await own.sees({"truck": AFAR})
    await asyncio.sleep(0.5)
    assert flushes < 20
    way.refusing = False
    await there.sees({"truck": AFAR})


def after(peer: Peer, script: str, then: Callable[[], Any]) -> None:
    """Have something done once, right after the process had Redis run a script."""
    run = peer.bus._nodes.run

    async def hooked(commands: Sequence[Command], lane: str = "write") -> list[Any]:
        answers = await run(commands, lane)
        if any(script in command.words for command in commands):
            peer.bus._nodes.run = run  # type: ignore[method-assign]
            if (waiting := then()) is not None:
                await waiting
        return answers

    peer.bus._nodes.run = hooked  # type: ignore[method-assign]


async def written(peer: Peer, vendor_id: str) -> None:
    """Wait until a process wrote all it knows of its vendor."""

    def holds() -> bool:
        posted, vendor = peer.bus._posted.get(vendor_id), peer.index.vendors[vendor_id]
        return posted is not None and posted.sure and int(posted.versions.fix) == vendor.timestamp

    await eventually(holds, f"{vendor_id} written by {peer.index.me}")


async def test_over_the_border_and_back(one: Peer, other: Peer) -> None:
    """A truck on a cell's border is seen also by those who come after it went to and fro within a moment."""
    one.serve("truck", HERE)
    await written(one, "truck")
    after(one, PLACE, lambda: one.ping("truck", NEAR) and None)
    one.ping("truck", AFAR)
    await eventually(lambda: one.index.vendors["truck"].lat == NEAR[0], "the way back")
    await written(one, "truck")
    await (await other.watch(area=circle(*HERE, 5_000))).sees({"truck": NEAR})
    await (await other.watch(area=circle(*AFAR, 5_000))).sees({})
    await (await other.watch(vendors=["truck"])).sees({"truck": NEAR})


async def test_redis_emptied_right_after_writing(redis_url: str, one: Peer, other: Peer) -> None:
    """Whenever Redis forgets, also what was written this very moment, its processes find out and write it anew."""
    one.serve("truck", HERE)
    await written(one, "truck")
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        after(one, WRITE, client.flushall)
        one.bus._write_anew()  # as after a connection was lost
        await eventually(lambda: "hooked" not in one.bus._nodes.run.__name__, "Redis emptied")
        await (await other.watch(area=circle(*HERE, 5_000))).sees({"truck": HERE})
        await (await other.watch(vendors=["truck"])).sees({"truck": HERE})


async def test_the_last_fix_on_a_process_that_lost_redis(way: Proxy, one: Peer, other: Peer) -> None:
    """A truck reports on a process that lost Redis, comes back on another and parks: its last place is not lost."""
    one.serve("truck", HERE)
    look = await other.watch(area=circle(*HERE, 5_000))
    await look.sees({"truck": HERE})
    way.refusing = True
    way.cut()
    await eventually(lambda: not one.bus.up, "Redis found away")
    one.ping("truck", NEAR)
    one.part("truck")
    other.serve("truck")
    way.refusing = False
    await look.sees({"truck": NEAR})
    assert look.view["truck"]["online"]
    await written(other, "truck")
    await eventually(lambda: "truck" not in one.bus.fleet, "the truck left to the other process")


async def test_taken_over_while_another_process_writes(one: Peer, other: Peer) -> None:
    """A place told by a living process is not put back by one that did not see yet what is written there."""
    one.serve("truck", HERE)
    await written(one, "truck")

    async def meanwhile() -> None:
        other.serve("truck")
        await asyncio.sleep(0.3)

    after(one, PLACE, meanwhile)
    one.ping("truck", AFAR)
    await written(one, "truck")
    await written(other, "truck")
    await (await one.watch(vendors=["truck"])).sees({"truck": AFAR})
    late = await other.watch(area=circle(*AFAR, 5_000))
    await late.sees({"truck": AFAR})
    await (await other.watch(area=circle(*HERE, 5_000))).sees({})


async def test_a_list_watched_while_redis_stalls(way: Proxy, one: Peer, other: Peer) -> None:
    """Who asks for a vendor in a bad moment sees it as soon as the moment is over."""
    other.serve("truck", HERE)
    await written(other, "truck")
    gaps = one.bus.gaps
    way.stall()
    watching = asyncio.create_task(one.watch(vendors=["truck"]))
    await eventually(watching.done, "an answer without Redis")
    way.resume()
    await watching.result().sees({"truck": HERE})
    assert one.bus.gaps - gaps <= 1
