"""A vendor's client: keeps each ping until it is stored; with a durable queue also over restarts."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import aiohttp

from venta_client import reconnect
from venta_client.client import Client, ServerError
from venta_client.errors import PingRejected, QueueFailed
from venta_client.link import HEARTBEAT, Link, Send, State, Token
from venta_client.outbox import Outbox
from venta_client.ping import Ping, encode
from venta_client.queues import MemoryQueue, Queue
from venta_client.wire import Hello

log = logging.getLogger("venta_client")

LIMIT = 100_000
BATCH = 250
"""Maximum number of pings per message: with heading, speed and accuracy it stays under the server's 64 KiB."""
LIVE_MAX_AGE = 600_000
"""A ping older than this (ms) is only history: it is not sent ahead of older ones."""
CLOCK_TOLERANCE = 2_000
"""A difference of clocks up to this (ms) may be the network latency of the hello."""
CLOCK_STEP = 1_000
"""A smaller difference between this machine's two clocks (ms) is not a step."""

# time.monotonic() may stop during sleep, which must not look like a clock set ahead; one of these clocks continues.
UPTIME = getattr(time, "CLOCK_BOOTTIME", None) or getattr(time, "CLOCK_MONOTONIC", None)

Rejected = Callable[[Ping, str, str], None]


class Measured(NamedTuple):
    """The offset to the server's clock by the hello, and this machine's clocks at that time, ms."""

    offset: int
    """The server's clock minus this one."""
    wall: int
    uptime: int


class VendorClient(Client):
    """Reports a vendor's positions, an async context manager.

    Args:
        url: The server, http(s)://host.
        token: A token, or a function `token(refresh)`; `refresh`: the last one was refused or expires soon.
        vendor_id: Which of the user's vendors; optional if there is only one.
        queue: Stores pings until they are acked; without one they are in memory only, which is logged.
        limit: Maximum number of pings that are kept; beyond it the oldest are dropped.
        on_stored: Called with a list of stored pings.
        on_rejected: Called with a ping that will never be stored, a code and a message.
        on_dropped: Called with a ping that was dropped from a full queue.
        on_hello, on_state, on_error: Called with the server's hello, a new state, an error of the server.
        heartbeat: Seconds without a message after which a ping frame is sent.
        min_delay: Maximum first delay before reconnecting, s; each failure doubles it.
        max_delay: Maximum delay before reconnecting, s.
        compress: Whether to offer permessage-deflate.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token = None,
        vendor_id: str | None = None,
        queue: Queue | None = None,
        limit: int = LIMIT,
        on_rejected: Rejected | None = None,
        on_dropped: Callable[[Ping], None] | None = None,
        on_stored: Callable[[list[Ping]], None] | None = None,
        on_hello: Callable[[Hello], None] | None = None,
        on_state: Callable[[State], None] | None = None,
        on_error: Callable[[ServerError], None] | None = None,
        session: aiohttp.ClientSession | None = None,
        heartbeat: float = HEARTBEAT,
        min_delay: float = reconnect.MIN_DELAY / 1000,
        max_delay: float = reconnect.MAX_DELAY / 1000,
        compress: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            state=on_state,
            error=on_error,
            stored=on_stored,
            rejected=on_rejected,
            dropped=on_dropped,
            hello=on_hello,
        )
        self.hello: Hello | None = None
        """The server's last hello."""
        self.acked = 0
        self.rejected = 0
        self.dropped = 0
        if queue is None:
            self._warn("memory", "pings are kept in memory only: pass queue=SqliteQueue(path), or MemoryQueue()")
        self._queue = queue if queue is not None else MemoryQueue()
        self._clock = clock
        self._limit = limit
        self._outbox: Outbox[Ping] = Outbox(limit)
        self._early: dict[int, Ping] | None = {}
        self._measured: Measured | None = None
        self._latest = 0
        self._waiting: set[int] = set()
        self._put: dict[int, Ping] = {}
        self._remove: set[int] = set()
        self._writing = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None
        self._status: dict[str, Any] | None = None
        self._status_seq: int | None = None
        self._status_timer: asyncio.TimerHandle | None = None
        self._max_batch = BATCH
        self._work = asyncio.Event()
        self._promised: dict[int, asyncio.Future[None]] = {}
        """The futures of `when_stored`, by timestamp."""
        self._corrections: dict[int, int] = {}
        """The corrected timestamps, by those that `ping` returned before the first hello."""
        self._wanted = False
        """Whether the app wants to be connected."""
        self._opened = False
        """Whether the queue is open; changed only with the lock held."""
        self._opening = asyncio.Lock()
        params = {} if vendor_id is None else {"vendorId": vendor_id}
        self._link = Link(
            url,
            "/v1/vendor",
            self,
            token=token,
            params=params,
            session=session,
            heartbeat=heartbeat,
            min_delay=min_delay,
            max_delay=max_delay,
            compress=compress,
        )

    @property
    def waiting(self) -> int:
        """The number of pings that are not acked yet."""
        return len(self._waiting)

    async def connect(self) -> None:
        """Loads the queue, connects and stays connected; ends a wait for the next attempt.

        Raises:
            QueueFailed: the queue's file can't be opened.
        """
        self._wanted = True
        async with self._opening:
            await self._load()
            if self._wanted:
                self._link.connect()

    async def disconnect(self) -> None:
        """Closes the connection; pings without an ack stay in the queue."""
        self._wanted = False
        async with self._opening:
            await self._disconnect()
            if self._status_timer is not None:
                self._status_timer.cancel()
            if self._writer is not None:
                await asyncio.gather(self._writer, return_exceptions=True)
            try:
                await self._persist()
            finally:
                self._opened = False
                await self._queue.close()

    async def ping(
        self,
        lat: float,
        long: float,
        *,
        timestamp: int | None = None,
        heading: float | None = None,
        speed: float | None = None,
        accuracy: float | None = None,
    ) -> int:
        """Keeps a position until it is stored; returns its timestamp once it is in the queue.

        A call before `connect()` opens the queue; `disconnect()` closes it.

        Args:
            timestamp: Epoch ms by this machine's clock, by default now. Corrected to the server's clock before the ping
                is first sent.

        Raises:
            QueueFailed: the queue can't be written. The ping is sent anyway, but would be lost by a restart.
        """
        if not (-90 <= lat <= 90 and -180 <= long <= 180):
            raise ValueError(f"lat is -90 to 90 and long -180 to 180 degrees, not {lat!r}, {long!r}")
        at = self._time(None if timestamp is None else int(timestamp))
        if at in self._waiting:
            return at
        ping = Ping(at, float(lat), float(long), known(heading), known(speed), known(accuracy))
        if len(self._waiting) >= self._limit:
            self._make_room()
        self._waiting.add(at)
        self._put[at] = ping
        self._remove.discard(at)
        if self._early is not None:
            self._early[at] = ping
        else:
            self._outbox.add(ping)
        self._work.set()
        if not self._opened:
            async with self._opening:
                await self._load()
        await self._persist()
        return at

    def set_open(self, open: bool, *, hidden: bool = False) -> None:
        """Opens or closes for business; repeated after a reconnect until the server has acknowledged it.

        A vendor that closes with `hidden` leaves all maps immediately, until it opens.
        """
        self._status = {"type": "status", "open": open, **({"hidden": True} if hidden else {})}
        self._send_status()

    async def flushed(self) -> None:
        """Returns when all pings are stored or rejected; raises ConnectionFailed if the connection fails for good."""
        await self._until(lambda: not self._waiting)
        await self._write()  # so that a process that ends now has nothing to send again

    async def when_stored(self, timestamp: int) -> None:
        """Returns when the ping with this timestamp is stored.

        Raises:
            PingRejected: it will never be stored, or was dropped.
            ConnectionFailed: the connection failed for good before.
        """
        if timestamp not in self._waiting:
            timestamp = self._corrections.get(timestamp, timestamp)
        if timestamp not in self._waiting:
            return
        promised = self._promised.setdefault(timestamp, asyncio.get_running_loop().create_future())
        await self._until(promised.done)
        promised.result()

    # called by the link

    def opened(self) -> None:
        self._status_seq = None

    def took(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "ack":
            acked = self._outbox.ack(message["seq"])
            self._stored(acked)
            if self._status_seq is not None and message["seq"] >= self._status_seq:
                self._status = self._status_seq = None
        elif kind == "reject":
            ping = self._outbox.reject(message["seq"])
            self.rejected += 1
            self._settle([ping], PingRejected(message["code"], message["message"]))
            if not self._emit("rejected", ping, message["code"], message["message"]):
                self._warn(message["code"], message["message"])
        elif kind == "hello":
            self._greet(cast(Hello, message))
        elif kind == "error":
            self._error(ServerError.of(message))
            if self._status_seq is not None and message.get("retryAfterMs") is not None:
                # The error may be about the status; sending it again is idempotent.
                if self._status_timer is not None:
                    self._status_timer.cancel()
                self._status_timer = asyncio.get_running_loop().call_later(
                    message["retryAfterMs"] / 1000, self._send_status
                )

    async def speak(self, send: Send) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self.state == "connected" and (message := self._next()) is not None:
                await send(message)

    # internal

    async def _load(self) -> None:
        """Opens the queue if necessary, and loads its pings."""
        if self._opened:
            return
        kept = await self._queue.load()
        left = [ping for ping in kept if ping.timestamp not in self._waiting]
        over = max(0, len(left) + len(self._waiting) - self._limit)
        self._outbox.restore(left[over:])
        self._waiting.update(ping.timestamp for ping in left[over:])
        self._opened = True
        for ping in left[:over]:
            self._dropped(ping)

    def _greet(self, hello: Hello) -> None:
        self.hello = hello
        self._max_batch = max(1, min(BATCH, hello["maxBatch"]))
        wall = int(self._clock() * 1000)
        self._measured = Measured(hello["time"] - wall, wall, uptime())
        settled = self._outbox.reconnected(hello["durable"])
        self._stored(settled)
        if self._early is not None:
            offset = self._offset()
            early, self._early = self._early, None
            for ping in sorted(early.values()):
                self._outbox.add(self._corrected(ping, offset) if offset else ping)
            self._latest += offset
            self._write_soon()
        self._link.established()
        self._emit("hello", hello)
        self._work.set()

    def _corrected(self, ping: Ping, by: int) -> Ping:
        """Corrects the timestamp of a ping that was never sent; once sent, it is the ping's identity."""
        self._forget(ping)
        at = ping.timestamp + by
        while at in self._waiting:
            at += 1
        corrected = ping._replace(timestamp=at)
        self._waiting.add(at)
        self._put[at] = corrected
        self._corrections[ping.timestamp] = at
        self._remove.discard(at)
        if (promised := self._promised.pop(ping.timestamp, None)) is not None:
            self._promised[at] = promised
        return corrected

    def _offset(self) -> int:
        """The correction to add to this machine's times, ms; 0 before the first hello."""
        if self._measured is None:
            return 0
        offset, wall, since = self._measured
        passed = uptime() - since
        step = int(self._clock() * 1000) - wall - passed
        # The clock was set. The tolerance grows with time, as two clocks never run equally fast.
        if abs(step) > CLOCK_STEP + passed / 1000:
            offset -= step
        return offset if abs(offset) > CLOCK_TOLERANCE else 0

    def _time(self, given: int | None) -> int:
        at = (int(self._clock() * 1000) if given is None else given) + self._offset()
        if given is None:
            # Vendor and timestamp identify a ping, so two pings need different milliseconds.
            if self._latest - 1000 < at <= self._latest:
                at = self._latest + 1
            while at in self._waiting:
                at += 1
            self._latest = at
        return at

    def _make_room(self) -> None:
        ping = self._outbox.drop_oldest()
        if ping is None and self._early:
            ping = self._early.pop(min(self._early))
        if ping is not None:
            self._dropped(ping)

    def _dropped(self, ping: Ping) -> None:
        self.dropped += 1
        self._settle([ping], PingRejected("ERR_DROPPED", "the queue is full"))
        if not self._emit("dropped", ping):
            self._warn("ERR_DROPPED", "the queue is full: the oldest ping was dropped")

    def _next(self) -> bytes | None:
        """Returns the next message: the status, then the newest ping, then the backlog, oldest first."""
        if self._status is not None and self._status_seq is None:
            # Messages are handled in order, so an ack of a later ping also confirms the status.
            self._status_seq = self._outbox.seq + 1
            return json.dumps(self._status).encode()
        since = int(self._clock() * 1000) + self._offset() - LIVE_MAX_AGE
        batch = self._outbox.take_newest(since)
        # The number of pings in flight is limited, so that a new ping does not wait behind hours of old ones.
        if not batch and self._outbox.in_flight <= 2 * self._max_batch:
            batch = self._outbox.take(self._max_batch)
        return encode(batch) if batch else None

    def _stored(self, pings: list[Ping]) -> None:
        self.acked += len(pings)
        self._settle(pings)
        if pings:
            self._emit("stored", pings)

    def _settle(self, pings: Iterable[Ping], error: PingRejected | None = None) -> None:
        for ping in pings:
            self._forget(ping)
            promised = self._promised.pop(ping.timestamp, None)
            if promised is not None and error is not None:
                promised.set_exception(error)
                promised.exception()  # marks it as retrieved: nobody may wait for it any more
            elif promised is not None:
                promised.set_result(None)
        self._write_soon()
        self._work.set()
        self._changed.set()

    def _forget(self, ping: Ping) -> None:
        self._waiting.discard(ping.timestamp)
        # A ping that was never written need not be removed, unless a write is in progress.
        if self._put.pop(ping.timestamp, None) is None or self._writing.locked():
            self._remove.add(ping.timestamp)

    def _send_status(self) -> None:
        self._status_seq = None
        self._work.set()

    def _write_soon(self) -> None:
        if (self._put or self._remove) and (self._writer is None or self._writer.done()):
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            await self._persist()
        except QueueFailed as failed:
            log.warning("what is stored is not forgotten, and may be sent again: %s", failed)

    async def _persist(self) -> None:
        """Writes changes, one write at a time; changes during a write are merged into the next one."""
        async with self._writing:
            while self._put or self._remove:
                put, remove = self._put, self._remove
                self._put, self._remove = {}, set()
                try:
                    await self._queue.write(list(put.values()), list(remove))
                except BaseException as failed:
                    self._put = {at: ping for at, ping in put.items() if at in self._waiting} | self._put
                    self._remove = {at for at in remove | self._remove if at not in self._waiting}
                    if isinstance(failed, QueueFailed):
                        self._remove -= put.keys()
                    raise


def uptime() -> int:
    """Milliseconds by a monotonic clock."""
    return int((time.monotonic() if UPTIME is None else time.clock_gettime(UPTIME)) * 1000)


def known(value: float | None) -> float | None:
    """Returns a finite number, else None, such as the NaN heading of a GPS receiver that stands still."""
    return float(value) if value is not None and math.isfinite(value) else None
