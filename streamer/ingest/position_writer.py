"""Writes the newest stored position of each vendor to `vendors.lat` and `long`, merged over a second or two. No SQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from streamer.errors import StreamerError, Unavailable
from streamer.ingest.position import Position

log = structlog.get_logger()

StoredPosition = tuple[str, Position]
"""vendor_id and where it was."""

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
    ) -> None:
        self._update = update
        self._interval = interval
        self._newest: dict[str, Position] = {}
        self._noted = asyncio.Event()
        self.outage: str | None = None
        """Why positions can't be written, None while they can."""
        self.written = 0
        """Positions that were written."""

    def note(self, vendor_id: str, position: Position) -> None:
        """Takes a committed position."""
        held = self._newest.get(vendor_id)
        newest = position if held is None else position.after(held)
        if newest is not None:
            self._newest[vendor_id] = newest
            self._noted.set()

    @property
    def pending(self) -> int:
        """Vendors whose position is still to be written."""
        return len(self._newest)

    async def flush(self) -> None:
        """Writes what is merged; what can't be written is kept unless a newer position came. Raises Unavailable."""
        taken, self._newest = self._newest, {}
        fixes = list(taken.items())
        written = 0
        try:
            for start in range(0, len(fixes), SLICE):
                await self._update(fixes[start : start + SLICE])
                written = start + SLICE
                self.written += min(SLICE, len(fixes) - start)
        finally:
            for vendor_id, position in fixes[written:]:
                self.note(vendor_id, position)

    async def run(self) -> None:
        """Writes what is noted, until cancelled."""
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
