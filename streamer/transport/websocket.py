"""The WebSocket edge: carries messages between aiohttp and the rules; ends connections with the contract's codes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from typing import Any

import structlog
from aiohttp import WSMsgType, web
from aiohttp.base_protocol import BaseProtocol

from streamer.accounts.change_poller import ChangePoller
from streamer.accounts.dataloader import DataLoader
from streamer.accounts.permissions import owned_vendor
from streamer.accounts.tokens import Authenticator, Identity
from streamer.broker.broker import Broker
from streamer.broker.subscriptions import Subscriptions
from streamer.counters import Counters
from streamer.errors import CloseCode, Disconnect, ErrorCode, ProtocolError, Unavailable
from streamer.ingest.batcher import Batcher, Rejected
from streamer.ingest.producer import Producer
from streamer.ingest.rate_limit import PAUSE, Allowances, Limit, Meter
from streamer.ingest.session import BadMessageLimit, Pending, VendorSession
from streamer.live import index as live_index
from streamer.live.index import Card
from streamer.protocol import messages
from streamer.protocol.messages import Bounds, Reject
from streamer.settings import Settings
from streamer.storage.store import Store, VendorRow
from streamer.transport.admission import Admission, farewells
from streamer.transport.connection_limits import ConnectionLimits, ConnectionSlot, allowed_origin, client_address
from streamer.transport.inlet import Inlet
from streamer.transport.writer import PING_FRAME, Outbox, bound_unsent

log = structlog.get_logger()

MAX_UNREAD = 64 << 10
"""Bytes of answers a vendor app may leave unread before its messages are not read either."""
READ_AHEAD = 16 << 10
"""Bytes that are read of a client whose messages are held back, so that its pings and pongs are heard."""
TURN = 64
"""Messages of one connection after which the others have their turn."""
RETRY_AFTER_MS = 2000
REFUSALS = {ErrorCode.VENDOR_NOT_FOUND: CloseCode.NOT_FOUND, ErrorCode.FORBIDDEN: CloseCode.FORBIDDEN}
DATA = (WSMsgType.TEXT, WSMsgType.BINARY)
CLOSE_TIMEOUT = 3.0
"""Seconds a client gets to answer a close."""
NOT_CLOSED = 1006
"""The code of a connection that ended without one."""
OTHER_CODE = 0
"""Stands for all codes that a client may make up."""
TOLD_CODES = frozenset({*CloseCode, 1005, NOT_CLOSED})
TOKENS_RATE = 0.2
TOKENS_AHEAD = 20
"""Tokens a second, and at once, that one connection may bring: checking a signature costs as much as storing pings."""
LOOK_EVERY = 2.0
"""Seconds between two looks at all connections; with ten thousand of them each look takes some milliseconds."""
SPREAD_SHARE = 0.5
SETTLE_SHARE = 0.8
"""Of the time an orderly stop may take: until the last client is told to go, until what it sent must be stored."""
SETTLE_LOOK = 0.01
"""Seconds between two looks at whether a vendor that is sent away has all its acks."""


class Connection:
    """One open WebSocket as the heartbeat sees it."""

    __slots__ = (
        "ahead",
        "ahead_bytes",
        "clerk_id",
        "closing",
        "code",
        "expires",
        "heard",
        "held",
        "kind",
        "leaving",
        "limit",
        "outbox",
        "pinged",
        "protocol",
        "seat",
        "session",
        "since",
        "tokens",
        "turn",
        "vendor_id",
        "waiting",
        "ws",
    )

    def __init__(
        self, kind: str, ws: web.WebSocketResponse, protocol: BaseProtocol, outbox: Outbox, now: float
    ) -> None:
        self.kind = kind
        """`vendor` or `watch`."""
        self.ws = ws
        self.protocol = protocol
        self.outbox = outbox
        self.since = now
        self.heard = now
        self.pinged = now
        self.held = False
        """The server is not reading: silence is its own doing."""
        self.limit: Limit | None = None
        self.tokens = Meter(TOKENS_RATE, now)
        self.session: VendorSession | None = None
        self.waiting = False
        """All messages that were read are done with."""
        self.leaving = False
        """It is being sent away."""
        self.turn = 0
        self.ahead: list[Any] = []
        """Messages that came while those before were held back; the last one may be the end of the connection."""
        self.ahead_bytes = 0
        self.expires: float | None = None
        self.seat: ConnectionSlot | None = None
        self.clerk_id: str | None = None
        self.vendor_id: str | None = None
        self.closing: asyncio.Task[None] | None = None
        self.code: int | None = None
        """Why the server ends it; None when it does not."""

    def keep(self, message: Any) -> None:
        """Put a message by until those before it are done with."""
        self.ahead.append(message)
        self.ahead_bytes += size_of(message)

    def end(self, code: CloseCode, reason: str = "") -> None:
        """Close from outside the connection's own task; a client that takes nothing is cut after a while."""
        if self.closing is None and not self.ws.closed:
            self.code = code
            self.closing = asyncio.create_task(self._end(code, reason), name="close")

    async def _end(self, code: CloseCode, reason: str) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT * 2):
                with suppress(ConnectionError, RuntimeError):
                    await self.ws.close(code=code, message=reason.encode()[:120])
                while self.outbox.held:  # noqa: ASYNC110  # a transport tells nobody of its progress
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pass
        finally:
            if self.outbox.held:
                # A transport that is closed keeps what waits there for as long as the system hopes for the client.
                self.outbox.abort()


class WebSockets:
    """All open sockets of this process, and the handlers that serve them."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        dataloader: DataLoader,
        batcher: Batcher,
        broker: Broker,
        watches: Subscriptions,
        index: live_index.LiveIndex,
        authenticator: Authenticator,
        change_poller: ChangePoller,
        allowances: Allowances,
        clock: Callable[[], int],
        changed: Callable[[], None],
        inlet: Inlet,
        counters: Counters | None = None,
        late: Callable[[], float] = float,
    ) -> None:
        self.behind = 0
        """Connections that had not taken all they were sent at the last look."""
        self.unread = 0
        """Bytes that waited for them."""
        self.counters = counters or Counters()
        self._late = late
        self.connections: set[Connection] = set()
        self.streams = 0
        """Event streams, which take room like sockets."""
        self.draining = False
        """Nothing more is read or let in: the server stops."""
        self._settings = settings
        self._store = store
        self._dataloader = dataloader
        self.admission = Admission(settings.admission_rate, settings.admission_wait)
        self._batcher = batcher
        self._broker = broker
        self._watches = watches
        self._index = index
        self._authenticator = authenticator
        self._connection_limits = ConnectionLimits(settings.user_connections, settings.address_connections)
        self._change_poller = change_poller
        self._allowances = allowances
        self._clock = clock
        self._changed = changed
        self._inlet = inlet
        self._bounds = bounds_of(settings)

    # handlers

    async def vendor(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/vendor`: a vendor app reports where it is."""
        connection = await self._open(request, "vendor")
        ws, outbox = connection.ws, connection.outbox
        try:
            identity = await self._identify(request, connection, required=True)
            assert identity is not None
            read_at, taken = self._clock(), self._change_poller.taken
            row = await self._vendor_row(identity, request.query.get("vendorId"))
            durable = await self._dataloader.durable(row)
            outbox.send(messages.encode_hello(row.vendor_id, self._clock(), durable, self._settings.max_batch))
            with self._inlet.reading(connection.protocol):
                await self._report(connection, row, read_at, taken, identity)
        except Disconnect as closing:
            await self._close(connection, closing)
        except Unavailable as away:
            log.debug("a connection could not be served", cause=str(away))
            await self._close(connection, Disconnect(CloseCode.INTERNAL, ErrorCode.OVERLOADED, away.told))
        finally:
            await self._forget(connection)
        return ws

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/watch`: a customer app watches areas or vendors."""
        connection = await self._open(request, "watch")
        watches: dict[str, live_index.Watch] = {}
        try:
            required = self._settings.watch_auth == "required"
            await self._identify(request, connection, required=required)
            await self._look_around(connection, watches)
        except Disconnect as closing:
            await self._close(connection, closing)
        except Unavailable as away:
            log.debug("a connection could not be served", cause=str(away))
            await self._close(connection, Disconnect(CloseCode.INTERNAL, ErrorCode.OVERLOADED, away.told))
        finally:
            for watch in watches.values():
                self._watches.close(watch)
            await self._forget(connection)
        return connection.ws

    def vendor_gone(self, vendor_id: str) -> None:
        """A vendor exists no more: its sockets end, and it leaves every map."""
        self.vendors_gone((vendor_id,))

    def vendors_gone(self, vendor_ids: Collection[str]) -> None:
        """These vendors exist no more."""
        for vendor_id in vendor_ids:
            self._broker.local_vendors.delete(vendor_id)
            self._broker.mark_gone(vendor_id)
        self.deleted(vendor_ids)

    def deleted(self, vendor_ids: Collection[str]) -> None:
        """End the sockets of vendors that exist no more."""
        gone = frozenset(vendor_ids)
        for connection in self.connections:
            if connection.vendor_id in gone:
                connection.end(CloseCode.NOT_FOUND, "the vendor was deleted")

    def owned(self, owners: Mapping[str, str]) -> None:
        """End the sockets of these vendors that are not their owner's (`clerkId`) any more."""
        for connection in self.connections:
            if owners.get(connection.vendor_id or "", connection.clerk_id) != connection.clerk_id:
                connection.end(CloseCode.FORBIDDEN, "the vendor is another user's now")

    def users_gone(self, clerk_ids: Collection[str]) -> None:
        """End the sockets of users who exist no more."""
        for connection in self.connections:
            if connection.clerk_id in clerk_ids:
                connection.end(CloseCode.UNAUTHORIZED, "the user was deleted")

    # long-lived

    async def heartbeat(self) -> None:
        """Ping, and end connections that are silent, stalled or past their token, for ever."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        while True:
            await asyncio.sleep(LOOK_EVERY)
            now, wall = loop.time(), self._clock() / 1000
            behind = unread = 0
            for connection in tuple(self.connections):
                outbox = connection.outbox
                if waiting := outbox.unread:
                    behind += 1
                    unread += waiting
                if outbox.stalled(now) > settings.stall:
                    connection.end(CloseCode.TOO_SLOW, f"nothing went out for {settings.stall:.0f} s")
                elif now - connection.heard > settings.silence and not connection.held:
                    connection.end(CloseCode.SILENT, f"nothing heard for {settings.silence:.0f} s")
                elif connection.expires is not None and wall > connection.expires:
                    connection.end(CloseCode.UNAUTHORIZED, "the token expired")
                elif now - connection.pinged >= settings.heartbeat and outbox.ready():
                    connection.pinged = now
                    outbox.write(PING_FRAME)
            self.behind, self.unread = behind, unread

    async def send_away(self, within: float) -> None:
        """Have every client come back elsewhere, one after the other, its pings stored and acked before; bounded."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        rate, spread, settled_by = self._settings.admission_rate, within * SPREAD_SHARE, started + within * SETTLE_SHARE
        farewell: set[asyncio.Task[None]] = set()
        # Again for those whose handshake was under way.
        while (connections := [one for one in self.connections if not one.leaving]) and loop.time() < settled_by:
            begun = loop.time()
            leaves = farewells(len(connections), rate, max(0.0, started + spread - begun))
            for connection, (after, back_ms) in zip(connections, leaves, strict=True):
                connection.leaving = True
                if (wait := begun + after - loop.time()) > 0:
                    await asyncio.sleep(wait)
                leave = self._send_away(connection, back_ms, settled_by)
                farewell.add(asyncio.create_task(leave, name="farewell"))
        if farewell:
            await asyncio.wait(farewell, timeout=max(0.0, started + within - loop.time()))
        for connection in self.connections:
            connection.outbox.abort()

    async def _send_away(self, connection: Connection, back_ms: int, settled_by: float) -> None:
        loop, session = asyncio.get_running_loop(), connection.session
        if session is not None:
            while loop.time() < settled_by and not connection.ws.closed:
                # Each time anew, as aiohttp reads on once it has handed out what it held.
                connection.protocol.pause_reading()
                await asyncio.sleep(SETTLE_LOOK)
                if connection.waiting and not session.unsettled:
                    break
            if not connection.held:
                connection.protocol.resume_reading()
        if connection.outbox.ready():
            connection.outbox.send(messages.encode_bye(back_ms))
        connection.end(CloseCode.RESTART, "the server restarts")
        if connection.closing is not None:
            await connection.closing

    # inside

    async def _open(self, request: web.Request, kind: str) -> Connection:
        ws = web.WebSocketResponse(
            timeout=CLOSE_TIMEOUT,
            autoping=False,
            compress=False,
            max_msg_size=self._settings.max_message,
            protocols=(messages.SUBPROTOCOL,),
            decode_text=False,
        )
        if ws.can_prepare(request):  # what is no handshake is refused below, and takes nobody's turn
            await self.let_in(request)
        if request.transport is None:
            raise ConnectionResetError("the client went away before its turn")
        await ws.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client went away during the handshake")
        bound_unsent(transport)
        connection = Connection(kind, ws, request.protocol, Outbox(transport), asyncio.get_running_loop().time())
        connection.seat = self.seat_of(request)
        self.connections.add(connection)
        self.counters.opened[kind] += 1
        return connection

    async def let_in(self, request: web.Request) -> None:
        """Wait until a connection that stays may be opened; refuses who may not, or for whom there is no room."""
        self._may_open(request)
        await self._enter()
        self._has_room()

    def seat_of(self, request: web.Request) -> ConnectionSlot:
        """A seat for a client's connection; it is the caller's to leave it."""
        forwarded = request.headers.getall("X-Forwarded-For", ())
        return self._connection_limits.take(client_address(request.remote, forwarded, self._settings.trusted_hops))

    async def _enter(self) -> None:
        """Wait for one's turn; refused are those who come while the server stops or too many wait."""
        now = asyncio.get_running_loop().time()
        if not self.draining:
            wait = self.admission.turn(now, self._late())
            if wait is None:
                later = self.admission.later(now)
                raise ProtocolError(
                    ErrorCode.OVERLOADED,
                    f"more come at once than get in, {self.admission.rate:g} a second: come again in {later:.1f} s",
                    retry_after_ms=round(later * 1000),
                )
            if wait:
                await asyncio.sleep(wait)
        if self.draining:
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "1"})

    def _may_open(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        if not allowed_origin(origin, request.headers.get("Host"), self._settings.origins):
            raise ProtocolError(
                ErrorCode.FORBIDDEN,
                f"pages of {origin!r:.80} may not open sockets here: STREAMER_ORIGINS says whose may",
            )
        self._has_room()

    def _has_room(self) -> None:
        if (count := len(self.connections) + self.streams) >= self._settings.max_connections:
            raise ProtocolError(
                ErrorCode.OVERLOADED,
                f"{count} connections are open, no more are taken: come again, here or elsewhere",
                retry_after_ms=RETRY_AFTER_MS,
            )

    async def _forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if connection.seat is not None:
            connection.seat.leave()
        if connection.closing is not None:
            await connection.closing
        code = connection.code or connection.ws.close_code or NOT_CLOSED
        self.counters.closed[connection.kind, code if code in TOLD_CODES else OTHER_CODE] += 1
        # What a client did is for who asks; what was done to one is for the record.
        tell = log.debug if connection.code in (None, CloseCode.RESTART) else log.info
        tell(
            "a connection ended",
            kind=connection.kind,
            code=code,
            vendor=connection.vendor_id,
            seconds=round(asyncio.get_running_loop().time() - connection.since, 1),
        )

    async def _close(self, connection: Connection, closing: Disconnect) -> None:
        log.debug("closing", code=int(closing.close), error=closing.code, why=closing.message)
        if connection.code is None:
            connection.code = closing.close
        self.counters.refused[closing.code] += 1
        with suppress(ConnectionError, RuntimeError):
            connection.outbox.send(messages.encode_error(closing.code, closing.message))
            await connection.ws.close(code=closing.close, message=closing.message.encode()[:120])

    async def _message(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> bytes | None:
        """The next message of a client, or None at the end of the connection."""
        ws = connection.ws
        while True:
            if connection.ahead:
                message = connection.ahead.pop(0)
                connection.ahead_bytes -= size_of(message)
            else:
                # Where a message is there already nobody sees this: receive() then gives way to nobody.
                connection.waiting = True
                message = await ws.receive()
                connection.waiting = False
            connection.heard = loop.time()
            connection.turn += 1
            if connection.turn % TURN == 0:
                # While aiohttp has more of a client's messages, nothing above gives way to anyone.
                await asyncio.sleep(0)
            if connection.limit is not None and connection.limit.over(connection.heard):
                warning = messages.encode_error(*connection.limit.warning, retry_after_ms=int(PAUSE * 1000))
                connection.outbox.send(warning)
                if not await self._meanwhile(connection, asyncio.sleep(PAUSE)):
                    return None
            kind = message.type
            if connection.closing is not None:
                return None  # what comes now could not be acked any more
            if kind is WSMsgType.TEXT or kind is WSMsgType.BINARY:
                data: bytes = message.data
                return data
            if kind is WSMsgType.PING:
                await ws.pong(message.data)
            elif kind is not WSMsgType.PONG:
                return None

    async def _meanwhile(self, connection: Connection, waiting: Coroutine[Any, Any, None]) -> bool:
        """Wait for something with the client's messages held back; False when the client is gone before.

        Its pings are answered and its pongs are heard, as far as they are not behind more than READ_AHEAD bytes.
        """
        ws, loop = connection.ws, asyncio.get_running_loop()
        task = asyncio.create_task(waiting, name="held")
        reading: asyncio.Task[Any] | None = None
        try:
            while not task.done():
                if connection.closing is not None or connection.outbox.closing:
                    return False
                if reading is None and connection.ahead_bytes < READ_AHEAD:
                    reading = asyncio.create_task(ws.receive(), name="read ahead")
                elif reading is None and not connection.held:
                    connection.held = True
                    connection.protocol.pause_reading()
                await asyncio.wait(
                    {task, reading} if reading else {task}, timeout=0.5, return_when=asyncio.FIRST_COMPLETED
                )
                if reading is not None and reading.done():
                    message, reading = reading.result(), None
                    connection.heard = loop.time()
                    if message.type is WSMsgType.PING:
                        await ws.pong(message.data)
                    elif message.type in DATA:
                        connection.keep(message)
                    elif message.type is not WSMsgType.PONG:
                        return False
            await task
        finally:
            task.cancel()
            if reading is not None:
                # A message that is there stays with aiohttp, as its queue looks for a cancellation first.
                reading.cancel()
                await asyncio.wait({reading})
            await asyncio.gather(task, return_exceptions=True)
            connection.heard = loop.time()
            if connection.held:
                connection.held = False
                connection.protocol.resume_reading()
        return True

    async def _identify(self, request: web.Request, connection: Connection, *, required: bool) -> Identity | None:
        if connection.seat is not None:
            connection.seat.check_address()
        token = token_of(request)
        if token is None:
            if not required:
                return None
            try:
                async with asyncio.timeout(self._settings.auth_timeout):
                    data = await self._message(connection, asyncio.get_running_loop())
            except TimeoutError:
                raise Disconnect(
                    CloseCode.UNAUTHORIZED,
                    ErrorCode.UNAUTHORIZED,
                    f"no token within {self._settings.auth_timeout:.0f} s",
                ) from None
            try:
                message = messages.decode_object(data or b"{}")
                if message.get("type") != "auth":
                    raise ProtocolError(
                        ErrorCode.UNAUTHORIZED, "without a token in the URL or a header the first message is auth"
                    )
                token = messages.decode_auth(message).token
            except ProtocolError as wrong:
                raise Disconnect(CloseCode.UNAUTHORIZED, wrong.code, wrong.message) from None
        return await self._admit(connection, token)

    async def _admit(self, connection: Connection, token: str) -> Identity:
        if connection.tokens.add(1, asyncio.get_running_loop().time()) > TOKENS_AHEAD:
            raise Disconnect(
                CloseCode.TOO_MANY,
                ErrorCode.RATE_LIMITED,
                f"more than {TOKENS_AHEAD} tokens at once: one that has not expired need not be sent again",
            )
        try:
            identity = await self._authenticator.check(token)
        except ProtocolError as wrong:
            raise Disconnect(CloseCode.UNAUTHORIZED, wrong.code, wrong.message) from None
        connection.expires, connection.clerk_id = identity.expires, identity.clerk_id
        if connection.seat is not None:
            connection.seat.sit(identity.clerk_id)
        return identity

    async def _vendor_row(self, identity: Identity, vendor_id: str | None) -> VendorRow:
        try:
            return await owned_vendor(self._dataloader, identity, vendor_id)
        except ProtocolError as wrong:
            raise Disconnect(REFUSALS.get(wrong.code, CloseCode.NOT_THIS_PROTOCOL), wrong.code, wrong.message) from None

    async def _report(
        self, connection: Connection, row: VendorRow, read_at: int, taken: int, identity: Identity
    ) -> None:
        """Serve a vendor's messages until the connection ends."""
        vendor_id, outbox, settings = row.vendor_id, connection.outbox, self._settings
        local_vendors, clock = self._broker.local_vendors, self._clock
        live_max_age = int(settings.live_max_age * 1000)
        session = VendorSession(
            self._bounds,
            live_max_age=live_max_age,
            max_bad_messages=settings.max_bad_messages,
            counters=self.counters,
        )
        loop = asyncio.get_running_loop()

        def settled(pending: Pending, rejected: Rejected) -> None:
            rejects = [Reject(seq, *why) for seq, why in rejected.items()] if rejected else ()
            for reply in session.settled(pending, rejects):
                outbox.send(reply)
            if rejects and any(reject.code is ErrorCode.VENDOR_NOT_FOUND for reject in rejects):
                self.vendor_gone(vendor_id)

        allowance = self._allowances.of(vendor_id, loop.time())
        producer = Producer(self._batcher, session, allowance, vendor_id, live_max_age, settled, loop.time)
        connection.limit = Limit(settings.vendor_messages, loop.time())
        connection.vendor_id, connection.session = vendor_id, session
        allowance.connections += 1
        local_vendors.connect(vendor_id, card_of(row, read_at), clock())
        try:
            if self._change_poller.taken != taken:
                await self._vendor_row(identity, vendor_id)  # it may have gone since it was read
            while (data := await self._message(connection, loop)) is not None:
                now = clock()
                received = session.receive(data, now)
                for reply in received.replies:
                    outbox.send(reply)
                newest = received.newest
                if newest is not None:
                    local_vendors.fix(
                        vendor_id, newest.timestamp, newest.lat, newest.long, newest.heading, newest.speed, now
                    )
                if received.pending is not None:
                    chunk = producer.take(received.pings, received.pending, now)
                    if chunk is not None and not await self._meanwhile(connection, producer.put(chunk)):
                        break  # nobody is there to be acked, and who comes back sends it again
                    if producer.excessive and not await self._meanwhile(connection, producer.rest()):
                        break
                if received.status is not None:
                    await self._open_or_close(connection, row, received.status.open, allowance.change(loop.time()))
                if received.auth is not None:
                    again = await self._admit(connection, received.auth.token)
                    if again.clerk_id != identity.clerk_id:
                        raise Disconnect(CloseCode.FORBIDDEN, ErrorCode.FORBIDDEN, "the new token is another user's")
                if not outbox.ready():
                    await self._drained(connection)
        finally:
            connection.held = False
            allowance.connections -= 1
            local_vendors.disconnect(vendor_id, clock())

    async def _open_or_close(self, connection: Connection, row: VendorRow, open: bool, wait: float) -> None:
        """Open or close a vendor for business; the app is asked to say it again when PostgreSQL is away.

        As it is when the vendor did so too often: then it has to `wait` so many seconds.
        """
        if wait > 0:
            message = f"open is not {str(open).lower()} yet, say it again: it has changed too often just now"
            retry = max(1000, round(wait * 1000))
            connection.outbox.send(messages.encode_error(ErrorCode.RATE_LIMITED, message, retry_after_ms=retry))
            return
        try:
            await self._store.set_open(row.vendor_id, open, row.clerk_id)
        except Unavailable as away:
            message = f"open is not {str(open).lower()} yet, say it again: {away.told}"
            connection.outbox.send(messages.encode_error(ErrorCode.OVERLOADED, message, retry_after_ms=RETRY_AFTER_MS))
        else:
            now = self._clock()
            self._broker.local_vendors.card(row.vendor_id, Card(now, row.name, open, row.primary_image), now)

    async def _drained(self, connection: Connection) -> None:
        """Wait while the client leaves too many answers unread; the heartbeat ends it when it takes nothing at all."""
        connection.held = True
        while connection.outbox.unread > MAX_UNREAD:  # noqa: ASYNC110  # a transport tells nobody of its progress
            await asyncio.sleep(0.05)
        connection.held = False

    async def _look_around(self, connection: Connection, watches: dict[str, live_index.Watch]) -> None:
        """Serve a customer's messages until the connection ends."""
        bad_messages, loop = BadMessageLimit(self._settings.max_bad_messages), asyncio.get_running_loop()
        connection.limit = Limit(self._settings.watch_messages, loop.time(), "one message moves a whole watch")
        while (data := await self._message(connection, loop)) is not None:
            await self._attend(connection, watches, bad_messages, data)
            del data  # a customer who only looks on says nothing more, and ten thousand of them keep much

    async def _attend(
        self, connection: Connection, watches: dict[str, live_index.Watch], bad_messages: BadMessageLimit, data: bytes
    ) -> None:
        """Do what a customer's message asks for."""
        outbox = connection.outbox
        id: str | None = None
        try:
            message = messages.decode_watch(data, self._bounds)
            if type(message) is messages.Watch:
                id = message.id
                watch = watches.get(id)
                if watch is None:
                    if len(watches) >= self._settings.max_watches:
                        raise ProtocolError(
                            ErrorCode.TOO_MANY_WATCHES,
                            f"{len(watches)} watches are open; at most {self._settings.max_watches} are",
                        )
                    watch = watches[id] = live_index.Watch(id, outbox)
                await self._watches.open(watch, message)
                self._changed()
            elif type(message) is messages.Unwatch:
                id = message.id
                ended = watches.pop(id, None)
                if ended is None:
                    raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"there is no watch {id!r} to end")
                self._watches.close(ended)
                outbox.send(messages.encode_unwatched(id))
            else:
                assert type(message) is messages.Auth
                await self._admit(connection, message.token)
            bad_messages.good()
        except ProtocolError as wrong:
            bad_messages.bad(wrong)
            id = id or messages.named(data)
            self.counters.refused[wrong.code] += 1
            outbox.send(messages.encode_error(wrong.code, wrong.message, id, wrong.retry_after_ms))
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
        if offered.startswith(messages.BEARER):
            return offered.removeprefix(messages.BEARER)
    return None


def card_of(row: VendorRow, now: int) -> Card:
    """A vendor's card as it was read at `now`."""
    return Card(now, row.name, row.open, row.primary_image)


def size_of(message: Any) -> int:
    """What a message takes in memory, about: its text, and the objects around that."""
    return len(message.data) + 200
