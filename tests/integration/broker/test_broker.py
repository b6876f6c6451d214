"""Processes connected by Redis: a bug here would make the maps of two servers differ."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio
from structlog.testing import capture_logs

from streamer.broker.redis_schema import WRITE, CellBatch, channel
from streamer.geo.grid import bus_cell
from streamer.live.local_vendors import Part
from streamer.live.vendor import Card
from streamer.operations.embedded import ValkeyServer
from tests.integration.broker.conftest import AFAR, HERE, NEAR, once, written
from tests.support.apps import circle, eventually
from tests.support.peers import Look, Peer
from tests.support.proxy import Proxy

# normal operation


async def closed(look: Look) -> None:
    """Waits until the truck is shown closed."""
    await eventually(lambda: not look.view["truck"]["open"], "the truck closed")


async def test_changes_on_one_process_are_shown_by_another(one: Peer, other: Peer) -> None:
    """A truck connects, moves, closes, connects again, leaves, is deleted: customers of both processes see the same."""
    looks = [await peer.watch(area=circle(*HERE, 5_000)) for peer in (one, other)]
    one.serve("truck", HERE)
    for look in looks:
        await look.sees({"truck": HERE})
    one.ping("truck", NEAR)
    one.open("truck", False)
    for look in looks:
        await look.sees({"truck": NEAR})
        await closed(look)
    one.delete("truck")
    for look in looks:
        await look.sees({})


async def test_an_error_of_our_own_is_no_message_of_another_version(
    one: Peer, other: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback is logged, and the message's content is read again, so that nobody misses it."""
    other.serve("truck", HERE)
    look = await one.watch(area=circle(*HERE, 5_000))
    await look.sees({"truck": HERE})

    def broken(*_: object) -> bool:
        monkeypatch.undo()
        raise ValueError("of our own")

    with capture_logs() as logs:
        monkeypatch.setattr(one.index, "put_fix", broken)
        other.ping("truck", NEAR)
        await look.sees({"truck": NEAR})
    (ended,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert (ended["task"], str(ended["exc_info"])) == ("broker-nodes", "of our own")
    assert one.supervisor.deaths == 1
    one.supervisor.deaths = 0  # intended


async def test_a_deleted_vendor_is_on_no_snapshot(one: Peer, other: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state in Redis and in another process must not put it back on a map for minutes."""
    one.serve("truck", HERE)
    await written(one, "truck")
    at = bus_cell(*HERE)
    batch = CellBatch()
    batch.add(one.index.vendors["truck"], Part.ALL)
    late = batch.message("late")
    flush, held = one.broker.publisher._flush, asyncio.Event()

    async def later(dirty: dict[str, int]) -> None:
        await held.wait()
        await flush(dirty)

    monkeypatch.setattr(one.broker.publisher, "_flush", later)
    one.delete("truck")
    look = await one.watch(area=circle(*HERE, 5_000))
    assert look.positions == {}
    one.broker.on_message(channel(at), late)
    assert "truck" not in one.index.vendors
    held.set()
    monkeypatch.undo()
    look = await other.watch(area=circle(*HERE, 5_000))
    await look.sees({})
    for peer in (one, other):
        assert "truck" not in peer.index.vendors
    other.serve("truck", NEAR)  # it was restored
    for peer in (one, other):
        await (await peer.watch(area=circle(*HERE, 5_000))).sees({"truck": NEAR})


async def test_crossing_cells(one: Peer, other: Peer) -> None:
    """A vendor that crosses a cell border leaves one watched area, enters the other, and moves in watches of its id."""
    one.serve("truck", HERE)
    here, there = [await other.watch(area=circle(*at, 5_000)) for at in (HERE, AFAR)]
    both, listed = await other.watch(vendors=["truck"]), await other.watch(vendors=["truck", "nobody"])
    await here.sees({"truck": HERE})
    await both.sees({"truck": HERE})
    for at, seeing, empty in ((AFAR, there, here), (NEAR, here, there), (AFAR, there, here)):
        both.client.kinds.clear()
        one.ping("truck", at)
        await seeing.sees({"truck": at})
        await empty.sees({})
        for look in (both, listed):
            await look.sees({"truck": at})
        assert both.snapshots == 0, "a truck that is followed moves, it does not come anew"
    assert both.client.left == listed.client.left == []


async def test_many_fixes_in_one_flush_are_one_update(one: Peer, other: Peer) -> None:
    """Of several fixes in one flush customers get only the newest, in whatever order they arrived."""
    look = await other.watch(area=circle(*HERE, 5_000))
    one.serve("truck", HERE)
    await look.sees({"truck": HERE})
    look.client.kinds.clear()
    began = one.now() + 1
    order = [3, 1, 9, 7, 9, 2, 8]
    for step in order:
        one.ping("truck", (HERE[0] + step * 1e-4, HERE[1]), began + step)
    await look.sees({"truck": (HERE[0] + 9e-4, HERE[1])})
    assert len(look.client.kinds) == 1


async def test_no_flicker_on_reconnect(one: Peer, other: Peer) -> None:
    """A truck's app reconnects to the same or another process: no customer sees it leave, enter or go offline."""
    looks = [await peer.watch(area=circle(*HERE, 5_000)) for peer in (one, other)]
    one.serve("truck", HERE)
    for look in looks:
        await look.sees({"truck": HERE})
    at = one
    for number in range(6):
        after = (one, other)[number % 4 // 2]
        if number % 2:
            at.part("truck")
            after.serve("truck")
        else:
            after.serve("truck")
            at.part("truck")
        at = after
        await asyncio.sleep(0.05)
    at.ping("truck", NEAR)
    for look in looks:
        await look.sees({"truck": NEAR})
        assert look.client.left == []
        assert look.client.offline == []


# failures


async def test_without_redis(redis_url: str) -> None:
    """While Redis is down, customers see vendors of their own process; afterwards those of all processes."""
    async with Proxy(redis_url) as proxy:
        proxy.down()
        lonely = Peer(proxy.url, "lonely")
        await lonely.start(wait=False)
        try:
            lonely.serve("truck", HERE)
            look = await lonely.watch(area=circle(*HERE, 5_000))
            listed = await lonely.watch(vendors=["truck"])
            await look.sees({"truck": HERE})
            lonely.ping("truck", NEAR)
            await look.sees({"truck": NEAR})
            async with Peer(redis_url, "other") as other:
                far = await other.watch(area=circle(*HERE, 5_000))
                other.serve("bus", HERE)
                await far.sees({"bus": HERE})
                proxy.up()
                await lonely.joined()
                for each in (look, far):
                    await each.sees({"truck": NEAR, "bus": HERE})
                await listed.sees({"truck": NEAR})
        finally:
            await lonely.stop()
        assert lonely.supervisor.deaths == 0


async def test_redis_restarted_empty(valkey_server: ValkeyServer) -> None:
    """Redis comes back empty: the processes write their vendors again, and no customer sees a vendor leave."""
    url = valkey_server.url
    async with Peer(url, "one", grace=1.0) as one, Peer(url, "other", grace=1.0) as other:
        one.serve("truck", HERE)
        other.serve("bus", NEAR)
        looks = [await peer.watch(area=circle(*HERE, 5_000)) for peer in (one, other)]
        for look in looks:
            await look.sees({"truck": HERE, "bus": NEAR})
        valkey_server.kill()
        await valkey_server.start()
        await one.joined()
        await other.joined()
        await written(one, "truck")
        await written(other, "bus")
        async with Peer(url, "late") as late:
            await (await late.watch(area=circle(*HERE, 5_000))).sees({"truck": HERE, "bus": NEAR})
            await (await late.watch(vendors=["truck", "bus"])).sees({"truck": HERE, "bus": NEAR})
        one.ping("truck", NEAR)
        for look in looks:
            await look.sees({"truck": NEAR, "bus": NEAR})
            assert look.client.left == []
            assert look.client.vanished == []


@pytest.mark.timeout(60)
async def test_redis_emptied_and_a_process_killed_before_it_writes_its_vendors_again(redis_url: str) -> None:
    """All maps agree on its vendors, which left a minute ago: else old customers see some that new ones do not."""
    times: dict[str, Any] = {"offline_after": 3_000, "leave_after": 600_000, "grace": 3.0}
    async with Peer(redis_url, "one", **times) as one, Peer(redis_url, "other", **times) as other:
        dying = Peer(redis_url, "dying", **times)
        await dying.start()
        for vendor_id in ("online", "offline"):
            dying.serve(vendor_id, HERE)
        dying.part("offline")
        dying.broker.local_vendors.http("over-http", Card(dying.now(), "V", True, None), dying.now())
        dying.ping("over-http", NEAR)
        seen = {"online": HERE, "offline": HERE, "over-http": NEAR}
        looks = [await peer.watch(area=circle(*HERE, 5_000)) for peer in (one, other)]
        for look in looks:
            await look.sees(seen)
        await dying.kill()
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            await client.flushall()
        async with Peer(redis_url, "late", **times) as late:
            latecomer = await late.watch(area=circle(*HERE, 5_000))
            await latecomer.sees(seen)

            def served() -> int:
                peers = (one, other, late)
                return sum(sum(map(peer.broker.local_vendors.serves, peer.index.vendors.values())) for peer in peers)

            await eventually(lambda: served() == 3, "each served by one process")
            for look in looks:
                await look.sees(seen)
                assert look.client.left == []


@pytest.mark.timeout(60)
async def test_two_processes_adopt_a_vendor_that_redis_lost(redis_url: str) -> None:
    """The one that gives it up during its write must not drop the other's entry, which is the same."""
    times: dict[str, Any] = {"offline_after": 2_000, "leave_after": 600_000}
    async with Peer(redis_url, "one", **times) as one, Peer(redis_url, "other", **times) as other:
        dying = Peer(redis_url, "dying", **times)
        await dying.start()
        dying.serve("truck", HERE)
        for peer in (one, other):
            await (await peer.watch(area=circle(*HERE, 5_000))).sees({"truck": HERE})
        await dying.kill()
        given_up = asyncio.Event()

        async def meanwhile() -> None:
            await eventually(lambda: "truck" in other.broker.local_vendors, "adopted by the other one, too")
            await written(other, "truck")
            await eventually(lambda: "truck" not in one.broker.local_vendors, "given up")
            given_up.set()

        once(one, lambda commands: any(WRITE in command.words for command in commands), before=meanwhile)
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            await client.flushall()
        await given_up.wait()
        one.broker.mark_gone("nobody")  # is published by the flush after that write
        await eventually(lambda: one.broker.pending == 0 and not one.broker.publisher._gone, "that flush")
        async with Peer(redis_url, "late", **times) as late:
            await (await late.watch(area=circle(*HERE, 5_000))).sees({"truck": HERE}, 5.0)
