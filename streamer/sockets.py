"""The WebSocket edge: carries messages between aiohttp and the rules; ends connections with the contract's codes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import structlog
from aiohttp import WSMsgType, web

from streamer import live, protocol
from streamer.auth import Authenticator, Identity
from streamer.batcher import Batcher, Chunk, Rejected
from streamer.bus import Bus
from streamer.errors import CloseCode, ErrorCode, ProtocolError, Unavailable
from streamer.live import Card
from streamer.location import RowEncoder
from streamer.outbox import PING_FRAME, Outbox
from streamer.protocol import Bounds, Reject
from streamer.rights import owned_vendor
from streamer.session import Closing, Patience, Pending, VendorSession, timestamp_of
from streamer.settings import Settings
from streamer.store import Store, VendorRow
from streamer.watches import Watches

log = structlog.get_logger()

MAX_UNREAD = 64 << 10
"""Bytes of answers a vendor app may leave unread before its messages are not read either."""
REFUSALS = {ErrorCode.VENDOR_NOT_FOUND: CloseCode.NOT_FOUND, ErrorCode.FORBIDDEN: CloseCode.FORBIDDEN}
CLOSE_TIMEOUT = 3.0
"""Seconds a client gets to answer a close."""
LOOK_EVERY = 2.0
"""Seconds between two looks at all connections; with ten thousand of them each look takes some milliseconds."""


class Connection:
    """One open WebSocket as the heartbeat sees it."""

    __slots__ = ("closing", "expires", "heard", "held", "outbox", "pinged", "vendor_id", "ws")

    def __init__(self, ws: web.WebSocketResponse, outbox: Outbox, now: float) -> None:
        self.ws = ws
        self.outbox = outbox
        self.heard = now
        self.pinged = now
        self.held = False
        """The server is not reading: silence is its own doing."""
        self.expires: float | None = None
        self.vendor_id: str | None = None
        self.closing: asyncio.Task[None] | None = None

    def end(self, code: CloseCode, reason: str = "") -> None:
        """Close from outside the connection's own task; a client that takes nothing is cut after a while."""
        if self.closing is None and not self.ws.closed:
            self.closing = asyncio.create_task(self._end(code, reason), name="close")

    async def _end(self, code: CloseCode, reason: str) -> None:
        with suppress(ConnectionError, TimeoutError, RuntimeError):
            async with asyncio.timeout(CLOSE_TIMEOUT * 2):
                await self.ws.close(code=code, message=reason.encode()[:120])


class Sockets:
    """All open sockets of this process, and the handlers that serve them."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        batcher: Batcher,
        bus: Bus,
        watches: Watches,
        index: live.LiveIndex,
        authenticator: Authenticator,
        clock: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:
        self.connections: set[Connection] = set()
        self.draining = False
        """Nothing more is read or let in: the server stops."""
        self._over = asyncio.Event()
        self._settings = settings
        self._store = store
        self._batcher = batcher
        self._bus = bus
        self._watches = watches
        self._index = index
        self._authenticator = authenticator
        self._clock = clock
        self._changed = changed
        self._bounds = bounds_of(settings)

    # handlers

    async def vendor(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/vendor`: a vendor app reports where it is."""
        connection = await self._open(request)
        ws, outbox = connection.ws, connection.outbox
        try:
            identity = await self._identify(request, connection, required=True)
            assert identity is not None
            read_at = self._clock()
            row = await self._vendor_row(identity, request.query.get("vendorId"))
            durable = await self._store.durable(row.vendor_id)
            outbox.send(protocol.encode_hello(row.vendor_id, self._clock(), durable, self._settings.max_batch))
            await self._report(connection, row, read_at, identity)
        except Closing as closing:
            await self._close(connection, closing)
        except Unavailable as away:
            await self._close(connection, Closing(CloseCode.INTERNAL, ErrorCode.OVERLOADED, str(away)))
        finally:
            await self._forget(connection)
        return ws

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/watch`: a customer app watches areas or vendors."""
        connection = await self._open(request)
        watches: dict[str, live.Watch] = {}
        try:
            required = self._settings.watch_auth == "required"
            await self._identify(request, connection, required=required)
            await self._look_around(connection, watches)
        except Closing as closing:
            await self._close(connection, closing)
        except Unavailable as away:
            await self._close(connection, Closing(CloseCode.INTERNAL, ErrorCode.OVERLOADED, str(away)))
        finally:
            for watch in watches.values():
                self._watches.close(watch)
            await self._forget(connection)
        return connection.ws

    def vendor_gone(self, vendor_id: str) -> None:
        """A vendor exists no more: its sockets end, and it leaves every map."""
        self._bus.fleet.delete(vendor_id)
        self._bus.mark_gone(vendor_id)
        self.deleted(vendor_id)

    def deleted(self, vendor_id: str) -> None:
        """End the sockets of a vendor that exists no more."""
        for connection in self.connections:
            if connection.vendor_id == vendor_id:
                connection.end(CloseCode.NOT_FOUND, "the vendor was deleted")

    # long-lived

    async def heartbeat(self) -> None:
        """Ping, and end connections that are silent, stalled or past their token, for ever."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        while True:
            await asyncio.sleep(LOOK_EVERY)
            now, wall = loop.time(), self._clock() / 1000
            for connection in tuple(self.connections):
                outbox = connection.outbox
                if outbox.stalled(now) > settings.stall:
                    connection.end(CloseCode.TOO_SLOW, f"nothing went out for {settings.stall:.0f} s")
                elif now - connection.heard > settings.silence and not connection.held:
                    connection.end(CloseCode.SILENT, f"nothing heard for {settings.silence:.0f} s")
                elif connection.expires is not None and wall > connection.expires:
                    connection.end(CloseCode.UNAUTHORIZED, "the token expired")
                elif now - connection.pinged >= settings.heartbeat and outbox.ready():
                    connection.pinged = now
                    outbox.write(PING_FRAME)

    async def close(self, timeout: float) -> None:
        """Tell every client to come back, spread over time, and close."""
        spread = max(1000, 2 * len(self.connections))
        for connection in tuple(self.connections):
            if connection.outbox.ready():
                connection.outbox.send(protocol.encode_bye(random.randrange(100, 100 + spread)))
            connection.end(CloseCode.RESTART, "the server restarts")
        self._over.set()
        closings = [c.closing for c in self.connections if c.closing is not None]
        if closings:
            await asyncio.wait(closings, timeout=timeout)

    # inside

    async def _open(self, request: web.Request) -> Connection:
        if self.draining:
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "1"})
        ws = web.WebSocketResponse(
            timeout=CLOSE_TIMEOUT,
            autoping=False,
            compress=False,
            max_msg_size=self._settings.max_message,
            protocols=(protocol.SUBPROTOCOL,),
            decode_text=False,
        )
        await ws.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client went away during the handshake")
        connection = Connection(ws, Outbox(transport), asyncio.get_running_loop().time())
        self.connections.add(connection)
        return connection

    async def _forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if connection.closing is not None:
            await connection.closing

    async def _close(self, connection: Connection, closing: Closing) -> None:
        log.debug("closing", code=int(closing.close), why=closing.message)
        with suppress(ConnectionError, RuntimeError):
            connection.outbox.send(protocol.encode_error(closing.code, closing.message))
            await connection.ws.close(code=closing.close, message=closing.message.encode()[:120])

    async def _message(self, connection: Connection) -> bytes | None:
        """The next message of a client, or None at the end of the connection."""
        ws = connection.ws
        loop = asyncio.get_running_loop()
        while True:
            message = await ws.receive()
            connection.heard = loop.time()
            kind = message.type
            if kind is WSMsgType.TEXT or kind is WSMsgType.BINARY:
                data: bytes = message.data
                return data
            if kind is WSMsgType.PING:
                await ws.pong(message.data)
            elif kind is not WSMsgType.PONG:
                return None

    async def _identify(self, request: web.Request, connection: Connection, *, required: bool) -> Identity | None:
        token = token_of(request)
        if token is None:
            if not required:
                return None
            try:
                async with asyncio.timeout(self._settings.auth_timeout):
                    data = await self._message(connection)
            except TimeoutError:
                raise Closing(
                    CloseCode.UNAUTHORIZED,
                    ErrorCode.UNAUTHORIZED,
                    f"no token within {self._settings.auth_timeout:.0f} s",
                ) from None
            try:
                message = protocol.decode_object(data or b"{}")
                if message.get("type") != "auth":
                    raise ProtocolError(
                        ErrorCode.UNAUTHORIZED, "without a token in the URL or a header the first message is auth"
                    )
                token = protocol.decode_auth(message).token
            except ProtocolError as wrong:
                raise Closing(CloseCode.UNAUTHORIZED, wrong.code, wrong.message) from None
        return self._admit(connection, token)

    def _admit(self, connection: Connection, token: str) -> Identity:
        try:
            identity = self._authenticator.check(token)
        except ProtocolError as wrong:
            raise Closing(CloseCode.UNAUTHORIZED, wrong.code, wrong.message) from None
        connection.expires = identity.expires
        return identity

    async def _vendor_row(self, identity: Identity, vendor_id: str | None) -> VendorRow:
        try:
            return await owned_vendor(self._store, identity, vendor_id)
        except ProtocolError as wrong:
            raise Closing(REFUSALS.get(wrong.code, CloseCode.NOT_THIS_PROTOCOL), wrong.code, wrong.message) from None

    async def _report(self, connection: Connection, row: VendorRow, read_at: int, identity: Identity) -> None:
        """Serve a vendor's messages until the connection ends."""
        vendor_id, outbox, settings = row.vendor_id, connection.outbox, self._settings
        fleet, clock = self._bus.fleet, self._clock
        live_max_age = int(settings.live_max_age * 1000)
        session = VendorSession(
            self._bounds,
            live_max_age=live_max_age,
            max_bad_messages=settings.max_bad_messages,
        )
        encoder = RowEncoder(vendor_id)

        def settled(pending: Pending, chunk: Chunk, rejected: Rejected) -> None:
            rejects = [Reject(seq, *why) for seq, why in rejected.items()] if rejected else ()
            for reply in session.settled(pending, rejects):
                outbox.send(reply)
            if rejects and any(reject.code is ErrorCode.VENDOR_NOT_FOUND for reject in rejects):
                self.vendor_gone(vendor_id)

        connection.vendor_id = vendor_id
        fleet.connect(vendor_id, card_of(row, read_at), clock())
        try:
            while (data := await self._message(connection)) is not None:
                now = clock()
                received = session.receive(data, now)
                for reply in received.replies:
                    outbox.send(reply)
                newest = received.newest
                if newest is not None:
                    fleet.fix(vendor_id, newest.timestamp, newest.lat, newest.long, newest.heading, newest.speed, now)
                if received.pending is not None:
                    chunk = make_chunk(encoder, received.pings, now, live_max_age, partial(settled, received.pending))
                    if not self._batcher.offer(chunk):
                        connection.held = True
                        await self._batcher.put(chunk)
                        connection.held = False
                if received.status is not None:
                    await self._store.set_open(vendor_id, received.status.open)
                    fleet.card(vendor_id, Card(clock(), row.name, received.status.open, row.primary_image), clock())
                if received.auth is not None:
                    again = self._admit(connection, received.auth.token)
                    if again.clerk_id != identity.clerk_id:
                        raise Closing(CloseCode.FORBIDDEN, ErrorCode.FORBIDDEN, "the new token is another user's")
                if self.draining:
                    await self._over.wait()
                    break
                if not outbox.ready():
                    await self._drained(connection)
        finally:
            connection.held = False
            fleet.disconnect(vendor_id, clock())

    async def _drained(self, connection: Connection) -> None:
        """Wait while the client leaves too many answers unread; the heartbeat ends it when it takes nothing at all."""
        connection.held = True
        while connection.outbox.unread > MAX_UNREAD:  # noqa: ASYNC110  # a transport tells nobody of its progress
            await asyncio.sleep(0.05)
        connection.held = False

    async def _look_around(self, connection: Connection, watches: dict[str, live.Watch]) -> None:
        """Serve a customer's messages until the connection ends."""
        outbox, patience = connection.outbox, Patience(self._settings.max_bad_messages)
        while (data := await self._message(connection)) is not None:
            id: str | None = None
            try:
                message = protocol.decode_watch(data, self._bounds)
                if type(message) is protocol.Watch:
                    id = message.id
                    watch = watches.get(id)
                    if watch is None:
                        if len(watches) >= self._settings.max_watches:
                            raise ProtocolError(
                                ErrorCode.TOO_MANY_WATCHES,
                                f"{len(watches)} watches are open; at most {self._settings.max_watches} are",
                            )
                        watch = watches[id] = live.Watch(id, outbox)
                    await self._watches.open(watch, message)
                    self._changed()
                elif type(message) is protocol.Unwatch:
                    id = message.id
                    ended = watches.pop(id, None)
                    if ended is None:
                        raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"there is no watch {id!r} to end")
                    self._watches.close(ended)
                    outbox.send(protocol.encode_unwatched(id))
                else:
                    assert type(message) is protocol.Auth
                    self._admit(connection, message.token)
                patience.good()
            except ProtocolError as wrong:
                id = id or protocol.named(data)
                outbox.send(protocol.encode_error(wrong.code, wrong.message, id, wrong.retry_after_ms))
                patience.bad(wrong)
            if not outbox.ready():
                await self._drained(connection)


def bounds_of(settings: Settings) -> Bounds:
    """What the settings allow a client to ask for."""
    return Bounds(
        max_batch=settings.max_batch,
        future_tolerance_ms=int(settings.future_tolerance * 1000),
        max_radius=settings.max_radius,
        max_extent=settings.max_extent,
        max_vertices=settings.max_vertices,
        max_listed=settings.max_listed,
    )


def token_of(request: web.Request) -> str | None:
    """The token of a request: header, URL or WebSocket subprotocol, in this order."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    token = request.query.get("token", "")
    if token:
        return token
    for offered in request.headers.get("Sec-WebSocket-Protocol", "").split(","):
        offered = offered.strip()
        if offered.startswith(protocol.BEARER):
            return offered.removeprefix(protocol.BEARER)
    return None


def card_of(row: VendorRow, now: int) -> Card:
    """A vendor's card as it was read at `now`."""
    return Card(now, row.name, row.open, row.primary_image)


def make_chunk(
    encoder: RowEncoder,
    pings: Sequence[protocol.Ping],
    now: int,
    live_max_age: float,
    settled: Callable[[Chunk, Rejected], None],
) -> Chunk:
    """One message's pings as the batcher takes them; old ones are a backlog, behind which no fresh one waits."""
    if len(pings) == 1:
        seq, timestamp, lat, long, _, _ = pings[0]
        row = encoder.row(timestamp, lat, long)
        return Chunk(encoder.vendor_id, (seq,), row, timestamp >= now - live_max_age, (timestamp, lat, long), settled)
    newest = max(pings, key=timestamp_of)
    return Chunk(
        encoder.vendor_id,
        [ping.seq for ping in pings],
        encoder.encode([ping[1:4] for ping in pings]),
        newest.timestamp >= now - live_max_age,
        newest[1:4],
        settled,
    )
