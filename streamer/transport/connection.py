"""Open connections, WebSockets and event streams alike: their registry with heartbeat, timeouts and drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping

import structlog
from structlog.contextvars import get_contextvars

from streamer.counters import Counters
from streamer.errors import CloseCode
from streamer.protocol import messages
from streamer.settings import Settings
from streamer.transport.connection_limits import ConnectionSlot
from streamer.transport.connection_rate import departures
from streamer.transport.writer import Writer

log = structlog.get_logger()

CHECK_EVERY = 2.0
"""Seconds between two checks of a connection."""
CHECK_SLICES = 20
"""Parts of the check, spread over that time: all of ten thousand connections at once take many milliseconds."""
SPREAD_SHARE = 0.5
SETTLE_SHARE = 0.8
"""Shares of a drain's time: until the last client is asked to leave, and until received pings must be stored."""
SETTLE_POLL = 0.01
"""Seconds between two checks whether a departing vendor has all its acks."""
NO_STATUS = 1005
"""Code of a connection that a client closed without giving one."""
ABNORMAL = 1006
"""Code of a connection that ended without a Close frame."""
OTHER_CODE = 0
"""Counted in place of codes that are not in the contract."""
KNOWN_CODES = frozenset({*CloseCode, NO_STATUS, ABNORMAL})


class Connection(asyncio.Protocol):
    """One open connection: its user, its writer, and why it ended."""

    __slots__ = (
        "clerk_id",
        "close_code",
        "expires",
        "heard",
        "leaving",
        "name",
        "pinged",
        "registry",
        "server_closed",
        "since",
        "slot",
        "vendor_id",
        "writer",
    )
    kind = ""
    """`vendor`, `watch` or `events`."""
    vendor_id: str | None
    clerk_id: str | None
    expires: float | None

    def __init__(self, registry: ConnectionRegistry, writer: Writer, slot: ConnectionSlot) -> None:
        self.registry = registry
        self.writer = writer
        self.slot = slot
        self.name: str = get_contextvars().get("connection", "")
        """Identifies the connection in the log."""
        self.since = self.heard = self.pinged = registry.now()
        self.vendor_id = self.clerk_id = None
        self.expires = None
        """When its token expires, epoch seconds."""
        self.leaving = False
        """A drain is sending it away."""
        self.server_closed = False
        """The server ends it, not the client."""
        self.close_code: int = ABNORMAL

    @property
    def paused(self) -> bool:
        """Whether the server does not read it, so that silence is not the client's fault."""
        return False

    def ping(self) -> None:
        """Write a sign of life."""
        raise NotImplementedError

    def end(self, code: CloseCode, reason: str = "") -> None:
        """Close the connection gracefully; a client that reads nothing is cut after a timeout."""
        raise NotImplementedError

    def hold(self) -> None:
        """Stop reading, so that what was read can be settled."""

    @property
    def settled(self) -> bool:
        """Whether everything that was read is answered."""
        return True

    def close_for_restart(self, reconnect_ms: int) -> None:
        """Tells the client when to reconnect, then closes."""
        if self.writer.ready():
            self.writer.send(messages.encode_bye(reconnect_ms))
        self.end(CloseCode.RESTART, "the server restarts")

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the connection."""
        self.writer.closed = True
        self.slot.release()
        self.registry.remove(self)


class ConnectionRegistry:
    """All open connections of this process."""

    def __init__(self, settings: Settings, clock: Callable[[], int], counters: Counters) -> None:
        self.draining = False
        """The server stops: no connection is admitted any more."""
        self.slow_clients = 0
        """Connections with unread data at the last check."""
        self.unread_bytes = 0
        """Bytes that waited for them."""
        self.counters = counters
        self.now = asyncio.get_running_loop().time
        self._settings = settings
        self._clock = clock
        self._connections: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._connections))

    def add(self, connection: Connection) -> None:
        """Register a connection that opened."""
        self._connections.add(connection)
        self.counters.opened[connection.kind] += 1

    def remove(self, connection: Connection) -> None:
        """Forget a connection that ended."""
        self._connections.discard(connection)
        code = connection.close_code if connection.close_code in KNOWN_CODES else OTHER_CODE
        self.counters.closed[connection.kind, code] += 1
        # Client-initiated closes log at debug, server-initiated ones at info.
        noteworthy = connection.server_closed and code != CloseCode.RESTART
        (log.info if noteworthy else log.debug)(
            "connection ended",
            connection=connection.name,
            kind=connection.kind,
            code=int(code),
            vendor=connection.vendor_id,
            seconds=round(self.now() - connection.since, 1),
        )

    # accounts that change

    def end_vendors(self, vendor_ids: Collection[str]) -> None:
        """End the connections of deleted vendors."""
        for connection in self:
            if connection.vendor_id in vendor_ids:
                connection.end(CloseCode.NOT_FOUND, "the vendor was deleted")

    def end_former_owners(self, owners: Mapping[str, str]) -> None:
        """End the connections of these vendors (by id) that do not belong to their owner (a `clerkId`) any more."""
        for connection in self:
            if owners.get(connection.vendor_id or "", connection.clerk_id) != connection.clerk_id:
                connection.end(CloseCode.FORBIDDEN, "the vendor belongs to another user now")

    def end_users(self, clerk_ids: Collection[str]) -> None:
        """End the connections of deleted users."""
        for connection in self:
            if connection.clerk_id in clerk_ids:
                connection.end(CloseCode.UNAUTHORIZED, "the user was deleted")

    # long-lived

    async def heartbeat(self) -> None:
        """Ping connections, and end those that are silent, stalled or past their token; runs until cancelled."""
        while True:
            connections, slow, unread = tuple(self._connections), 0, 0
            for number in range(CHECK_SLICES):
                await asyncio.sleep(CHECK_EVERY / CHECK_SLICES)
                for connection in connections[number::CHECK_SLICES]:
                    if waiting := connection.writer.unread:
                        slow += 1
                        unread += waiting
                    self._check(connection, self.now(), self._clock() / 1000)
            self.slow_clients, self.unread_bytes = slow, unread

    def _check(self, connection: Connection, now: float, wall: float) -> None:
        settings, writer = self._settings, connection.writer
        if writer.stalled(now) > settings.stall:
            connection.end(CloseCode.TOO_SLOW, f"the client read nothing for {settings.stall:.0f} s")
        elif now - connection.heard > settings.silence and not connection.paused:
            connection.end(CloseCode.SILENT, f"the client sent nothing for {settings.silence:.0f} s")
        elif connection.expires is not None and wall > connection.expires:
            connection.end(CloseCode.UNAUTHORIZED, "the token expired")
        elif now - connection.pinged >= settings.heartbeat and writer.ready():
            connection.pinged = now
            connection.ping()

    async def drain(self, within: float) -> None:
        """Closes all connections, spread over this many seconds; their pings are stored and acked before."""
        started, rate = self.now(), self._settings.admission_rate
        spread_until, settled_by = started + within * SPREAD_SHARE, started + within * SETTLE_SHARE
        leaves: set[asyncio.Task[None]] = set()
        # Again for those whose handshake was in progress.
        while (connections := [one for one in self if not one.leaving]) and self.now() < settled_by:
            begun = self.now()
            schedule = departures(len(connections), rate, max(0.0, spread_until - begun))
            for connection, (after, reconnect_ms) in zip(connections, schedule, strict=True):
                connection.leaving = True
                if (wait := begun + after - self.now()) > 0:
                    await asyncio.sleep(wait)
                leave = self._send_away(connection, reconnect_ms, settled_by)
                leaves.add(asyncio.create_task(leave, name="send away"))
        if leaves:
            await asyncio.wait(leaves, timeout=max(0.0, started + within - self.now()))
        while self._connections and self.now() < started + within:  # noqa: ASYNC110  # clients close one by one
            await asyncio.sleep(SETTLE_POLL)
        for connection in self:
            connection.writer.abort()

    async def _send_away(self, connection: Connection, reconnect_ms: int, settled_by: float) -> None:
        connection.hold()
        while not connection.settled and connection in self._connections and self.now() < settled_by:  # noqa: ASYNC110
            await asyncio.sleep(SETTLE_POLL)
        connection.close_for_restart(reconnect_ms)
