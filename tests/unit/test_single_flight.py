"""One call for many callers: without it every health probe and unknown key id would be a query of its own."""

from __future__ import annotations

import asyncio

import pytest

from streamer.single_flight import SingleFlight


async def test_callers_share_the_running_call() -> None:
    """Callers that arrive meanwhile get the same answer; a cancelled caller does not cancel it for the others."""
    calls = 0
    go = asyncio.Event()

    async def call() -> int:
        nonlocal calls
        calls += 1
        await go.wait()
        return calls

    flight = SingleFlight(call, "test")
    waiting = [asyncio.create_task(flight.result()) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(*waiting[1:]) == [1] * 4
    assert waiting[0].cancelled()
    assert await flight.result() == 2, "the next caller gets a new answer"


async def test_an_error_is_everyones_and_not_kept() -> None:
    """A failed call fails for all waiting callers, even if all were cancelled; the next call tries again."""
    fails = True

    async def call() -> str:
        await asyncio.sleep(0)
        if fails:
            raise ValueError("down")
        return "up"

    flight = SingleFlight(call, "test")
    for error in await asyncio.gather(flight.result(), flight.result(), return_exceptions=True):
        assert isinstance(error, ValueError)
    alone = asyncio.create_task(flight.result())
    await asyncio.sleep(0)
    alone.cancel()
    await asyncio.sleep(0.01)
    fails = False
    assert await flight.result() == "up"


async def test_close_ends_the_call() -> None:
    """A server that stops leaves no running call and no waiting caller behind."""
    flight = SingleFlight(asyncio.Event().wait, "test")
    waiting = asyncio.create_task(flight.result())
    await asyncio.sleep(0)
    await flight.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await flight.close()
