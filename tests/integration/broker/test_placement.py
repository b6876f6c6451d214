"""A vendor's entry in Redis is in one cell after every change, and its place refers to that cell."""

from __future__ import annotations

import asyncio

import redis.asyncio

from streamer.broker.redis_schema import PLACE, WRITE
from tests.integration.broker.conftest import AFAR, HERE, NEAR, after, written
from tests.support.apps import circle, eventually
from tests.support.peers import Peer


async def test_a_vendor_crosses_a_cell_border_and_returns(one: Peer, other: Peer) -> None:
    """A truck that crossed a cell border and returned immediately is shown to later customers, too."""
    one.serve("truck", HERE)
    await written(one, "truck")
    after(one, PLACE, lambda: one.ping("truck", NEAR) and None)
    one.ping("truck", AFAR)
    await eventually(lambda: one.index.vendors["truck"].fix.lat == NEAR[0], "the way back")
    await written(one, "truck")
    await (await other.watch(area=circle(*HERE, 5_000))).sees({"truck": NEAR})
    await (await other.watch(area=circle(*AFAR, 5_000))).sees({})
    await (await other.watch(vendors=["truck"])).sees({"truck": NEAR})


async def test_redis_is_emptied_right_after_a_write(redis_url: str, one: Peer, other: Peer) -> None:
    """Processes detect a loss of data in Redis, even of the last write, and write it again."""
    one.serve("truck", HERE)
    await written(one, "truck")
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        emptied = asyncio.Event()

        async def empty() -> None:
            await client.flushall()
            emptied.set()

        after(one, WRITE, empty)
        one.broker._republish()  # as after a connection was lost
        await emptied.wait()
        await (await other.watch(area=circle(*HERE, 5_000))).sees({"truck": HERE})
        await (await other.watch(vendors=["truck"])).sees({"truck": HERE})


async def test_a_takeover_while_the_old_process_writes(one: Peer, other: Peer) -> None:
    """A place written by the new process is not overwritten by the old one, which has not seen it yet."""
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
