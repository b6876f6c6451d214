"""A client's outbox: ready bytes onto its transport, never awaited, with backpressure looked at before."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from contextlib import suppress


def socket_framing(payload: bytes) -> bytes:
    """A text message as one unmasked WebSocket frame (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1) + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2) + payload
    return b"\x81\x7f" + size.to_bytes(8) + payload


def chunk_framing(payload: bytes) -> bytes:
    """A message as one Server-Sent Event in one chunk of a chunked HTTP/1.1 body."""
    return b"%x\r\ndata: %s\n\n\r\n" % (len(payload) + 8, payload)


def event_framing(payload: bytes) -> bytes:
    """A message as one Server-Sent Event, for HTTP/1.0, which knows no chunks."""
    return b"data: %s\n\n" % payload


PING_FRAME = b"\x89\x00"


UNSENT = 32 << 10
"""Bytes the system takes ahead for a slow client; it would take megabytes, and the client gets what is minutes old."""


def bound_unsent(transport: asyncio.Transport) -> None:
    """Have the system take no more than UNSENT bytes ahead of what the network takes: what waits longer is merged."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)
    raw = transport.get_extra_info("socket")
    if option is not None and raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, option, UNSENT)


class Outbox:
    """Writes frames to a transport. `stalled` says since when nothing of what waits there went out."""

    __slots__ = ("_gone", "_since", "_transport", "_written")

    @property
    def framing(self) -> Callable[[bytes], bytes]:
        """How a message becomes a frame; the same function for all of a kind, so that frames can be shared."""
        return socket_framing

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._written = 0
        self._gone = 0
        self._since = 0.0

    def ready(self) -> bool:
        """Whether the client has taken all it was sent (as far as the kernel's buffers tell)."""
        return self._transport.get_write_buffer_size() == 0

    @property
    def closing(self) -> bool:
        """Whether the client is gone, or will be once it has taken what waits."""
        return self._transport.is_closing()

    @property
    def held(self) -> int:
        """Bytes that wait for the client, also once the connection is closing."""
        return self._transport.get_write_buffer_size()

    @property
    def unread(self) -> int:
        """Bytes that wait for the client; none once it is gone."""
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    def write(self, frame: bytes) -> None:
        """Send a frame; what the kernel does not take at once waits in the transport."""
        if not self._transport.is_closing():
            self._written += len(frame)
            self._transport.write(frame)

    def send(self, payload: bytes) -> None:
        """Send one message."""
        self.write(self.framing(payload))

    def abort(self) -> None:
        """End the connection at once; what waits for the client is lost."""
        self._transport.abort()

    def stalled(self, now: float) -> float:
        """Seconds for which nothing went out although something waits."""
        held = self._transport.get_write_buffer_size()
        # By what went out, not by what waits: that grows while answers are added and nothing is taken.
        gone = self._written - held
        if held == 0 or gone > self._gone:
            self._gone = gone
            self._since = now
        return now - self._since


class EventOutbox(Outbox):
    """The same for Server-Sent Events."""

    __slots__ = ()

    @property
    def framing(self) -> Callable[[bytes], bytes]:
        """As an event in a chunk."""
        return chunk_framing

    def event(self, lines: bytes) -> None:
        """Send what is no message: a comment, or how long to wait before coming back."""
        self.write(b"%x\r\n%s\r\n" % (len(lines), lines))


class EventOutbox10(EventOutbox):
    """The same for a client or proxy that speaks HTTP/1.0."""

    __slots__ = ()

    @property
    def framing(self) -> Callable[[bytes], bytes]:
        """As an event."""
        return event_framing

    def event(self, lines: bytes) -> None:
        """Send what is no message."""
        self.write(lines)
