"""A vendor app: reports its position, and keeps each ping until the server acknowledges that it is stored."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple
from urllib.parse import quote

from loadtest.behaviour import VendorBehaviour
from loadtest.clients.app import App
from loadtest.clients.target import Identity, Target
from loadtest.measure.recording import Recorder
from venta_client.errors import Violation
from venta_client.outbox import Outbox
from venta_client.ping import encode

DEFAULT_BATCH = 500
ACK = b'{"type":"ack","seq":'
LIMIT = 20_000
GRID = 4
SURELY_LIVE = 585_000
SURELY_HISTORY = 615_000
BULK_PAST = 300_000
Acked = tuple[int, int, float, float, bool]
"""An acked ping for the auditor: the vendor's index, timestamp, lat, long, and whether its delay counts."""


class Ping(NamedTuple):
    """One position that a vendor reports: epoch ms, degrees, m/s, metres; `due` is when it was due to be sent."""

    timestamp: int
    lat: float
    long: float
    due: int
    heading: float | None = None
    speed: float | None = None
    accuracy: float | None = None


class Vendor(App):
    """One vendor's app. `ping()` sends immediately if possible, or later; `acked` and `rejected` hold the outcome.

    `dropped` counts pings for which the outbox had no room; `settled` is set while no ping waits for an answer.
    """

    def __init__(
        self,
        target: Target,
        identity: Identity,
        token: Callable[[], str],
        random: Random,
        *,
        limit: int = 200_000,
    ) -> None:
        super().__init__(target, token, random, f"vendor {identity.vendor_id}")
        self.identity = identity
        self.path = f"/v1/vendor?vendorId={quote(identity.vendor_id, safe='')}"
        self.dropped = 0
        self.acked: list[Ping] = []
        self.rejected: list[tuple[str, Ping]] = []
        self.settled = asyncio.Event()
        self.settled.set()
        self._outbox: Outbox[Ping] = Outbox(limit)
        self._max_batch = DEFAULT_BATCH

    def ping(self, ping: Ping) -> None:
        """Reports one position."""
        if not self._outbox.add(ping):
            self.dropped += 1
            return
        self.settled.clear()
        self._flush()

    def rejections(self) -> Counter[str]:
        """Counts the rejected pings by code."""
        return Counter(code for code, _ in self.rejected)

    @property
    def sent(self) -> int:
        """The number of sent pings, each counted once."""
        return self._outbox.sent

    @property
    def resent(self) -> int:
        """The number of pings that were sent again after a reconnect."""
        return self._outbox.resent

    @property
    def waiting(self) -> int:
        """The number of pings without an answer."""
        return len(self._outbox)

    def stored(self, pings: list[Ping]) -> None:
        """Called with acked pings."""
        self.acked.extend(pings)

    # App

    def opened(self) -> None:
        self._flush()  # the hello may have arrived together with the handshake

    def received(self, message: bytes) -> None:
        if message.startswith(ACK) and (seq := message[len(ACK) : -1]).isdigit():
            self._settle(self._outbox.ack(int(seq)))  # the usual form, at a third of the cost of decoding
            return
        decoded = self.decode(message)
        kind = decoded.get("type")
        if kind == "ack":
            self._settle(self._outbox.ack(integer(decoded, "seq")))
        elif kind == "reject":
            self.rejected.append((str(decoded.get("code")), self._outbox.reject(integer(decoded, "seq"))))
            self._settle([])
        elif kind == "hello":
            self.greeted(decoded.get("durable"), int(decoded.get("maxBatch", DEFAULT_BATCH)))

    def writable(self) -> None:
        self._flush()

    def greeted(self, durable: int | None, max_batch: int) -> None:
        """Called with the server's hello: sends unacked pings again."""
        self._max_batch = max(1, min(DEFAULT_BATCH, max_batch))
        self.ready.set()
        self._settle(self._outbox.reconnected(durable))
        self._flush()

    # inside

    def _settle(self, pings: list[Ping]) -> None:
        if pings:
            self.stored(pings)
        if not self._outbox:
            self.settled.set()

    def _flush(self) -> None:
        socket = self.socket
        while socket is not None and self.ready.is_set() and socket.writable:
            batch = self._outbox.take(self._max_batch)
            if not batch:
                return
            socket.send(encode(batch))
            if len(batch) < self._max_batch:
                return


def integer(message: dict[str, object], name: str) -> int:
    """Returns an integer member of a message; raises Violation when it is anything else."""
    value = message.get(name)
    if type(value) is not int:
        raise Violation(f"{name!r} is {value!r} in {message!r}; it must be an integer")
    return value


class Ledger:
    """The acked pings of one vendor: with `keep` all of them, at 24 bytes each, else their count and the newest.

    `newest` is the newest that was certainly published, acked within 585 s. `unsure`: a later one may have been.
    """

    def __init__(self, keep: bool) -> None:
        self.count = 0
        self.newest: Ping | None = None
        self.unsure = False
        self._keep = keep
        self._times = array("q")
        self._places = array("d")

    def add(self, pings: list[Ping], now: float) -> None:
        """Adds pings that were acked at `now` (epoch ms)."""
        self.count += len(pings)
        for ping in pings:
            age = now - ping.timestamp
            if age > SURELY_LIVE:
                self.unsure = self.unsure or age < SURELY_HISTORY or self.newest is None
            elif self.newest is None or ping.timestamp > self.newest.timestamp:
                self.newest, self.unsure = ping, False
            if self._keep:
                self._times.append(ping.timestamp)
                self._places.extend((ping.lat, ping.long))

    def pings(self) -> list[Ping]:
        """Returns all pings that were kept."""
        places = self._places
        return [Ping(time, places[2 * n], places[2 * n + 1], time) for n, time in enumerate(self._times)]


class SimulatedVendor(Vendor):
    """One vendor's app with its ledger.

    The `timestamp` of a ping that was due while the phone had a network is even, that of a backlog is odd. So a watcher
    knows from the position alone whether its delay is the server's. With `audited`, `unreported` collects acked pings
    until they are reported to the auditor.
    """

    def __init__(
        self,
        target: Target,
        identity: Identity,
        token: Callable[[], str],
        random: Random,
        recorder: Recorder,
        clock: Callable[[], float],
        *,
        index: int = 0,
        keep: bool,
        audited: bool = False,
    ) -> None:
        super().__init__(target, identity, token, random, limit=LIMIT)
        self.ledger = Ledger(keep)
        self.left_at = 0.0
        self.index = index
        self.unreported: list[Acked] = []
        self.acked_until = 0
        self.behaviour: VendorBehaviour | None = None
        self._audited = audited
        self._recorder = recorder
        self._now = clock
        self._lost_at = 0.0
        self._held_until = 0
        """Pings up to this timestamp waited for a connection, so their delay is not that of the live path."""

    def disconnect(self) -> None:
        self._lost_at = self._now()
        super().disconnect()

    def report(self, ping: Ping) -> None:
        """Sends a ping that is due; without a network it becomes part of a backlog."""
        if not self.reachable:
            ping = ping._replace(timestamp=ping.timestamp | 1)
            self._recorder.counts["backlog"] += 1
        if not self.ready.is_set():
            self._held_until = ping.timestamp
        self.ping(ping)

    def greeted(self, durable: int | None, max_batch: int) -> None:
        self._held_until = max(self._held_until, int(self._now()) if self.waiting else 0)
        if (seconds := self.recovered()) is not None:
            self._recorder.delay("recovery", seconds)
        super().greeted(durable, max_batch)

    def stored(self, pings: list[Ping]) -> None:
        now = self._now()
        self.ledger.add(pings, now)
        recorder, lost_at = self._recorder, self._lost_at
        recorder.counts["acked"] += len(pings)
        if pings:
            self.acked_until = pings[-1].timestamp
        for ping in pings:
            # a ping being sent when the phone lost its network waited for the phone, not for the server
            if not ping.timestamp & 1 and ping.due > lost_at:
                recorder.delay("ack", (now - ping.due) / 1000)
            if self._audited:
                timed = not ping.timestamp & 1 and ping.timestamp > self._held_until
                self.unreported.append((self.index, ping.timestamp, ping.lat, ping.long, timed))
        if self.behaviour is not None:
            self.behaviour.on_ack(pings)


class BulkVendor(SimulatedVendor):
    """A vendor that sends as fast as acks allow (closed loop): at most `window` messages of `batch` pings in flight.

    Its pings are a millisecond apart and begin five minutes in the past, so that no two have the same time. A ping's
    delay is measured from its sending.
    """

    batch, window = 500, 4

    def start(self) -> None:
        """Starts sending."""
        self._due = int(self._now()) - BULK_PAST
        self._step = 0
        self._running = True
        self._fill()

    def finish(self) -> None:
        """Stops sending."""
        self._running = False

    def greeted(self, durable: int | None, max_batch: int) -> None:
        super().greeted(durable, max_batch)
        self._fill()

    def stored(self, pings: list[Ping]) -> None:
        super().stored(pings)
        self._fill()

    _running = False

    def _fill(self) -> None:
        while self._running and self.ready.is_set() and self.waiting <= (self.window - 1) * self.batch:
            now = int(self._now())
            for _ in range(self.batch):
                self._due, self._step = self._due + 1, (self._step + 1) % 10_000
                lat, long = 52.2 + self.index * 1e-4 + self._step * 1e-6, 21.0 + self._step * 1e-6
                self._outbox.add(Ping(self._due, round(lat, 6), round(long, 6), now))
            self._recorder.counts["due"] += self.batch
            self.settled.clear()
            self._flush()


def route(behaviour: VendorBehaviour, first: float, random: Random) -> Iterator[Ping]:
    """Yields an infinite series of a vendor's pings: from `first` (epoch ms), every `behaviour.every` s, ±5 %."""
    due, gap = first, 0.0
    behaviour.on_start()
    while True:
        spot = behaviour.on_tick(gap)
        timestamp = on_grid(due)
        yield Ping(timestamp, spot.lat, spot.long, timestamp, spot.heading, spot.speed)
        gap = behaviour.every * random.uniform(0.95, 1.05)
        due += max(float(GRID), gap * 1000)


def on_grid(moment: float) -> int:
    """Returns the next millisecond at which a ping may be due: a multiple of 4.

    So a worker wakes at most 250 times a second. A wake-up costs several times as much as sending.
    """
    return -int(-moment // GRID) * GRID
