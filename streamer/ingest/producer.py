"""The pings of one vendor connection on their way into the buffer: in order, in their lane, within their bounds."""

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

LOOK_EVERY = 0.05
"""Seconds between two looks at whether a vendor that was held back may go on."""


class Producer:
    """Offers a session's pings to the batcher; `settled(pending, rejected)` when they are committed or rejected.

    What is stored of a connection at any moment is what it sent up to some message: a crash leaves no hole before the
    newest stored ping, so an app that sends in the order of time may go on behind `hello.durable`.
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
        """Have pings stored that came at `now` (epoch ms); a chunk is given back when there is no room: `put` it."""
        count = len(pings)
        prompt = self._allowance.take(count, self._clock())
        seqs, rows, newest = encoded(self._encoder, pings, now)
        # What waits among the backlog is not overtaken by what the same connection sent after it.
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
        """Wait for room; given up before there was any, the pings count as never sent."""
        try:
            await self._batcher.put(chunk)
        except BaseException:
            if not chunk.admitted:
                self._forget(chunk)
            raise

    @property
    def excessive(self) -> bool:
        """Whether the vendor is to be read no more for now: then `rest`."""
        return self._allowance.wait(self._clock(), self._batcher.contended) > 0

    async def rest(self) -> None:
        """Wait until the vendor may be read again."""
        while (wait := self._allowance.wait(self._clock(), self._batcher.contended)) > 0:  # noqa: ASYNC110  # time passes
            await asyncio.sleep(min(wait, LOOK_EVERY))

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
