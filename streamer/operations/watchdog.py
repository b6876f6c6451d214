"""Ends the process when its event loop hangs, or when it does not end in time: whoever runs it starts it again.

A thread of its own, as a loop that hangs can't tell of it: `/livez` has no answer by then. It says where the loop
hangs before it ends the process.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
import time
from types import TracebackType
from typing import Self

BEAT = 0.25
LOOK = 0.5
STUCK = 70
"""Exit status of a process that was ended; EX_SOFTWARE."""


class Watchdog:
    """Watches the running loop while the context lasts; `hurry` sets a time by which the process must have ended."""

    def __init__(self, stuck_after: float) -> None:
        self._stuck_after = stuck_after
        self._beat = time.monotonic()
        self._end_by: float | None = None
        self._ended = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._turn()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._ended.set()
        self._thread.join()

    def hurry(self, within: float) -> None:
        """The context must have ended `within` seconds."""
        self._end_by = time.monotonic() + within

    def _turn(self) -> None:
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(BEAT, self._turn)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._ended.wait(LOOK):
            now = time.monotonic()
            if now - looked > LOOK + 1.0:
                self._beat = max(self._beat, now)  # the machine was suspended, or had no time for this thread either
            looked = now
            if now - self._beat > self._stuck_after:
                _end(f"the event loop has not turned for {now - self._beat:.1f} s; it hangs here:")
            if self._end_by is not None and now > self._end_by:
                _end("the process does not end in time; it is here:")


def _end(why: str) -> None:
    print(f"streamer: {why}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    os._exit(STUCK)
