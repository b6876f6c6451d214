"""A process receives only the cells that it needs, and everything in them, also after a connection failed."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import redis.asyncio

from streamer.broker.cell_reader import SLICE
from streamer.broker.counts import ASK
from streamer.broker.publisher import SWEPT
from streamer.broker.redis_schema import BROADCAST, channel
from streamer.geo.grid import bus_cell
from streamer.live.fix import Fix
from streamer.live.vendor import Card
from tests.integration.broker.conftest import AFAR, HERE, NEAR, written
from tests.support.apps import circle, eventually
from tests.support.peers import Peer
from tests.support.proxy import Proxy


async def test_a_vendor_list_watched_while_redis_stalls(proxy: Proxy, one: Peer, other: Peer) -> None:
    """A vendor list opened while Redis stalls shows its vendors as soon as Redis answers."""
    other.serve("truck", HERE)
    await written(other, "truck")
    gaps = one.broker.gaps
    proxy.freeze()
    watching = asyncio.create_task(one.watch(vendors=["truck"]))
    await eventually(watching.done, "an answer without Redis")
    proxy.thaw()
    await watching.result().sees({"truck": HERE})
    assert one.broker.gaps - gaps <= 1


async def test_only_watched_cells_are_subscribed(redis_url: str, other: Peer) -> None:
    """A process subscribes to watched cells only, and unsubscribes when they are no longer watched."""
    other.serve("truck", AFAR)
    async with redis.asyncio.Redis.from_url(redis_url) as client, Peer(redis_url, "third", linger=0.1) as third:

        async def heard() -> set[bytes]:
            return set(await client.execute_command("PUBSUB", "SHARDCHANNELS"))  # type: ignore[no-untyped-call]

        quiet = await heard()
        assert quiet == {BROADCAST, ASK}, "the channels of every process"
        look = await third.watch(area=circle(*HERE, 100))
        assert await heard() == quiet | {channel(bus_cell(*HERE))}
        followed = await third.watch(vendors=["truck"])
        await followed.sees({"truck": AFAR})
        assert await heard() == quiet | {channel(bus_cell(*HERE)), channel(bus_cell(*AFAR))}
        look.close()
        followed.close()

        async def alone() -> bool:
            return await heard() == quiet

        await eventually(alone, "the cells unsubscribed")
        assert not third.index.vendors, "a vendor kept of which nothing more is heard"


async def test_a_cell_watched_again_while_it_is_unsubscribed(redis_url: str, other: Peer) -> None:
    """A cell that is watched again while it is being unsubscribed shows its vendors."""
    other.serve("truck", HERE)
    await written(other, "truck")
    async with Peer(redis_url, "third", linger=60) as third:
        for _ in range(3):
            look = await third.watch(area=circle(*HERE, 100))
            await look.sees({"truck": HERE})
            look.close()
            await third.broker.subscriber.unsubscribe_idle(asyncio.get_running_loop().time() + 100)
        look = await third.watch(area=circle(*HERE, 100))
        await look.sees({"truck": HERE})
        assert look.snapshots == 1


async def test_a_large_cell_is_left_in_steps(redis_url: str) -> None:
    """The vendors of a large city are no longer watched: they must be removed in steps, without delaying messages."""
    async with Peer(redis_url, "third", linger=60) as third:
        index, subscriber, now = third.index, third.broker.subscriber, third.now()

        async def leave(again: bool) -> list[int]:
            """Returns the number of known vendors at each turn of the loop; the cell is watched again at the third."""
            look = await third.watch(area=circle(*HERE, 100))
            for n in range(3 * SLICE):
                index.put_fix(f"v{n}", Fix(now, *HERE), now)
                index.put_http(f"v{n}", now, now)
                index.put_card(f"v{n}", Card(now, "Van", True, None), now)
            look.close()
            leaving = asyncio.create_task(subscriber.unsubscribe_idle(asyncio.get_running_loop().time() + 100))
            held = [len(index.vendors)]
            while not leaving.done():
                await asyncio.sleep(0)
                held.append(len(index.vendors))
                if again and len(held) == 3:
                    subscriber.hold([bus_cell(*HERE)])
            await leaving
            return held

        held = await leave(again=False)
        assert held[-1] == 0
        assert max(before - after for before, after in pairwise(held)) <= SLICE
        assert 0 < (await leave(again=True))[-1] < 3 * SLICE, "what was heard of a cell that is watched is removed"


async def test_a_sweep_is_made_in_steps(redis_url: str) -> None:
    """Vendors left behind by late messages are removed in steps, so that no messages are delayed."""
    async with Peer(redis_url, "third") as third:
        index, subscriber, now = third.index, third.broker.subscriber, third.now()
        await third.watch(area=circle(*HERE, 100))
        for n in range(2 * SWEPT):
            index.put_fix(f"watched{n}", Fix(now, *HERE), now)
        for n in range(3 * SLICE):
            index.put_http(f"stray{n}", now, now)
        third.serve("served", AFAR)
        sweeping = asyncio.create_task(subscriber.sweep())
        held = [len(index.vendors)]
        while not sweeping.done():
            await asyncio.sleep(0)
            held.append(len(index.vendors))
            if held[-1] == held[0] - SLICE:
                third.serve(f"stray{3 * SLICE - 1}", AFAR)
        await sweeping
        kept = {"served", f"stray{3 * SLICE - 1}", *(f"watched{n}" for n in range(2 * SWEPT))}
        assert index.vendors.keys() == kept
        assert max(before - after for before, after in pairwise(held)) <= SLICE
        assert held.count(held[0]) > 2, "all were looked at in one step"


async def test_a_connection_to_redis_is_cut(proxy: Proxy, one: Peer, other: Peer) -> None:
    """A snapshot contains the missed changes: a truck moved, one entered, one left."""
    for name in ("moves", "leaves", "stays"):
        other.serve(name, HERE)
    look = await one.watch(area=circle(*HERE, 5_000))
    elsewhere = await one.watch(vendors=["moves"])
    await look.sees(dict.fromkeys(("moves", "leaves", "stays"), HERE))
    await elsewhere.sees({"moves": HERE})
    look.client.kinds.clear()
    proxy.down()
    await eventually(lambda: not one.broker.up, "the cut noticed")
    other.ping("moves", NEAR)
    other.ping("leaves", AFAR)
    other.serve("comes", HERE)
    await written(other, "comes")
    proxy.up()
    await look.sees({"moves": NEAR, "stays": HERE, "comes": HERE})
    await elsewhere.sees({"moves": NEAR})
    assert look.snapshots >= 1
    assert one.broker.gaps == 1


async def test_a_connection_to_redis_stalls_silently(proxy: Proxy, one: Peer, other: Peer) -> None:
    """A connection over which nothing arrives any more must be detected within 3 s and replaced."""
    other.serve("truck", HERE)
    look = await one.watch(area=circle(*HERE, 5_000))
    await look.sees({"truck": HERE})
    gaps, began = one.broker.gaps, time.monotonic()
    proxy.strand()
    other.ping("truck", NEAR)
    await eventually(lambda: one.broker.gaps > gaps, "the stall noticed")
    noticed = time.monotonic() - began
    await look.sees({"truck": NEAR})
    assert noticed < 3.0 + 2 * one.lag, f"noticed after {noticed:.1f} s"


async def test_a_blocked_event_loop_is_no_gap(one: Peer, other: Peer) -> None:
    """A process that was blocked reads what arrived meanwhile; it must not conclude that Redis was silent."""
    other.serve("truck", HERE)
    look = await one.watch(area=circle(*HERE, 5_000))
    await look.sees({"truck": HERE})
    time.sleep(3.0)  # noqa: ASYNC251  # the fault under test
    other.ping("truck", NEAR)
    await look.sees({"truck": NEAR})
    await asyncio.sleep(0.6)
    assert (one.broker.gaps, other.broker.gaps) == (0, 0)
