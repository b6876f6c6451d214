"""Group commit: takes all waiting pings, stores and settles them, then takes all that arrived meanwhile.

No SQL and no sockets are here. One batch is in flight at a time. Two batches stored more rows a second in a trial
(200,000 instead of 130,000), but one is already faster than a process can receive pings, settles chunks in their order,
and can't deadlock with another batch over resends.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import Any, NamedTuple

import structlog

from streamer.cadence import COMMITS, Cadence
from streamer.counters import Counters
from streamer.errors import ErrorCode, Unavailable
from streamer.ingest.position import Position

log = structlog.get_logger()

Rejected = Mapping[int, tuple[ErrorCode, str]]
"""The pings of a chunk that will never be stored: seq to code and message."""

CHUNK_BYTES = 560
PING_BYTES = 40
"""Memory of a chunk, and of each of its pings, without the row bytes (measured)."""

MAX_JOINED = 500
"""Maximum pings of a chunk that later pings of its session may join; larger chunks would make batches coarse."""
WORTHWHILE = 200
"""Waiting pings after which a commit is not delayed: more of them would not make it cheaper per ping."""
BACKLOG_ROOM = 0.75
"""The share of the buffer that a backlog may fill; the rest is for live pings."""
LARGE_WAIT = 1.0
"""Seconds that a large chunk waits under steady load before room is reserved for it; at most one per this time."""
CONTENDED = 0.25
"""The share of the buffer beyond which the vendors that send most are slowed down."""
QUIET = 1.0
"""Seconds without a live ping after which a backlog gets whole batches."""

_NONE_REJECTED: Rejected = {}


class Chunk:
    """The pings of one message of one vendor's session, waiting to be stored.

    Args:
        seqs: One seq per ping.
        rows: Rows of equal size (copy_rows.RowEncoder), in the order of `seqs`.
        live: Whether these are fresh pings, which go ahead of a backlog.
        newest: The newest position, for `vendors.lat` and `long`.
        settled: Called exactly once, in the event loop, when every ping is committed or rejected.
    """

    __slots__ = (
        "admitted",
        "after",
        "corrected",
        "cost",
        "count",
        "duplicates",
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
        newest: Position,
        settled: Callable[[Chunk, Rejected], None],
    ) -> None:
        self.vendor_id = vendor_id
        self.seqs = seqs
        self.rows = rows
        self.count = count = len(seqs)
        self.row_size = len(rows) // count
        self.cost = len(rows) + CHUNK_BYTES + PING_BYTES * count
        """Bytes of memory, approximately."""
        self.live = live
        self.newest = newest
        self.settled = settled
        self.offered_at = 0.0
        self.tried = False
        """An earlier attempt may have stored it already."""
        self.admitted = False
        """It is or was in the buffer."""
        self.waiting = False
        """It is in the buffer and no attempt has begun, so more of its session may join it."""
        self.corrected = False
        """PostgreSQL already had another ping of the newest's timestamp; `newest` is that one now."""
        self.duplicates: int | None = None
        """The number of pings for whose timestamp PostgreSQL already had another one; None: not counted."""
        self.after: Chunk | None = None
        """A live chunk that it must not overtake."""

    def join(self, seqs: Sequence[int], rows: bytes, newest: Position) -> None:
        """Adds later pings of the same session."""
        # Lists and bytearrays grow in place, with an eighth to spare.
        if not isinstance(self.rows, bytearray):
            self.seqs, self.rows = list(self.seqs), bytearray(self.rows)
        assert isinstance(self.seqs, list)
        self.seqs += seqs
        self.rows += rows
        self.count += len(seqs)
        self.cost += joined_cost(len(seqs), len(rows))
        self.newest = newest.after(self.newest) or self.newest  # of one timestamp the first is stored


def joined_cost(pings: int, row_bytes: int) -> int:
    """Returns the bytes of memory that pings take when they join a chunk."""
    return row_bytes + row_bytes // 8 + PING_BYTES * pings


def backoff(attempt: int, chance: float, first: float = 0.05, longest: float = 2.0) -> float:
    """Returns seconds to wait after `attempt` failures: doubled up to `longest`, minus up to half by `chance`, 0..1."""
    return min(longest, first * 2.0 ** min(attempt - 1, 32)) * (1 - chance / 2)


class Batch(NamedTuple):
    """The result of a batch."""

    pings: int
    messages: int
    rejected: int
    attempts: int
    seconds: float
    """From its start to its commit."""
    waited: float
    """How long its oldest message had waited by then."""


class Batcher:
    """Stores chunks in groups, however long it takes, and settles each exactly once after its commit.

    Args:
        store: Returns the rejected pings by chunk once all others are committed. Raises Unavailable when the outcome is
            not known; the chunks then come again with `retry=True`.
        stored: Called for each chunk that was committed without a rejected ping.
        traced: Called for each batch.
    """

    def __init__(
        self,
        store: Callable[[list[Chunk], bool], Coroutine[Any, Any, Mapping[Chunk, Rejected]]],
        *,
        max_pings: int = 200_000,
        max_bytes: int = 64 << 20,
        batch_pings: int = 10_000,
        cadence: Cadence | None = None,
        stored: Callable[[Chunk], None] | None = None,
        traced: Callable[[Batch], None] | None = None,
        counters: Counters | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._max_pings = max_pings
        self._max_bytes = max_bytes
        self._batch_pings = batch_pings
        self._cadence = cadence or Cadence(COMMITS)
        self._stored = stored
        self._traced = traced
        self._counters = counters or Counters()
        self._clock = clock
        self._chance = chance

        self._live: deque[Chunk] = deque()
        self._backlog: deque[Chunk] = deque()
        self._in_flight: list[Chunk] = []
        # Sessions that wait for room, with live pings and with others.
        self._waiters: dict[bool, deque[tuple[asyncio.Future[None], Chunk]]] = {True: deque(), False: deque()}

        self._large_at = -inf
        # While set, nothing is accepted, so that there will be room for a large chunk.
        self._reserved = False

        self._ready = 0
        self._took_at = self._live_at = -inf
        self._attempts = 0
        # Ready pings that wake the storing task.
        self._wake_at: float = inf
        self._wake = asyncio.Event()
        self._settled_all = asyncio.Event()
        self._settled_all.set()
        self._draining = False
        self._closed = False

        self.pings = 0
        """Pings held: waiting and in flight."""
        self.bytes = 0
        """Bytes they take."""
        self.settled_chunks = 0
        self.settled_pings = 0
        self.rejected_pings = 0
        self.retries = 0
        self._outage_at: float | None = None
        self.outage: str | None = None
        """Why nothing can be stored; None while it can."""
        self.fault: str | None = None
        """The newest error that is no outage; None after the next batch that is stored."""

    def offer(self, chunk: Chunk) -> bool:
        """Accepts a chunk; False when the buffer is full or others wait for room: then `put` it."""
        if (
            self._reserved
            or self._waiters[chunk.live]
            or self._closed
            or not self._fits(chunk.live, chunk.count, chunk.cost)
        ):
            return False
        self._admit(chunk)
        return True

    def join(self, chunk: Chunk, seqs: Sequence[int], rows: bytes, newest: Position) -> bool:
        """Adds pings to a waiting chunk of their session, for a fifth of the memory of a separate chunk.

        Returns False when that is not possible: then `offer` them.
        """
        count, cost = len(seqs), joined_cost(len(seqs), len(rows))
        if (
            not chunk.waiting
            or chunk.count + count > MAX_JOINED
            or self._reserved
            or self._waiters[chunk.live]
            or self._closed
            or not self._fits(chunk.live, count, cost)
        ):
            return False
        chunk.join(seqs, rows, newest)
        self._count(count, cost)
        return True

    async def put(self, chunk: Chunk) -> None:
        """Accepts a chunk as soon as there is room, in order of arrival; raises Unavailable once closed.

        The caller reads no more from its socket meanwhile, so each session has at most one chunk waiting here.
        """
        if self.offer(chunk):
            return
        if self._closed:
            message = "pings are no longer accepted: the server is stopping; send unacked pings again later"
            raise Unavailable(message, message)
        chunk.offered_at = self._clock()
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
    def full(self) -> bool:
        """Whether a session waits for room."""
        return bool(self._waiters[True] or self._waiters[False])

    @property
    def contended(self) -> bool:
        """Whether the buffer is so full that the vendors that send most are slowed down."""
        return self.fill > CONTENDED

    @property
    def fill(self) -> float:
        """The used share of the buffer, by pings or by bytes, whichever is more."""
        return max(self.pings / self._max_pings, self.bytes / self._max_bytes)

    @property
    def oldest_wait(self) -> float:
        """Seconds for which the oldest chunk has waited; 0 when none is held."""
        held = [queue[0].offered_at for queue in (self._live, self._backlog) if queue]
        held += [chunk.offered_at for chunk in self._in_flight]
        return max(0.0, self._clock() - min(held)) if held else 0.0

    async def run(self) -> None:
        """Stores accepted chunks until cancelled. May be restarted after an error: nothing is lost."""
        # It is unknown whether the batch in flight was stored: it goes first again, through the duplicate-safe path.
        for chunk in reversed(self._in_flight):
            chunk.tried = True
            (self._live if chunk.live else self._backlog).appendleft(chunk)
            self._ready += chunk.count
        self._in_flight = []
        while True:
            while not self._ready:
                await self._sleep(1, None)
            wait = self._cadence.wait()
            if wait > 0 and self._ready < WORTHWHILE and not self._draining:
                await self._sleep(WORTHWHILE, wait)
            await self._cadence.round(self._store_batch())

    async def drain(self, timeout: float) -> bool:
        """Stores all that is held without waiting; returns whether all was settled within `timeout` seconds."""
        self._draining = True
        self._wake.set()
        try:
            async with asyncio.timeout(timeout):
                await self._settled_all.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Accepts nothing more. Chunks that are not settled stay so: their apps got no ack and send them again."""
        self._closed = True
        for room, _ in (*self._waiters[True], *self._waiters[False]):
            if not room.done():
                room.set_exception(
                    Unavailable("the server stopped before there was room; send unacked pings again later")
                )

    def _fits(self, live: bool, count: int, cost: int) -> bool:
        # A chunk larger than the whole buffer is accepted when the buffer is empty.
        return not self.pings or self._within(live, self.pings + count, self.bytes + cost)

    def _within(self, live: bool, pings: int, size: int) -> bool:
        share = 1.0 if live else BACKLOG_ROOM
        return pings <= self._max_pings * share and size <= self._max_bytes * share

    def _is_overdue(self, chunk: Chunk) -> bool:
        return not self._within(chunk.live, chunk.count, chunk.cost) and (
            self._clock() - max(chunk.offered_at, self._large_at) > LARGE_WAIT
        )

    def _admit(self, chunk: Chunk) -> None:
        chunk.offered_at = self._clock()
        chunk.admitted = chunk.waiting = True
        (self._live if chunk.live else self._backlog).append(chunk)
        self._count(chunk.count, chunk.cost)

    def _count(self, count: int, cost: int) -> None:
        self.pings += count
        self.bytes += cost
        self._ready += count
        self._settled_all.clear()
        if self._ready >= self._wake_at:
            self._wake.set()

    def _admit_waiters(self) -> None:
        self._reserved = False
        for waiters in self._waiters.values():
            if waiters and self._is_overdue(large := waiters[0][1]):
                if not self._fits(True, large.count, large.cost):
                    self._reserved = True
                    return
                self._large_at = self._clock()
                self._admit_first(waiters)
        for live, waiters in self._waiters.items():
            while waiters and self._fits(live, waiters[0][1].count, waiters[0][1].cost):
                self._admit_first(waiters)

    def _admit_first(self, waiters: deque[tuple[asyncio.Future[None], Chunk]]) -> None:
        room, chunk = waiters.popleft()
        if not room.done():
            self._admit(chunk)
            room.set_result(None)

    def _check_settled(self) -> None:
        if not self.pings and not self.full:
            self._settled_all.set()

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

    async def _store_batch(self) -> None:
        batch = self._in_flight = self._take()
        rejected = await self._store_until_known(batch)
        self._in_flight = []
        self._settle(batch, rejected)

    def _take(self) -> list[Chunk]:
        """Takes a batch, live pings first.

        While there are any, a backlog gets a quarter of a batch: with less it would starve, with more the next live
        ping would wait behind a long COPY. The first chunk of either kind is taken whatever its size.
        """
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
        self._attempts = 1
        while True:
            try:
                rejected = await self._store(batch, retry)
            except Unavailable as away:
                if self.outage is None:
                    self._outage_at = self._clock()
                    log.warning("storing failed; pings wait and are tried again", cause=str(away), pings=self.pings)
                self.outage = str(away)
            except Exception as error:
                # It may not be stored, so it is kept; an error, as only a change of code or database can fix it.
                self.outage = f"storing {len(batch)} chunks failed with {error!r}; they are kept and tried again"
                self._fail(error)
            else:
                if self._outage_at is not None:
                    seconds = round(self._clock() - self._outage_at, 1)
                    log.info("storing works again", seconds=seconds, pings=self.pings)
                self.outage = self.fault = self._outage_at = None
                return rejected
            retry = True
            for chunk in batch:
                chunk.tried = True
            self.retries += 1
            await asyncio.sleep(backoff(self._attempts, self._chance()))
            self._attempts += 1

    def _settle(self, batch: list[Chunk], rejected: Mapping[Chunk, Rejected]) -> None:
        count = refusals = 0
        now = self._clock()
        self._counters.commits.observe(now - self._took_at)
        self._counters.acks.observe_all([now - chunk.offered_at for chunk in batch])
        for chunk in batch:
            count += chunk.count
            self.bytes -= chunk.cost
            refused = rejected.get(chunk, _NONE_REJECTED) if rejected else _NONE_REJECTED
            if refused:
                refusals += len(refused)
                self._counters.reject(code for code, _ in refused.values())
            try:
                # In a chunk with a rejected ping, the newest position may be the rejected one.
                if not refused and self._stored is not None:
                    self._stored(chunk)
                chunk.settled(chunk, refused)
            except Exception as error:
                self._fail(error)
        self.pings -= count
        self.rejected_pings += refusals
        self.settled_chunks += len(batch)
        self.settled_pings += count
        self._counters.batches.observe(count)
        self._admit_waiters()
        self._check_settled()
        if self._traced is not None:
            waited = now - min(chunk.offered_at for chunk in batch)
            try:
                self._traced(Batch(count, len(batch), refusals, self._attempts, now - self._took_at, waited))
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.fault = repr(error)
        log.error("unexpected storage error", error=self.fault, exc_info=error)


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
