"""Plans: a vendor whose user has no active subscription goes live only so often, on all processes together.

Its pings are stored like everybody's; what waits is where customers see it. Whether a user pays is asked of PostgreSQL,
when a vendor is first heard and every REFRESH seconds; that a vendor went live is remembered in Redis, for as long as
it has to wait. While PostgreSQL is away nobody is taken not to pay; while Redis is away each process goes by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from streamer.broker.broker import Broker
from streamer.errors import DatabaseError, Unavailable
from streamer.live.fix import Fix
from streamer.storage.store import Store

log = structlog.get_logger()

REFRESH = 30.0
"""Seconds after which a subscription that began or ended is seen."""


class Entitlements:
    """Decides which fixes are shown: `shows` is the fleet's question, `run` finds the answers. `every` is seconds."""

    def __init__(self, store: Store, broker: Broker, clock: Callable[[], int], every: float) -> None:
        self.paying: set[str] = set()
        """Vendors known to have an active subscription."""
        self._store = store
        self._broker = broker
        self._clock = clock
        self._every = int(every * 1000)
        self._waits: dict[str, int] = {}
        """Until when a vendor is not shown again, epoch ms."""
        self._asked: dict[str, Fix] = {}
        """Vendors of which nothing is known yet, and the newest fix of each."""
        self._wake = asyncio.Event()

    def shows(self, vendor_id: str, fix: Fix) -> bool:
        """Whether a fix is shown at once; one whose vendor is not known well enough is shown later, if it may."""
        if vendor_id in self.paying:
            return True
        if self._clock() >= self._waits.get(vendor_id, 0):
            known = self._asked.get(vendor_id)
            if known is None or known.timestamp < fix.timestamp:
                self._asked[vendor_id] = fix
            self._wake.set()
        return False

    async def run(self) -> None:
        """Find answers, for ever."""
        loop = asyncio.get_running_loop()
        refreshed = loop.time()
        while True:
            try:
                async with asyncio.timeout(max(0.0, refreshed + REFRESH - loop.time())):
                    await self._wake.wait()
            except TimeoutError:
                refreshed = loop.time()
                await self._refresh()
            self._wake.clear()
            if self._asked:
                asked, self._asked = self._asked, {}
                await self._decide(asked)

    async def _refresh(self) -> None:
        """Whose subscriptions began or ended; who waits no more is forgotten."""
        now = self._clock()
        served = list(self._broker.local_vendors.sockets)
        try:
            self.paying = await self._store.paying(served)
        except (Unavailable, DatabaseError):
            return
        self._waits = {id: until for id, until in self._waits.items() if until > now and id not in self.paying}

    async def _decide(self, asked: Mapping[str, Fix]) -> None:
        try:
            paying = await self._store.paying(list(asked))
        except (Unavailable, DatabaseError):
            paying = set(asked)
        else:
            self.paying |= paying
        free = [vendor_id for vendor_id in asked if vendor_id not in paying]
        left = await self._broker.once(free, self._every)
        now = self._clock()
        for vendor_id, fix in asked.items():
            wait = left.get(vendor_id, 0)
            if vendor_id not in paying:
                self._waits[vendor_id] = now + (wait or self._every)
            if not wait:
                self._broker.local_vendors.show(vendor_id, fix, now)
