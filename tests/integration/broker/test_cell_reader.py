"""Cells read from Redis: snapshots lack no vendor, and contain none that left."""

from __future__ import annotations

import asyncio

from streamer.broker.redis_schema import CellBatch, Reading, channel
from streamer.geo.grid import bus_cell
from streamer.live.local_vendors import Part
from tests.integration.broker.conftest import AFAR, HERE, NEAR, written
from tests.support.apps import circle
from tests.support.peers import Peer
from tests.support.proxy import Proxy


async def test_a_watch_moved_while_its_snapshot_is_read(redis_url: str, other: Peer) -> None:
    """A customer who pans before the first snapshot gets only the last area's snapshot."""
    other.serve("here", HERE)
    other.serve("afar", AFAR)
    await written(other, "here")
    await written(other, "afar")
    async with Proxy(redis_url, lag=0.2, seed=1) as proxy, Peer(proxy.url, "slow") as slow:
        look = slow.looks()
        for number in range(6):
            panning = asyncio.create_task(look.watch(area=circle(*(AFAR, HERE)[number % 2], 5_000)))
            await asyncio.sleep(0.02)
            panning.cancel()
            await asyncio.gather(panning, return_exceptions=True)
        await look.watch(area=circle(*AFAR, 5_000))
        await look.sees({"afar": AFAR})
        await look.watch(area=circle(*HERE, 5_000))
        await look.sees({"here": HERE})
        look.close()
        held = [listened for listened in slow.broker.subscriber._cells.values() if listened.refs]
        assert not held, "what was given up is held no more"


async def test_a_vendor_received_while_a_gap_is_closed_stays(one: Peer, other: Peer) -> None:
    """A vendor that was received after its cell was read must stay, or it would be missing until it moves."""
    one.serve("truck", HERE)
    viewer = await other.watch(area=circle(*HERE, 5_000))
    await viewer.sees({"truck": HERE})
    at, broker = bus_cell(*HERE), other.broker
    reading = Reading()
    reading.epoch = broker.subscriber._cells[at].epoch
    broker.subscriber.reader._note_missing(at, broker.subscriber._cells[at], reading)
    one.ping("truck", NEAR)
    batch = CellBatch()
    batch.add(one.index.vendors["truck"], Part.FIX, store=False)
    broker.subscriber.on_message(channel(at), batch.message("one"))
    broker.subscriber.reader._close_gap()
    assert "truck" in other.index.vendors
    await viewer.sees({"truck": NEAR})
    # A vendor without further messages is removed.
    reading = Reading()
    reading.epoch = broker.subscriber._cells[at].epoch
    broker.subscriber.reader._note_missing(at, broker.subscriber._cells[at], reading)
    broker.subscriber.reader._close_gap()
    assert "truck" not in other.index.vendors
