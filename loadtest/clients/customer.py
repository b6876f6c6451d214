"""A customer of a scenario: watches a part of the city according to its behaviour, and measures delays."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Collection
from random import Random
from typing import Any, NamedTuple

import orjson

from loadtest.behaviour import METRES_PER_DEGREE, CustomerBehaviour
from loadtest.clients.app import App
from loadtest.clients.target import Target
from loadtest.engine.scenario import Customers
from loadtest.measure.recording import STEPS_PER_S, Recorder, percentile
from venta_client.errors import Violation
from venta_client.view import View

MAP, ONE, COUNTS, CHECK = "map", "one", "counts", "check"
POSITION = b'"vendorId":'  # once in each card and fix, and twice as quick to count as "lat"
SNAPSHOT = re.compile(rb'\{"type":"snapshot","id":"(\w+)"')  # any other form is decoded
SLOW_BUFFER = 8192
STALLED_BUFFER = 4096
STEPS_PER_MS = STEPS_PER_S // 1000
EXCESS_STEP_MS = 5
STALLED_CLOSES = frozenset({4508, 1006})

Groups = dict[str, dict[str, Any]]


class Latest(NamedTuple):
    """The position with the longest delay in a second: delay in ms, arrival (epoch ms), vendor, and timestamp."""

    delay: float
    at: float
    vendor: str
    timestamp: int


class Customer(App):
    """One customer's app. Every frame is counted, every `timed_every`th is decoded and its delays are recorded.

    With `full` each frame is decoded and the views are maintained by the protocol, for the verification. `clock` is the
    server's time of reading in epoch ms; positions of vendors that are not `known` are not timed. `recent` holds the
    delays (ms) of the frames since the last call of `compared`. `excess` counts seconds by how much later its positions
    arrived than those of the other customers, in 5 ms steps.
    """

    path = "/v1/watch"

    def __init__(
        self,
        target: Target,
        token: Callable[[], str] | None,
        random: Random,
        recorder: Recorder,
        clock: Callable[[], float],
        *,
        habits: Customers,
        known: Collection[str],
        index: int = 0,
        timed_every: int = 1,
        full: bool = False,
        slow: bool = False,
        stalled: bool = False,
        counting: bool = False,
    ) -> None:
        super().__init__(target, token, random, f"customer {index}")
        self.index = index
        self.full = full
        self.slow = slow
        self.stalled = stalled
        self.counting = counting
        self.deflate = habits.deflate
        self.expected_closes = STALLED_CLOSES if stalled else frozenset()
        self.views: dict[str, View] = {}
        self.groups: dict[str, Groups] = {}
        self.asleep = False
        self.following: str | None = None
        self.circle = (0.0, 0.0, 1.0)
        self.behaviour: CustomerBehaviour | None = None
        self.pending = False
        """Whether the map was moved and its snapshot has not arrived."""
        self.delays: Counter[int] = Counter()
        self.excess: Counter[int] = Counter()
        self.recent: list[float] = []
        self._latest = Latest(0.0, 0.0, "", 0)
        self._worst: tuple[float, Latest] | None = None
        self._habits = habits
        self._recorder = recorder
        self._now = clock
        self._known = known
        self._timed_every = timed_every
        self._frames = random.randrange(timed_every)
        self._asked: float | None = None
        self._first = True
        self._free_at = 0.0
        self._decode_all = False
        self._throttled = slow
        self._timing = True

    def start(self, behaviour: CustomerBehaviour) -> float:
        """Gives the customer its behaviour, which chooses the first area; returns the seconds until the first act."""
        self.behaviour = behaviour
        self._decode_all = type(behaviour).on_update is not CustomerBehaviour.on_update
        return behaviour.on_start()

    def act(self) -> float:
        """Wakes up if asleep, or does the next action; returns the seconds until the next act."""
        assert self.behaviour is not None
        if self.asleep:
            self.asleep = False
            self.reconnect()
            return self._random.expovariate(1 / self._habits.dwell)
        return self.behaviour.on_tick()

    def hurry(self) -> None:
        """Wakes up on a fast link, so that the view can be compared with the truth; measures no more delays."""
        self.asleep = self._throttled = self._timing = False
        self.reconnect()
        if self.socket is not None:
            self.socket.hold(False)

    # actions of a behaviour

    def look_at(self, lat: float, long: float, radius: float) -> None:
        """Moves the map; ignored while the snapshot of the last move is outstanding, as a person would wait for it."""
        if self.pending:
            return
        self.circle = (lat, long, radius)
        if self.ready.is_set():
            self._recorder.counts["pans"] += 1
            self.pending, self._asked = True, time.perf_counter()
            self._watch_area()

    def follow(self, vendor_id: str | None) -> None:
        """Watches one vendor in addition to the map; None ends it."""
        self._recorder.counts["follows"] += vendor_id is not None
        self.following = vendor_id
        if vendor_id is None:
            self._send({"type": "unwatch", "id": ONE})
        else:
            self._send({"type": "watch", "id": ONE, "vendors": [vendor_id]})

    def fall_asleep(self) -> None:
        """Disconnects until the next act."""
        self.asleep = True
        self._recorder.counts["sleeps"] += 1
        self.sleep()

    def check_counts(self) -> None:
        """Requests a fresh snapshot of the counts, to compare with the held ones."""
        self.groups.pop(CHECK, None)
        self._send({"type": "watch", "id": CHECK, "area": self.area, "as": "counts"})

    @property
    def area(self) -> dict[str, Any]:
        """The area as on the wire: the circle, or its box for a map that shows counts."""
        lat, long, radius = self.circle
        if not self.counting:
            return {"center": {"lat": lat, "long": long}, "radius": radius}
        north = radius / METRES_PER_DEGREE
        east = north * 1.6
        return {"ne": {"lat": lat + north, "long": long + east}, "sw": {"lat": lat - north, "long": long - east}}

    # App

    def opened(self) -> None:
        self.views, self.groups = {}, {}  # a new connection begins with new snapshots
        self._first, self._asked, self.pending = True, self.connecting_since, True
        if self.socket is None:
            return
        if self.slow:
            self.socket.narrow(SLOW_BUFFER)
        self._watch_area()
        if self.following is not None:
            self._send({"type": "watch", "id": ONE, "vendors": [self.following]})

    def received(self, message: bytes) -> None:
        now = self._now()
        # decoding costs most, so the type is taken from the message's beginning; if it is elsewhere, it is decoded
        counts = self._recorder.counts
        head = message[:32]
        if b'"update"' in head:
            counts["frames"] += 1
            counts["update_bytes"] += self.size(message)
            counts["positions"] += message.count(POSITION)
            self._frames += 1
            timed = self._frames % self._timed_every == 0
            timed = timed and self._timing
            if timed or self.full or self._decode_all or self.counting:
                self._read(self.decode(message), now if timed else None)
        elif not self.full and not self.counting and (named := SNAPSHOT.match(message)) is not None:
            self._shown(named[1].decode(), message)
        elif self.full or self.counting or b'"unwatched"' not in head:
            self._read_other(message)
        if self._throttled:
            self._pay(self.size(message))

    # inside

    def _watch_area(self) -> None:
        watch = {"type": "watch", "id": COUNTS if self.counting else MAP, "area": self.area}
        self._send(watch | {"as": "counts"} if self.counting else watch)

    def _read_other(self, message: bytes) -> None:
        decoded = self.decode(message)
        kind = decoded.get("type")
        if kind == "snapshot":
            name = decoded["id"]
            if "groups" in decoded:
                self.groups[name] = {group["group"]: group for group in decoded["groups"]}
            elif self.full:
                self.views.setdefault(name, View(strict=True)).snapshot(decoded["vendors"])
            self._shown(name, message)
        elif kind == "unwatched":
            self.views.pop(str(decoded.get("id")), None)

    def _shown(self, watch_id: str, message: bytes) -> None:
        """Records a whole snapshot of a watch."""
        recorder = self._recorder
        recorder.counts["snapshots"] += 1
        recorder.counts["snapshot_bytes"] += self.size(message)
        recorder.counts["snapshot_positions"] += message.count(POSITION)
        if watch_id not in (MAP, COUNTS):
            return
        if self._asked is not None and not self.slow:
            recorder.delay("snapshot" if self._first else "pan", time.perf_counter() - self._asked)
        self._asked, self._first, self.pending = None, False, False
        self.ready.set()
        if (seconds := self.recovered()) is not None:
            recorder.delay("recovery", seconds)
        if self.stalled and self.socket is not None:
            self.socket.narrow(STALLED_BUFFER)
            self.socket.hold(True)

    def _read(self, update: dict[str, Any], now: float | None) -> None:
        moved = update.get("moved", [])
        if now is not None:
            self._time(moved, now)
        if "groups" in update:
            held = self.groups.get(update["id"])
            if held is None:
                raise Violation(f"an update of the counts {update['id']!r} came before their snapshot")
            for group in update["groups"]:
                if group["count"]:
                    held[group["group"]] = group
                else:
                    held.pop(group["group"], None)
        elif self.full:
            view = self.views.setdefault(update["id"], View(strict=True))
            view.update(update.get("entered", []), moved, update.get("left", []))
        if self._decode_all and self.behaviour is not None:
            self.behaviour.on_update(update)

    def _time(self, moved: list[dict[str, Any]], now: float) -> None:
        known = self._known
        # an odd timestamp was collected without a network; an entered fix may be old, as the area has moved
        timed = [fix for fix in moved if not fix["timestamp"] & 1 and fix["vendorId"] in known]
        steps = [int((now - fix["timestamp"]) * STEPS_PER_MS) for fix in timed]
        self._recorder.delays("slow" if self.slow else "watch", steps)
        if not self.slow and steps:
            middle = sorted(steps)[len(steps) // 2] / STEPS_PER_MS
            self.delays[int(middle) // EXCESS_STEP_MS] += 1
            self.recent.append(middle)
            if (longest := max(steps) / STEPS_PER_MS) > self._latest.delay:
                fix = timed[steps.index(max(steps))]
                self._latest = Latest(longest, now, fix["vendorId"], fix["timestamp"])

    def compared(self, excess: float) -> None:
        """Records how many ms later than the median customer's the recent positions arrived; starts over."""
        self.excess[int(excess) // EXCESS_STEP_MS] += 1
        if self._worst is None or excess > self._worst[0]:
            self._worst = excess, self._latest
        self.forget()

    def forget(self) -> None:
        """Starts over without a comparison."""
        self.recent.clear()
        self._latest = Latest(0.0, 0.0, "", 0)

    def _send(self, message: dict[str, Any]) -> None:
        if self.socket is not None:
            self.socket.send(orjson.dumps(message))

    def _pay(self, size: int) -> None:
        """Continues reading only once the slow link would have carried the data."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._free_at = max(self._free_at, now) + size / self._habits.slow_bytes
        if self._free_at - now > 0.05 and self.socket is not None:
            self.socket.hold(True)
            loop.call_at(self._free_at, self.socket.hold, False)

    def summary(self) -> dict[str, Any]:
        """Returns this customer's own delays, for figures per customer: of its timed frames, in ms."""

        def ms(steps: Counter[int], percent: float) -> int:
            return (percentile(steps, percent) or 0) * EXCESS_STEP_MS

        worst = self._worst[1] if self._worst is not None else None
        return {
            "customer": self.index,
            "frames": self.delays.total(),
            "p50_ms": ms(self.delays, 50),
            "p90_ms": ms(self.delays, 90),
            "seconds": self.excess.total(),
            "later_ms": ms(self.excess, 50),
            "mostly_later_ms": ms(self.excess, 20),
            "latest": None if worst is None else worst._asdict(),
        }
