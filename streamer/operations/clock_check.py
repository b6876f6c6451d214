"""Compares this host's clock with PostgreSQL's and Redis's: with a wrong clock valid pings are rejected or hidden."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from streamer.clocks import CLOCK_TOLERANCE
from streamer.errors import Unavailable

log = structlog.get_logger()

CHECK_EVERY = 10.0
TOLERANCE = CLOCK_TOLERANCE / 1000
"""Seconds by which clocks may differ."""


class ClockCheck:
    """Measures the clock's offsets regularly.

    Args:
        references: functions by name that return the time of another host, epoch ms; they raise Unavailable.
        clock: this host's time, epoch ms.
    """

    def __init__(self, references: Mapping[str, Callable[[], Awaitable[int]]], clock: Callable[[], int]) -> None:
        self.offsets: dict[str, float] = {}
        """Seconds by which this host's clock is ahead, by reference, of those that answered last time."""
        self._references = references
        self._clock = clock

    @property
    def cause(self) -> str | None:
        """Why this host's clock is wrong; None if it agrees with at least one reference, or none answers."""
        if not self.offsets or any(abs(offset) <= TOLERANCE for offset in self.offsets.values()):
            return None
        name, offset = min(self.offsets.items(), key=lambda item: abs(item[1]))
        way = "ahead of" if offset > 0 else "behind"
        return f"this host's clock is {abs(offset):.0f} s {way} that of {name}: check its time synchronization"

    async def run(self) -> None:
        """Measures until cancelled."""
        while True:
            await self.measure()
            await asyncio.sleep(CHECK_EVERY)

    async def measure(self) -> None:
        """Reads each reference once, corrected by half of the round trip."""
        before = self.cause
        for name, ask in self._references.items():
            began = self._clock()
            try:
                theirs = await ask()
            except Unavailable:
                self.offsets.pop(name, None)
                continue
            self.offsets[name] = ((began + self._clock()) / 2 - theirs) / 1000
        cause = self.cause
        if cause is not None and before is None:
            log.error("the clock is wrong", cause=cause)
        elif cause is None and before is not None:
            log.info("the clock is right again")
