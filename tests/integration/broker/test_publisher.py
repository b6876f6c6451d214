"""The writes and messages of a process: nothing is lost or left behind, whatever happens between two writes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import pytest
import redis.asyncio

from streamer.broker.redis_connections import Command
from streamer.broker.redis_schema import positions_key
from streamer.geo.grid import bus_cell
from streamer.live.vendor import Vendor
from tests.integration.broker.conftest import AFAR, HERE, NEAR, once, written
from tests.support.apps import circle, eventually
from tests.support.peers import Look, Peer
from tests.support.proxy import Proxy


async def test_a_lone_process_flushes_rarely_until_another_one_starts(redis_url: str) -> None:
    """A single server need not publish six times a second without subscribers; a second server must miss nothing."""
    async with Peer(redis_url, "one", alone_after=0.2, alone_gap=3600) as one:
        one.serve("truck", HERE)
        await asyncio.sleep(0.4)
        one.ping("truck", NEAR)
        await written(one, "truck")  # the first flush after a quiet time is immediate
        one.ping("truck", HERE)
        await asyncio.sleep(0.5)
        posted = one.broker.publisher.placement.entries["truck"]
        assert int(posted.versions.fix) < one.index.vendors["truck"].timestamp, "not published"
        async with Peer(redis_url, "other") as other:
            await (await other.watch(area=circle(*HERE, 5_000))).sees({"truck": HERE})
            one.ping("truck", NEAR)
            await (await other.watch(area=circle(*HERE, 5_000))).sees({"truck": NEAR})


@pytest.mark.timeout(30)
async def test_a_vendor_changes_cells_while_redis_is_away(proxy: Proxy, one: Peer, other: Peer) -> None:
    """Failed writes are retried, but not in a busy loop: the process must continue to serve."""
    one.serve("truck", HERE)
    there = await other.watch(area=circle(*AFAR, 5_000))
    await (await other.watch(area=circle(*HERE, 5_000))).sees({"truck": HERE})
    own = await one.watch(area=circle(*AFAR, 5_000))
    proxy.down()
    await eventually(lambda: not one.broker.up, "Redis found away")
    flushes = 0
    flush = one.broker.publisher.flush

    async def counted() -> None:
        nonlocal flushes
        flushes += 1
        if flushes > 1000:
            raise AssertionError("flushes without a pause")  # ends the task, as nothing else could stop a busy loop
        await flush()

    one.broker.publisher.flush = counted  # type: ignore[method-assign]  # flushes are counted nowhere else
    one.ping("truck", AFAR)
    await own.sees({"truck": AFAR})
    await asyncio.sleep(0.5)
    assert flushes < 20
    proxy.up()
    await there.sees({"truck": AFAR})


async def handed_over_unpublished(proxy: Proxy, one: Peer, other: Peer) -> Look:
    """A truck's last fix reached a process without Redis, and its socket ended; the other process must show it."""
    one.serve("truck", HERE)
    look = await other.watch(area=circle(*HERE, 5_000))
    await look.sees({"truck": HERE})
    proxy.down()
    await eventually(lambda: not one.broker.up, "Redis found away")
    one.ping("truck", NEAR)
    one.part("truck")
    return look


async def test_the_last_fix_before_a_handover_while_redis_is_away(proxy: Proxy, one: Peer, other: Peer) -> None:
    """A truck reports to a process that lost Redis, reconnects to another and parks: its last position is not lost."""
    look = await handed_over_unpublished(proxy, one, other)
    other.serve("truck")
    proxy.up()
    await look.sees({"truck": NEAR})
    assert look.view["truck"]["online"]
    await written(other, "truck")
    await eventually(lambda: "truck" not in one.broker.local_vendors, "the truck left to the other process")


async def test_the_last_fix_before_a_handover_to_a_process_that_lost_its_subscription(
    redis_url: str, proxy: Proxy, one: Peer, other: Peer
) -> None:
    """As above, but the other process loses its subscription during the handover."""
    look = await handed_over_unpublished(proxy, one, other)
    deaf = False
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        ears = [known["id"] for known in await client.client_list("pubsub")]

        def leaves(commands: Sequence[Command]) -> bool:
            return "truck" not in one.broker.local_vendors and any(
                command.words[0] == "SPUBLISH" for command in commands
            )

        async def deafen() -> None:
            nonlocal deaf
            deaf = True
            for ear in ears:
                await client.client_kill_filter(_id=ear)

        once(one, leaves, before=deafen)
        other.serve("truck")
        proxy.up()
        await look.sees({"truck": NEAR})
        assert deaf


async def test_a_deleted_vendor_leaves_every_map_and_redis(redis_url: str, one: Peer, other: Peer) -> None:
    """A vendor erased on request must not stay on the map of a process that never served it."""
    one.serve("truck", HERE)
    look = await other.watch(area=circle(*HERE, 5_000))
    await look.sees({"truck": HERE})
    one.delete("truck")
    await look.sees({})
    async with redis.asyncio.Redis.from_url(redis_url) as client:

        async def gone() -> bool:
            return not await client.hexists(positions_key(bus_cell(*HERE)), "ftruck")

        await eventually(gone, "no entry in Redis")
    await eventually(lambda: one.broker.pending == 0, "nothing left to write")


async def test_many_vendors_are_placed_in_turns(one: Peer, other: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage all vendors are looked up and written again, in steps that do not block the event loop."""
    monkeypatch.setattr("streamer.broker.publisher.TURN", 2)
    placement, sizes = one.broker.publisher.placement, list[int]()
    adopt, place = placement.adopt, placement.place

    async def adopting(vendor_ids: Iterable[str]) -> dict[str, bytes]:
        sizes.append(len(list(vendor_ids)))
        return await adopt(vendor_ids)

    async def placing(vendors: Mapping[str, Vendor], found: Mapping[str, bytes]) -> dict[str, int]:
        sizes.append(len(vendors))
        return await place(vendors, found)

    monkeypatch.setattr(placement, "adopt", adopting)
    monkeypatch.setattr(placement, "place", placing)
    look = await other.watch(area=circle(*HERE, 5_000))
    trucks = {f"truck-{number}": HERE for number in range(5)}
    for truck in trucks:
        one.serve(truck, HERE)
    await look.sees(trucks)
    for truck in trucks:
        await written(one, truck)
    assert max(sizes) == 2
