"""A customer in a scenario: looks at a part of the city, pans, follows a vendor, sleeps, comes back."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any

import orjson

from loadtest.clients.app import App
from loadtest.clients.target import Target
from loadtest.engine.city import City
from loadtest.engine.scenario import Customers
from loadtest.measure.recorder import STEPS_PER_S, Tally
from venta_client.view import View

MAP, ONE = "map", "one"
POSITION = b'"vendorId":'  # once in each card and fix, and twice as quick to count as "lat"
SNAPSHOT = re.compile(rb'\{"type":"snapshot","id":"(\w+)"')  # what is not written so is decoded
SLOW_BUFFER = 8192
STEPS_PER_MS = STEPS_PER_S // 1000


class Customer(App):
    """One customer's app. Every frame is counted, every `timed_every`th is read and its delays recorded; with `full`
    each is read and the views are held as the contract wants it, for the comparison with the truth.

    `now` is the server's time in epoch ms; `known` are the vendors of this run: others' positions are not timed.
    """

    path = "/v1/watch"

    def __init__(
        self,
        target: Target,
        token: Callable[[], str] | None,
        random: Random,
        tally: Tally,
        now: Callable[[], float],
        *,
        habits: Customers,
        city: City,
        known: Collection[str],
        vendor_ids: Sequence[str],
        timed_every: int,
        full: bool,
        slow: bool,
    ) -> None:
        super().__init__(target, token, random)
        self.full = full
        self.slow = slow
        self.views: dict[str, View] = {}
        self.asleep = False
        self.following: str | None = None
        self.circle = (city.lat, city.long, habits.radius[0])
        self._habits = habits
        self._city = city
        self._tally = tally
        self._now = now
        self._known = known
        self._vendor_ids = vendor_ids
        self._timed_every = timed_every
        self._frames = random.randrange(timed_every)
        self._asked: float | None = None
        self._first = True
        self._free_at = 0.0
        self._look_elsewhere()

    def act(self) -> float:
        """Do the next thing a customer does; returns after how many seconds to do another."""
        habits, random = self._habits, self._random
        if self.asleep:
            self.asleep = False
            self.regain()
            return random.expovariate(1 / habits.dwell)
        weights = (habits.pan, habits.follow, habits.sleep)
        if not any(weights) or not self.ready.is_set():
            return random.expovariate(1 / habits.dwell)
        what = random.choices(("pan", "follow", "sleep"), weights)[0]
        if what == "sleep":
            self.asleep = True
            self._tally.counts["sleeps"] += 1
            self.rest()
            return random.expovariate(1 / habits.asleep)
        if what == "follow":
            self._follow(None if self.following is not None else random.choice(self._vendor_ids))
        else:
            self._pan()
        return random.expovariate(1 / habits.dwell)

    def hurry(self) -> None:
        """Awake, with a network and a quick link: what is looked at now is to be compared with the truth."""
        self.asleep = self.slow = False
        self.regain()
        if self.socket is not None:
            self.socket.hold(False)

    @property
    def area(self) -> dict[str, Any]:
        """What is looked at, as on the wire."""
        lat, long, radius = self.circle
        return {"center": {"lat": lat, "long": long}, "radius": radius}

    # App

    def opened(self) -> None:
        self.views = {}  # what came before a new connection's snapshot is worth nothing
        self._first, self._asked = True, self.connecting_since
        if self.socket is None:
            return
        if self.slow:
            self.socket.narrow(SLOW_BUFFER)
        self._send({"type": "watch", "id": MAP, "area": self.area})
        if self.following is not None:
            self._send({"type": "watch", "id": ONE, "vendors": [self.following]})

    def received(self, message: bytes) -> None:
        # decoding is what costs: the type stands first in what the server sends, and is looked up only where it doesn't
        counts = self._tally.counts
        head = message[:32]
        if b'"update"' in head:
            counts["frames"] += 1
            counts["update_bytes"] += len(message)
            counts["positions"] += message.count(POSITION)
            self._frames += 1
            timed = self._frames % self._timed_every == 0
            if timed or self.full:
                self._read(orjson.loads(message), timed)
        elif not self.full and (named := SNAPSHOT.match(message)) is not None:
            self._shown(named[1].decode(), message)
        elif self.full or b'"unwatched"' not in head:
            self._rarer(message)
        if self.slow:
            self._pay(len(message))

    # inside

    def _rarer(self, message: bytes) -> None:
        decoded = self.decode(message)
        kind = decoded.get("type")
        if kind == "snapshot":
            if self.full:
                self.views.setdefault(decoded["id"], View()).snapshot(decoded["vendors"])
            self._shown(decoded["id"], message)
        elif kind == "unwatched":
            self.views.pop(str(decoded.get("id")), None)

    def _shown(self, watch_id: str, message: bytes) -> None:
        """A whole snapshot of a watch is here."""
        counts = self._tally.counts
        counts["snapshots"] += 1
        counts["snapshot_bytes"] += len(message)
        counts["snapshot_positions"] += message.count(POSITION)
        if watch_id != MAP:
            return
        if self._asked is not None and not self.slow:
            self._tally.delay("snapshot" if self._first else "pan", time.perf_counter() - self._asked)
        self._asked, self._first = None, False
        self.ready.set()

    def _read(self, update: dict[str, Any], timed: bool) -> None:
        moved = update.get("moved", [])
        if timed:
            now, known = self._now(), self._known
            # an odd one was collected without a network; an entered one may be old: it was the area that moved
            self._tally.delays(
                "slow" if self.slow else "watch",
                [
                    int((now - timestamp) * STEPS_PER_MS)
                    for fix in moved
                    if not (timestamp := fix["timestamp"]) & 1 and fix["vendorId"] in known
                ],
            )
        if self.full:
            view = self.views.setdefault(update["id"], View())
            view.update(update.get("entered", []), moved, update.get("left", []))

    def _look_elsewhere(self) -> None:
        random = self._random
        lat, long = self._city.degrees(*self._city.anywhere(random))
        self.circle = (lat, long, round(random.uniform(*self._habits.radius), 1))

    def _pan(self) -> None:
        if self._asked is not None:
            return  # the last one's snapshot is still to come; a finger waits for it too
        random = self._random
        lat, long, radius = self.circle
        if random.random() < 0.3:
            self._look_elsewhere()
        else:
            east, north = random.uniform(-radius, radius), random.uniform(-radius, radius)
            near = City(lat, long, radius, 1.0)
            self.circle = (*near.degrees(east, north), radius)
        self._tally.counts["pans"] += 1
        self._asked = time.perf_counter()
        self._send({"type": "watch", "id": MAP, "area": self.area})

    def _follow(self, vendor_id: str | None) -> None:
        self._tally.counts["follows"] += vendor_id is not None
        self.following = vendor_id
        if vendor_id is None:
            self._send({"type": "unwatch", "id": ONE})
        else:
            self._send({"type": "watch", "id": ONE, "vendors": [vendor_id]})

    def _send(self, message: dict[str, Any]) -> None:
        if self.socket is not None:
            self.socket.send(orjson.dumps(message))

    def _pay(self, size: int) -> None:
        """Read on only when the link would have carried so much."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._free_at = max(self._free_at, now) + size / self._habits.slow_bytes
        if self._free_at - now > 0.05 and self.socket is not None:
            self.socket.hold(True)
            loop.call_at(self._free_at, self.socket.hold, False)
