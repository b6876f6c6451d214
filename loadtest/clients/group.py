"""Many apps run together, and what they counted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from loadtest.clients.app import App
from loadtest.clients.identity import Identity
from loadtest.clients.tokens import LIFETIME, mint
from loadtest.clients.vendor import Vendor

READY_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0
AT_ONCE = 50


def minting(identity: Identity, secret: str, lifetime: int = LIFETIME) -> Callable[[], str]:
    """What gives an app a fresh token before each connection, good for `lifetime` seconds."""
    return lambda: mint(identity.clerk_id, secret, time.time(), lifetime)


@asynccontextmanager
async def running(apps: Sequence[App], at_once: int = AT_ONCE) -> AsyncIterator[None]:
    """Apps that run while the block does, all ready when it begins; at most `at_once` of them connect at a time.

    RunFailed when one does not become ready. An app that fails ends the block, a block that ends stops the apps.
    """
    tasks: list[asyncio.Task[None]] = []
    async with asyncio.TaskGroup() as group:
        try:
            for first in range(0, len(apps), at_once):
                some = apps[first : first + at_once]
                tasks += [group.create_task(app.run()) for app in some]
                for app in some:
                    await app.wait_ready(READY_TIMEOUT)
            yield
        finally:
            for app in apps:
                app.stop()
            # a connect under way is not told by stop(); it is given a moment
            if tasks:
                await asyncio.wait(tasks, timeout=STOP_TIMEOUT)
            for task in tasks:
                task.cancel()


async def settled(vendors: Iterable[Vendor], within: float) -> int:
    """Wait until every ping is answered for, but not longer than `within` seconds; returns how many are not."""
    waiting = list(vendors)
    try:
        async with asyncio.timeout(within):
            for vendor in waiting:
                await vendor.settled.wait()
    except TimeoutError:
        pass
    return sum(vendor.waiting for vendor in waiting)


def counts(vendors: Iterable[Vendor]) -> dict[str, Any]:
    """What the vendor apps counted, together."""
    total: dict[str, int] = Counter()
    rejected, errors, closes = Counter[str](), Counter[str](), Counter[int]()
    for vendor in vendors:
        total["sent"] += vendor.sent
        total["acked"] += len(vendor.acked)
        total["resent"] += vendor.resent
        total["dropped"] += vendor.dropped
        total["connections"] += vendor.connections
        rejected += vendor.rejections()
        errors += vendor.errors
        closes += vendor.closes
    return {
        **total,
        "rejected": dict(rejected),
        "errors": dict(errors),
        "closes": {str(code): n for code, n in closes.items()},
    }
