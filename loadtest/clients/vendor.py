"""A vendor app: reports where it is, and keeps each ping until the server says that it is stored."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from urllib.parse import quote

from loadtest.clients.app import App
from loadtest.clients.identity import Identity
from loadtest.clients.ping import Ping
from loadtest.clients.target import Target
from loadtest.measure.histogram import Histogram
from venta_client.errors import Violation
from venta_client.outbox import Outbox
from venta_client.ping import encode

DEFAULT_BATCH = 500
ACK = b'{"type":"ack","seq":'


class Vendor(App):
    """One vendor's app. `ping()` sends when it can, at once or later; `acked` and `rejected` tell the outcome.

    `dropped` counts pings for which the outbox had no room; `settled` is set while nothing waits for an answer.
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
        super().__init__(target, token, random)
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
        """Report one position."""
        if not self._outbox.add(ping):
            self.dropped += 1
            return
        self.settled.clear()
        self._flush()

    def rejections(self) -> Counter[str]:
        """How many pings were rejected, by code."""
        return Counter(code for code, _ in self.rejected)

    @property
    def sent(self) -> int:
        """How many pings were sent, each counted once."""
        return self._outbox.sent

    @property
    def resent(self) -> int:
        """How many pings went out again after a reconnect."""
        return self._outbox.resent

    @property
    def waiting(self) -> int:
        """How many pings the server has not answered for."""
        return len(self._outbox)

    def stored(self, pings: list[Ping]) -> None:
        """These were acked."""
        self.acked.extend(pings)

    # App

    def opened(self) -> None:
        self._flush()  # the greeting may have come in one piece with the handshake

    def received(self, message: bytes) -> None:
        if message.startswith(ACK) and (seq := message[len(ACK) : -1]).isdigit():
            self._settle(self._outbox.ack(int(seq)))  # as nearly every message is, and for a third of the cost
            return
        decoded = self.decode(message)
        kind = decoded.get("type")
        if kind == "ack":
            self._settle(self._outbox.ack(number(decoded, "seq")))
        elif kind == "reject":
            self.rejected.append((str(decoded.get("code")), self._outbox.reject(number(decoded, "seq"))))
            self._settle([])
        elif kind == "hello":
            self._greet(decoded.get("durable"), int(decoded.get("maxBatch", DEFAULT_BATCH)))

    def writable(self) -> None:
        self._flush()

    # inside

    def _greet(self, durable: int | None, max_batch: int) -> None:
        self._max_batch = max(1, min(DEFAULT_BATCH, max_batch))
        self.ready.set()
        self._settle(self._outbox.reconnected(durable))
        self._flush()

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


def number(message: dict[str, object], name: str) -> int:
    """An integer member of a message; Violation when it is anything else."""
    value = message.get(name)
    if type(value) is not int:
        raise Violation(f"{name!r} is {value!r} in {message!r}; it must be an integer")
    return value
