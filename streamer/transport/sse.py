"""The watch as Server-Sent Events: the messages of `GET /v1/watch`, for a browser's `EventSource`.

The query string describes the watch. A reconnect is a new watch, so it begins with a snapshot; events have no ids.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from typing import Any

import orjson
import structlog
from aiohttp import HttpVersion11, web
from multidict import MultiMapping

from streamer.accounts.tokens import Identity
from streamer.cpu_time import measured
from streamer.errors import CloseCode, Disconnect, ErrorCode, ProtocolError, Unavailable
from streamer.live.watch import Watch
from streamer.protocol import messages
from streamer.protocol.fields import COORDINATES, shown
from streamer.transport.admission import RETRY_AFTER_MS
from streamer.transport.aiohttp_compat import Handover
from streamer.transport.connection import Connection, ConnectionRegistry
from streamer.transport.connection_limits import ConnectionSlot
from streamer.transport.identify import identify_watcher
from streamer.transport.services import Services
from streamer.transport.watch_budget import WatchBudget
from streamer.transport.writer import Writer, bound_unsent, event_chunk, event_lines, set_user_timeout

log = structlog.get_logger()

EVENT_STREAM = "text/event-stream"
HEADERS = {
    "Content-Type": EVENT_STREAM,
    "Cache-Control": "no-store",
    # A proxy that buffers the response would delay the map by minutes.
    "X-Accel-Buffering": "no",
}
SIGN_OF_LIFE = b":\n\n"
MIN_RETRY_MS, MAX_RETRY_MS = 1000, 3000
"""A browser reconnects after a random time between these, so that not all reconnect at once."""
CLOSE_TIMEOUT = 3.0
"""Seconds a client gets to read its last events."""


class EventStream(Connection):
    """One open event stream."""

    __slots__ = ("_chunked", "_ended", "end_watch")
    kind = "events"
    end_watch: Callable[[], None]

    def __init__(
        self, registry: ConnectionRegistry, transport: asyncio.Transport, slot: ConnectionSlot, *, chunked: bool
    ) -> None:
        super().__init__(registry, Writer(transport, event_chunk if chunked else event_lines), slot)
        self.heard = inf  # a client sends nothing; the kernel notices when it is gone
        self._chunked = chunked
        self._ended = False

    def send_lines(self, lines: bytes) -> None:
        """Write a comment or a `retry` field."""
        self.writer.write(b"%x\r\n%s\r\n" % (len(lines), lines) if self._chunked else lines)

    def ping(self) -> None:
        self.send_lines(SIGN_OF_LIFE)

    def end(self, code: CloseCode, reason: str = "") -> None:
        if code is CloseCode.UNAUTHORIZED:
            self._end(code, messages.encode_error(ErrorCode.INVALID_TOKEN, f"{reason}: open the stream again"))
        else:
            self._end(code)

    def refuse(self, error: bytes) -> None:
        """Send an `error`, then close: the watch could not be opened."""
        self._end(CloseCode.INTERNAL, error)

    def close_for_restart(self, reconnect_ms: int) -> None:
        if self.writer.ready():
            self.send_lines(b"retry: %d\n\n" % reconnect_ms)
        self._end(CloseCode.RESTART, messages.encode_bye(reconnect_ms))

    def _end(self, code: CloseCode, last: bytes | None = None) -> None:
        """Close after a last message. A client that does not read it is cut."""
        if self._ended:
            return
        self._ended = self.server_closed = True
        self.close_code = code
        self.end_watch()
        if code is CloseCode.TOO_SLOW:
            self.writer.abort()
            return
        if last is not None:
            self.writer.send(last)
        if self._chunked:
            self.writer.write(b"0\r\n\r\n")
        self.writer.close()
        if self.writer.held:
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self.writer.abort)

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = True
        self.end_watch()
        super().connection_lost(error)


class EventStreams:
    """The event-stream endpoint: `GET /v1/watch/events`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/watch/events?lat&long&radius` (or `?area`, `?vendors`): a snapshot, then updates."""
        wanted = messages.watch_of(message_of(request.query), self._services.bounds)
        required = self._services.settings.watch_auth == "required"
        identity = await identify_watcher(request, self._services.authenticator, required=required)
        await self._services.admission.admit(request)
        slot = self._services.admission.open_slot(request)
        now = asyncio.get_running_loop().time()
        opened: list[EventStream] = []
        try:
            slot.check_address()
            if identity is not None:
                slot.set_user(identity.clerk_id)
                slot.cost.set_user(identity.clerk_id, now)
            slot.cost.check(now)
            response = Handover(status=200, headers=HEADERS)
            response.force_close()
            chunked = request.version >= HttpVersion11
            if chunked:
                response.enable_chunked_encoding()

            def stream(transport: asyncio.Transport) -> EventStream:
                opened.append(EventStream(self._services.connections, transport, slot, chunked=chunked))
                self._start(opened[0], identity, wanted, transport)
                return opened[0]

            await response.take_over(request, stream)
        except Disconnect as refused:
            raise ProtocolError(refused.code, refused.message, retry_after_ms=RETRY_AFTER_MS) from None
        finally:
            if not opened:
                slot.release()
        return response

    def _start(
        self, stream: EventStream, identity: Identity | None, wanted: messages.Watch, transport: asyncio.Transport
    ) -> None:
        bound_unsent(transport)
        set_user_timeout(transport, self._services.settings.silence)
        budget = WatchBudget(stream.slot.cost, stream.writer, self._services.connections.now)
        watch = Watch(wanted.id, stream.writer, payer=budget)
        opening = asyncio.create_task(self._open(stream, watch, wanted), name="events")
        stream.end_watch = partial(self._end_watch, watch, opening)
        self._services.connections.add(stream)
        stream.send_lines(b"retry: %d\n\n" % random.randrange(MIN_RETRY_MS, MAX_RETRY_MS))
        if identity is not None:
            stream.clerk_id, stream.expires = identity.clerk_id, identity.expires
            if self._services.authenticator.deleted(identity.clerk_id):  # while it waited for its turn
                stream.end(CloseCode.UNAUTHORIZED, "the user was deleted")

    async def _open(self, stream: EventStream, watch: Watch, wanted: messages.Watch) -> None:
        try:
            opening = self._services.subscriptions.open(watch, wanted, stream.slot.cost.client)
            now = self._services.connections.now
            await measured(opening, lambda seconds: stream.slot.cost.charge(seconds, now()))
        except (ProtocolError, Unavailable) as failed:
            log.debug("an event stream could not be served", connection=stream.name, cause=str(failed))
            if isinstance(failed, ProtocolError):
                stream.refuse(messages.encode_error(failed.code, failed.message, watch.id, failed.retry_after_ms))
            else:
                stream.refuse(messages.encode_error(ErrorCode.OVERLOADED, failed.public_message, watch.id))
        except Exception as error:
            log.error("an event stream failed", connection=stream.name, error=repr(error), exc_info=error)
            stream.end(CloseCode.INTERNAL)
        self._services.changed()

    def _end_watch(self, watch: Watch, opening: asyncio.Task[None]) -> None:
        opening.cancel()
        self._services.subscriptions.close(watch)


def message_of(query: MultiMapping[str]) -> dict[str, Any]:
    """Return the `watch` message that a query string stands for; `messages.watch_of` validates it."""
    message: dict[str, Any] = {"type": "watch", "id": query.get("id", "events")}
    if "area" in query:
        try:
            message["area"] = orjson.loads(query["area"])
        except ValueError:
            raise ProtocolError(
                ErrorCode.INVALID_JSON, f"area must be JSON as in a watch message, not {shown(query['area'])}"
            ) from None
    if circle := [name for name in query if name in COORDINATES or name == "radius"]:
        if "area" in query:
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"area and {circle[0]}: give one of the two")
        center = {name: number_or_text(query[name]) for name in circle if name != "radius"}
        message["area"] = {"center": center, "radius": number_or_text(query["radius"]) if "radius" in query else None}
    if "vendors" in query:
        message["vendors"] = list(_listed(query))
    if "open" in query:
        message["open"] = {"true": True, "1": True, "false": False, "0": False}.get(query["open"], query["open"])
    if "as" in query:
        message["as"] = query["as"]
    for name in ("interval", "detail"):
        if name in query:
            message[name] = number_or_text(query[name])
    return message


def number_or_text(text: str) -> float | str:
    """Return a query string's number; other text is returned unchanged, so that the error can quote it."""
    try:
        return float(text)
    except ValueError:
        return text


def _listed(query: MultiMapping[str]) -> Iterator[str]:
    """The vendors of a list: separated by commas, and the name may be given several times."""
    for value in query.getall("vendors"):
        yield from (id for id in value.split(",") if id)
