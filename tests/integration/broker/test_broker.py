"""Processes through Redis: what is wrong here shows customers of one server what is not so on another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import redis.asyncio

from streamer.broker.counts import ASK
from streamer.broker.redis_connections import Command
from streamer.broker.redis_schema import BROADCAST, PLACE, WRITE, CellBatch, Reading, channel, positions_key
from streamer.geo.grid import bus_cell
from streamer.live.local_vendors import Part
from streamer.operations.embedded import ValkeyServer
from tests.support.apps import circle, eventually
from tests.support.peers import Look, Peer
from tests.support.proxy import Proxy

HERE = (52.2300, 21.0100)
NEAR = (52.2310, 21.0120)
AFAR = (53.4300, 14.5500)
"""In another cell of the bus."""


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    """The proxy between the first process and Redis."""
    async with Proxy(redis_url) as proxy:
        yield proxy


@pytest.fixture
async def one(proxy: Proxy) -> AsyncIterator[Peer]:
    """A process whose connection to Redis can be cut."""
    async with Peer(proxy.url, "one") as peer:
        yield peer


@pytest.fixture
async def other(redis_url: str) -> AsyncIterator[Peer]:
    """Another process, connected to Redis directly."""
    async with Peer(redis_url, "other") as peer:
        yield peer


async def test_the_only_process_says_little_until_another_one_comes(redis_url: str) -> None:
    """A small town's only server need not tell nobody six times a second; a second one must miss nothing of it."""
    async with Peer(redis_url, "one", alone_after=0.2, alone_gap=3600) as one:
        one.serve("truck", HERE)
        await asyncio.sleep(0.4)
        one.ping("truck", NEAR)
        await written(one, "truck")  # the first after a quiet time goes at once
        one.ping("truck", HERE)
        await asyncio.sleep(0.5)
        posted = one.broker.publisher.placement.entries["truck"]
        assert int(posted.versions.fix) < one.index.vendors["truck"].timestamp, "told to nobody"
        async with Peer(redis_url, "other") as other:
            await (await other.watch(area=circle(*HERE, 5_000))).sees({"truck": HERE})
            one.ping("truck", NEAR)
            await (await other.watch(area=circle(*HERE, 5_000))).sees({"truck": NEAR})


@pytest.mark.timeout(30)
async def test_crossing_cells_while_redis_is_away(proxy: Proxy, one: Peer, other: Peer) -> None:
    """What can't be written is tried again, but not at once and for ever: the process must go on serving."""
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
            raise AssertionError("flushes without a pause")  # ends the task, where a loop could be stopped by nobody
        await flush()

    one.broker.publisher.flush = counted  # type: ignore[method-assign]  # flushes are counted nowhere else
    one.ping("truck", AFAR)
    await own.sees({"truck": AFAR})
    await asyncio.sleep(0.5)
    assert flushes < 20
    proxy.up()
    await there.sees({"truck": AFAR})


def once(
    peer: Peer,
    when: Callable[[Sequence[Command]], bool],
    *,
    before: Callable[[], Any] = lambda: None,
    after: Callable[[], Any] = lambda: None,
) -> None:
    """Have something done once, right before or after the process has Redis carry out such commands."""
    run = peer.broker.nodes.run

    async def hooked(commands: Sequence[Command], lane: str = "write") -> list[Any]:
        now = when(commands)
        if now:
            peer.broker.nodes.run = run  # type: ignore[method-assign]  # only a real process's own timing can be hit so
            await apart(before())
        answers = await run(commands, lane)
        if now:
            await apart(after())
        return answers

    peer.broker.nodes.run = hooked  # type: ignore[method-assign]  # as above


async def apart(waiting: Any) -> None:
    """Wait for it, if it is to be waited for, but what goes wrong with it is nothing that the process must bear."""
    if waiting is not None:
        await asyncio.wait({asyncio.create_task(waiting)})


def after(peer: Peer, script: str, then: Callable[[], Any]) -> None:
    """Have something done once, right after the process had Redis run a script."""
    once(peer, lambda commands: any(script in command.words for command in commands), after=then)


async def written(peer: Peer, vendor_id: str) -> None:
    """Wait until a process wrote all it knows of its vendor."""

    def holds() -> bool:
        posted, vendor = peer.broker.publisher.placement.entries.get(vendor_id), peer.index.vendors[vendor_id]
        return posted is not None and posted.sure and int(posted.versions.fix) == vendor.fix.version

    await eventually(holds, f"{vendor_id} written by {peer.index.me}")


async def test_over_the_border_and_back(one: Peer, other: Peer) -> None:
    """A truck on a cell's border is seen also by those who come after it went to and fro within a moment."""
    one.serve("truck", HERE)
    await written(one, "truck")
    after(one, PLACE, lambda: one.ping("truck", NEAR) and None)
    one.ping("truck", AFAR)
    await eventually(lambda: one.index.vendors["truck"].fix.lat == NEAR[0], "the way back")
    await written(one, "truck")
    await (await other.watch(area=circle(*HERE, 5_000))).sees({"truck": NEAR})
    await (await other.watch(area=circle(*AFAR, 5_000))).sees({})
    await (await other.watch(vendors=["truck"])).sees({"truck": NEAR})


async def test_redis_emptied_right_after_writing(redis_url: str, one: Peer, other: Peer) -> None:
    """Whenever Redis forgets, also what was written this very moment, its processes find out and write it anew."""
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


async def left_unsaid(proxy: Proxy, one: Peer, other: Peer) -> Look:
    """A truck's last fix came to one process while it had no Redis, and its socket ended; the map of the other."""
    one.serve("truck", HERE)
    look = await other.watch(area=circle(*HERE, 5_000))
    await look.sees({"truck": HERE})
    proxy.down()
    await eventually(lambda: not one.broker.up, "Redis found away")
    one.ping("truck", NEAR)
    one.part("truck")
    return look


async def test_the_last_fix_on_a_process_that_lost_redis(proxy: Proxy, one: Peer, other: Peer) -> None:
    """A truck reports on a process that lost Redis, comes back on another and parks: its last place is not lost."""
    look = await left_unsaid(proxy, one, other)
    other.serve("truck")
    proxy.up()
    await look.sees({"truck": NEAR})
    assert look.view["truck"]["online"]
    await written(other, "truck")
    await eventually(lambda: "truck" not in one.broker.local_vendors, "the truck left to the other process")


async def test_the_last_fix_for_a_process_that_hears_nothing_yet(
    redis_url: str, proxy: Proxy, one: Peer, other: Peer
) -> None:
    """As above, when the other process does not hear at the very moment the truck is left to it."""
    look = await left_unsaid(proxy, one, other)
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


async def test_a_list_watched_while_redis_stalls(proxy: Proxy, one: Peer, other: Peer) -> None:
    """Who asks for a vendor in a bad moment sees it as soon as the moment is over."""
    other.serve("truck", HERE)
    await written(other, "truck")
    gaps = one.broker.gaps
    proxy.freeze()
    watching = asyncio.create_task(one.watch(vendors=["truck"]))
    await eventually(watching.done, "an answer without Redis")
    proxy.thaw()
    await watching.result().sees({"truck": HERE})
    assert one.broker.gaps - gaps <= 1


# between processes, while all is well


async def closed(look: Look) -> None:
    """Wait until the truck is shown closed."""
    await eventually(lambda: not look.view["truck"]["open"], "the truck closed")


async def test_what_one_process_does_is_seen_on_another(one: Peer, other: Peer) -> None:
    """A truck comes, moves, closes, is joined by its second phone, goes, is deleted: customers of both see the same."""
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


async def test_crossing_cells(one: Peer, other: Peer) -> None:
    """Over a border of what is heard: it leaves where it was, enters where it comes, moves where it is followed."""
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


async def test_many_fixes_in_a_tick(one: Peer, other: Peer) -> None:
    """Of what a truck said in one moment the newest is shown, whatever the order; and it is said once."""
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


async def test_a_watch_moved_while_its_snapshot_is_read(redis_url: str, other: Peer) -> None:
    """Who pans on before the first map is there gets the last one, and nothing of those between."""
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


async def test_only_what_is_watched_is_heard(redis_url: str, other: Peer) -> None:
    """A process is not told of cells that nobody on it watches; one that nobody watches any more is let go."""
    other.serve("truck", AFAR)
    async with redis.asyncio.Redis.from_url(redis_url) as client, Peer(redis_url, "third", linger=0.1) as third:

        async def heard() -> set[bytes]:
            return set(await client.execute_command("PUBSUB", "SHARDCHANNELS"))  # type: ignore[no-untyped-call]

        quiet = await heard()
        assert quiet == {BROADCAST, ASK}, "what every process hears"
        look = await third.watch(area=circle(*HERE, 100))
        assert await heard() == quiet | {channel(bus_cell(*HERE))}
        followed = await third.watch(vendors=["truck"])
        await followed.sees({"truck": AFAR})
        assert await heard() == quiet | {channel(bus_cell(*HERE)), channel(bus_cell(*AFAR))}
        look.close()
        followed.close()

        async def alone() -> bool:
            return await heard() == quiet

        await eventually(alone, "the cells let go")
        assert not third.index.vendors, "a vendor kept of which nothing more is heard"


async def test_watched_again_at_the_moment_it_is_let_go(redis_url: str, other: Peer) -> None:
    """Who comes to a cell when the last one's time there is just over sees what is there."""
    other.serve("truck", HERE)
    await written(other, "truck")
    async with Peer(redis_url, "third", linger=60) as third:
        for _ in range(3):
            look = await third.watch(area=circle(*HERE, 100))
            await look.sees({"truck": HERE})
            look.close()
            third.broker.subscriber.unsubscribe_idle(asyncio.get_running_loop().time() + 100)
        look = await third.watch(area=circle(*HERE, 100))
        await look.sees({"truck": HERE})
        assert look.snapshots == 1


async def test_no_flicker_on_reconnect(one: Peer, other: Peer) -> None:
    """A truck's app reconnects, here and there: nobody sees it go, come or be offline."""
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


# when something fails


async def test_a_connection_cut(proxy: Proxy, one: Peer, other: Peer) -> None:
    """What happened meanwhile is made good by a snapshot: a truck that moved, one that came, one that left."""
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


async def test_a_silent_stall(proxy: Proxy, one: Peer, other: Peer) -> None:
    """A connection over which nothing comes any more, without a word, is found out within 3 s and replaced."""
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


async def test_the_process_itself_stood_still(one: Peer, other: Peer) -> None:
    """A process that could not listen for a while reads what came meanwhile; it does not take Redis for silent."""
    other.serve("truck", HERE)
    look = await one.watch(area=circle(*HERE, 5_000))
    await look.sees({"truck": HERE})
    time.sleep(3.0)  # noqa: ASYNC251  # that is the fault
    other.ping("truck", NEAR)
    await look.sees({"truck": NEAR})
    await asyncio.sleep(0.6)
    assert (one.broker.gaps, other.broker.gaps) == (0, 0)


async def test_without_redis(redis_url: str) -> None:
    """From the start or from now on: trucks and customers of one process see each other, and all is made good."""
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
    """Redis comes back and knows nothing: its processes write what they hold, and no customer sees anybody go."""
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


async def test_a_process_that_is_killed(redis_url: str, other: Peer) -> None:
    """Its trucks go offline and leave by time on the others, also for those who come later, and Redis is cleaned up."""
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


async def test_a_clock_that_is_behind(redis_url: str, one: Peer) -> None:
    """Processes whose clocks differ by some seconds agree on who is online, where, and whose the vendor is."""
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


async def test_one_that_comes_back_while_a_gap_is_closed_stays(one: Peer, other: Peer) -> None:
    """Not in the cell when it was read, but heard of there since: a parked vendor would be missing until it moves."""
    one.serve("truck", HERE)
    viewer = await other.watch(area=circle(*HERE, 5_000))
    await viewer.sees({"truck": HERE})
    at, broker = bus_cell(*HERE), other.broker
    reading = Reading()
    reading.mark = broker.subscriber._cells[at].mark
    broker.subscriber.reader._note_missing(at, broker.subscriber._cells[at], reading)
    one.ping("truck", NEAR)
    batch = CellBatch()
    batch.add(one.index.vendors["truck"], Part.FIX, store=False)
    broker.subscriber.on_message(channel(at), batch.message("one"))
    broker.subscriber.reader._close_gap()
    assert "truck" in other.index.vendors
    await viewer.sees({"truck": NEAR})
    # One that is not heard of again is gone.
    reading = Reading()
    reading.mark = broker.subscriber._cells[at].mark
    broker.subscriber.reader._note_missing(at, broker.subscriber._cells[at], reading)
    broker.subscriber.reader._close_gap()
    assert "truck" not in other.index.vendors
