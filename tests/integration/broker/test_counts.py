"""Counts over processes and Redis: the groups of a map must add up to its vendors on every process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pytest
import redis.asyncio

from streamer.broker.counts import ASK, MISSED_ROUNDS, ROUND, SUMS, Counts, _encode_key
from streamer.broker.redis_schema import BROADCAST
from streamer.errors import ProtocolError
from streamer.geo.shapes import Box
from streamer.live import watch as live_watch
from streamer.live.counts import CountsKey
from streamer.protocol import messages
from streamer.protocol.bounds import Bounds
from tests.integration.broker.conftest import written
from tests.support.apps import eventually
from tests.support.peers import Peer
from tests.support.proxy import Proxy

WORLD = {"sw": {"lat": -90, "long": -180}, "ne": {"lat": 90, "long": 180}}
HALF = {"sw": {"lat": 52.0, "long": 20.0}, "ne": {"lat": 53.0, "long": 21.5}}
HERE = (52.23, 21.01)
EAST = (52.23, 21.9)
AFAR = (-33.9, 151.2)


class Bubbles:
    """A customer's zoomed-out map: applies frames by the protocol."""

    def __init__(self) -> None:
        self.groups: dict[str, dict[str, Any]] = {}
        self.frames: list[bytes] = []
        self.room = True

    @staticmethod
    def framing(payload: bytes) -> bytes:
        return payload

    def ready(self) -> bool:
        return self.room

    def write(self, frame: bytes) -> None:
        self.frames.append(frame)
        message = orjson.loads(frame)
        if message["type"] == "snapshot":
            self.groups = {}
        for group in message["groups"]:
            self.groups[group["group"]] = group
            if not group["count"]:
                del self.groups[group["group"]]

    @property
    def totals(self) -> tuple[int, int, int]:
        """The numbers of vendors, open ones, online ones."""
        groups = self.groups.values()
        return sum(g["count"] for g in groups), sum(g["open"] for g in groups), sum(g["online"] for g in groups)

    async def shows(self, *totals: int, within: float = 8.0) -> None:
        """Waits until the sums have these values."""
        await eventually(lambda: self.totals == totals, f"{totals}, only {self.totals}", within)


FIELDS = {"type": "watch", "id": "z", "as": "counts"}


async def look(peer: Peer, area: dict[str, Any] = WORLD, **more: Any) -> Bubbles:
    """Opens a watch of counts on a process."""
    bubbles = Bubbles()
    watch = live_watch.Watch("z", bubbles)
    fields = {**FIELDS, "area": area, **more}
    await peer.watches.open(watch, messages.watch_of(fields, Bounds()))
    return bubbles


def close(peer: Peer, number: int, at: tuple[float, float]) -> None:
    """Adds vendors of a process near a position."""
    for n in range(number):
        peer.serve(f"{peer.index.me}-{n}", (at[0] + n / 1000, at[1]))


@pytest.mark.timeout(60)
async def test_the_vendors_of_all_processes(redis_url: str) -> None:
    """A customer of any process sees all vendors once; processes subscribe to no unwatched cells."""
    async with Peer(redis_url, "one") as one, Peer(redis_url, "other") as other:
        close(one, 3, HERE)
        close(other, 4, EAST)
        other.open("other-0", False)
        for peer in (one, other):
            world = await look(peer)
            await world.shows(7, 6, 7)
            await (await look(peer, HALF)).shows(3, 3, 3)
            await (await look(peer, open=True)).shows(6, 6, 6)
        assert not one.broker.cells
        other.ping("other-1", AFAR)
        await world.shows(7, 6, 7)
        await eventually(lambda: len(world.groups) == 2, "a bubble in Australia")
        other.part("other-1")
        one.serve("other-1", AFAR)
        await world.shows(7, 6, 7)
        one.delete("other-1")
        await world.shows(6, 5, 6)


@pytest.mark.timeout(60)
async def test_a_process_that_is_killed(redis_url: str) -> None:
    """Its vendors stay on the map until they reconnect elsewhere or expire, so they must stay in the counts."""
    times = {"offline_after": 60_000, "leave_after": 600_000}
    async with Peer(redis_url, "one", **times) as one, Peer(redis_url, "other", **times) as other:
        dying = Peer(redis_url, "dying", **times)
        await dying.start()
        close(one, 2, HERE)
        close(dying, 5, EAST)
        world = await look(one)
        await world.shows(7, 7, 7)
        # a process answers with what it knows, before it is in Redis
        for number in range(5):
            await written(dying, f"dying-{number}")
        await dying.kill()
        other.serve("dying-0", HERE)
        one.serve("dying-1", AFAR)
        await world.shows(7, 7, 7)
        await eventually(lambda: "dying" in one.broker.counts._orphaned, "the silence noticed")
        await world.shows(7, 7, 7)
        other.serve("dying-2", HERE)
        await world.shows(7, 7, 7)
        await (await look(other)).shows(7, 7, 7)
        other.delete("dying-2")
        await world.shows(6, 6, 6)


@pytest.mark.timeout(60)
async def test_nothing_is_kept_of_a_killed_process_whose_vendors_left(redis_url: str) -> None:
    """A map that is open for weeks must not keep the vendors of all processes that were killed meanwhile."""
    times = {"offline_after": 5_000, "leave_after": 5_000}
    async with Peer(redis_url, "one", **times) as one, Peer(redis_url, "other", **times) as other:
        dying = Peer(redis_url, "dying", **times)
        await dying.start()
        close(dying, 3, EAST)
        world = await look(one)
        await world.shows(3, 3, 3)
        # a process answers with what it knows, before it is in Redis
        for number in range(3):
            await written(dying, f"dying-{number}")
        await dying.kill()
        counts = one.broker.counts
        await eventually(lambda: "dying" in counts._orphaned, "the silence noticed")
        other.serve("served", HERE)
        await world.shows(1, 1, 1, within=30)
        await eventually(lambda: not counts._orphaned, "the process forgotten", 30)
        assert not counts._claimed


@pytest.mark.timeout(60)
async def test_a_process_that_is_killed_while_redis_is_emptied(redis_url: str) -> None:
    """The process is unknown to all others, so its last answer must not be counted forever."""
    async with Peer(redis_url, "one") as one, redis.asyncio.Redis.from_url(redis_url) as client:
        dying = Peer(redis_url, "dying")
        await dying.start()
        close(one, 2, HERE)
        close(dying, 3, EAST)
        world = await look(one)
        await world.shows(5, 5, 5)
        await dying.kill()
        await client.flushall()
        await world.shows(2, 2, 2)
        async with Peer(redis_url, "other") as other:
            close(other, 3, AFAR)
            await world.shows(5, 5, 5)


async def test_a_message_of_another_version(redis_url: str) -> None:
    """During an upgrade a message of another version must not end a process's subscription or task."""
    async with Peer(redis_url, "one") as one, redis.asyncio.Redis.from_url(redis_url) as client:
        close(one, 2, HERE)
        world = await look(one)
        for name in (ASK, SUMS, BROADCAST):
            for data in (b"{", b"7", b'["new"]', b'["new",{},1,2,3,4,5]', b'["new",[["id"]],[["id",1,2]],[],[],[]]'):
                await client.execute_command("SPUBLISH", name, data)  # type: ignore[no-untyped-call]  # as below
        one.serve("late", HERE)
        await world.shows(3, 3, 3)
        assert one.broker.gaps == 0


@pytest.mark.timeout(60)
async def test_redis_away_and_emptied(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any failure of Redis the counts add up again, and no live process was considered dead."""
    lost: list[str] = []
    read = Counts._read_orphans

    async def noted(counts: Counts, processes: Mapping[str, int], now: int) -> None:
        lost.extend(processes)
        await read(counts, processes, now)

    monkeypatch.setattr(Counts, "_read_orphans", noted)
    async with Proxy(redis_url) as proxy, Peer(proxy.url, "one") as one, Peer(redis_url, "other") as other:
        close(one, 2, HERE)
        close(other, 3, EAST)
        world = await look(one)
        await world.shows(5, 5, 5)
        proxy.down()
        await eventually(lambda: not one.broker.up, "Redis found away")
        await asyncio.sleep(MISSED_ROUNDS * ROUND)
        other.serve("new", AFAR)
        proxy.up()
        await one.joined()
        await world.shows(6, 6, 6)
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            await client.flushall()
        one.serve("newer", AFAR)
        await world.shows(7, 7, 7)
        assert lost == []


async def test_customers_of_one_area_share_bytes(redis_url: str) -> None:
    """A thousand equal watches must cost as much as one; a client that reads nothing gets a snapshot once it reads."""
    async with Peer(redis_url, "one") as one:
        close(one, 2, HERE)
        first, second, slow = [await look(one) for _ in range(3)]
        slow.room = False
        assert len(one.broker.counts) == 1
        one.serve("new", AFAR)
        for each in (first, second):
            await each.shows(3, 3, 3)
        assert first.frames[-1] is second.frames[-1]
        assert slow.totals == (2, 2, 2)
        slow.room = True
        await slow.shows(3, 3, 3)


@pytest.mark.timeout(60)
async def test_who_watches_already_misses_nothing_when_another_customer_comes(redis_url: str) -> None:
    """A new watch's snapshot contains a change; the update of the other watches must contain it, too."""
    async with Peer(redis_url, "one") as one:
        close(one, 2, HERE)
        first = await look(one)
        await asyncio.sleep(2 * ROUND)
        one.serve("late", HERE)
        for _ in range(15):  # a new watch at any time of a round
            newcomer = await look(one)
            await asyncio.sleep(0.1)
        await newcomer.shows(3, 3, 3)
        await first.shows(3, 3, 3)


async def test_counts_without_watchers_cost_nothing(redis_url: str) -> None:
    """Processes without watches of counts exchange no messages."""
    async with Peer(redis_url, "one") as one, Peer(redis_url, "other") as other:
        close(other, 1, HERE)
        bubbles, watch = Bubbles(), live_watch.Watch("z", Bubbles())
        fields = {"type": "watch", "id": "z", "area": WORLD, "as": "counts"}
        wanted = messages.watch_of(fields, Bounds())
        await one.watches.open(watch, wanted)
        assert bubbles.frames == []
        one.watches.close(watch)
        assert len(one.broker.counts) == 0
        await eventually(lambda: not other.broker.counts._asked, "the answers ended", 8)
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            channels = await client.execute_command("PUBSUB", "SHARDCHANNELS", "*sums*")  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        assert channels == []


async def test_a_customer_who_leaves_while_vendors_are_counted(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that is closed while it is being opened must not be counted until the server restarts."""
    monkeypatch.setattr("streamer.live.counts.AT_ONCE", 1)
    async with Peer(redis_url, "one") as one:
        close(one, 3, HERE)
        await look(one)
        (counted,) = one.broker.counts._keys.values()
        leaving = asyncio.create_task(look(one))
        while counted.refs == 1:  # noqa: ASYNC110  # until the next turn of the loop
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert leaving.cancelled(), "the vendors were counted at once"
        assert (counted.refs, len(counted.watches)) == (1, 1)


async def test_a_question_that_comes_while_others_are_answered(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting yields to messages, such as another process's request."""
    monkeypatch.setattr("streamer.live.counts.AT_ONCE", 1)
    async with Peer(redis_url, "one") as one:
        close(one, 3, HERE)
        counts = one.broker.counts
        keys = [_encode_key(CountsKey(Box(-90, -180, 90, 180), level, False)) for level in (4, 5)]
        counts.on_ask(orjson.dumps(("other", keys[:1])))
        answering = asyncio.create_task(counts._exchange())
        await asyncio.sleep(0)
        counts.on_ask(orjson.dumps(("third", keys[1:])))
        assert not answering.done()
        await answering


async def test_too_many_different_areas(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every further area costs every process; a client gets an error beyond the limit."""
    monkeypatch.setattr("streamer.broker.counts.MOST_KEYS", 1)
    async with Peer(redis_url, "one") as one:
        await look(one)
        with pytest.raises(ProtocolError, match="ask for one again later"):
            await look(one, HALF)


async def test_one_client_does_not_take_all_areas(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client must not use up all watches of counts; ending or moving one makes room."""
    monkeypatch.setattr("streamer.broker.subscriptions.MOST_COUNTED", 2)
    async with Peer(redis_url, "one") as one:

        def wanted(step: int) -> messages.Watch:
            area = {"sw": {"lat": 0, "long": step}, "ne": {"lat": 10, "long": 10 + step}}
            return messages.watch_of({**FIELDS, "area": area}, Bounds())

        watches = [live_watch.Watch("z", Bubbles()) for _ in range(4)]
        for watch in watches[:2]:
            await one.watches.open(watch, wanted(1), "mallory")
        await one.watches.open(watches[0], wanted(2), "mallory")
        with pytest.raises(ProtocolError, match="you already have 2"):
            await one.watches.open(watches[2], wanted(3), "mallory")
        with pytest.raises(ProtocolError, match="you already have 2"):
            await one.watches.groups(wanted(3), "mallory")
        await one.watches.open(watches[3], wanted(4), "alice")
        one.watches.close(watches[0])
        await one.watches.open(watches[2], wanted(3), "mallory")
        for watch in watches:
            one.watches.close(watch)
        assert not one.watches._counts_of


async def test_a_watch_turns_from_vendors_to_counts_and_back(redis_url: str) -> None:
    """Zooming out and in keeps one watch: each form replaces the other."""
    async with Peer(redis_url, "one") as one:
        close(one, 2, HERE)
        bubbles = Bubbles()
        watch = live_watch.Watch("z", bubbles)
        plain: Callable[..., messages.Watch] = lambda **more: messages.watch_of(  # noqa: E731
            {"type": "watch", "id": "z", "area": {"center": {"lat": 52.23, "long": 21.01}, "radius": 5000}, **more},
            Bounds(),
        )
        await one.watches.open(watch, plain(**{"as": "counts"}))
        assert bubbles.totals == (2, 2, 2)
        await one.watches.open(watch, plain(**{"as": "counts", "detail": 16}))
        assert len(one.broker.counts) == 1
        bubbles.write = lambda frame: bubbles.frames.append(frame)  # type: ignore[method-assign]  # it holds vendors now
        await one.watches.open(watch, plain())
        assert len(orjson.loads(bubbles.frames[-1])["vendors"]) == 2
        assert (len(one.broker.counts), len(one.watches)) == (0, 1)
        await one.watches.open(watch, plain(**{"as": "counts"}))
        assert orjson.loads(bubbles.frames[-1])["groups"]
        one.watches.close(watch)
        assert (len(one.broker.counts), len(one.watches)) == (0, 0)
        await asyncio.sleep(0)


@pytest.mark.timeout(60)
async def test_counts_that_cost_too_much_rest(redis_url: str) -> None:
    """A client with many expensive counts gets them less often, with an error; other clients are not affected."""

    class Poor:
        told = 0

        def charge(self, seconds: float) -> float:
            assert seconds > 0
            return 600.0

        def excess(self) -> float:
            return 600.0

        def charge_rest(self, seconds: float) -> None:
            raise AssertionError("counts do not rest")

        def calm(self) -> bool:
            return False

        def slowed(self, watch_id: str, seconds: float) -> None:
            self.told += 1

    async with Peer(redis_url, "one") as one:
        poor, bubbles = Poor(), Bubbles()
        watch = live_watch.Watch("z", bubbles, payer=poor)
        await one.watches.open(watch, messages.watch_of({**FIELDS, "area": HALF}, Bounds()))
        other = await look(one)
        await eventually(lambda: poor.told > 0, "a customer that is told")
        close(one, 3, HERE)
        await other.shows(3, 3, 3)
        assert bubbles.totals == (0, 0, 0)
        assert poor.told == 1, "it is not even counted"
        await (await look(one, HALF)).shows(3, 3, 3)
