"""A customer app that only counts what it receives, so that hundreds of them cost this process little."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from random import Random
from typing import Any

import orjson

from loadtest.clients.app import App
from loadtest.clients.target import Target
from loadtest.clients.watcher import WATCH_ID
from loadtest.measure.histogram import Histogram

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
        # decoding costs most: the type stands first in what the server sends, and is looked up only where it doesn't
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
