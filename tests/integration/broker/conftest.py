"""Fixtures: processes that share a Redis, positions, and hooks into their commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from streamer.broker.redis_connections import Command
from tests.support.apps import eventually
from tests.support.peers import Peer
from tests.support.proxy import Proxy

HERE = (52.2300, 21.0100)
NEAR = (52.2310, 21.0120)
AFAR = (53.4300, 14.5500)
"""In another broker cell."""


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    """The proxy between the first process and Redis."""
    async with Proxy(redis_url) as proxy:
        yield proxy


@pytest.fixture
async def one(proxy: Proxy) -> AsyncIterator[Peer]:
    """A process whose connection to Redis can be interrupted."""
    async with Peer(proxy.url, "one") as peer:
        yield peer


@pytest.fixture
async def other(redis_url: str) -> AsyncIterator[Peer]:
    """Another process, connected to Redis directly."""
    async with Peer(redis_url, "other") as peer:
        yield peer


def once(
    peer: Peer,
    when: Callable[[Sequence[Command]], bool],
    *,
    before: Callable[[], Any] = lambda: None,
    after: Callable[[], Any] = lambda: None,
) -> None:
    """Runs a function once, right before or after the process runs matching commands."""
    run = peer.broker.nodes.run

    async def hooked(commands: Sequence[Command], lane: str = "write") -> list[Any]:
        now = when(commands)
        if now:
            peer.broker.nodes.run = run  # type: ignore[method-assign]  # the only way to control the timing
            await apart(before())
        answers = await run(commands, lane)
        if now:
            await apart(after())
        return answers

    peer.broker.nodes.run = hooked  # type: ignore[method-assign]  # as above


async def apart(waiting: Any) -> None:
    """Awaits the result if it is awaitable; its errors must not reach the process."""
    if waiting is not None:
        await asyncio.wait({asyncio.create_task(waiting)})


def after(peer: Peer, script: str, then: Callable[[], Any]) -> None:
    """Runs a function once, right after the process ran a script."""
    once(peer, lambda commands: any(script in command.words for command in commands), after=then)


async def written(peer: Peer, vendor_id: str) -> None:
    """Waits until a process has written the whole state of its vendor."""

    def holds() -> bool:
        posted, vendor = peer.broker.publisher.placement.entries.get(vendor_id), peer.index.vendors[vendor_id]
        return posted is not None and posted.sure and int(posted.versions.fix) == vendor.fix.version

    await eventually(holds, f"{vendor_id} written by {peer.index.me}")
