"""When the live index ticks: at once after a quiet time, and less often the more frames the last tick wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from streamer.live import LiveIndex, frame_gap


class Ticker:
    """Ticks an index after it changed; `changed` may be called from anywhere in the loop, as often as one likes."""

    def __init__(self, index: LiveIndex, clock: Callable[[], int], *, frame_cost: float, frame_interval: float) -> None:
        self.frames = 0
        self.ticks = 0
        self._index = index
        self._clock = clock
        self._cost = frame_cost
        self._most = frame_interval
        self._changes = asyncio.Event()

    def changed(self) -> None:
        """The index has something to tell."""
        self._changes.set()

    async def run(self) -> None:
        """Tick for ever."""
        waiting = 0
        while True:
            if waiting:
                # Watches wait for their client or their interval: look again even if nothing changes.
                try:
                    async with asyncio.timeout(max(self._most, 20.0) / 1000):
                        await self._changes.wait()
                except TimeoutError:
                    pass
            else:
                await self._changes.wait()
            self._changes.clear()
            ticked = self._index.tick(self._clock())
            waiting = ticked.waiting
            self.ticks += 1
            self.frames += ticked.frames
            gap = frame_gap(ticked.frames, self._cost, self._most)
            if gap > 0:
                await asyncio.sleep(gap / 1000)

    async def expire(self, departed: Callable[[list[str]], None]) -> None:
        """Let time pass in the index for ever: vendors go offline and leave."""
        while True:
            await asyncio.sleep(0.5)
            left = self._index.expire(self._clock())
            if left:
                departed(left)
            if self._index.has_changes:
                self.changed()
