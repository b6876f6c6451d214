"""The ticker: an error here makes customers wait for updates, or the server work for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
import pytest_asyncio

from streamer.cadence import Cadence, Pace
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.ticker import SUSPENDED, Ticker
from streamer.live.vendor import Card, Presence
from streamer.live.view import ViewKey
from streamer.live.watch import Watch
from tests.support.apps import eventually

HOUR = 3_600_000
OFFLINE = 1_000
LEAVE = 3_000
START = 1_000_000_000


class Client:
    """A customer, by what it got."""

    def __init__(self) -> None:
        self.open = True
        self.types: list[str] = []

    def framing(self, payload: bytes) -> bytes:
        return payload

    def ready(self) -> bool:
        return self.open

    def write(self, frame: bytes) -> None:
        self.types.append(orjson.loads(frame)["type"])


class Stage:
    """A vendor, a client that watches it, and a ticker whose ticks are as far apart as the test wants, in seconds."""

    def __init__(self, gap: float = 0.0) -> None:
        self.now = START
        self.index = LiveIndex("me", offline_after=OFFLINE, leave_after=LEAVE)
        self.client = Client()
        self.watch = Watch("w", self.client)
        self.ticker = Ticker(self.index, lambda: self.now, Cadence(Pace(share=1.0, floor=gap, ceiling=gap)))
        self.expired: list[str] = []
        self.index.put_card("v", Card(START, "V", True, None), START)
        self.index.put_presence("v", Presence(START, "me", 0), START)
        self.index.put_fix("v", Fix(START, 52.0, 21.0, None, None), START)
        self.index.tick(START)
        self.index.watch(self.watch, ViewKey(None, frozenset({"v"}), False), START)
        self.tasks = [
            asyncio.create_task(self.ticker.run()),
            asyncio.create_task(self.ticker.expire(self.expired.extend)),
        ]

    def move(self) -> None:
        self.now += 1
        self.index.put_fix("v", Fix(self.now, 52.0, 21.0, None, None), self.now)
        self.ticker.changed()

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks, timeout=5)


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    await stage.end()


@pytest_asyncio.fixture
async def slow() -> AsyncIterator[Stage]:
    """With a minute between two ticks, longer than any test."""
    stage = Stage(60.0)
    yield stage
    await stage.end()


async def turns(count: int = 5) -> None:
    """Let the loop go round without waiting for anything."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_at_once_after_a_quiet_time(slow: Stage) -> None:
    """When nothing waits, the first change goes out in the same moment."""
    await turns()
    assert slow.ticker.ticks == 0
    slow.move()
    await turns()
    assert slow.client.types == ["snapshot", "update"]
    assert (slow.ticker.ticks, slow.ticker.frames) == (1, 1)


async def test_changes_between_two_ticks_are_merged(slow: Stage) -> None:
    """A server that sent each change of a busy minute by itself would be overloaded."""
    slow.move()
    await turns()
    for _ in range(10):
        slow.move()
        await turns()
    assert slow.client.types == ["snapshot", "update"]


async def test_snapshots_that_go_on_make_no_change_wait(slow: Stage) -> None:
    """Clients that watch more than they may would make everybody's positions late, tick by tick."""
    await turns()
    slow.ticker.changed()
    await eventually(lambda: slow.ticker.ticks == 1, "a tick without changes")
    slow.move()
    await turns()
    assert slow.client.types == ["snapshot", "update"]


async def test_merged_changes_go_out(stage: Stage) -> None:
    """What was gathered goes out without another change."""
    for _ in range(3):
        stage.move()
        await turns()
    await eventually(lambda: not stage.index.has_changes, "the merged changes sent")
    assert len(stage.client.types) >= 2
    ticks = stage.ticker.ticks
    await asyncio.sleep(0.1)
    assert stage.ticker.ticks == ticks, "ticks although nothing changes"


async def test_a_client_that_wakes_up(stage: Stage) -> None:
    """What waits for a slow client goes out when it can take it, though nothing changes any more."""
    stage.client.open = False
    stage.move()
    await turns()
    assert stage.client.types == ["snapshot"]
    stage.client.open = True
    await eventually(lambda: len(stage.client.types) == 2, "a second message")


async def test_an_interval(stage: Stage) -> None:
    """A watch with an interval gets what came meanwhile when its time is there."""
    stage.watch.interval = 500
    stage.move()
    await turns()
    stage.move()
    await turns()
    assert stage.client.types == ["snapshot", "update"]
    stage.now += 500
    await eventually(lambda: len(stage.client.types) == 3, "a third message")


async def test_after_a_tick_that_failed(stage: Stage) -> None:
    """The next run sends the snapshots that make up for it, though no vendor moves any more."""

    def broken(frame: bytes) -> None:
        del stage.client.write
        raise RuntimeError("broken")

    stage.client.write = broken  # type: ignore[method-assign]  # that is the fault
    stage.move()
    with pytest.raises(RuntimeError, match="broken"):
        await stage.tasks[0]
    stage.tasks[0] = asyncio.create_task(stage.ticker.run())
    await eventually(lambda: stage.client.types == ["snapshot", "snapshot"], "another snapshot")


async def test_time_passes(stage: Stage) -> None:
    """Vendors go offline and leave without any report, and their departure is reported."""
    stage.index.put_presence("v", Presence(START, "me", START), START)
    stage.now += OFFLINE
    await eventually(lambda: len(stage.client.types) == 2, "a second message")
    assert stage.expired == []
    stage.now += LEAVE
    await eventually(lambda: len(stage.client.types) == 3, "a third message")
    assert stage.expired == ["v"]


async def test_a_clock_that_is_set_back(stage: Stage) -> None:
    """A process that dies soon afterwards must be found dead as fast as ever, or its vendors would stay for an hour."""
    stage.index.owner_heard("other", stage.now, stage.now)
    early = stage.now - HOUR + 1
    stage.index.put_card("w", Card(early, "W", True, None), stage.now)
    stage.index.put_presence("w", Presence(early, "other", 0), stage.now)
    stage.index.put_fix("w", Fix(early, 52.0, 21.0), stage.now)
    await asyncio.sleep(0.6)
    stage.now = early
    await asyncio.sleep(0.7)
    assert stage.index.vendors["w"].online
    stage.now += OFFLINE
    await eventually(lambda: not stage.index.vendors["w"].online, "the vendor offline")


async def test_a_process_that_was_suspended(stage: Stage) -> None:
    """After a minute's standstill the other processes are heard again, not given up: none of their vendors flickers."""
    stage.index.owner_heard("other", stage.now, stage.now)
    stage.index.put_presence("v", Presence(stage.now + 1, "other", 0), stage.now)
    await asyncio.sleep(0.6)
    stage.now += max(OFFLINE + LEAVE, SUSPENDED) * 2
    await asyncio.sleep(0.7)
    assert stage.client.types == ["snapshot"]
    assert stage.index.vendors["v"].online
    stage.now += OFFLINE
    await eventually(lambda: len(stage.client.types) > 1, "a second message")
    assert not stage.index.vendors["v"].online
