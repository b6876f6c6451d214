"""The event loop's pulse: how late it is for a timer, which is how long everything else in it waits too."""

from __future__ import annotations

import asyncio

from streamer.tally import Tally

BEAT = 0.25
"""Seconds between two beats."""


class Pulse:
    """Beats for ever and notes how late each beat was; `late` is the newest, in seconds."""

    def __init__(self, tally: Tally) -> None:
        self.late = 0.0
        self._tally = tally

    async def run(self) -> None:
        """Beat."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + BEAT
            await asyncio.sleep(BEAT)
            self.late = max(0.0, loop.time() - due)
            self._tally.loop.observe(self.late)
