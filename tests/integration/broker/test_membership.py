"""Processes detect from heartbeats which others are alive."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio

from streamer.broker.redis_schema import BROADCAST, PROCESSES, WRITE, CellBatch, cells_key, channel, positions_key
from streamer.geo.grid import bus_cell, cell_name
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import Part
from streamer.live.vendor import Card, Presence
from tests.integration.broker.conftest import HERE, NEAR, after, once, written
from tests.support.apps import circle, eventually
from tests.support.peers import Peer
from tests.support.proxy import Proxy


async def test_a_process_that_is_killed(redis_url: str, other: Peer) -> None:
    """A dead process's vendors go offline and expire, also for processes that start later; Redis is cleaned up."""
    times = {"offline_after": 1500, "leave_after": 1500}
    async with Peer(redis_url, "second", **times) as second, redis.asyncio.Redis.from_url(redis_url) as client:
        dying = Peer(redis_url, "dying", **times)
        await dying.start()
        dying.serve("gone", HERE)
        dying.serve("back", NEAR)
        look = await second.watch(area=circle(*HERE, 5_000))
        await look.sees({"gone": HERE, "back": NEAR})
        await dying.kill()
        assert dying.supervisor.deaths == 0
        second.serve("back")
        await eventually(lambda: look.view["gone"]["online"] is False, "the truck offline")
        late = await second.watch(vendors=["gone", "back"])
        assert late.view["gone"]["online"] is False
        for each in (look, late):
            await each.sees({"back": NEAR})
        assert look.view["back"]["online"]
        assert [card["vendorId"] for card in look.client.offline] == ["gone"]

        async def forgotten() -> bool:
            return not await client.hexists(positions_key(bus_cell(*HERE)), "fgone")

        await eventually(forgotten, "no entry left of a truck that is gone")
        async with Peer(redis_url, "third", **times) as third:
            await (await third.watch(area=circle(*HERE, 5_000))).sees({"back": NEAR})


async def test_redis_is_cut_while_a_dead_process_is_cleaned_up(redis_url: str, proxy: Proxy) -> None:
    """The clean-up continues once Redis is back: an outage must neither lose it nor end the task."""
    at = bus_cell(*HERE)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.sadd(cells_key("dead"), cell_name(at))
        await client.hset(positions_key(at), "pgone", '0000000000001["gone",1,"dead",0]')
        async with Peer(proxy.url, "one", offline_after=1_500, leave_after=1_500) as one:
            once(
                one,
                lambda commands: commands[0].words == ("SMEMBERS", cells_key("dead")),
                before=proxy.down,
                after=proxy.up,
            )
            await client.zadd(PROCESSES, {"dead": 7})

            async def clean() -> bool:
                return not await client.exists(cells_key("dead"))

            await eventually(clean, "the dead process cleaned up")
            assert not await client.hexists(positions_key(at), "pgone")


async def test_processes_with_different_clocks_agree(redis_url: str, one: Peer) -> None:
    """Processes whose clocks differ by seconds agree on which vendors are online, and where."""
    async with Peer(redis_url, "late") as late:
        late.behind = 4_000
        looks = [await peer.watch(area=circle(*HERE, 5_000)) for peer in (one, late)]
        one.serve("truck", HERE)
        for look in looks:
            await look.sees({"truck": HERE})
        late.serve("truck")
        one.part("truck")
        late.ping("truck", NEAR, one.now() + 1)
        for look in looks:
            await look.sees({"truck": NEAR})
            assert look.view["truck"]["online"]
            assert look.client.offline == []
        await eventually(lambda: "truck" not in one.broker.local_vendors, "the truck left to the other process")
        late.part("truck")
        one.serve("truck")
        await eventually(lambda: "truck" not in late.broker.local_vendors, "the truck left to the first process")
        for look in looks:
            await look.sees({"truck": NEAR})
            assert look.client.offline == []


async def test_a_process_without_heartbeats_is_silent_but_not_while_redis_is_away(redis_url: str, proxy: Proxy) -> None:
    """A silent process's vendors with a second connection here are taken over; without Redis no process is silent."""
    async with Peer(proxy.url, "one", offline_after=1_500) as one:
        membership = one.broker.membership
        dying = Peer(redis_url, "dying", offline_after=1_500)
        await dying.start()
        await eventually(lambda: not membership.silent("dying"), "a heartbeat")
        await dying.kill()
        await eventually(lambda: membership.silent("dying"), "the process silent")
        proxy.down()
        await eventually(lambda: not membership.silent("dying"), "nobody silent without Redis")


async def test_the_last_heartbeat_of_an_unknown_process_is_read_from_redis(redis_url: str, one: Peer) -> None:
    """A process that just started must not show vendors of a dead process as online."""
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.zadd(PROCESSES, {"dead": 7})
    membership = one.broker.membership
    await membership.fetch_heartbeats(["dead", "unheard", "one"])
    assert (membership.heard_at("dead"), membership.heard_at("unheard")) == (7, 0)
    assert membership.heard_at("one") > 7


async def test_a_process_that_redis_forgot_publishes_its_vendors_again(redis_url: str, one: Peer) -> None:
    """After Redis was emptied, a parked vendor must not be missing for customers of new processes."""
    one.serve("truck", HERE)
    await written(one, "truck")
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.flushall()
        one.broker.membership.wake()

        async def back() -> bool:
            return bool(await client.hexists(positions_key(bus_cell(*HERE)), "ftruck"))

        await eventually(back, "the vendor in Redis again")


LONG_AGO = 20 * 60_000
"""Milliseconds; longer than a vendor stays on the map."""


async def serve_for_long(peer: Peer) -> None:
    """Serves a truck that connected 20 minutes ago and is parked."""
    then = peer.now() - LONG_AGO
    peer.broker.local_vendors.connect("truck", Card(then, "the truck", True, None), then)
    peer.ping("truck", HERE)
    await written(peer, "truck")


async def shown_to_new_customers(redis_url: str) -> None:
    """Waits until a new process shows the truck."""
    async with Peer(redis_url, "late") as late:
        await (await late.watch(area=circle(*HERE, 5_000))).sees({"truck": HERE}, 5.0)


async def test_a_cell_is_read_before_heartbeats_arrive_after_a_long_outage(
    redis_url: str, proxy: Proxy, one: Peer, other: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process has not heard the others for long. Their vendors have not expired, and must stay in Redis."""
    await serve_for_long(other)
    look = await one.watch(area=circle(*HERE, 5_000))
    await look.sees({"truck": HERE})
    proxy.down()
    await eventually(lambda: one.index.frozen, "Redis found away")
    one.index.owners["other"].heard -= LONG_AGO
    reader, node = one.broker.subscriber.reader, one.broker.nodes.of(BROADCAST)
    assert node is not None
    reader.read(bus_cell(*HERE))
    monkeypatch.setattr(node.subscription, "connect", lambda: None)  # it takes longer than the read
    proxy.up()
    await eventually(lambda: not reader.readings and not reader._to_read, "the cell read")
    assert one.index.frozen
    monkeypatch.undo()
    await one.joined()
    await shown_to_new_customers(redis_url)
    await look.sees({"truck": HERE})


async def test_a_process_known_only_from_anothers_message(redis_url: str, other: Peer) -> None:
    """Its vendors have not expired only because its first heartbeat has not arrived here yet."""
    await serve_for_long(other)
    index = LiveIndex("relay")
    now = other.now()
    index.put_card("bus", Card(now, "the bus", True, None), now)
    index.put_presence("bus", Presence(now - LONG_AGO, "other", 0), now)
    batch = CellBatch()
    batch.add(index.vendors["bus"], Part.PRESENCE)
    async with Peer(redis_url, "new") as new:
        look = new.looks()
        opening = asyncio.create_task(look.watch(area=circle(*HERE, 5_000)))
        await asyncio.sleep(0)
        new.broker.on_message(channel(bus_cell(*HERE)), batch.message("relay"))
        await opening
        await look.sees({"truck": HERE}, 5.0)
    await shown_to_new_customers(redis_url)


async def test_all_is_written_again_during_a_write(redis_url: str, one: Peer) -> None:
    """The cell that is being written is in the process's set again, or counts lack its vendors if it is killed."""
    one.serve("truck", HERE)
    await written(one, "truck")
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        deleted = asyncio.Event()

        async def rewrite() -> None:
            await client.delete(cells_key("one"))
            one.broker._republish()
            deleted.set()

        after(one, WRITE, rewrite)
        one.ping("truck", NEAR)
        await deleted.wait()

        async def back() -> bool:
            return bool(await client.sismember(cells_key("one"), cell_name(bus_cell(*HERE))))

        await eventually(back, "the cell in the set", 5.0)
