"""Ticks the live index: at once after a quiet time, otherwise as often as the cadence of ticks allows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from streamer.cadence import Cadence
from streamer.live.index import LiveIndex

SUSPENDED = 5000
"""After a pause of this many ms between two runs of `expire`, silence of other processes is not counted."""
LOOK_AGAIN = 0.1
"""Seconds until waiting watches are checked again."""
GO_ON = 0.002
"""Seconds from one tick to another that only continues snapshots."""


class Ticker:
    """Ticks an index after it changed; `changed` may be called anywhere in the loop, as often as needed."""

    def __init__(self, index: LiveIndex, clock: Callable[[], int], cadence: Cadence) -> None:
        self.frames = 0
        self.ticks = 0
        self._index = index
        self._clock = clock
        self._cadence = cadence
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.Handle | None = None
        self._soon = False
        """The timer is for changes, as soon as the cadence allows."""
        self._going_on = False
        """The timer is for continued snapshots."""
        self._ticked_at = -inf
        self._broken: asyncio.Future[None]

    def changed(self) -> None:
        """Schedules a tick.

        A tick that only continues snapshots does not count in the cadence: the snapshots of clients with large areas
        must not delay changes.
        """
        if self._loop is None or self._soon:
            return
        if self._index.has_changes:
            self._soon = True
            self._tick_after(self._cadence.wait())
        elif not self._going_on:
            self._going_on = True
            self._tick_after(self._ticked_at + GO_ON - self._loop.time())

    async def run(self) -> None:
        """Ticks until cancelled; raises what a tick raised."""
        # Timers instead of a task: a task that waits, wakes and sleeps costs three loop iterations per tick.
        self._loop = asyncio.get_running_loop()
        self._broken = self._loop.create_future()
        if self._index.has_changes or self._index.waiting:
            self.changed()
        try:
            await self._broken
        finally:
            self._loop = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._soon = self._going_on = False

    def _tick_after(self, seconds: float) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        if seconds > 0:
            self._timer = self._loop.call_later(seconds, self._tick)
        else:
            self._timer = self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        assert self._loop is not None
        self._timer, self._soon, self._going_on = None, False, False
        self._ticked_at = self._loop.time()
        changes = self._index.has_changes
        if changes:
            self._cadence.begin()
        try:
            ticked = self._index.tick(self._clock())
        except Exception as error:
            if not self._broken.done():
                self._broken.set_exception(error)
            return
        self.ticks += 1
        self.frames += ticked.frames
        if changes:
            self._cadence.end(aside=self._index.aside)
        if self._index.unfinished:
            self.changed()
        elif ticked.waiting and self._timer is None:
            # Watches wait for their client or their interval: check again even if nothing changes.
            self._tick_after(max(self._cadence.wait(), LOOK_AGAIN))

    async def expire(self, on_expired: Callable[[list[str]], None]) -> None:
        """Makes vendors go offline and leave by time, until cancelled; calls `on_expired` with those that left."""
        before = self._clock()
        while True:
            await asyncio.sleep(0.5)
            now = self._clock()
            if not 0 <= now - before <= SUSPENDED:
                # The process was suspended, or the clock was set: messages of other processes are not read yet.
                self._index.reset_heartbeats(now)
            before = now
            while True:
                left = self._index.expire(now)
                if left:
                    on_expired(left)
                if self._index.has_changes:
                    self.changed()
                if not self._index.due(now):
                    break
                await asyncio.sleep(0)
