"""The ticker: what is wrong here makes customers wait for news, or the server work for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import orjson
import pytest
import pytest_asyncio

from streamer.live.fix import Fix
from streamer.live.index import FEW, Card, LiveIndex, Presence, ViewKey, Watch
from streamer.live.ticker import STOOD_STILL, Ticker, pause
from tests.support.apps import eventually

OFFLINE = 1_000
LEAVE = 3_000
START = 1_000_000_000


class Client:
    """A customer, by what it got."""

    def __init__(self) -> None:
        self.open = True
        self.types: list[str] = []
        self.timestamps: list[int] = []
        """Of the newest fix in each update."""

    def framing(self, payload: bytes) -> bytes:
        return payload

    def ready(self) -> bool:
        return self.open

    def write(self, frame: bytes) -> None:
        message = orjson.loads(frame)
        self.types.append(message["type"])
        self.timestamps += [fix["timestamp"] for fix in message.get("moved", ())]


class Stage:
    """A vendor, a client that watches it, and a ticker at work; a frame costs as long a gap as the test wants."""

    def __init__(self, gap: float = 0.0) -> None:
        self.now = START
        self.index = LiveIndex("me", offline_after=OFFLINE, leave_after=LEAVE)
        self.client = Client()
        self.watch = Watch("w", self.client)
        self.held: list[Callable[[], None]] = []
        self.ticker = Ticker(self.index, lambda: self.now, frame_cost=gap, frame_interval=gap, before=self.take_held)
        self.departed: list[str] = []
        self.index.put_card("v", Card(START, "V", True, None), START)
        self.index.put_presence("v", Presence(START, "me", 0), START)
        self.index.put_fix("v", Fix(START, 52.0, 21.0), START)
        self.index.tick(START)
        # More than the few who are told without a gap.
        for watch in (self.watch, *(Watch("w", Client()) for _ in range(FEW))):
            self.index.watch(watch, ViewKey(None, frozenset({"v"}), False), START)
        self.tasks = [
            asyncio.create_task(self.ticker.run()),
            asyncio.create_task(self.ticker.expire(self.departed.extend)),
        ]

    def move(self) -> None:
        self.now += 1
        self.index.put_fix("v", Fix(self.now, 52.0, 21.0), self.now)
        self.ticker.changed()

    def take_held(self) -> bool:
        """What was held back is taken in by tasks, as messages are."""
        held, self.held = self.held, []
        for change in held:
            asyncio.get_running_loop().call_soon(change)
        return bool(held)

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
    """With a gap of a minute, longer than any test."""
    stage = Stage(60_000.0)
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
    assert (slow.ticker.ticks, slow.ticker.frames) == (1, 1 + FEW)


async def test_changes_in_a_gap_are_merged(slow: Stage) -> None:
    """After a tick that wrote frames, changes are gathered."""
    slow.move()
    await turns()
    for _ in range(10):
        slow.move()
        await turns()
    assert slow.client.types == ["snapshot", "update"]


async def test_the_gap_ends(stage: Stage) -> None:
    """What was gathered goes out without another change."""
    for _ in range(3):
        stage.move()
        await turns()
    await eventually(lambda: not stage.index.has_changes, "what was gathered told")
    assert len(stage.client.types) >= 2
    ticks = stage.ticker.ticks
    await asyncio.sleep(0.1)
    assert stage.ticker.ticks == ticks, "ticks although nothing changes"


async def test_what_was_held_back_comes_with_the_tick() -> None:
    """Pings that were not read because of the gap are in the frame that ends it, not in the one after."""
    stage = Stage(500.0)
    try:
        stage.move()
        await eventually(lambda: stage.ticker.ticks == 1, "the first tick")
        stage.move()
        stage.held = [stage.move, stage.move]
        await eventually(lambda: stage.ticker.ticks > 1, "the next tick")
        assert not stage.held
        assert not stage.index.has_changes
        assert stage.client.timestamps[-1] == stage.now
        assert stage.client.types == ["snapshot", "update", "update"]
    finally:
        await stage.end()


@pytest.mark.parametrize(
    ("gap", "took", "left"),
    [(0.0, 0.5, 0.0), (0.17, 0.0, 0.17), (0.17, 0.05, 0.12), (0.17, 0.15, 0.075), (0.17, 0.9, 0.17)],
)
def test_the_pause_after_a_tick(gap: float, took: float, left: float) -> None:
    """Long ticks must not come on top of the gap, nor take the loop from everybody else."""
    assert pause(gap, took) == pytest.approx(left)


async def test_ticks_that_write_nothing_leave_no_gap(slow: Stage) -> None:
    """A process nobody watches is as quick for the first customer."""
    slow.index.unwatch(slow.watch)
    for ticks in range(1, 4):
        slow.move()
        await turns()
        assert slow.ticker.ticks == ticks


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


async def test_time_passes(stage: Stage) -> None:
    """Vendors go offline and leave though nobody reports anything, and their departure is told."""
    stage.index.put_presence("v", Presence(START, "me", START), START)
    stage.now += OFFLINE
    await eventually(lambda: len(stage.client.types) == 2, "a second message")
    assert stage.departed == []
    stage.now += LEAVE
    await eventually(lambda: len(stage.client.types) == 3, "a third message")
    assert stage.departed == ["v"]


async def test_a_process_that_was_suspended(stage: Stage) -> None:
    """After a minute's standstill the other processes are heard again, not given up: none of their vendors flickers."""
    stage.index.owner_heard("other", stage.now, stage.now)
    stage.index.put_presence("v", Presence(stage.now + 1, "other", 0), stage.now)
    await asyncio.sleep(0.6)
    stage.now += max(OFFLINE + LEAVE, STOOD_STILL) * 2
    await asyncio.sleep(0.7)
    assert stage.client.types == ["snapshot"]
    assert stage.index.vendors["v"].online
    stage.now += OFFLINE
    await eventually(lambda: len(stage.client.types) > 1, "a second message")
    assert not stage.index.vendors["v"].online
