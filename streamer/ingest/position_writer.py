"""The newest stored fix of each vendor on its way to `vendors.lat` and `long`, merged over about a second. No SQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from streamer.errors import StreamerError, Unavailable

Fix = tuple[str, int, float, float]
"""vendor_id, timestamp ms, lat, long."""

SLICE = 2000
"""Most vendors in one statement, so that none holds its locks for long."""

FLUSH_TIMEOUT = 5.0


class PositionWriter:
    """Merges fixes by vendor, the newest wins, and has `update` write them every `interval` seconds.

    Holds one fix a vendor, whatever the outage. `update` raises Unavailable when it should be tried again. `faulted`
    hears of every other error.
    """

    def __init__(
        self,
        update: Callable[[list[Fix]], Awaitable[None]],
        *,
        interval: float = 1.0,
        faulted: Callable[[BaseException], None] | None = None,
        clock: Callable[[], float] = lambda: time.time() * 1000,
    ) -> None:
        self._update = update
        self._interval = interval
        self._faulted = faulted
        self._clock = clock
        self._newest: dict[str, tuple[int, float, float]] = {}
        self._noted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.outage: str | None = None
        """Why positions can't be written just now, None when they can."""
        self.written = 0
        """Positions that were written."""

    def note(self, vendor_id: str, fix: tuple[int, float, float]) -> None:
        """A committed fix: (timestamp ms, lat, long)."""
        known = self._newest.get(vendor_id)
        # One ahead of the clock yields to every other: it would hide all that comes until that time.
        if known is None or known[0] < fix[0] or known[0] > self._clock():
            self._newest[vendor_id] = fix
            self._noted.set()

    @property
    def pending(self) -> int:
        """Vendors whose position is still to be written."""
        return len(self._newest)

    def start(self) -> None:
        """Start writing, in the running loop."""
        if self._task is None and not self._closed:
            self._spawn()

    async def flush(self) -> None:
        """Write what is merged; what can't be written is kept under anything newer. Raises Unavailable."""
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

    async def close(self) -> bool:
        """Stop, after one last flush of bounded length; whether nothing is left unwritten."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await self.flush()
        except (StreamerError, TimeoutError) as away:
            self.outage = str(away) or f"the last flush took over {FLUSH_TIMEOUT} s"
        return not self._newest

    async def _run(self) -> None:
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
                if self._faulted is not None:
                    self._faulted(error)
            else:
                self.outage = None

    def _spawn(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="positions")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._closed:
            return
        error = asyncio.CancelledError("cancelled by someone else") if task.cancelled() else task.exception()
        if self._faulted is not None:
            self._faulted(error or RuntimeError("the writing task ended"))
        task.get_loop().call_later(self._interval, self._respawn)

    def _respawn(self) -> None:
        if not self._closed:
            self._spawn()
