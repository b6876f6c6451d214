"""Processes through Redis: what is wrong here shows customers of one server what is not so on another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.apps import circle, eventually
from tests.peers import Peer
from tests.proxy import Proxy

HERE = (52.2300, 21.0100)
NEAR = (52.2310, 21.0120)
AFAR = (53.4300, 14.5500)
"""In another cell of the bus."""


@pytest.fixture
async def way(redis_url: str) -> AsyncIterator[Proxy]:
    """The first process's way to Redis."""
    async with Proxy(redis_url) as proxy:
        yield proxy


@pytest.fixture
async def one(way: Proxy) -> AsyncIterator[Peer]:
    """A process on the way that can be cut."""
    async with Peer(way.url, "one") as peer:
        yield peer


@pytest.fixture
async def other(redis_url: str) -> AsyncIterator[Peer]:
    """Another process, on a way of its own that stays."""
    async with Peer(redis_url, "other") as peer:
        yield peer


@pytest.mark.timeout(30)
async def test_crossing_cells_while_redis_is_away(way: Proxy, one: Peer, other: Peer) -> None:
    """What can't be written is tried again, but not at once and for ever: the process must go on serving."""
    one.serve("truck", HERE)
    there = await other.watch(area=circle(*AFAR, 5_000))
    await (await other.watch(area=circle(*HERE, 5_000))).sees({"truck": HERE})
    own = await one.watch(area=circle(*AFAR, 5_000))
    way.refusing = True
    way.cut()
    await eventually(lambda: not one.bus.up, "Redis found away")
    flushes = 0
    flush = one.bus._flush

    async def counted() -> None:
        nonlocal flushes
        flushes += 1
        if flushes > 1000:
            raise AssertionError("flushes without a pause")  # ends the task, where a loop could be stopped by nobody
        await flush()

    one.bus._flush = counted  # type: ignore[method-assign]
    one.ping("truck", AFAR)
    await own.sees({"truck": AFAR})
    await asyncio.sleep(0.5)
    assert flushes < 20
    way.refusing = False
    await there.sees({"truck": AFAR})
