"""The event loop's pulse: how late it is for a timer, which is how long everything else in it waits too."""

from __future__ import annotations

import asyncio

from streamer.counters import Counters

BEAT = 0.25
"""Seconds between two beats."""


class LoopLag:
    """Beats for ever and notes how late each beat was; `late` is the newest, in seconds."""

    def __init__(self, counters: Counters) -> None:
        self.late = 0.0
        self._counters = counters

    async def run(self) -> None:
        """Beat."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + BEAT
            await asyncio.sleep(BEAT)
            self.late = max(0.0, loop.time() - due)
            self._counters.loop.observe(self.late)
