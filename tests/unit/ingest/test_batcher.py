"""Group commit: grouping, order, bounds, pacing, outages."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import ErrorCode, Unavailable
from streamer.ingest import batcher as batcher_module
from streamer.ingest.batcher import Batcher, Chunk, Pacing, Rejected, arrival_rate, backoff, commit_gap
from streamer.ingest.copy_rows import RowEncoder

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
    return Chunk("vendor", range(1, count + 1), rows, live, (T0 + count - 1, 52.0, 21.0), settled)


@asynccontextmanager
async def running(storage: Storage, **options: Any) -> AsyncIterator[Batcher]:
    batcher = Batcher(storage, **options)
    batcher.start()
    try:
        yield batcher
    finally:
        await batcher.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # what it waits for is the batcher's own count
            await asyncio.sleep(0.001)


# pacing


@pytest.mark.parametrize(
    ("rate", "waiting", "gap"),
    [
        (0, 1, 0.0),
        (100, 1, 0.0),
        (120, 20, 0.0),
        (145, 1, 0.17),
        (170, 20, 0.34),
        (50_000, 299, 0.34),
        (50_000, 300, 0.0),
    ],
)
def test_the_gap_between_commits(rate: float, waiting: int, gap: float) -> None:
    """Too short a gap burns the database's CPU in commits, too long a one delays acks."""
    assert commit_gap(rate, waiting, Pacing()) == pytest.approx(gap)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 10**6))
def test_the_gap_grows_with_the_rate_and_is_bounded(slower: float, faster: float, waiting: int) -> None:
    """An ack that waits for longer the more the server idles, or without an end, would be absurd."""
    pacing = Pacing()
    gaps = [commit_gap(rate, waiting, pacing) for rate in sorted((slower, faster))]
    assert 0.0 <= gaps[0] <= gaps[1] <= pacing.longest


@given(st.integers(1, 115), st.floats(0, 100))
def test_evenly_spaced_pings_never_wait(per_second: int, before: float) -> None:
    """At a hundred pings a second the server has time: an ack is one commit away, from the first ping on."""
    rate = before
    for _ in range(3 * per_second):
        rate = arrival_rate(rate, 1, 1 / per_second)
        assert commit_gap(rate, 1, Pacing()) == 0.0


@given(st.floats(1, 1e5), st.floats(0, 1e5), st.floats(0.001, 1))
def test_the_rate_is_what_arrives(per_second: float, before: float, every: float) -> None:
    """A rate that follows too slowly holds back the acks of a quiet server after a busy time."""
    rate = before
    for _ in range(int(10 / every)):
        rate = arrival_rate(rate, per_second * every, every)  # type: ignore[arg-type]  # a fraction of a ping is fine
    assert rate == pytest.approx(per_second, rel=0.01, abs=0.1)
    assert arrival_rate(rate, 0, 60.0) < 1
    assert arrival_rate(5.0, 1, 0.0) == 7.0


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_wait_before_another_attempt_is_bounded(attempt: int, chance: float) -> None:
    """A server that comes back must be noticed soon, however long it was away."""
    assert 0.025 <= backoff(attempt, chance) <= 2.0
    assert backoff(attempt, 1.0) <= backoff(attempt, chance) <= backoff(attempt, 0.0)


async def test_many_small_pings_share_commits() -> None:
    """A thousand commits a second for a thousand pings would cost more than the pings."""
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


async def test_what_was_held_back_goes_with_the_batch() -> None:
    """A ping that was not read because of the gap must not wait for a second one."""
    storage, settled = Storage(), Settled()
    held: list[Chunk] = []

    def before() -> bool:
        loop, taken = asyncio.get_running_loop(), held.copy()
        held.clear()
        for one in taken:
            loop.call_soon(batcher.offer, one)  # taken in by tasks, as messages are
        return bool(taken)

    async with running(storage, before=before) as batcher:
        first, second = chunk(settled=settled), chunk(2, settled=settled)
        held.append(second)
        assert batcher.offer(first)
        await until(lambda: len(settled.chunks) == 2)
        assert storage.batches == [[first, second]]


async def test_when_the_next_commit_may_be() -> None:
    """Who reads pings together goes by this: it has passed on a quiet server, on a busy one it is a gap away."""
    storage, now = Storage(), 1000.0
    async with running(storage, clock=lambda: now) as batcher:
        assert batcher.next < now
        for count, gap in ((10, 0.0), (250, Pacing().longest)):
            now += 1.0
            for _ in range(count):
                assert batcher.offer(chunk())
            await until(lambda: not batcher.pings)
            assert batcher.next == pytest.approx(now + gap)


async def test_one_session_alone_is_not_held_up() -> None:
    """An app that sends as fast as it is acked has the server to itself: a gap would only make it stand still."""
    storage, now = Storage(), 1000.0
    async with running(storage, clock=lambda: now) as batcher:
        for _ in range(10):
            now += 0.1
            first, more = chunk(), chunk()
            assert batcher.offer(first)
            for _ in range(99):
                assert batcher.join(first, more.seqs, bytes(more.rows), more.newest)
            await until(lambda: not batcher.pings)
            assert batcher.next <= now
    assert storage.sizes == [100] * 10, "a thousand pings a second"


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
        assert (batcher.pings, batcher.bytes, batcher.last_batch, batcher.batches) == (0, 0, 5, 2)
        assert batcher.settled_pings == 6


async def test_live_pings_go_ahead_of_a_backlog_which_does_not_starve() -> None:
    """A vendor who was offline for an hour must not delay the acks of those on the road, nor wait for ever."""
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


async def test_a_batch_is_bounded_but_a_large_chunk_goes() -> None:
    """One COPY must not hold everything up, and a message larger than a batch must not wait for ever."""
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
    """Without the bound an outage fills the memory; without the order a session waits for ever."""
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


async def test_a_chunk_larger_than_the_buffer_goes_alone() -> None:
    """It could never fit, and its session would hang."""
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
            each = Chunk(encoder.vendor_id, seqs, encoder.encode(pings), True, pings[-1], settled.__call__)
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


async def test_an_error_nobody_expected_is_loud_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in storing must be seen, and must not cost the pings it met."""
    monkeypatch.setattr(batcher_module, "backoff", lambda attempt, chance: 0.001)
    storage, settled, faults = Storage(), Settled(), list[BaseException]()
    storage.errors = [KeyError("bug")]
    async with running(storage, faulted=faults.append) as batcher:
        batcher.offer(chunk(settled=settled))
        await until(lambda: len(settled.chunks) == 1)
        assert [repr(fault) for fault in faults] == ["KeyError('bug')"]
        assert storage.retries == [False, True]


async def test_rejected_pings_are_told_by_seq() -> None:
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
    """One broken session would end storage for all."""
    storage, settled, faults = Storage(), Settled(), list[BaseException]()

    def broken(chunk: Chunk, rejected: Rejected) -> None:
        raise ConnectionResetError("gone")

    async with running(storage, faulted=faults.append) as batcher:
        batcher.offer(chunk(settled=broken))
        batcher.offer(chunk(settled=settled))
        assert await batcher.drain(10)
        assert len(settled.chunks) == 1
        assert len(faults) == 1
        assert batcher.pings == 0


async def test_the_storing_task_is_started_again_when_it_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that died in silence would leave every app without acks until somebody looks."""
    monkeypatch.setattr(batcher_module, "RESTART_AFTER", 0.001)
    storage, settled, faults = Storage(), Settled(), list[BaseException]()
    async with running(storage, faulted=faults.append) as batcher:
        storage.open.clear()
        first, second = chunk(settled=settled), chunk(2, settled=settled)
        batcher.offer(first)
        await until(lambda: len(storage.batches) == 1)
        [lane] = [task for task in asyncio.all_tasks() if task.get_name() == "batcher"]
        lane.cancel()
        await until(lambda: batcher.deaths == 1)
        batcher.offer(second)
        storage.open.set()
        await until(lambda: len(settled.chunks) == 2)
        assert settled.chunks == [first, second]
        # it may have been stored before the death
        assert storage.retries[:2] == [False, True]
        assert len(faults) == 1
        assert batcher.pings == 0


# stopping


async def test_a_drain_waits_for_all_within_its_bound() -> None:
    """An orderly stop must store what was read, but must end when PostgreSQL is away."""
    storage, settled = Storage(), Settled()
    storage.open.clear()
    batcher = Batcher(storage)
    batcher.start()
    assert await batcher.drain(0.01)
    batcher.offer(chunk(settled=settled))
    assert not await batcher.drain(0.01)
    storage.open.set()
    assert await batcher.drain(10)
    assert len(settled.chunks) == 1
    assert storage.sizes == [1]
    await batcher.close()


async def test_after_closing_nothing_is_taken_and_nobody_waits() -> None:
    """A session would wait for ever for room in a buffer that nobody empties."""
    storage, settled = Storage(), Settled()
    storage.open.clear()
    batcher = Batcher(storage, max_pings=1)
    batcher.start()
    batcher.offer(chunk(settled=settled))
    put = asyncio.create_task(batcher.put(chunk(settled=settled)))
    await asyncio.sleep(0.01)
    await batcher.close()
    with pytest.raises(Unavailable):
        await put
    assert not batcher.offer(chunk())
    with pytest.raises(Unavailable):
        await batcher.put(chunk())
    assert settled.chunks == []
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "batcher"]
