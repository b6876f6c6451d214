"""Passes the pings of one vendor connection to the batcher: in order, live or backlog, within the vendor's limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from streamer.ingest.batcher import Batcher, Chunk, Rejected
from streamer.ingest.copy_rows import RowEncoder
from streamer.ingest.position import Position, arrived
from streamer.ingest.rate_limit import Allowance
from streamer.ingest.session import Pending, VendorSession, timestamp_of
from streamer.protocol.messages import Ping

POLL_EVERY = 0.05
"""Seconds between two checks whether a vendor that was slowed down may continue."""


class Producer:
    """Offers a session's pings to the batcher; calls `settled(pending, rejected)` when they are committed or rejected.

    The stored pings of a connection are always a prefix of those it sent: a crash leaves no gap before the newest
    stored ping, so an app that sends in the order of time may continue after `hello.durable`.
    """

    def __init__(
        self,
        batcher: Batcher,
        session: VendorSession,
        allowance: Allowance,
        vendor_id: str,
        live_max_age: int,
        settled: Callable[[Pending, Rejected], None],
        clock: Callable[[], float],
    ) -> None:
        self._batcher = batcher
        self._session = session
        self._allowance = allowance
        self._encoder = RowEncoder(vendor_id)
        self._live_max_age = live_max_age
        self._settled = settled
        self._clock = clock
        self._behind = 0
        self._last: Chunk | None = None
        self._last_live: Chunk | None = None
        self._last_pending: Pending | None = None

    def take(self, pings: Sequence[Ping], pending: Pending, now: int) -> Chunk | None:
        """Takes pings that arrived at `now` (epoch ms); returns a chunk when there is no room: `put` it."""
        count = len(pings)
        prompt = self._allowance.take(count, self._clock())
        seqs, rows, newest = encoded(self._encoder, pings, now)
        # Live pings do not overtake the same connection's backlog.
        live = prompt and not self._behind and newest[0] >= now - self._live_max_age
        self._allowance.unsettled += count
        if not live:
            self._behind += count
        last = self._last
        if last is not None and last.waiting and last.live is live and self._batcher.join(last, seqs, rows, newest):
            assert self._last_pending is not None
            self._session.join(self._last_pending)
            return None
        chunk = Chunk(self._encoder.vendor_id, seqs, rows, live, newest, partial(self._done, pending))
        if live:
            self._last_live = chunk
        elif self._last_live is not None and self._last_live.waiting:
            chunk.after = self._last_live
        self._last, self._last_pending = chunk, pending
        return None if self._batcher.offer(chunk) else chunk

    async def put(self, chunk: Chunk) -> None:
        """Waits for room. If cancelled before, the pings count as never sent."""
        try:
            await self._batcher.put(chunk)
        except BaseException:
            if not chunk.admitted:
                self._forget(chunk)
            raise

    @property
    def excessive(self) -> bool:
        """Whether reading from the vendor must pause: then `rest`."""
        return self._allowance.wait(self._clock(), self._batcher.contended) > 0

    async def rest(self) -> None:
        """Waits until the vendor may be read again."""
        while (wait := self._allowance.wait(self._clock(), self._batcher.contended)) > 0:  # noqa: ASYNC110  # time passes
            await asyncio.sleep(min(wait, POLL_EVERY))

    def _done(self, pending: Pending, chunk: Chunk, rejected: Rejected) -> None:
        self._forget(chunk)
        self._settled(pending, rejected)

    def _forget(self, chunk: Chunk) -> None:
        if chunk is self._last:
            self._last = None
        if chunk is self._last_live:
            self._last_live = None
        self._allowance.unsettled -= chunk.count
        if not chunk.live:
            self._behind -= chunk.count


def encoded(encoder: RowEncoder, pings: Sequence[Ping], now: int) -> tuple[Sequence[int], bytes, Position]:
    """Pings that arrived at `now` as a chunk has them: seqs, rows, and the newest position."""
    if len(pings) == 1:
        seq, timestamp, lat, long, _, _ = pings[0]
        return (seq,), encoder.row(timestamp, lat, long), arrived(timestamp, lat, long, now)
    newest = max(pings, key=timestamp_of)
    seqs, rows = [ping.seq for ping in pings], encoder.encode([ping[1:4] for ping in pings])
    return seqs, rows, arrived(*newest[1:4], now)
