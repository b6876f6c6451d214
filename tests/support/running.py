"""Many apps of the load test that run during a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from loadtest import RunFailed
from loadtest.clients.app import App, stop
from loadtest.clients.vendor import Vendor

READY_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0
AT_ONCE = 50


@asynccontextmanager
async def running(apps: Sequence[App], at_once: int = AT_ONCE) -> AsyncIterator[None]:
    """Runs apps during the block, all ready at its beginning; at most `at_once` of them connect at a time.

    Raises RunFailed if one does not become ready. An app that fails ends the block; the end of the block stops them.
    """
    tasks: list[asyncio.Task[None]] = []
    async with asyncio.TaskGroup() as group:
        try:
            for first in range(0, len(apps), at_once):
                some = apps[first : first + at_once]
                tasks += [group.create_task(app.run()) for app in some]
                for app in some:
                    await ready(app, READY_TIMEOUT)
            yield
        finally:
            await stop(apps, tasks, STOP_TIMEOUT)


async def ready(app: App, within: float) -> None:
    """Waits until an app is ready; raises RunFailed with the server's error if it is not after `within` s."""
    try:
        await asyncio.wait_for(app.ready.wait(), within)
    except TimeoutError:
        last = app.ended or f"closes {dict(app.closes)}, errors {dict(app.errors)}, refused {app.refused}"
        raise RunFailed(f"{app.path} was not ready within {within:g} s ({last}); is the server up?") from None


async def settled(vendors: Iterable[Vendor], within: float) -> int:
    """Waits up to `within` s until all pings are answered; returns the number of the others."""
    waiting = list(vendors)
    try:
        async with asyncio.timeout(within):
            for vendor in waiting:
                await vendor.settled.wait()
    except TimeoutError:
        pass
    return sum(vendor.waiting for vendor in waiting)
