"""Processes detect from heartbeats which others are alive."""

from __future__ import annotations

import redis.asyncio

from streamer.broker.redis_schema import PROCESSES, cells_key, positions_key
from streamer.geo.grid import bus_cell, cell_name
from tests.integration.broker.conftest import HERE, NEAR, once, written
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
