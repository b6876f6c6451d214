"""Event-loop lag: a blocked loop must be measured, as all clients wait for it."""

from __future__ import annotations

import asyncio
import time

from streamer.counters import Counters
from streamer.operations import loop_lag as module
from streamer.operations.loop_lag import LoopLag
from streamer.supervisor import end
from tests.support.apps import eventually


async def test_a_loop_that_stood_still_is_noticed() -> None:
    """A loop that was blocked for a second shows up as a timer that is late by this second."""
    counters = Counters()
    task = asyncio.create_task(LoopLag(counters).run())
    try:
        await asyncio.sleep(0)
        time.sleep(module.INTERVAL + 0.6)  # noqa: ASYNC251  # that is what is to be noticed
        await eventually(lambda: sum(counters.loop.counts[SLOW:]) == 1, "a beat that was late")
    finally:
        await end([task])


SLOW = Counters().loop.bounds.index(0.5) + 1
