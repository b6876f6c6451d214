"""The CPU time of a coroutine: measured wrongly, a client pays for others, and watchers hold back commits."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from streamer.cadence import COMMITS, Cadence
from streamer.cpu_time import SCHEDULER_TIMES, busy_time, measured


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


@pytest.mark.skipif(not Path(SCHEDULER_TIMES).exists(), reason="this system does not tell how long a thread waits")
def test_waiting_for_a_cpu_is_busy() -> None:
    """A server beside others, or with a CPU limit, would take itself for idle and give its clients no turn."""
    cpu = min(os.sched_getaffinity(0))
    hog = f"import os; os.sched_setaffinity(0, {{{cpu}}}); print(flush=True)\nwhile True: pass"
    found: dict[str, float] = {}

    def work() -> None:
        os.sched_setaffinity(0, {cpu})
        clocks = {"wall": time.monotonic, "cpu": time.thread_time, "busy": busy_time}
        before = {name: clock() for name, clock in clocks.items()}
        burn(0.2)
        found.update({name: clock() - before[name] for name, clock in clocks.items()})

    with subprocess.Popen([sys.executable, "-c", hog], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        finally:
            other.kill()
    assert found["cpu"] < 0.8 * found["wall"]
    assert found["busy"] == pytest.approx(found["wall"], rel=0.1)
