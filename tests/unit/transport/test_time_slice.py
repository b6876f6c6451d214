"""The time slice for messages: without it one client's flood would block all others."""

from __future__ import annotations

import asyncio
import time

from streamer.transport import time_slice
from streamer.transport.time_slice import TimeSlice


async def test_a_turn_ends_by_time() -> None:
    """Many cheap messages fit into a turn, and it ends however many there are."""
    turn = TimeSlice(asyncio.get_running_loop())
    assert not turn.over()
    while not turn.over():
        pass
    assert turn.over(), "until the loop went on"
    await asyncio.sleep(0)
    assert not turn.over(), "then a new one begins"


async def test_all_connections_share_it() -> None:
    """Forty connections that flood hold the loop no longer than one: each but the first handles one message."""
    turn, loop = TimeSlice(asyncio.get_running_loop()), asyncio.get_running_loop()
    handled = [0] * 40
    going = True

    def flood(number: int) -> None:
        while going:
            handled[number] += 1
            began = time.perf_counter()
            while time.perf_counter() - began < time_slice.SECONDS / 5:
                pass
            if turn.over():
                loop.call_soon(flood, number)
                return

    for number in range(40):
        loop.call_soon(flood, number)
    await asyncio.sleep(0)
    first = list(handled)
    going = False
    assert all(count >= 1 for count in first)
    assert sum(first) <= 40 + 5, first
