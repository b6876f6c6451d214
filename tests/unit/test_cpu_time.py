"""The CPU time of a coroutine: measured wrongly, a client pays for others, and watchers hold back commits."""

from __future__ import annotations

import asyncio
import time

import pytest

from streamer.cadence import COMMITS, Cadence
from streamer.cpu_time import measured


def burn(seconds: float) -> None:
    ends = time.thread_time() + seconds
    while time.thread_time() < ends:
        pass


async def work() -> str:
    burn(0.01)
    await asyncio.sleep(0)
    burn(0.01)
    return "done"


async def others() -> None:
    burn(0.2)


async def test_only_its_own_steps_count() -> None:
    """What others do while a request waits for the database is not its cost; all its own steps are."""
    used: list[float] = []
    result, _ = await asyncio.gather(measured(work(), used.append), others())
    assert result == "done"
    assert len(used) == 2
    assert 0.015 < sum(used) < 0.15


async def test_a_round_counts_its_own_steps_only() -> None:
    """A commit that is charged for the tick beside it would be held back by watchers, and acks with it."""
    cadence = Cadence(COMMITS)
    task = asyncio.create_task(others())
    assert await cadence.round(work()) == "done"
    await task
    assert 0 < cadence.cost < 0.1


async def test_it_fails_and_is_cancelled_like_any() -> None:
    """A client that goes away ends its request, and a shutdown ends a commit: both must reach the work."""
    ended: list[str] = []

    async def waiting(error: BaseException | None) -> None:
        try:
            if error is not None:
                raise error
            await asyncio.sleep(3600)
        finally:
            ended.append("ended")

    with pytest.raises(KeyError):
        await measured(waiting(KeyError("bug")), lambda _: None)
    task = asyncio.ensure_future(asyncio.wait_for(measured(waiting(None), lambda _: None), 60))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["ended", "ended"]
