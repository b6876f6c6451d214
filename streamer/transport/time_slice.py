"""Limits how long messages are handled in one iteration of the event loop."""

from __future__ import annotations

import asyncio
from time import perf_counter

SECONDS = 0.0005


class TimeSlice:
    """The time for which a process handles messages within one iteration of the event loop, shared by all connections.

    A flooding connection gives way to the others, and many of them together block the loop no longer than one: each
    continues after the others were read.
    """

    __slots__ = ("_ends", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ends = 0.0

    def over(self) -> bool:
        """Returns whether a connection that has handled a message must give way."""
        now = perf_counter()
        if not self._ends:
            self._ends = now + SECONDS
            self._loop.call_soon(self._end)
        return now >= self._ends

    def _end(self) -> None:
        self._ends = 0.0
