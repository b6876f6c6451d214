"""Ends the process when its event loop is blocked or when it does not stop in time; its supervisor restarts it.

The watchdog is a thread, because a blocked loop cannot report itself: `/livez` does not answer then. It prints the
stack of every thread before it ends the process.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
import time
from typing import Self

BEAT = 0.25
CHECK = 0.5
SAY_WITHIN = 2.0
"""Seconds for printing the stacks."""
STUCK = 70
"""Exit status of a process that the watchdog ended (EX_SOFTWARE)."""


class Watchdog:
    """Watches the running loop while the context lasts; `limit_stop` sets a deadline for the end of the process."""

    def __init__(self, stuck_after: float) -> None:
        self._stuck_after = stuck_after
        self._beat = time.monotonic()
        self._end_by: float | None = None
        self._ended = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._tick()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._ended.set()
        self._thread.join()

    def limit_stop(self, seconds: float) -> None:
        """Ends the process unless the context ends within this many seconds."""
        self._end_by = time.monotonic() + seconds

    def _tick(self) -> None:
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(BEAT, self._tick)

    def _watch(self) -> None:
        checked = time.monotonic()
        while not self._ended.wait(CHECK):
            now = time.monotonic()
            if now - checked > CHECK + 1.0:
                self._beat = max(self._beat, now)  # the machine was suspended, or this thread was starved too
            checked = now
            if now - self._beat > self._stuck_after:
                _end(f"the event loop has been blocked for {now - self._beat:.1f} s, here:")
            if self._end_by is not None and now > self._end_by:
                _end("the process does not stop in time; it is here:")


def _end(why: str) -> None:
    # Writing to stderr may be what blocks: then nothing can be printed.
    ending = threading.Timer(SAY_WITHIN, os._exit, [STUCK])
    ending.daemon = True
    ending.start()
    print(f"streamer: {why}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    os._exit(STUCK)
