"""The CPU time of a coroutine: measured wrongly, a client pays for others, or for nothing."""

from __future__ import annotations

import asyncio
from time import thread_time

import pytest

from streamer.ingest.cost import CostBudgets, CostLimits
from streamer.transport.measured import Measured


def burn(seconds: float) -> None:
    ends = thread_time() + seconds
    while thread_time() < ends:
        pass


async def test_only_its_own_steps_count() -> None:
    """What others do while a request waits for the database is not its cost; all its own steps are."""
    budgets = CostBudgets(CostLimits(connection=1e-9))
    cost = budgets.client(None, 0.0)

    async def request() -> str:
        burn(0.01)
        await asyncio.sleep(0)
        burn(0.01)
        return "done"

    async def other() -> None:
        burn(0.2)

    result, _ = await asyncio.gather(Measured(request(), cost, lambda: 0.0), other())
    assert result == "done"
    used = cost.wait(0.0) * 1e-9
    assert 0.015 < used < 0.15


async def test_it_is_cancelled_like_any() -> None:
    """A client that goes away ends its request: a cancellation must reach the work, and clean up there."""
    cost = CostBudgets(CostLimits()).client(None, 0.0)
    cleaned: list[bool] = []

    async def request() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(True)

    async def run() -> None:
        await Measured(request(), cost, lambda: 0.0)

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned

    async def failing() -> None:
        raise LookupError("no such thing")

    with pytest.raises(LookupError):
        await Measured(failing(), cost, lambda: 0.0)
