"""Event-loop lag: how late timers fire, which is how long everything else on the loop waits too."""

from __future__ import annotations

import asyncio

from streamer.counters import Counters

INTERVAL = 0.25
"""Seconds between two measurements."""


class LoopLag:
    """Measures the lag forever; `late` is the newest value, in seconds."""

    def __init__(self, counters: Counters) -> None:
        self.late = 0.0
        self._counters = counters

    async def run(self) -> None:
        """Measures forever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + INTERVAL
            await asyncio.sleep(INTERVAL)
            self.late = max(0.0, loop.time() - due)
            self._counters.loop.observe(self.late)
