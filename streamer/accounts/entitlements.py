"""Limits how often a vendor without an active subscription goes live, on all processes together.

All its pings are stored; only the live position is held back. Whether a user pays is read from PostgreSQL when a vendor
first reports, and every REFRESH seconds. Redis stores that a vendor went live for as long as it has to wait. While
PostgreSQL is down every vendor counts as paying; while Redis is down each process decides alone.
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
"""Seconds after which a subscription that began or ended takes effect."""


class Entitlements:
    """Decides which fixes are shown: `shows` answers at once, `run` looks up the unknown. `interval` is seconds."""

    def __init__(self, store: Store, broker: Broker, clock: Callable[[], int], interval: float) -> None:
        self.paying: set[str] = set()
        """Vendors known to have an active subscription."""
        self._store = store
        self._broker = broker
        self._clock = clock
        self._interval = int(interval * 1000)
        self._held_until: dict[str, int] = {}
        """When a vendor may be shown again, epoch ms."""
        self._undecided: dict[str, Fix] = {}
        """The newest fix of each vendor that has to be looked up."""
        self._wake = asyncio.Event()

    def shows(self, vendor_id: str, fix: Fix) -> bool:
        """Returns whether a fix is shown at once; `run` shows a fix that needs a lookup later, if it may."""
        if vendor_id in self.paying:
            return True
        now = self._clock()
        # A time further ahead than the interval means that the clock was set back.
        if not now < self._held_until.get(vendor_id, 0) <= now + self._interval:
            known = self._undecided.get(vendor_id)
            if known is None or known.timestamp < fix.timestamp:
                self._undecided[vendor_id] = fix
            self._wake.set()
        return False

    async def run(self) -> None:
        """Looks up vendors forever."""
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
            if self._undecided:
                undecided, self._undecided = self._undecided, {}
                await self._decide(undecided)

    async def _refresh(self) -> None:
        now = self._clock()
        try:
            self.paying = await self._store.paying(list(self._broker.local_vendors.sockets))
        except (Unavailable, DatabaseError):
            return
        self._held_until = {
            id: until for id, until in self._held_until.items() if until > now and id not in self.paying
        }

    async def _decide(self, undecided: Mapping[str, Fix]) -> None:
        try:
            paying = await self._store.paying(list(undecided))
        except (Unavailable, DatabaseError):
            paying = set(undecided)
        else:
            self.paying |= paying
        unpaid = [vendor_id for vendor_id in undecided if vendor_id not in paying]
        waits = await self._broker.once(unpaid, self._interval)
        now = self._clock()
        for vendor_id, fix in undecided.items():
            wait = waits.get(vendor_id, 0)
            if vendor_id not in paying:
                self._held_until[vendor_id] = now + (wait or self._interval)
            if not wait:
                self._broker.local_vendors.show(vendor_id, fix, now)
