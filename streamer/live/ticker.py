"""When the live index ticks: at once after a quiet time, and less often the more frames the last tick wrote."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from streamer.live.index import LiveIndex, frame_gap

STOOD_STILL = 5000
"""Milliseconds between two looks at the time after which this process can't say who was silent."""


class Ticker:
    """Ticks an index after it changed; `changed` may be called from anywhere in the loop, as often as one likes.

    `before` is called before a tick that waited, and tells whether it brought in more for it.
    """

    def __init__(
        self,
        index: LiveIndex,
        clock: Callable[[], int],
        *,
        frame_cost: float,
        frame_interval: float,
        before: Callable[[], bool] = bool,
    ) -> None:
        self.frames = 0
        self.ticks = 0
        self._index = index
        self._clock = clock
        self._cost = frame_cost
        self._most = frame_interval
        self._before = before
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.Handle | None = None
        self._due = 0.0
        self.next = 0.0
        """When the next tick may be, in the loop's time: the gap that the last one earned has passed then."""
        self._broken: asyncio.Future[None]

    def changed(self) -> None:
        """The index has something to tell."""
        loop = self._loop
        if loop is not None:
            self._tick_at(max(self.next, loop.time()))

    async def run(self) -> None:
        """Tick for ever; raises what a tick raised."""
        # Timers and no loop of its own: a task that waits, wakes and sleeps costs three turns for each tick.
        self._loop = asyncio.get_running_loop()
        self._broken = self._loop.create_future()
        if self._index.has_changes:
            self.changed()
        try:
            await self._broken
        finally:
            self._loop = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _tick_at(self, when: float) -> None:
        if self._timer is not None:
            if self._due <= when:
                return
            self._timer.cancel()
        assert self._loop is not None
        self._due = when
        if when <= self._loop.time():
            self._timer = self._loop.call_soon(self._tick)
        else:
            self._timer = self._loop.call_at(when, self._tick_after)

    def _tick_after(self) -> None:
        """Tick with what was held back for this tick."""
        assert self._loop is not None
        if self._before():
            # Behind the tasks that take in what was read.
            self._timer = self._loop.call_soon(self._tick)
        else:
            self._tick()

    def _tick(self) -> None:
        loop, self._timer = self._loop, None
        assert loop is not None
        began = time.monotonic()  # uvloop's own time stands still during a turn
        try:
            ticked = self._index.tick(self._clock())
        except Exception as error:
            if not self._broken.done():
                self._broken.set_exception(error)
            return
        self.ticks += 1
        self.frames += ticked.frames
        gap = frame_gap(ticked.frames, self._cost, self._most) / 1000
        self.next = loop.time() + pause(gap, time.monotonic() - began)
        if ticked.waiting:
            # Watches wait for their client or their interval: look again even if nothing changes.
            self._tick_at(loop.time() + max(self._most, 20.0) / 1000)

    async def expire(self, departed: Callable[[list[str]], None]) -> None:
        """Let time pass in the index for ever: vendors go offline and leave."""
        before = self._clock()
        while True:
            await asyncio.sleep(0.5)
            now = self._clock()
            if now - before > STOOD_STILL:
                # Suspended, or the clock was set: what the other processes said meanwhile is not read yet.
                self._index.pardon(now)
            before = now
            left = self._index.expire(now)
            if left:
                departed(left)
            if self._index.has_changes:
                self.changed()


def pause(gap: float, took: float) -> float:
    """Seconds from the end of a tick that took so many to the next one, with `gap` from start to start.

    But a tick that takes nearly all of its gap, or more, leaves half as much to others, at most a gap.
    """
    return max(gap - took, min(gap, took / 2))
