"""A customer app: watches an area and holds what the server says is in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any

import orjson

from loadtest.clients.app import App
from loadtest.clients.target import Target
from loadtest.measure.histogram import Histogram
from venta_client.view import View

WATCH_ID = "w1"


class Watcher(App):
    """One watch of `area` (as on the wire). `view` maps vendorId to card; `delays` records the age of each new fix.

    `positions` counts what was delivered after the first snapshot; fixes older than `since` (epoch ms) are not timed.
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
        self._view = View()

    @property
    def view(self) -> dict[str, dict[str, Any]]:
        """The vendors inside the area, by id."""
        return self._view.vendors

    @property
    def snapshots(self) -> int:
        """The number of snapshots that came."""
        return self._view.snapshots

    def opened(self) -> None:
        self._view = View()  # a new connection begins with a new snapshot
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
