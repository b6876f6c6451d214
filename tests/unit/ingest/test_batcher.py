"""Group commit: grouping, order, bounds, pacing, outages."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from streamer.cadence import Cadence, Pace
from streamer.errors import ErrorCode, Unavailable
from streamer.ingest import batcher as batcher_module
from streamer.ingest.batcher import WORTHWHILE, Batch, Batcher, Chunk, Rejected, backoff
from streamer.ingest.copy_rows import RowEncoder
from streamer.ingest.position import Position
from streamer.supervisor import Supervisor

T0 = 1732467600000


class Storage:
    """A store that can be held, fail, and reject; it keeps what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[Chunk]] = []
        self.retries: list[bool] = []
        self.errors: list[BaseException] = []
        self.rejected: dict[Chunk, Rejected] = {}
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, chunks: list[Chunk], retry: bool) -> Mapping[Chunk, Rejected]:
        self.batches.append(list(chunks))
        self.retries.append(retry)
        await self.open.wait()
        if self.errors:
            raise self.errors.pop(0)
        return {chunk: self.rejected[chunk] for chunk in chunks if chunk in self.rejected}

    @property
    def sizes(self) -> list[int]:
        return [sum(chunk.count for chunk in batch) for batch in self.batches]


class Settled:
    """Which chunks were settled, in their order, and with what."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.rejected: list[Rejected] = []

    def __call__(self, chunk: Chunk, rejected: Rejected) -> None:
        self.chunks.append(chunk)
        self.rejected.append(rejected)


def chunk(
    count: int = 1, *, live: bool = True, settled: Callable[[Chunk, Rejected], None] = lambda chunk, rejected: None
) -> Chunk:
    encoder = RowEncoder("vendor")
    rows = encoder.encode([(T0 + n, 52.0, 21.0) for n in range(count)])
    return Chunk("vendor", range(1, count + 1), rows, live, Position(T0 + count - 1, 52.0, 21.0), settled)


@asynccontextmanager
async def running(storage: Storage, **options: Any) -> AsyncIterator[Batcher]:
    batcher, supervisor = Batcher(storage, **options), Supervisor()
    supervisor.start({"batcher": batcher.run})
    try:
        yield batcher
    finally:
        batcher.close()
        await supervisor.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # what it waits for is the batcher's own count
            await asyncio.sleep(0.001)


# pacing


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_wait_before_another_attempt_is_bounded(attempt: int, chance: float) -> None:
    """A server that comes back must be noticed soon, however long it was away."""
    assert 0.025 <= backoff(attempt, chance) <= 2.0
    assert backoff(attempt, 1.0) <= backoff(attempt, chance) <= backoff(attempt, 0.0)


async def test_many_small_pings_share_commits() -> None:
    """Otherwise a thousand commits a second for a thousand pings would cost more than the pings."""
    storage, settled = Storage(), Settled()
    async with running(storage) as batcher:
        offered = 0
        for _ in range(150):
            for _ in range(5):
                assert batcher.offer(chunk(settled=settled))
                offered += 1
            await asyncio.sleep(0.001)
        assert await batcher.drain(10)
    assert len(settled.chunks) == offered
    assert len(storage.batches) < offered / 10


async def test_a_ping_waits_for_the_cadence_but_a_worthwhile_batch_does_not() -> None:
    """Acks that wait although a full batch is there slow down a fleet that uploads what it collected offline."""
    storage = Storage()
    hours = Cadence(Pace(share=1.0, floor=3600.0, ceiling=3600.0))
    async with running(storage, cadence=hours) as batcher:
        assert batcher.offer(chunk())
        await until(lambda: storage.sizes == [1])
        first, more = chunk(), chunk()
        assert batcher.offer(first)
        await asyncio.sleep(0.02)
        assert storage.sizes == [1], "held back"
        for _ in range(WORTHWHILE - 1):
            assert batcher.join(first, more.seqs, bytes(more.rows), more.newest)
        await until(lambda: storage.sizes == [1, WORTHWHILE])


# grouping and order


async def test_an_idle_server_commits_at_once_and_then_all_that_came_meanwhile() -> None:
    """What waits for one commit goes with the next, in the order of offering, and is settled once."""
    storage, settled = Storage(), Settled()
    async with running(storage) as batcher:
        storage.open.clear()
        chunks = [chunk(n, settled=settled) for n in (1, 2, 3)]
        assert batcher.offer(chunks[0])
        await until(lambda: len(storage.batches) == 1)
        assert batcher.offer(chunks[1])
        assert batcher.offer(chunks[2])
        await asyncio.sleep(0.01)
        assert (batcher.pings, settled.chunks) == (6, [])
        storage.open.set()
        await until(lambda: len(settled.chunks) == 3)
        assert storage.batches == [chunks[:1], chunks[1:]]
        assert settled.chunks == chunks
        assert settled.rejected == [{}, {}, {}]
        assert storage.retries == [False, False]
        assert (batcher.pings, batcher.bytes) == (0, 0)
        assert batcher.settled_pings == 6


async def test_live_pings_go_ahead_of_a_backlog_which_does_not_starve() -> None:
    """A vendor that was offline for an hour must not delay the acks of live vendors, nor wait forever."""
    storage = Storage()
    async with running(storage, batch_pings=100) as batcher:
        storage.open.clear()
        batcher.offer(chunk())
        await until(lambda: len(storage.batches) == 1)
        backlog = [chunk(10, live=False) for _ in range(6)]
        live = [chunk(5) for _ in range(40)]
        for each in (*backlog, *live):
            assert batcher.offer(each)
        storage.open.set()
        assert await batcher.drain(10)
        for batch in storage.batches[1:]:
            # fresh pings first, and no more than a quarter of old ones
            assert [each.live for each in batch] == sorted((each.live for each in batch), reverse=True)
            assert sum(each.count for each in batch if not each.live) <= 25
        assert [each for each in storage.batches[1] if not each.live] == backlog[:2]
        assert [each for batch in storage.batches[1:] for each in batch if not each.live] == backlog
        assert [each for batch in storage.batches[1:] for each in batch if each.live] == live


async def test_a_batch_is_bounded_except_for_one_large_chunk() -> None:
    """One COPY must not block everything, and a message larger than a batch must not wait forever."""
    storage = Storage()
    async with running(storage, batch_pings=100) as batcher:
        storage.open.clear()
        for count in (1, 60, 60, 500, 60):
            assert batcher.offer(chunk(count))
            await asyncio.sleep(0.005)
        batcher.offer(chunk(400, live=False))
        storage.open.set()
        assert await batcher.drain(10)
        assert storage.sizes == [1, 60 + 400, 60, 500, 60]


# bounds


async def test_a_full_buffer_refuses_and_then_admits_in_order() -> None:
    """Without the bound an outage fills the memory; without the order a session waits forever."""
    storage, settled = Storage(), Settled()
    async with running(storage, max_pings=10) as batcher:
        storage.open.clear()
        assert batcher.offer(chunk(6))
        assert not batcher.offer(chunk(5))
        big, small = chunk(9, settled=settled), chunk(1, settled=settled)
        puts = [asyncio.create_task(batcher.put(each)) for each in (big, small)]
        await asyncio.sleep(0.01)
        assert batcher.full
        assert not any(put.done() for put in puts)
        # there is room for this one, but others came first
        assert not batcher.offer(chunk(1))
        assert batcher.pings == 6
        storage.open.set()
        await asyncio.gather(*puts)
        await until(lambda: len(settled.chunks) == 2)
        assert settled.chunks == [big, small]
        assert batcher.offer(chunk(10))


async def test_a_put_given_up_lets_the_next_through() -> None:
    """A session that ends while it waits must not block those behind it, nor leave its pings in the buffer."""
    storage, settled = Storage(), Settled()
    async with running(storage, max_pings=10) as batcher:
        storage.open.clear()
        assert batcher.offer(chunk(6))
        gone = asyncio.create_task(batcher.put(chunk(9, settled=settled)))
        await asyncio.sleep(0)
        small = chunk(4, settled=settled)
        next_one = asyncio.create_task(batcher.put(small))
        await asyncio.sleep(0.01)
        gone.cancel()
        await next_one
        storage.open.set()
        assert await batcher.drain(10)
        assert settled.chunks == [small]


@pytest.mark.parametrize(("count", "live"), [(80, False), (95, False), (150, False), (150, True)])
async def test_a_large_chunk_gets_room_under_steady_load(count: int, live: bool) -> None:
    """The buffer is never empty, and never has room for it beside the others: its vendor would wait forever."""
    storage, now = Storage(), [0.0]
    async with running(storage, max_pings=100, clock=lambda: now[0]) as batcher:
        storage.open.clear()
        assert batcher.offer(chunk(20))
        await until(lambda: len(storage.batches) == 1)
        larges, others = [chunk(count, live=live) for _ in range(3)], [chunk(20, live=not live) for _ in range(40)]
        puts = [asyncio.create_task(batcher.put(each)) for each in larges]
        for number, other in enumerate(others, 2):
            puts.append(asyncio.create_task(batcher.put(other)))
            await asyncio.sleep(0)
            assert batcher.pings <= max(100, count)
            now[0] += 0.25
            storage.open.set()
            storage.open.clear()  # only what is in flight is stored
            await until(lambda number=number: len(storage.batches) == number)  # type: ignore[misc]
        assert all(each.admitted for each in larges)
        # Nor do the others wait for several of them.
        order = [each in larges for batch in storage.batches for each in batch]
        assert live or (True, True) not in list(pairwise(order))
        storage.open.set()
        await asyncio.gather(*puts)


async def test_a_large_chunk_that_is_given_up_lets_the_others_through() -> None:
    """Its vendor disconnects while room is kept for it."""
    storage, now = Storage(), [0.0]
    async with running(storage, max_pings=100, clock=lambda: now[0]) as batcher:
        storage.open.clear()
        assert batcher.offer(chunk(20))
        await until(lambda: len(storage.batches) == 1)
        large = asyncio.create_task(batcher.put(chunk(150, live=False)))
        await asyncio.sleep(0)
        assert batcher.offer(chunk(20))
        now[0] += 5
        storage.open.set()
        storage.open.clear()
        await until(lambda: len(storage.batches) == 2)
        other = asyncio.create_task(batcher.put(chunk(20)))
        await asyncio.sleep(0)
        assert not other.done()
        large.cancel()
        await other
        storage.open.set()


async def test_a_chunk_larger_than_the_buffer_is_stored_alone() -> None:
    """It would otherwise never fit, and its session would hang."""
    storage = Storage()
    async with running(storage, max_pings=10) as batcher:
        await batcher.put(chunk(50))
        assert await batcher.drain(10)
    assert storage.sizes == [50]


@pytest.mark.parametrize("count", [1, 20, 500])
def test_memory_stays_within_the_bound(count: int) -> None:
    """`buffer_bytes` is what an operator sizes a machine by."""
    most = 2 << 20
    batcher = Batcher(Storage(), max_pings=10**9, max_bytes=most)
    encoder = RowEncoder("cm3xk2p4q000008l4h2v9e1zd")
    settled = Settled()
    tracemalloc.start()
    try:
        while True:
            pings = [(T0 + n * 1000, 52.0 + n, 21.0 + n) for n in range(count)]
            seqs = [10**6 + n for n in range(count)]
            each = Chunk(encoder.vendor_id, seqs, encoder.encode(pings), True, Position(*pings[-1]), settled.__call__)
            if not batcher.offer(each):
                break
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert most / 2 < used <= most * 1.1


async def test_the_oldest_wait_is_seen() -> None:
    """Alerts on ack latency go by it, also while nothing can be stored."""
    now = 100.0
    storage = Storage()
    storage.open.clear()
    async with running(storage, clock=lambda: now) as batcher:
        assert batcher.oldest_wait == 0
        batcher.offer(chunk())
        await until(lambda: len(storage.batches) == 1)
        now = 107.0
        batcher.offer(chunk(live=False))
        assert batcher.oldest_wait == 7.0
        storage.open.set()
        assert await batcher.drain(10)
        assert batcher.oldest_wait == 0


# outages and faults


async def test_an_outage_leaves_two_lines_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each attempt would fill the disk; without any line the cause would be unknown."""
    monkeypatch.setattr(batcher_module, "backoff", lambda attempt, chance: 0.001)
    storage = Storage()
    storage.errors = [Unavailable(f"away {n}") for n in range(5)]
    with capture_logs() as logged:
        async with running(storage) as batcher:
            batcher.offer(chunk(3))
            assert await batcher.drain(10)
            batcher.offer(chunk())
            assert await batcher.drain(10)
    first, second = [line for line in logged if line["log_level"] in ("info", "warning")]
    assert (first["log_level"], first["cause"], first["pings"]) == ("warning", "away 0", 3)
    assert (second["log_level"], second["pings"]) == ("info", 3)


async def test_an_outage_settles_nothing_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ack before the commit is known is a lie; a batch dropped is a hole in the history."""
    monkeypatch.setattr(batcher_module, "backoff", lambda attempt, chance: 0.001)
    storage, settled = Storage(), Settled()
    storage.errors = [Unavailable(f"away {n}") for n in range(5)]
    async with running(storage) as batcher:
        first = chunk(3, settled=settled)
        batcher.offer(first)
        await until(lambda: batcher.retries == 2)
        assert settled.chunks == []
        assert batcher.outage is not None
        assert batcher.outage.startswith("away")
        assert batcher.pings == 3
        await until(lambda: settled.chunks == [first])
        # every attempt after the first may find the pings stored already
        assert storage.retries == [False] + [True] * 5
        assert batcher.retries == 5
        assert batcher.outage is batcher.fault is None
        batcher.offer(chunk())
        assert await batcher.drain(10)
        assert storage.retries[-1] is False


async def test_an_unexpected_error_is_logged_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in storing must be seen, and must not cost the pings it met."""
    monkeypatch.setattr(batcher_module, "backoff", lambda attempt, chance: 0.001)
    storage, settled = Storage(), Settled()
    storage.errors = [KeyError("bug")]
    with capture_logs() as logged:
        async with running(storage) as batcher:
            batcher.offer(chunk(settled=settled))
            await until(lambda: len(settled.chunks) == 1)
        assert [line["error"] for line in logged] == ["KeyError('bug')"]
        assert storage.retries == [False, True]


async def test_rejected_pings_are_identified_by_seq() -> None:
    """The app must learn which ping will never be stored; a vendor's position must not come from it."""
    storage, settled, stored = Storage(), Settled(), list[Chunk]()
    bad, good = chunk(3, settled=settled), chunk(1, settled=settled)
    storage.rejected[bad] = {2: (ErrorCode.INTERNAL, "no")}
    async with running(storage, stored=stored.append) as batcher:
        batcher.offer(bad)
        batcher.offer(good)
        assert await batcher.drain(10)
        assert settled.rejected == [{2: (ErrorCode.INTERNAL, "no")}, {}]
        assert stored == [good]
        assert batcher.rejected_pings == 1


async def test_a_session_that_fails_to_settle_harms_no_other() -> None:
    """One broken session must not end the storing for all."""
    storage, settled = Storage(), Settled()

    def broken(chunk: Chunk, rejected: Rejected) -> None:
        raise ConnectionResetError("gone")

    async with running(storage) as batcher:
        batcher.offer(chunk(settled=broken))
        batcher.offer(chunk(settled=settled))
        assert await batcher.drain(10)
        assert len(settled.chunks) == 1
        assert batcher.pings == 0
        assert batcher.fault is not None


async def test_a_batch_that_fails_to_be_traced_keeps_nobody_waiting() -> None:
    """The session that waits for the room of this batch would wait forever."""

    def broken(batch: Batch) -> None:
        raise RuntimeError("no exporter")

    storage = Storage()
    async with running(storage, max_pings=10, traced=broken) as batcher:
        storage.open.clear()
        assert batcher.offer(chunk(10))
        await until(lambda: bool(storage.batches))
        put = asyncio.create_task(batcher.put(chunk(10)))
        await asyncio.sleep(0)
        storage.open.set()
        async with asyncio.timeout(10):
            await put
        assert await batcher.drain(10)
        assert batcher.fault == "RuntimeError('no exporter')"


async def test_the_storing_task_may_die_and_be_started_again() -> None:
    """A task that died silently would leave every app without acks."""
    storage, settled = Storage(), Settled()
    async with running(storage) as batcher:
        storage.open.clear()
        first, second = chunk(settled=settled), chunk(2, settled=settled)
        batcher.offer(first)
        await until(lambda: len(storage.batches) == 1)
        [lane] = [task for task in asyncio.all_tasks() if task.get_name() == "batcher"]
        lane.cancel()
        await until(lane.done)
        batcher.offer(second)
        storage.open.set()
        await until(lambda: len(settled.chunks) == 2)
        assert settled.chunks == [first, second]
        # it may have been stored before the death
        assert storage.retries[:2] == [False, True]
        assert batcher.pings == 0


# stopping


async def test_a_drain_waits_for_all_within_its_bound() -> None:
    """An orderly stop must store what was read, but must end when PostgreSQL is away."""
    storage, settled = Storage(), Settled()
    storage.open.clear()
    async with running(storage) as batcher:
        assert await batcher.drain(0.01)
        batcher.offer(chunk(settled=settled))
        assert not await batcher.drain(0.01)
        storage.open.set()
        assert await batcher.drain(10)
    assert len(settled.chunks) == 1
    assert storage.sizes == [1]


async def test_a_closed_batcher_accepts_nothing_and_wakes_those_waiting() -> None:
    """Otherwise a session would wait forever for room in a buffer that is not emptied any more."""
    storage, settled = Storage(), Settled()
    storage.open.clear()
    async with running(storage, max_pings=1) as batcher:
        batcher.offer(chunk(settled=settled))
        put = asyncio.create_task(batcher.put(chunk(settled=settled)))
        await asyncio.sleep(0.01)
        batcher.close()
        with pytest.raises(Unavailable):
            await put
        assert not batcher.offer(chunk())
        with pytest.raises(Unavailable):
            await batcher.put(chunk())
    assert settled.chunks == []
