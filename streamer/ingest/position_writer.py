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
"""Maximum vendors of one statement, so that it does not hold its locks for long."""

FLUSH_TIMEOUT = 5.0


class PositionWriter:
    """Merges positions by vendor, the newest wins, and calls `update` with them every `interval` seconds.

    Keeps one position per vendor, however long an outage lasts. `update` raises Unavailable if it should be retried.
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
        """Why positions can't be written; None while they can."""
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
        """The number of vendors whose position is not written yet."""
        return len(self._newest)

    async def flush(self) -> None:
        """Writes merged positions; those that can't be written are kept unless newer ones came. Raises Unavailable."""
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
        """Writes noted positions until cancelled."""
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
        """Flushes once more, with a timeout, after `run` ended; returns whether everything was written."""
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await self.flush()
        except (StreamerError, TimeoutError) as away:
            self.outage = str(away) or f"the last flush took over {FLUSH_TIMEOUT} s"
        return not self._newest
