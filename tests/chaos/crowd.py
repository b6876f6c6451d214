"""Continuously moving vendors, watchers of all of them, and the delay of each watcher's view."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import orjson

from loadtest.clients.app import App
from loadtest.clients.target import Identity, Target, minting
from loadtest.clients.vendor import Ping, Vendor
from streamer.geo.shapes import Circle
from tests.support.running import ready, running
from tests.support.watchers import Watcher

CENTER = (52.2297, 21.0122)
RADIUS = 60_000.0
SPREAD = 0.3
"""Degrees around the centre in which vendors move: over many Redis cells, always inside the circle."""
PARTLY = 12_000.0
"""The radius in metres of every third watcher: vendors continuously enter and leave."""
COMES_BACK = 1.0
"""The longest wait in seconds of an app before it reconnects."""


class Mover:
    """A vendor's app and its pings: `due[i]` is when the app got `pings[i]` (monotonic)."""

    def __init__(self, app: Vendor, random: Random) -> None:
        self.app = app
        self.pings: list[Ping] = []
        self.due: list[float] = []
        self._random = random
        self._stamp = 0

    def move(self) -> None:
        """Reports a new position."""
        self._stamp = max(self._stamp + 1, time.time_ns() // 1_000_000)
        lat = round(CENTER[0] + self._random.uniform(-SPREAD, SPREAD), 6)
        long = round(CENTER[1] + self._random.uniform(-SPREAD, SPREAD), 6)
        ping = Ping(self._stamp, lat, long, self._stamp)
        self.pings.append(ping)
        self.due.append(time.monotonic())
        self.app.ping(ping)

    def late(self, shown: int, now: float) -> float:
        """Returns the seconds since the first ping that a view at timestamp `shown` lacks; 0 if it lacks none."""
        unknown = bisect_right(self.pings, shown, key=lambda ping: ping.timestamp)
        return now - self.due[unknown] if unknown < len(self.due) else 0.0


class Customer(Watcher):
    """A watcher that shows its last view until a new connection's snapshot has arrived."""

    def __init__(self, target: Target, circle: Circle, random: Random) -> None:
        area = {"center": {"lat": circle.lat, "long": circle.long}, "radius": circle.radius}
        super().__init__(target, area, None, random)
        self.circle = circle
        self.known: dict[str, int] = {}
        """Returns the newest timestamp of each vendor that was ever on the map."""
        self._before: dict[str, dict[str, Any]] = {}

    @property
    def shown(self) -> dict[str, dict[str, Any]]:
        """The vendors on the customer's map."""
        return self.view if self.snapshots else self._before

    def opened(self) -> None:
        self._before = self.shown
        super().opened()


class ZoomedOut(App):
    """A customer with a watch of counts over the whole world."""

    path = "/v1/watch"

    def __init__(self, target: Target, random: Random) -> None:
        super().__init__(target, None, random)
        self.groups: dict[str, dict[str, Any]] = {}

    @property
    def count(self) -> int:
        """The vendors on this customer's map."""
        return sum(group["count"] for group in self.groups.values())

    def opened(self) -> None:
        world = {"sw": {"lat": -90, "long": -180}, "ne": {"lat": 90, "long": 180}}
        if self.socket is not None:
            self.socket.send(orjson.dumps({"type": "watch", "id": "world", "area": world, "as": "counts"}))

    def received(self, message: bytes) -> None:
        decoded = self.decode(message)
        if decoded["type"] == "snapshot":
            self.groups = {}
            self.ready.set()
        for group in decoded.get("groups", []):
            self.groups[group["group"]] = group


class Crowd:
    """Vendors and watchers of a server or load balancer."""

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
        self.zoomed_out = [ZoomedOut(target, Random(random.random())) for _ in range(2)]
        self.apps: list[App] = [*self.watchers, *self.zoomed_out, *(mover.app for mover in self.movers)]
        self.moving = True
        self.latest = 0.0
        """The seconds by which the latest view was late, since this was last set to 0."""
        self._hz = hz
        for app in self.apps:
            app.longest_wait = COMES_BACK

    @asynccontextmanager
    async def about(self) -> AsyncIterator[None]:
        """Runs all apps; vendors move."""
        async with running(self.apps):
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
        """Waits until all are connected, and a little longer, so that every vendor is on the map."""
        await asyncio.sleep(0.1)
        for app in self.apps:
            await ready(app, within)
        await asyncio.sleep(0.3)

    @property
    def violations(self) -> list[str]:
        """The protocol violations of the server."""
        return [line for app in self.apps for line in app.violations]

    def late(self, watcher: Customer) -> float:
        """Returns the seconds by which a watcher's view is late."""
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
        """Returns the seconds by which the latest view is late, of the watchers of all vendors."""
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
