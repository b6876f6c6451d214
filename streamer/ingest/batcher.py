"""Group commit: take all that waits, store it, settle it, take all that came meanwhile. No SQL, no sockets.

One batch is in flight at a time. Two stored more rows a second in a trial (200,000 against 130,000), but one is already
faster than a process can take pings in, settles in the order of offering, and can't deadlock with itself over resends.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import exp, inf
from typing import NamedTuple

from streamer.counters import Counters
from streamer.errors import ErrorCode, Unavailable

Rejected = Mapping[int, tuple[ErrorCode, str]]
"""The pings of a chunk that will never be stored: seq to code and message."""

CHUNK_BYTES = 560
PING_BYTES = 40
"""What a chunk and each of its pings take beside the row bytes: objects, numbers, references (measured)."""

MOST_JOINED = 500
"""Pings up to which a waiting chunk takes more of its session in; a larger one would coarsen the batches."""
ROOM_FOR_BACKLOG = 0.75
"""The share of the buffer that a backlog may fill; the rest is for live pings."""
CONTENDED = 0.25
"""The share of the buffer beyond which it is fought over."""
QUIET = 1.0
"""Seconds without a live ping after which a backlog gets whole batches."""

RESTART_AFTER = 1.0
_NONE_REJECTED: Rejected = {}


class Chunk:
    """The pings of one message of one vendor's session, waiting to be stored.

    `rows` are `count` rows of `row_size` bytes (location.RowEncoder) in the order of `seqs`. `live`: fresh pings, which
    go ahead of a backlog. `newest` is the (timestamp ms, lat, long) that counts for the vendor's position. `settled` is
    called exactly once, in the loop, when every ping is committed or rejected. `cost` is the bytes it takes in memory,
    about; `tried` says that an earlier attempt may have stored it already; `admitted`, that it is or was in the buffer;
    `corrected`, that PostgreSQL held another ping of the newest's timestamp, which `newest` is now;
    `waiting`, that it is there and no attempt has begun, so that more of its session may join it. `after` is a live one
    that it must not overtake.
    """

    __slots__ = (
        "admitted",
        "after",
        "corrected",
        "cost",
        "count",
        "live",
        "newest",
        "offered_at",
        "row_size",
        "rows",
        "seqs",
        "settled",
        "tried",
        "vendor_id",
        "waiting",
    )

    def __init__(
        self,
        vendor_id: str,
        seqs: Sequence[int],
        rows: bytes | bytearray,
        live: bool,
        newest: tuple[int, float, float],
        settled: Callable[[Chunk, Rejected], None],
    ) -> None:
        self.vendor_id = vendor_id
        self.seqs = seqs
        self.rows = rows
        self.count = count = len(seqs)
        self.row_size = len(rows) // count
        self.cost = len(rows) + CHUNK_BYTES + PING_BYTES * count
        self.live = live
        self.newest = newest
        self.settled = settled
        self.offered_at = 0.0
        self.tried = self.admitted = self.waiting = self.corrected = False
        self.after: Chunk | None = None

    def join(self, seqs: Sequence[int], rows: bytes, newest: tuple[int, float, float]) -> None:
        """Take in pings that came after its own, of the same session."""
        # Lists and bytearrays grow in place, with an eighth to spare.
        if not isinstance(self.rows, bytearray):
            self.seqs, self.rows = list(self.seqs), bytearray(self.rows)
        assert isinstance(self.seqs, list)
        self.seqs += seqs
        self.rows += rows
        self.count += len(seqs)
        self.cost += joined_cost(len(seqs), len(rows))
        if newest[0] > self.newest[0]:  # of one timestamp the first is stored
            self.newest = newest


def joined_cost(pings: int, row_bytes: int) -> int:
    """Bytes that pings take in a chunk that was there already."""
    return row_bytes + row_bytes // 8 + PING_BYTES * pings


@dataclass(frozen=True, slots=True)
class Pacing:
    """When to hold the next commit back; chunks per second, seconds, pings.

    Below `slow` every ping is committed at once: the server has time. From there to `fast` the gap grows to `longest`:
    a commit costs the server and PostgreSQL half a millisecond of CPU, thirty rows' worth. `full` waiting pings are
    worth a commit whatever the rate. What joins a waiting chunk is not counted: a session that has the server to itself
    and waits for acks would only be held up. For the last `early` of a gap nothing is held
    back: the server is awake for it now, as for a tick or what the other processes are told.
    """

    slow: float = 120.0
    fast: float = 170.0
    longest: float = 0.34
    full: int = 300
    early: float = 0.15


def commit_gap(rate: float, waiting: int, pacing: Pacing) -> float:
    """Seconds from the start of one commit to the next; chunks arrive at `rate` a second, and pings are `waiting`."""
    if waiting >= pacing.full or rate <= pacing.slow:
        return 0.0
    return pacing.longest * min(1.0, (rate - pacing.slow) / (pacing.fast - pacing.slow))


def arrival_rate(rate: float, arrived: int, elapsed: float, memory: float = 0.5) -> float:
    """Arrivals per second, averaged over about `memory` seconds, after so many more in `elapsed` seconds."""
    if elapsed <= 0:
        return rate + arrived / memory
    share = 1 - exp(-elapsed / memory)
    return rate + share * (arrived / elapsed - rate)


def backoff(attempt: int, chance: float, first: float = 0.05, longest: float = 2.0) -> float:
    """Seconds to wait after `attempt` failed ones: doubling to `longest`, less up to half by `chance` (0 to 1)."""
    return min(longest, first * 2.0 ** min(attempt - 1, 32)) * (1 - chance / 2)


class Batch(NamedTuple):
    """What became of a batch: its pings, the messages they came in, how many were rejected, after how many attempts.

    `seconds` from its start to its commit; `waited`: how long its oldest message had waited by then.
    """

    pings: int
    messages: int
    rejected: int
    attempts: int
    seconds: float
    waited: float


class Batcher:
    """Stores chunks in groups, for ever if it must, and settles each exactly once after its commit.

    `store(chunks, retry)` returns once all pings are committed and gives the rejected ones by chunk (most often none).
    Unavailable from it means: not known, try again, with retry=True. At most `max_pings` and `max_bytes` are held.
    `before` is called before a batch is taken, and tells whether it brought in more for it.
    `stored` is called for each chunk that was committed whole, `traced` for each batch. `faulted` hears of every error
    that is not an outage.
    """

    def __init__(
        self,
        store: Callable[[list[Chunk], bool], Awaitable[Mapping[Chunk, Rejected]]],
        *,
        max_pings: int = 200_000,
        max_bytes: int = 64 << 20,
        batch_pings: int = 10_000,
        pacing: Pacing | None = None,
        before: Callable[[], bool] = bool,
        stored: Callable[[Chunk], None] | None = None,
        faulted: Callable[[BaseException], None] | None = None,
        traced: Callable[[Batch], None] | None = None,
        counters: Counters | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._max_pings = max_pings
        self._max_bytes = max_bytes
        self._batch_pings = batch_pings
        self._pacing = pacing or Pacing()
        self._before = before
        self._stored = stored
        self._faulted = faulted
        self._traced = traced
        self._counters = counters or Counters()
        self._clock = clock
        self._chance = chance

        self._live: deque[Chunk] = deque()
        self._backlog: deque[Chunk] = deque()
        self._in_flight: list[Chunk] = []
        # Who waits for room, with live pings and with others.
        self._waiters: dict[bool, deque[tuple[asyncio.Future[None], Chunk]]] = {True: deque(), False: deque()}

        self._ready = 0
        self._arrived = 0
        self._rate = 0.0
        self._rated_at = clock()
        self._took_at = self._live_at = -inf
        self._attempts = 0
        self._gap = 0.0
        # As many ready pings wake the lane: it sleeps for the first, or for a full batch, or it is at work.
        self._wake_at: float = inf
        self._wake = asyncio.Event()
        self._settled_all = asyncio.Event()
        self._settled_all.set()
        self._draining = False
        self._closed = False
        self._lane: asyncio.Task[None] | None = None
        self._restart: asyncio.TimerHandle | None = None

        self.pings = 0
        """Pings held: waiting and in flight."""
        self.bytes = 0
        """Bytes they take."""
        self.last_batch = 0
        """Pings of the newest batch that was stored."""
        self.batches = 0
        self.settled_chunks = 0
        self.settled_pings = 0
        self.rejected_pings = 0
        self.retries = 0
        self.outage: str | None = None
        """Why nothing can be stored just now, None when it can."""
        self.fault: str | None = None
        """The newest error that should not happen; None after the next batch that is stored."""
        self.deaths = 0
        """How often the storing task ended by itself and was started again."""

    # taking in

    def offer(self, chunk: Chunk) -> bool:
        """Take a chunk in; False when the buffer is full or others wait for room: then `put` it."""
        if self._waiters[chunk.live] or self._closed or not self._fits(chunk.live, chunk.count, chunk.cost):
            return False
        self._admit(chunk)
        return True

    def join(self, chunk: Chunk, seqs: Sequence[int], rows: bytes, newest: tuple[int, float, float]) -> bool:
        """Add pings to a chunk of their session that still waits: a fifth of the memory that one of their own takes.

        False when it can't be: then `offer` them.
        """
        count, cost = len(seqs), joined_cost(len(seqs), len(rows))
        if (
            not chunk.waiting
            or chunk.count + count > MOST_JOINED
            or self._waiters[chunk.live]
            or self._closed
            or not self._fits(chunk.live, count, cost)
        ):
            return False
        chunk.join(seqs, rows, newest)
        self._count(count, cost, chunk.live)
        return True

    async def put(self, chunk: Chunk) -> None:
        """Take a chunk in as soon as there is room, first come first served; Unavailable once closed.

        The caller reads no more from its socket meanwhile, so each session has at most one chunk waiting here.
        """
        if self.offer(chunk):
            return
        if self._closed:
            message = "pings are no longer taken: the server is stopping; send what was not acked again later"
            raise Unavailable(message, message)
        waiter = (asyncio.get_running_loop().create_future(), chunk)
        self._waiters[chunk.live].append(waiter)
        self._settled_all.clear()
        try:
            await waiter[0]
        except asyncio.CancelledError:
            with suppress(ValueError):
                self._waiters[chunk.live].remove(waiter)
            self._admit_waiters()
            self._check_settled()
            raise

    @property
    def next(self) -> float:
        """When pings that come now may be committed, by the clock; may have passed."""
        return self._took_at + self._gap

    @property
    def full(self) -> bool:
        """Whether somebody waits for room."""
        return bool(self._waiters[True] or self._waiters[False])

    @property
    def contended(self) -> bool:
        """Whether so much waits that those who send most must be held back."""
        return self.pings > self._max_pings * CONTENDED or self.bytes > self._max_bytes * CONTENDED

    @property
    def fill(self) -> float:
        """The share of the buffer that is taken, by pings or by bytes, whichever is more."""
        return max(self.pings / self._max_pings, self.bytes / self._max_bytes)

    @property
    def oldest_wait(self) -> float:
        """Seconds the longest held chunk has waited; 0 when none is held."""
        held = [queue[0].offered_at for queue in (self._live, self._backlog) if queue]
        held += [chunk.offered_at for chunk in self._in_flight]
        return max(0.0, self._clock() - min(held)) if held else 0.0

    def _fits(self, live: bool, count: int, cost: int) -> bool:
        share = 1.0 if live else ROOM_FOR_BACKLOG
        # A chunk larger than the whole buffer goes when it has the buffer to itself.
        return not self.pings or (
            self.pings + count <= self._max_pings * share and self.bytes + cost <= self._max_bytes * share
        )

    def _admit(self, chunk: Chunk) -> None:
        chunk.offered_at = self._clock()
        chunk.admitted = chunk.waiting = True
        (self._live if chunk.live else self._backlog).append(chunk)
        self._arrived += 1
        self._count(chunk.count, chunk.cost, chunk.live)

    def _count(self, count: int, cost: int, live: bool) -> None:
        self.pings += count
        self.bytes += cost
        self._ready += count
        self._settled_all.clear()
        if self._ready >= self._wake_at:
            self._wake.set()

    def _admit_waiters(self) -> None:
        for live, waiters in self._waiters.items():
            while waiters and self._fits(live, waiters[0][1].count, waiters[0][1].cost):
                room, chunk = waiters.popleft()
                if not room.done():
                    self._admit(chunk)
                    room.set_result(None)

    def _check_settled(self) -> None:
        if not self.pings and not self.full:
            self._settled_all.set()

    # storing

    async def _run(self) -> None:
        while True:
            while not self._ready:
                await self._sleep(1, None)
            await self._hold_back()
            if self._before():
                await asyncio.sleep(0)  # behind the tasks that take in what was read
            batch = self._in_flight = self._take()
            rejected = await self._store_until_known(batch)
            self._in_flight = []
            self._settle(batch, rejected)

    async def _sleep(self, wake_at: float, seconds: float | None) -> None:
        self._wake.clear()
        self._wake_at = wake_at
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
        finally:
            self._wake_at = inf

    async def _hold_back(self) -> None:
        now = self._clock()
        # Capped where it makes no difference any more: after a burst the pace is found again within a second.
        self._rate = min(arrival_rate(self._rate, self._arrived, now - self._rated_at), 2 * self._pacing.fast)
        self._arrived, self._rated_at = 0, now
        gap = 0.0 if self._draining else commit_gap(self._rate, self._ready, self._pacing)
        # From start to start: while a long COPY ran, the gap has passed already.
        self._gap = gap
        remaining = self.next - now
        if remaining > gap * self._pacing.early:
            await self._sleep(self._pacing.full, remaining)

    def _take(self) -> list[Chunk]:
        """Live pings first. While there are any, a backlog has a quarter of a batch: no less, or it would starve, and
        no more, or the next live ping would wait behind a long COPY. The first of either goes whatever its size."""
        self._took_at = self._clock()
        if self._live:
            self._live_at = self._took_at
        share = self._batch_pings // 4 if self._took_at - self._live_at < QUIET else self._batch_pings
        batch = _take_from(self._live, self._batch_pings - (share if self._backlog else 0))
        batch += _take_from(self._backlog, share)
        self._ready -= sum(chunk.count for chunk in batch)
        return batch

    async def _store_until_known(self, batch: list[Chunk]) -> Mapping[Chunk, Rejected]:
        retry = any(chunk.tried for chunk in batch)
        attempt = 0
        self._attempts = 1
        while True:
            try:
                rejected = await self._store(batch, retry)
            except Unavailable as away:
                self.outage = str(away)
            except Exception as error:
                # Not known to be stored, so kept; and said aloud, as only a change of code or database can mend it.
                self.outage = f"storing {len(batch)} chunks failed with {error!r}; they are kept and tried again"
                self._fail(error)
            else:
                self.outage = self.fault = None
                return rejected
            retry = True
            for chunk in batch:
                chunk.tried = True
            self.retries += 1
            attempt += 1
            self._attempts += 1
            await asyncio.sleep(backoff(attempt, self._chance()))

    def _settle(self, batch: list[Chunk], rejected: Mapping[Chunk, Rejected]) -> None:
        count = 0
        rejected_before, now = self.rejected_pings, self._clock()
        self._counters.commits.observe(now - self._took_at)
        self._counters.acks.observe_all([now - chunk.offered_at for chunk in batch])
        for chunk in batch:
            count += chunk.count
            self.bytes -= chunk.cost
            refused = rejected.get(chunk, _NONE_REJECTED) if rejected else _NONE_REJECTED
            if refused:
                self.rejected_pings += len(refused)
                self._counters.reject(code for code, _ in refused.values())
            try:
                # The newest of a chunk with a rejected ping may be just that one.
                if not refused and self._stored is not None:
                    self._stored(chunk)
                chunk.settled(chunk, refused)
            except Exception as error:
                self._fail(error)
        self.pings -= count
        self.settled_chunks += len(batch)
        self.settled_pings += count
        self.last_batch = count
        self.batches += 1
        self._counters.batches.observe(count)
        if self._traced is not None:
            waited = now - min(chunk.offered_at for chunk in batch)
            refusals = self.rejected_pings - rejected_before
            self._traced(Batch(count, len(batch), refusals, self._attempts, now - self._took_at, waited))
        self._admit_waiters()
        self._check_settled()

    def _fail(self, error: BaseException) -> None:
        self.fault = repr(error)
        if self._faulted is not None:
            self._faulted(error)

    # life

    def start(self) -> None:
        """Start storing, in the running loop."""
        if self._lane is None and not self._closed:
            self._spawn()

    def _spawn(self) -> None:
        self._restart = None
        self._lane = asyncio.get_running_loop().create_task(self._run(), name="batcher")
        self._lane.add_done_callback(self._ended)

    def _ended(self, lane: asyncio.Task[None]) -> None:
        if self._closed:
            return
        # What was in flight may be stored or not: it goes first again, through the duplicate-safe path.
        for chunk in reversed(self._in_flight):
            chunk.tried = True
            (self._live if chunk.live else self._backlog).appendleft(chunk)
            self._ready += chunk.count
        self._in_flight = []
        self.deaths += 1
        error = asyncio.CancelledError("cancelled by someone else") if lane.cancelled() else lane.exception()
        self._restart = lane.get_loop().call_later(RESTART_AFTER, self._spawn)
        self._fail(error or RuntimeError("the storing task ended"))

    async def drain(self, timeout: float) -> bool:
        """Store all that is held without holding back; whether everything was settled within `timeout` seconds."""
        self._draining = True
        self._wake.set()
        try:
            async with asyncio.timeout(timeout):
                await self._settled_all.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop. What is not settled never will be: its app was not told and sends it again."""
        self._closed = True
        if self._restart is not None:
            self._restart.cancel()
        for room, _ in (*self._waiters[True], *self._waiters[False]):
            if not room.done():
                room.set_exception(
                    Unavailable("the server stopped before there was room; send what was not acked again later")
                )
        if self._lane is not None:
            self._lane.cancel()
            await asyncio.gather(self._lane, return_exceptions=True)


def _take_from(queue: deque[Chunk], room: int) -> list[Chunk]:
    taken: list[Chunk] = []
    while queue and (queue[0].count <= room or not taken):
        if (after := queue[0].after) is not None and after.waiting:
            break
        chunk = queue.popleft()
        chunk.waiting, chunk.after = False, None
        taken.append(chunk)
        room -= chunk.count
    return taken
