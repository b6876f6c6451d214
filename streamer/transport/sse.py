"""The watch as Server-Sent Events: what `GET /v1/watch` sends, for a browser's `EventSource`.

What is watched is in the query string. A reconnect is a new watch, so it begins with a snapshot; nothing is numbered.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any

import orjson
import structlog
from aiohttp import HttpVersion11, web
from multidict import MultiMapping

from streamer.accounts.tokens import Authenticator, Identity
from streamer.broker.subscriptions import Subscriptions
from streamer.errors import CloseCode, Disconnect, ErrorCode, ProtocolError
from streamer.live import index as live_index
from streamer.protocol import messages
from streamer.protocol.messages import shown
from streamer.settings import Settings
from streamer.transport.admission import farewells
from streamer.transport.websocket import (
    LOOK_EVERY,
    NOT_CLOSED,
    RETRY_AFTER_MS,
    SPREAD_SHARE,
    WebSockets,
    bounds_of,
    token_of,
)
from streamer.transport.writer import EventOutbox, EventOutbox10, bound_unsent

log = structlog.get_logger()

EVENT_STREAM = "text/event-stream"
KIND = "events"
HEADERS = {
    "Content-Type": EVENT_STREAM,
    "Cache-Control": "no-store",
    # a proxy that gathers what is to be sent would make a live map of minutes
    "X-Accel-Buffering": "no",
}
BEAT = b":\n\n"
SOONEST_MS, LATEST_MS = 1000, 3000
"""Milliseconds after which a browser comes back, by chance between these, so that not all come at once."""
EXPIRED = "the token expired: open the stream again with a new one"
GONE = "the user was deleted"


class Stream:
    """One open stream as the heartbeat sees it."""

    __slots__ = ("beaten", "clerk_id", "code", "ended", "expires", "outbox")

    def __init__(self, outbox: EventOutbox, identity: Identity | None, now: float) -> None:
        self.outbox = outbox
        self.clerk_id = None if identity is None else identity.clerk_id
        self.expires = None if identity is None else identity.expires
        self.beaten = now
        self.ended = asyncio.Event()
        self.code: int = NOT_CLOSED
        """Why the server ends it, as the WebSocket would be closed."""

    def end(self, code: int) -> None:
        """End it in good order."""
        if not self.ended.is_set():
            self.code = code
            self.ended.set()

    def cut(self, code: int) -> None:
        """End it although the client has not taken what it was sent."""
        self.end(code)
        self.outbox.abort()


class EventStreams:
    """All open streams of this process, and the handler that serves them."""

    def __init__(
        self,
        settings: Settings,
        sockets: WebSockets,
        watches: Subscriptions,
        authenticator: Authenticator,
        clock: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:
        self.streams: set[Stream] = set()
        self._settings = settings
        self._sockets = sockets
        self._watches = watches
        self._authenticator = authenticator
        self._clock = clock
        self._changed = changed
        self._bounds = bounds_of(settings)
        self._counters = sockets.counters

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/watch/events?lat&long&radius` (or `?area`, `?vendors`): a snapshot and updates, without end."""
        wanted = messages.watch_of(message_of(request.query), self._bounds)
        sockets = self._sockets
        identity = await self._identify(request)
        await sockets.let_in(request)
        seat = sockets.seat_of(request)
        sockets.streams += 1
        try:
            seat.check_address()
            if identity is not None:
                seat.sit(identity.clerk_id)
            return await self._serve(request, wanted, identity)
        except Disconnect as closing:
            raise ProtocolError(closing.code, closing.message, retry_after_ms=RETRY_AFTER_MS) from None
        finally:
            sockets.streams -= 1
            seat.leave()

    async def _serve(
        self, request: web.Request, wanted: messages.Watch, identity: Identity | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=HEADERS)
        response.force_close()
        chunked = request.version >= HttpVersion11
        if chunked:
            response.enable_chunked_encoding()
        if request.transport is None:
            raise ConnectionResetError("the client went away before its turn")
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client went away before the first event")
        bound_unsent(transport)
        give_up_after(transport, self._settings.silence)
        outbox = EventOutbox(transport) if chunked else EventOutbox10(transport)
        stream = Stream(outbox, identity, asyncio.get_running_loop().time())
        self.streams.add(stream)
        self._counters.opened[KIND] += 1
        watch = live_index.Watch(wanted.id, outbox)
        try:
            outbox.event(b"retry: %d\n\n" % random.randrange(SOONEST_MS, LATEST_MS))
            await self._watches.open(watch, wanted)
            self._changed()
            if identity is not None and self._authenticator.deleted(identity.clerk_id):
                self.users_gone((identity.clerk_id,))  # while it waited for its turn
            await stream.ended.wait()
        finally:
            self._watches.close(watch)
            self.streams.discard(stream)
            self._counters.closed[KIND, stream.code] += 1
        return response

    async def heartbeat(self) -> None:
        """Send signs of life, and end streams that are gone, stalled or past their token, for ever."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        while True:
            await asyncio.sleep(LOOK_EVERY)
            now, wall = loop.time(), self._clock() / 1000
            for stream in tuple(self.streams):
                outbox = stream.outbox
                if outbox.closing:
                    stream.end(NOT_CLOSED)
                elif outbox.stalled(now) > settings.stall:
                    stream.cut(CloseCode.TOO_SLOW)
                elif stream.expires is not None and wall > stream.expires:
                    self._end(stream, CloseCode.UNAUTHORIZED, messages.encode_error(ErrorCode.INVALID_TOKEN, EXPIRED))
                elif now - stream.beaten >= settings.heartbeat and outbox.ready():
                    stream.beaten = now
                    outbox.event(BEAT)

    def users_gone(self, clerk_ids: Collection[str]) -> None:
        """End the streams of users who exist no more."""
        for stream in tuple(self.streams):
            if stream.clerk_id in clerk_ids:
                self._end(stream, CloseCode.UNAUTHORIZED, messages.encode_error(ErrorCode.INVALID_TOKEN, GONE))

    async def send_away(self, within: float) -> None:
        """Have every client come back elsewhere, spread over time; bounded."""
        loop = asyncio.get_running_loop()
        begun, streams = loop.time(), tuple(self.streams)
        leaves = farewells(len(streams), self._settings.admission_rate, within * SPREAD_SHARE)
        for stream, (after, back_ms) in zip(streams, leaves, strict=True):
            if (wait := begun + after - loop.time()) > 0:
                await asyncio.sleep(wait)
            if stream.outbox.ready():
                stream.outbox.event(b"retry: %d\n\n" % back_ms)
            self._end(stream, CloseCode.RESTART, messages.encode_bye(back_ms))

    # inside

    async def _identify(self, request: web.Request) -> Identity | None:
        """Who asks; ProtocolError for a bad token, and for none where one is needed."""
        token = token_of(request)
        if token is not None:
            return await self._authenticator.check(token)
        if self._settings.watch_auth == "required":
            raise ProtocolError(ErrorCode.UNAUTHORIZED, "a token is needed, as Authorization: Bearer or ?token=")
        return None

    def _end(self, stream: Stream, code: int, last: bytes) -> None:
        """End a stream with a last message, which one that is behind does not get."""
        if stream.outbox.ready():
            stream.outbox.send(last)
            stream.end(code)
        else:
            stream.cut(code)


def message_of(query: MultiMapping[str]) -> dict[str, Any]:
    """The `watch` message that a query string stands for; what is wrong in it is for `protocol.watch_of` to say."""
    message: dict[str, Any] = {"type": "watch", "id": query.get("id", "events")}
    if "area" in query:
        try:
            message["area"] = orjson.loads(query["area"])
        except ValueError:
            raise ProtocolError(
                ErrorCode.INVALID_JSON, f"area is JSON as in a watch message, not {shown(query['area'])}"
            ) from None
    if circle := [name for name in query if name in messages.COORDINATES or name == "radius"]:
        if "area" in query:
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"area and {circle[0]}: give one of the two")
        centre = {name: number(query[name]) for name in circle if name != "radius"}
        message["area"] = {"center": centre, "radius": number(query["radius"]) if "radius" in query else None}
    if "vendors" in query:
        message["vendors"] = list(listed(query))
    if "open" in query:
        message["open"] = {"true": True, "1": True, "false": False, "0": False}.get(query["open"], query["open"])
    if "interval" in query:
        message["interval"] = number(query["interval"])
    return message


def listed(query: MultiMapping[str]) -> Iterator[str]:
    """The vendors of a list: separated by commas, and the name may be given several times."""
    for value in query.getall("vendors"):
        yield from (id for id in value.split(",") if id)


def number(text: str) -> float | str:
    """A number of a query string; what is none stays as it is, to be named in the refusal."""
    try:
        return float(text)
    except ValueError:
        return text


def give_up_after(transport: asyncio.Transport, seconds: float) -> None:
    """Have the system end a connection whose other end acknowledges nothing: nobody sends anything this way."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    raw = transport.get_extra_info("socket")
    if option is not None and raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, option, round(seconds * 1000))
