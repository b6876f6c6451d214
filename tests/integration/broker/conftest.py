"""Processes that share a Redis, places, and hooks into their commands."""

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
"""In another cell of the bus."""


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    """The proxy between the first process and Redis."""
    async with Proxy(redis_url) as proxy:
        yield proxy


@pytest.fixture
async def one(proxy: Proxy) -> AsyncIterator[Peer]:
    """A process whose connection to Redis can be cut."""
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
    """Have something done once, right before or after the process has Redis carry out such commands."""
    run = peer.broker.nodes.run

    async def hooked(commands: Sequence[Command], lane: str = "write") -> list[Any]:
        now = when(commands)
        if now:
            peer.broker.nodes.run = run  # type: ignore[method-assign]  # only a real process's own timing can be hit so
            await apart(before())
        answers = await run(commands, lane)
        if now:
            await apart(after())
        return answers

    peer.broker.nodes.run = hooked  # type: ignore[method-assign]  # as above


async def apart(waiting: Any) -> None:
    """Wait for it, if it is to be waited for, but what goes wrong with it is nothing that the process must bear."""
    if waiting is not None:
        await asyncio.wait({asyncio.create_task(waiting)})


def after(peer: Peer, script: str, then: Callable[[], Any]) -> None:
    """Have something done once, right after the process had Redis run a script."""
    once(peer, lambda commands: any(script in command.words for command in commands), after=then)


async def written(peer: Peer, vendor_id: str) -> None:
    """Wait until a process wrote all it knows of its vendor."""

    def holds() -> bool:
        posted, vendor = peer.broker.publisher.placement.entries.get(vendor_id), peer.index.vendors[vendor_id]
        return posted is not None and posted.sure and int(posted.versions.fix) == vendor.fix.version

    await eventually(holds, f"{vendor_id} written by {peer.index.me}")
