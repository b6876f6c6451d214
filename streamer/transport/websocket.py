"""One open WebSocket: a protocol object on its transport that reads frames and passes messages to its subclass.

aiohttp answers the handshake and then releases the connection. From then on a connection has a task only while it waits
for something: a token, a status, a full buffer.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from math import ceil
from time import thread_time
from typing import Any

import structlog
from structlog.contextvars import bind_contextvars

from streamer.accounts.tokens import Identity
from streamer.cpu_time import measured
from streamer.errors import CloseCode, Disconnect, ErrorCode, FrameError, ProtocolError, Unavailable
from streamer.ingest.cost import LOOK_AGAIN
from streamer.ingest.rate_limit import PAUSE, Limit, Meter
from streamer.protocol import messages
from streamer.protocol.fields import decode_object
from streamer.protocol.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PING_FRAME,
    TEXT,
    FrameReader,
    close_frame,
    parse_close,
    pong_frame,
)
from streamer.transport.connection import NO_STATUS, Connection
from streamer.transport.connection_limits import ConnectionSlot
from streamer.transport.services import Services
from streamer.transport.writer import Writer

log = structlog.get_logger()

READ_AHEAD = 16 << 10
"""Bytes that are read from a client whose messages wait, so that its pings are answered and its pongs seen."""
FRAME_OVERHEAD = 200
"""Approximate memory of a waiting frame beside its payload, bytes."""
SMALL_FRAGMENT = 1024
"""Bytes below which a fragment counts as a message for the rate limit."""
CLOSE_TIMEOUT = 3.0
"""Seconds a client gets to answer a Close frame, and then to read what waits for it."""
TOKEN_RATE = 0.2
TOKEN_BURST = 20
"""Tokens per second and in a burst that one connection may send: a signature check costs as much as storing pings."""


class WebSocket(Connection):
    """Reads frames, answers control frames, authenticates, and passes messages to `receive`, one at a time."""

    __slots__ = (
        "_ahead",
        "_ahead_bytes",
        "_auth_timer",
        "_close_timer",
        "_closing",
        "_full",
        "_held",
        "_pause",
        "_reader",
        "_reading",
        "_task",
        "_tokens",
        "_transport",
        "_yielded",
        "limit",
        "services",
    )
    free_size = 0
    """Bytes up to which a message's CPU time is not charged: the limit on the number of messages is enough."""
    limit: Limit
    _auth_timer: asyncio.TimerHandle | None
    _close_timer: asyncio.TimerHandle | None
    _pause: asyncio.TimerHandle | None
    _task: asyncio.Task[None] | None
    _tokens: Meter | None
    _ahead: list[tuple[int, bytes]] | None
    _reader: FrameReader | None

    def __init__(
        self, services: Services, transport: asyncio.Transport, writer: Writer, slot: ConnectionSlot, deflate: bool
    ) -> None:
        super().__init__(services.connections, writer, slot)
        self.services = services
        self._transport = transport
        self._reader = FrameReader(services.settings.max_message, deflate=deflate)
        self._task = None
        """The task that waits for something on behalf of the connection; messages are held back until it is done."""
        self._pause = None
        """Runs while the client sends too many messages and is read slower."""
        self._auth_timer = self._close_timer = None
        self._tokens = None
        self._ahead = None
        """Frames that arrived while earlier ones waited."""
        self._ahead_bytes = 0
        self._closing = False
        """A Close frame was sent."""
        self._full = False
        """The client leaves too much unread."""
        self._held = False
        self._yielded = False
        """Its time slice was used up; it continues after the others were read."""
        self._reading = True

    # defined by subclasses

    @property
    def token_required(self) -> bool:
        """Whether a client without a token is refused."""
        return True

    @abstractmethod
    async def open(self, identity: Identity | None) -> None:
        """Begin to serve an authenticated client."""

    @abstractmethod
    def receive(self, data: bytes) -> None:
        """Handle one message; Disconnect ends the connection."""

    @abstractmethod
    def release(self) -> None:
        """Release what the connection holds; called once or more when it ends, even before `open`."""

    # for subclasses

    def start(self, token: str | None) -> None:
        """Authenticate with the token of the handshake, or wait for one where it is required."""
        try:
            self.slot.check_address()
        except Disconnect as refused:
            self.refuse(refused)
            return
        if token is not None:
            self.wait(self._open, token)
        elif self.token_required:
            timeout = self.services.settings.auth_timeout
            self._auth_timer = self.services.loop.call_later(timeout, self._no_token, timeout)
        else:
            self.wait(self.open, None)

    def wait(self, work: Callable[..., Coroutine[Any, Any, object]], *args: Any) -> None:
        """Run something that takes time in a task; messages are held back until it is done."""
        self._task = asyncio.create_task(self._run(work, args), name=self.kind)

    async def authenticate(self, token: str) -> Identity:
        """Check a token and adopt its user and expiry; Disconnect when it is not valid."""
        if self._tokens is None:
            self._tokens = Meter(TOKEN_RATE, self.heard)
        if self._tokens.add(1, self.registry.now()) > TOKEN_BURST:
            raise Disconnect(
                CloseCode.TOO_MANY,
                ErrorCode.RATE_LIMITED,
                f"more than {TOKEN_BURST} tokens at once: send a new token only before the current one expires",
            )
        try:
            identity = await self.services.authenticator.check(token)
        except ProtocolError as invalid:
            raise Disconnect(CloseCode.UNAUTHORIZED, invalid.code, invalid.message) from None
        self.expires, self.clerk_id = identity.expires, identity.clerk_id
        self.slot.set_user(identity.clerk_id)
        self.slot.cost.set_user(identity.clerk_id, self.registry.now())
        return identity

    def refuse(self, refused: Disconnect) -> None:
        """Sends the client an `error`, then closes."""
        if self._closing:
            return
        log.debug("closing", connection=self.name, code=int(refused.close), error=refused.code, reason=refused.message)
        self.services.counters.refused[refused.code] += 1
        self.writer.send(messages.encode_error(refused.code, refused.message))
        self.end(refused.close, refused.message)

    # Connection

    @property
    def paused(self) -> bool:
        return not self._reading or self._full

    @property
    def settled(self) -> bool:
        return self._task is None and self._pause is None and not self._yielded and not self._ahead

    def ping(self) -> None:
        self.writer.write(PING_FRAME)

    def hold(self) -> None:
        self._held = True
        self._update_reading()

    def end(self, code: CloseCode, reason: str = "") -> None:
        if self._closing:
            return
        self.close_code, self.server_closed = code, True
        self._close(code, reason)
        # Data before the client's own Close is read and dropped; otherwise the kernel would reset the connection, and
        # the client might never see the reason.
        self._close_timer = self.services.loop.call_later(CLOSE_TIMEOUT, self._shut)
        self._update_reading()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            return
        self.heard = self.registry.now()
        reader.feed(data)
        if self._closing:
            self._await_close(reader)
        elif not self._yielded:
            self._process()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._process()

    def connection_lost(self, error: Exception | None) -> None:
        self._closing, self._reader = True, None
        self._stop()
        if self._close_timer is not None:
            self._close_timer.cancel()
        super().connection_lost(error)

    # inside

    @property
    def _blocked(self) -> bool:
        """Whether messages have to wait."""
        return self._task is not None or self._pause is not None or self._full

    def _process(self) -> None:
        """Handle what was received, for one time slice at most."""
        try:
            while not self._closing:
                reader = self._reader
                assert reader is not None
                if self._task is not None or self._pause is not None or self._full:
                    if self._ahead_bytes >= READ_AHEAD or (frame := reader.next()) is None:
                        break
                    self._queue_frame(*frame)
                    continue
                if self._ahead:
                    frame = self._ahead.pop(0)
                else:
                    self._ahead, self._ahead_bytes = None, 0
                    frame = reader.next()
                    if frame is None:
                        break
                if not (frame[0] == CONTINUATION and len(frame[1]) >= SMALL_FRAGMENT) and self.limit.over(self.heard):
                    self._slow_down(frame, PAUSE, self.limit.warning[1])
                elif (
                    len(frame[1]) > self.free_size
                    and frame[0] in (TEXT, BINARY)
                    and (pause := self.slot.cost.wait(self.heard))
                ):
                    self._slow_down(frame, pause, self.slot.cost.warning)
                else:
                    self._handle(*frame)
                if (self._ahead or reader.buffered) and self.services.time_slice.over():
                    self._yielded = True
                    self.services.loop.call_soon(self._continue)
                    break
        except Exception as error:
            self._failed(error)
        if self._yielded or self._closing or self._ahead_bytes or not self._reading:
            self._update_reading()

    def _handle(self, opcode: int, payload: bytes) -> None:
        if opcode not in (TEXT, BINARY):
            self._control(opcode, payload)
        elif self._auth_timer is not None:
            self._first_message(payload)
        elif len(payload) <= self.free_size:
            self.receive(payload)
        else:
            self._receive_measured(payload)

    def _receive_measured(self, payload: bytes) -> None:
        began = thread_time()
        try:
            self.receive(payload)
        finally:
            self._charge(thread_time() - began)

    def _charge(self, seconds: float) -> None:
        self.slot.cost.charge(seconds, self.registry.now())

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.writer.write(pong_frame(payload))
        elif opcode == CLOSE:
            code = parse_close(payload)
            self.close_code = NO_STATUS if code is None else code
            self._close(self.close_code if code is not None else CloseCode.NORMAL)
            self._shut()

    def _queue_frame(self, opcode: int, payload: bytes) -> None:
        """Keep a message until those before it are handled; control frames are answered at once."""
        self._ahead_bytes += len(payload) + FRAME_OVERHEAD
        if opcode in (TEXT, BINARY):
            if self._ahead is None:
                self._ahead = []
            self._ahead.append((opcode, payload))
        else:
            self._control(opcode, payload)

    def _continue(self) -> None:
        self._yielded = False
        self._process()

    def _slow_down(self, frame: tuple[int, bytes], pause: float, warning: str) -> None:
        retry_after_ms = ceil(pause * 1000)
        self.writer.send(messages.encode_error(ErrorCode.RATE_LIMITED, warning, retry_after_ms=retry_after_ms))
        if self._auth_timer is not None and frame[0] in (TEXT, BINARY):
            self._auth_timer.cancel()  # the first message is here in time, even if it is handled later
        self._pause = self.services.loop.call_later(pause, self._resume, frame)

    def _resume(self, frame: tuple[int, bytes]) -> None:
        self._pause = None
        self.heard = self.registry.now()
        if self._closing:
            return
        if len(frame[1]) > self.free_size and (pause := self.slot.cost.wait(self.heard)):
            # Others used up the budget meanwhile; checking as often as it drains would cost more than it yields.
            self._pause = self.services.loop.call_later(max(pause, LOOK_AGAIN), self._resume, frame)
            return
        try:
            self._handle(*frame)
        except Exception as error:
            self._failed(error)
        self._process()

    async def _run(self, work: Callable[..., Coroutine[Any, Any, object]], args: tuple[Any, ...]) -> None:
        bind_contextvars(connection=self.name)
        failed: Exception | None = None
        try:
            await measured(work(*args), self._charge)
        except Unavailable as unavailable:
            log.debug("a connection could not be served", cause=str(unavailable))
            failed = Disconnect(CloseCode.INTERNAL, ErrorCode.OVERLOADED, unavailable.public_message)
        except Exception as error:
            failed = error
        self._task = None
        if failed is not None:
            self._failed(failed)
        self._process()

    async def _open(self, token: str) -> None:
        await self.open(await self.authenticate(token))

    def _no_token(self, timeout: float) -> None:
        self._auth_timer = None
        self.refuse(Disconnect(CloseCode.UNAUTHORIZED, ErrorCode.UNAUTHORIZED, f"no token within {timeout:.0f} s"))

    def _first_message(self, data: bytes) -> None:
        assert self._auth_timer is not None
        self._auth_timer.cancel()
        self._auth_timer = None
        try:
            message = decode_object(data)
            if message.get("type") != "auth":
                raise ProtocolError(
                    ErrorCode.UNAUTHORIZED, "without a token in the URL or a header the first message must be auth"
                )
            token = messages.decode_auth(message).token
        except ProtocolError as wrong:
            raise Disconnect(CloseCode.UNAUTHORIZED, wrong.code, wrong.message) from None
        self.wait(self._open, token)

    def _close(self, code: int, reason: str = "") -> None:
        self._closing = True
        self._ahead = None
        self._stop()
        self.writer.end(close_frame(code, reason))

    def _stop(self) -> None:
        """Stop everything that is done on behalf of the connection."""
        for timer in (self._auth_timer, self._pause):
            if timer is not None:
                timer.cancel()
        self._auth_timer = self._pause = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self.release()

    def _await_close(self, reader: FrameReader) -> None:
        try:
            while (frame := reader.next()) is not None:
                if frame[0] == CLOSE:
                    self._shut()
                    return
        except FrameError:
            self._reader = None

    def _failed(self, error: Exception) -> None:
        """Closes the connection for the reason in `error`; without a word if the client can't be told."""
        try:
            self._end_for(error)
        except Exception as untold:
            log.error("a connection failed", connection=self.name, error=repr(untold), exc_info=untold)
            self.writer.abort()

    def _end_for(self, error: Exception) -> None:
        if isinstance(error, Disconnect):
            self.refuse(error)
        elif isinstance(error, FrameError):  # RFC 6455, 7.1.7: later data is dropped unparsed
            log.debug("closing", connection=self.name, code=int(error.close), reason=str(error))
            self._reader = None
            self.end(error.close, str(error))
            if self._transport.can_write_eof():
                self._transport.write_eof()
        else:
            log.error("a connection failed", connection=self.name, error=repr(error), exc_info=error)
            self.end(CloseCode.INTERNAL, "internal error; see the server's log")

    def _shut(self) -> None:
        """Close the transport once the client has read what waits; cut a client that does not read it in time."""
        self._reader = None
        if self._close_timer is not None:
            self._close_timer.cancel()
        self.writer.close()
        if self.writer.held:
            self._close_timer = self.services.loop.call_later(CLOSE_TIMEOUT, self.writer.abort)

    def _update_reading(self) -> None:
        wanted = self._closing or not (
            self._held or self._yielded or (self._blocked and self._ahead_bytes >= READ_AHEAD)
        )
        if wanted != self._reading and not self._transport.is_closing():
            self._reading = wanted
            if wanted:
                self.heard = self.registry.now()
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
