"""A WebSocket client (RFC 6455) of minimal cost, so that the server is measured rather than the client.

Frames are sent with a zero mask, which is legal and avoids the masking. Each whole message is one call with its bytes.
The client has no queue: `writable` is False while the transport's write buffer is full.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import os
import socket
import ssl
import zlib
from collections.abc import Callable
from typing import NamedTuple, cast

from loadtest.clients.target import Target
from venta_client.errors import Refused, Violation

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
FINAL, COMPRESSED, RESERVED = 0x80, 0x40, 0x70
MAX_MESSAGE = 64 << 20
MAX_REFUSAL = 64 << 10
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
DEFLATE = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
ABNORMAL = 1006
CLOSE_TIMEOUT = 2.0


class Close(NamedTuple):
    """How a connection ended; 1006 without a close frame. `refused`: admission control refused the handshake."""

    code: int
    reason: str
    refused: bool = False


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """Returns one whole client frame, masked with zero."""
    size = len(payload)
    if size < 126:
        head = bytes((FINAL | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((FINAL | opcode, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((FINAL | opcode, 0xFF)) + size.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload


def inflated(payload: bytes) -> bytes:
    """Decompresses a message of permessage-deflate without context takeover (RFC 7692)."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        message = inflate.decompress(payload + b"\0\0\xff\xff", MAX_MESSAGE)
    except zlib.error as bad:
        raise Violation(f"a compressed message can't be inflated: {bad}") from None
    if inflate.unconsumed_tail:
        raise Violation(f"a message of over {MAX_MESSAGE} bytes")
    return message


class WebSocket(asyncio.Protocol):
    """One connection: calls `on_message` with each whole message, `on_writable` when the write buffer has room again.

    `opened` and `closed` are futures. An exception from a callback, or a Violation, ends the connection, and `closed`
    raises it. `received` counts bytes. `size` is the compressed size of the newest message.
    """

    def __init__(
        self,
        request: bytes,
        accept: bytes,
        on_message: Callable[[bytes], None],
        on_writable: Callable[[], None] | None,
        deflate: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[Close] = loop.create_future()
        self.writable = True
        self.held = False
        self.received = 0
        self.size = 0
        self._deflate = deflate
        self._request = request
        self._accept = accept
        self._on_message = on_message
        self._on_writable = on_writable
        self._transport: asyncio.Transport | None = None
        self._upgraded = False
        self._pending = bytearray()
        self._need = 2
        self._parts: list[bytes] = []
        self._parts_size = 0
        self._close = Close(ABNORMAL, "the connection ended without a close frame")
        self._failure: Exception | None = None
        self._closing = False
        self._killer: asyncio.TimerHandle | None = None

    # sending

    def send(self, payload: bytes) -> None:
        """Sends one text message."""
        self.write(frame(payload))

    def write(self, frames: bytes) -> None:
        """Sends ready frames; does nothing once the connection is ending."""
        if self._transport is not None and not self._closing:
            self._transport.write(frames)

    def close(self, code: int = 1000) -> None:
        """Begins the closing handshake; aborts when the server does not answer within 2 s."""
        if self._transport is None or self._closing:
            return
        self._transport.write(frame(code.to_bytes(2, "big"), CLOSE))
        self._closing = True
        self._killer = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self.abort)

    def hold(self, held: bool) -> None:
        """Stops reading while held, like a phone on a bad link; incoming data then waits in the network."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.is_reading() is not held:
            return
        self.held = held
        if held:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def ping(self) -> None:
        """Sends a WebSocket ping; any answer counts as received bytes."""
        self.write(frame(b"", PING))

    def give_up(self, close: Close) -> None:
        """Aborts the connection with this Close as its outcome."""
        self._close = close
        self.abort()

    def narrow(self, size: int) -> None:
        """Limits the kernel's receive buffer to about `size` bytes, instead of megabytes."""
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def abort(self) -> None:
        """Ends the connection immediately, without a close frame."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self._pending:
            self._pending += data
            if len(self._pending) < self._need:
                return
            data = bytes(self._pending)
            self._pending.clear()
        try:
            done = self._frames(data, 0) if self._upgraded else self._handshake(data)
        except Exception as failure:  # an error in a callback must end the run, not only be logged
            self._failure = failure
            self._closing = True
            self.abort()
            return
        if done < len(data):
            self._pending += memoryview(data)[done:]

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self._on_writable is not None:
            self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._transport = None
        if self._killer is not None:
            self._killer.cancel()
        if not self._upgraded and self._failure is None:
            self._handshake(bytes(self._pending), whole=True)
        if not self.opened.done():
            self.opened.set_exception(self._failure or exc or ConnectionError("the server closed before it answered"))
            self.opened.exception()  # nobody awaits a connect that timed out
        if self._failure is not None:
            self.closed.set_exception(self._failure)
            self.closed.exception()  # nobody awaits it after a failed connect
        else:
            self.closed.set_result(self._close)

    # receiving

    def _handshake(self, data: bytes, whole: bool = False) -> int:
        """Reads the answer to the upgrade; `whole`: all of it has arrived. Returns the number of bytes read."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_REFUSAL:
                raise Violation(f"no end of the HTTP headers within {MAX_REFUSAL} bytes: {data[:80]!r}…")
            self._need = len(data) + 1
            return 0
        head, *lines = data[:end].split(b"\r\n")
        words = head.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise Violation(f"the answer to the handshake is not HTTP: {head[:80]!r}")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if words[1] != b"101":
            body, length = data[end + 4 :], int(headers.get(b"content-length", b"0"))
            if not whole and len(body) < min(length, MAX_REFUSAL):
                self._need = len(data) + 1
                return 0
            if not self.opened.done():
                self.opened.set_exception(Refused(int(words[1]), body[:500].decode("utf-8", "replace")))
            self.abort()
            return len(data)
        if headers.get(b"sec-websocket-accept") != self._accept:
            raise Violation(f"Sec-WebSocket-Accept is {headers.get(b'sec-websocket-accept')!r}, not {self._accept!r}")
        extensions = headers.get(b"sec-websocket-extensions", b"")
        if extensions and not (self._deflate and b"server_no_context_takeover" in extensions):
            raise Violation(f"Sec-WebSocket-Extensions is {extensions!r}, not what was offered")
        self._deflate = bool(extensions)
        self._upgraded = True
        self._need = 2
        self.opened.set_result(None)
        return self._frames(data, end + 4)

    def _frames(self, data: bytes, at: int) -> int:
        """Handles all whole frames from `at` on; returns the start of the first incomplete one."""
        size = len(data)
        self._need = 2
        while size - at >= 2:
            first, length = data[at], data[at + 1]
            head = 2
            if length > 125:
                if length & 0x80:
                    raise Violation("a frame from the server is masked")
                head = 4 if length == 126 else 10
                if size - at < head:
                    self._need = head
                    break
                length = int.from_bytes(data[at + 2 : at + head], "big")
                if length + self._parts_size > MAX_MESSAGE:
                    raise Violation(f"a message of over {MAX_MESSAGE} bytes")
            end = at + head + length
            if end > size:
                self._need = end - at
                break
            payload = data[at + head : end]
            at = end
            if first in (FINAL | TEXT, FINAL | BINARY) and not self._parts:
                self.size = length
                self._on_message(payload)
            else:
                self._other(first, payload)
            if self._transport is None or self._transport.is_closing():
                return size
        return at

    def _other(self, first: int, payload: bytes) -> None:
        """Handles a control frame or a fragment."""
        opcode = first & 0x0F
        if first & RESERVED:
            if first != FINAL | COMPRESSED | TEXT or not self._deflate or self._parts:
                raise Violation(f"reserved bits are set in a frame with first byte {first:#04x}")
            self.size = len(payload)
            self._on_message(inflated(payload))
        elif opcode >= CLOSE:
            if not first & FINAL or len(payload) > 125:
                raise Violation(f"a control frame (opcode {opcode}) is fragmented or over 125 bytes")
            self._control(opcode, payload)
        elif opcode == 0 and self._parts:
            self._parts.append(payload)
            self._parts_size += len(payload)
            if first & FINAL:
                whole = b"".join(self._parts)
                self._parts, self._parts_size, self.size = [], 0, len(whole)
                self._on_message(whole)
        elif opcode in (TEXT, BINARY) and not self._parts and not first & FINAL:
            self._parts, self._parts_size = [payload], len(payload)
        else:
            raise Violation(f"opcode {opcode} does not fit here (a message unfinished: {bool(self._parts)})")

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.write(frame(payload, PONG))
        elif opcode == CLOSE:
            if len(payload) == 1:
                raise Violation("a close frame with half a code")
            code = int.from_bytes(payload[:2], "big") if payload else 1005
            self._close = Close(code, payload[2:].decode("utf-8", "replace"))
            self.write(frame(payload[:2], CLOSE))
            self._closing = True
            if self._transport is not None:
                self._transport.close()
        elif opcode != PONG:
            raise Violation(f"unknown opcode {opcode}")


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Returns a TLS context with the system's certificate authorities, which are read only once."""
    return ssl.create_default_context()


async def connect(
    target: Target,
    path: str,
    on_message: Callable[[bytes], None],
    *,
    on_writable: Callable[[], None] | None = None,
    token: str | None = None,
    deflate: bool = False,
    within: float = 10.0,
) -> WebSocket:
    """Opens a WebSocket within `within` s; raises Refused, Violation, OSError or TimeoutError.

    With `deflate` it offers permessage-deflate, as browsers do.
    """
    key = base64.b64encode(os.urandom(16))
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    extensions = f"Sec-WebSocket-Extensions: {DEFLATE}\r\n" if deflate else ""
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {target.authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"{bearer}{extensions}"
        f"Sec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    accept = base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest())
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(within):
        _, opened = await loop.create_connection(
            lambda: WebSocket(request, accept, on_message, on_writable, deflate),
            target.host,
            target.port,
            ssl=tls_context() if target.tls else None,
        )
        try:
            await opened.opened
        except BaseException:
            opened.abort()
            raise
    return opened
