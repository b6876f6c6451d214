"""A vendor app: reports its position, and keeps each ping until the server acknowledges that it is stored."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import NamedTuple
from urllib.parse import quote

from loadtest.clients.app import App
from loadtest.clients.identity import Identity
from loadtest.clients.target import Target
from loadtest.measure.histogram import Histogram
from venta_client.errors import Violation
from venta_client.outbox import Outbox
from venta_client.ping import encode

DEFAULT_BATCH = 500
ACK = b'{"type":"ack","seq":'


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
    """One vendor's app. `ping()` sends at once if it can, later otherwise; `acked` and `rejected` hold the outcome.

    `dropped` counts pings for which the outbox had no room; `settled` is set while no ping waits for an answer.
    `delays` records, for every ack, the seconds since the ping was due.
    """

    def __init__(
        self,
        target: Target,
        identity: Identity,
        token: Callable[[], str],
        random: Random,
        *,
        delays: Histogram | None = None,
        limit: int = 200_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(target, token, random, f"vendor {identity.vendor_id}")
        self.identity = identity
        self.path = f"/v1/vendor?vendorId={quote(identity.vendor_id, safe='')}"
        self.dropped = 0
        self.acked: list[Ping] = []
        self.rejected: list[tuple[str, Ping]] = []
        self.settled = asyncio.Event()
        self.settled.set()
        self.delays = delays
        self._clock = clock
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
        """The number of pings that were sent, each counted once."""
        return self._outbox.sent

    @property
    def resent(self) -> int:
        """The number of pings that were sent again after a reconnect."""
        return self._outbox.resent

    @property
    def waiting(self) -> int:
        """The number of pings that the server has not answered."""
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
        """Called with the server's hello: sends again whatever was not acked."""
        self._max_batch = max(1, min(DEFAULT_BATCH, max_batch))
        self.ready.set()
        self._settle(self._outbox.reconnected(durable))
        self._flush()

    # inside

    def _settle(self, pings: list[Ping]) -> None:
        if pings and self.delays is not None:
            now = self._clock()
            for ping in pings:
                self.delays.record(now - ping.due / 1000)
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
