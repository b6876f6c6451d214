"""Customer apps for tests: one that keeps its view, and one that only counts, so that hundreds cost little."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from random import Random
from typing import Any

import orjson

from loadtest.clients.app import App
from loadtest.clients.target import Target
from loadtest.measure.recording import Histogram
from venta_client.view import View

WATCH_ID = "w1"


class Watcher(App):
    """One watch of `area` (as on the wire). `view` maps vendorId to card; `delays` records the age of each new fix.

    `positions` counts those delivered after the first snapshot; fixes older than `since` (epoch ms) are not timed.
    """

    path = "/v1/watch"

    def __init__(
        self,
        target: Target,
        area: dict[str, Any],
        token: Callable[[], str] | None,
        random: Random,
        *,
        delays: Histogram | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(target, token, random)
        self.area = area
        self.positions = 0
        self.since = 0
        self._delays = delays
        self._clock = clock
        self._view = View(strict=True)

    @property
    def view(self) -> dict[str, dict[str, Any]]:
        """The vendors inside the area, by id."""
        return self._view.vendors

    @property
    def snapshots(self) -> int:
        """The number of snapshots received."""
        return self._view.snapshots

    def opened(self) -> None:
        self._view = View(strict=True)  # a new connection begins with a new snapshot
        if self.socket is not None:
            self.socket.send(orjson.dumps({"type": "watch", "id": WATCH_ID, "area": self.area}))

    def received(self, message: bytes) -> None:
        decoded = self.decode(message)
        kind = decoded.get("type")
        if kind == "update":
            entered, moved = decoded.get("entered", []), decoded.get("moved", [])
            self._view.update(entered, moved, decoded.get("left", []))
            self.positions += len(entered) + len(moved)
            self._time(entered)
            self._time(moved)
        elif kind == "snapshot":
            self._view.snapshot(decoded["vendors"])
            self.ready.set()

    def _time(self, fixes: list[dict[str, Any]]) -> None:
        if self._delays is None:
            return
        now = self._clock()
        for fix in fixes:
            if fix["timestamp"] >= self.since:
                self._delays.record(now - fix["timestamp"] / 1000)


POSITION = b'"lat":'
STAMP = re.compile(rb'"timestamp":\s*(\d{13})\b')


class CountingWatcher(App):
    """Counts the `positions` and `bytes` of updates; with `delays` it also records each position's age on arrival.

    `snapshot_delay` is the seconds from the beginning of the connect to the end of the first snapshot.
    """

    path = "/v1/watch"

    def __init__(
        self,
        target: Target,
        area: dict[str, Any],
        token: Callable[[], str] | None,
        random: Random,
        delays: Histogram | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(target, token, random)
        self.area = area
        self.positions = 0
        self.frames = 0
        self.update_bytes = 0
        self.snapshot_delay: float | None = None
        self.delays = delays
        self._clock = clock

    def opened(self) -> None:
        if self.socket is not None:
            self.socket.send(orjson.dumps({"type": "watch", "id": WATCH_ID, "area": self.area}))

    def received(self, message: bytes) -> None:
        # decoding costs most, so the type is taken from the beginning; only if it is elsewhere, the message is decoded
        if self.ready.is_set() and (b'"update"' in message[:32] or self.decode(message).get("type") == "update"):
            self._count(message)
        elif not self.ready.is_set() and self.decode(message).get("type") == "snapshot":
            if self.snapshot_delay is None:
                self.snapshot_delay = time.perf_counter() - self.connecting_since
            self.ready.set()

    def _count(self, message: bytes) -> None:
        self.frames += 1
        self.update_bytes += len(message)
        self.positions += message.count(POSITION)
        if self.delays is not None:
            now = self._clock()
            for stamp in STAMP.findall(message):
                self.delays.record(now - int(stamp) / 1000)
