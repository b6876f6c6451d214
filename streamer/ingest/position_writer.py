"""Writes the newest stored position of each vendor to `vendors.lat` and `long`, merged over a second or two. No SQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from streamer.errors import StreamerError, Unavailable

log = structlog.get_logger()

StoredPosition = tuple[str, int, float, float]
"""vendor_id, timestamp ms, lat, long."""

SLICE = 2000
"""Vendors in one statement at most, so that none holds its locks for long."""

FLUSH_TIMEOUT = 5.0


class PositionWriter:
    """Merges positions by vendor, the newest wins, and has `update` write them every `interval` seconds.

    Holds one position a vendor, however long the outage. `update` raises Unavailable when it should be tried again.
    """

    def __init__(
        self,
        update: Callable[[list[StoredPosition]], Awaitable[None]],
        *,
        interval: float = 1.0,
        clock: Callable[[], float] = lambda: time.time() * 1000,
    ) -> None:
        self._update = update
        self._interval = interval
        self._clock = clock
        self._newest: dict[str, tuple[int, float, float]] = {}
        self._noted = asyncio.Event()
        self.outage: str | None = None
        """Why positions can't be written just now, None when they can."""
        self.written = 0
        """Positions that were written."""

    def note(self, vendor_id: str, fix: tuple[int, float, float]) -> None:
        """Takes a committed position: (timestamp ms, lat, long)."""
        known = self._newest.get(vendor_id)
        # One ahead of the clock yields to every other: it would hide all that comes until that time.
        if known is None or known[0] < fix[0] or known[0] > self._clock():
            self._newest[vendor_id] = fix
            self._noted.set()

    @property
    def pending(self) -> int:
        """Vendors whose position is still to be written."""
        return len(self._newest)

    async def flush(self) -> None:
        """Writes what is merged; what can't be written is kept unless a newer position came. Raises Unavailable."""
        taken, self._newest = self._newest, {}
        fixes = [(vendor_id, *fix) for vendor_id, fix in taken.items()]
        written = 0
        try:
            for start in range(0, len(fixes), SLICE):
                await self._update(fixes[start : start + SLICE])
                written = start + SLICE
                self.written += min(SLICE, len(fixes) - start)
        finally:
            for vendor_id, timestamp, lat, long in fixes[written:]:
                self.note(vendor_id, (timestamp, lat, long))

    async def run(self) -> None:
        """Writes what is noted, for ever."""
        while True:
            await self._noted.wait()
            await asyncio.sleep(self._interval)
            self._noted.clear()
            try:
                await self.flush()
            except Unavailable as away:
                self.outage = str(away)
            except Exception as error:
                self.outage = f"writing positions failed with {error!r}; they are kept and tried again"
                log.error("unexpected storage error", error=repr(error), exc_info=error)
            else:
                self.outage = None

    async def close(self) -> bool:
        """Flushes once more, within a bound, after `run` ended; returns whether nothing is left unwritten."""
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await self.flush()
        except (StreamerError, TimeoutError) as away:
            self.outage = str(away) or f"the last flush took over {FLUSH_TIMEOUT} s"
        return not self._newest
