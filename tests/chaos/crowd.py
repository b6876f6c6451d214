"""Vendors that move all the time and watchers of them all, and how late each watcher's view is."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

from loadtest.clients.group import running
from loadtest.clients.identity import Identity, minting
from loadtest.clients.target import Target
from loadtest.clients.vendor import Ping, Vendor
from loadtest.clients.watcher import Watcher
from streamer.geo.shapes import Circle

CENTER = (52.2297, 21.0122)
RADIUS = 60_000.0
SPREAD = 0.3
"""Degrees from the centre in which vendors jump about: over many cells of the bus, all of it inside the circle."""
PARTLY = 12_000.0
"""Metres that every third watcher sees: vendors enter and leave all the time."""
COMES_BACK = 1.0
"""Longest wait in seconds of an app before it tries again."""


class Mover:
    """A vendor's app and what it reported: `due[i]` is when `pings[i]` was handed to the app (monotonic)."""

    def __init__(self, app: Vendor, random: Random) -> None:
        self.app = app
        self.pings: list[Ping] = []
        self.due: list[float] = []
        self._random = random
        self._stamp = 0

    def move(self) -> None:
        """Report a new position."""
        self._stamp = max(self._stamp + 1, time.time_ns() // 1_000_000)
        lat = round(CENTER[0] + self._random.uniform(-SPREAD, SPREAD), 6)
        long = round(CENTER[1] + self._random.uniform(-SPREAD, SPREAD), 6)
        ping = Ping(self._stamp, lat, long, self._stamp)
        self.pings.append(ping)
        self.due.append(time.monotonic())
        self.app.ping(ping)

    def late(self, shown: int, now: float) -> float:
        """Seconds since the first report that a view at timestamp `shown` does not know of; 0 if it knows all."""
        unknown = bisect_right(self.pings, shown, key=lambda ping: ping.timestamp)
        return now - self.due[unknown] if unknown < len(self.due) else 0.0


class Customer(Watcher):
    """A watcher that goes on showing what it last knew until a new connection's snapshot is there."""

    def __init__(self, target: Target, circle: Circle, random: Random) -> None:
        area = {"center": {"lat": circle.lat, "long": circle.long}, "radius": circle.radius}
        super().__init__(target, area, None, random)
        self.circle = circle
        self.known: dict[str, int] = {}
        """The newest timestamp of each vendor that was ever on the map."""
        self._before: dict[str, dict[str, Any]] = {}

    @property
    def shown(self) -> dict[str, dict[str, Any]]:
        """What is on the customer's map."""
        return self.view if self.snapshots else self._before

    def opened(self) -> None:
        self._before = self.shown
        super().opened()


class Crowd:
    """Vendors and watchers on a server or balancer."""

    def __init__(
        self, target: Target, identities: Sequence[Identity], watchers: int, secret: str, random: Random, hz: float
    ) -> None:
        self.movers = [
            Mover(Vendor(target, identity, minting(identity, secret), Random(random.random())), random)
            for identity in identities
        ]
        self.watchers = [
            Customer(target, Circle(*CENTER, PARTLY if number % 3 == 2 else RADIUS), Random(random.random()))
            for number in range(watchers)
        ]
        self.moving = True
        self.latest = 0.0
        """Seconds by which the latest view was late, since this was last set to 0."""
        self._hz = hz
        for app in (*self.watchers, *(mover.app for mover in self.movers)):
            app.longest_wait = COMES_BACK

    @asynccontextmanager
    async def about(self) -> AsyncIterator[None]:
        """All are connected, move and watch."""
        async with running([*self.watchers, *(mover.app for mover in self.movers)]):
            tasks = [asyncio.create_task(self._move()), asyncio.create_task(self._measure())]
            try:
                yield
                for task in tasks:
                    if task.done():
                        task.result()
            finally:
                for task in tasks:
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    await asyncio.gather(*tasks)

    async def ready(self, within: float) -> None:
        """Wait until all are connected, and a moment more, so that those who were not on the map are."""
        await asyncio.sleep(0.1)
        for app in (*self.watchers, *(mover.app for mover in self.movers)):
            await app.wait_ready(within)
        await asyncio.sleep(0.3)

    @property
    def violations(self) -> list[str]:
        """What the server did against the contract."""
        return [line for app in (*self.watchers, *(mover.app for mover in self.movers)) for line in app.violations]

    def late(self, watcher: Customer) -> float:
        """Seconds by which a watcher's view is late."""
        now, view = time.monotonic(), watcher.shown
        late = 0.0
        for mover in self.movers:
            vendor_id = mover.app.identity.vendor_id
            card: dict[str, Any] | None = view.get(vendor_id)
            if card is not None:
                watcher.known[vendor_id] = card["timestamp"]
            late = max(late, mover.late(watcher.known.get(vendor_id, -1), now))
        return late

    def late_now(self) -> float:
        """Seconds by which the latest view is late, of those that see all."""
        return max(self.late(watcher) for watcher in self.watchers if watcher.circle.radius == RADIUS)

    async def _move(self) -> None:
        turn = 0
        while True:
            if self.moving:
                self.movers[turn % len(self.movers)].move()
                turn += 1
            await asyncio.sleep(1 / (self._hz * len(self.movers)))

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            for watcher in self.watchers:
                if watcher.shown and watcher.circle.radius == RADIUS:
                    self.latest = max(self.latest, self.late(watcher))
