"""Writes frames or events to a client's transport without ever waiting; the caller checks backpressure first."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from math import inf

from streamer.protocol.frames import text_frame

UNSENT = 32 << 10
"""Unsent bytes the kernel may buffer for a slow client. By default it buffers megabytes: minutes of old positions."""


def event_chunk(payload: bytes) -> bytes:
    """Encode a message as one Server-Sent Event in one chunk of an HTTP/1.1 body."""
    return b"%x\r\ndata: %s\n\n\r\n" % (len(payload) + 8, payload)


def event_lines(payload: bytes) -> bytes:
    """Encode a message as one Server-Sent Event for HTTP/1.0, which has no chunks."""
    return b"data: %s\n\n" % payload


def bound_unsent(transport: asyncio.Transport) -> None:
    """Limit the unsent data in the kernel's buffer to UNSENT bytes; the server merges what waits longer."""
    _set_tcp(transport, getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None), UNSENT)


def set_user_timeout(transport: asyncio.Transport, seconds: float) -> None:
    """Let the kernel end a connection whose peer acknowledges nothing, for connections on which nothing is received."""
    _set_tcp(transport, getattr(socket, "TCP_USER_TIMEOUT", None), round(seconds * 1000))


def _set_tcp(transport: asyncio.Transport, option: int | None, value: int) -> None:
    raw = transport.get_extra_info("socket")
    if option is not None and raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, option, value)


class Writer:
    """Writes WebSocket messages to a transport, and measures how long a client has read nothing."""

    __slots__ = ("_sent", "_since", "_transport", "_written", "closed", "framing")

    def __init__(self, transport: asyncio.Transport, framing: Callable[[bytes], bytes] = text_frame) -> None:
        self.framing = framing
        """Turns a message into a frame; writers with the same framing can share frames."""
        self.closed = False
        """The last frame was written: nothing may follow it."""
        self._transport = transport
        self._written = 0
        self._sent: float = -inf
        self._since = 0.0

    def ready(self) -> bool:
        """Return whether the client has read everything, as far as the kernel's buffers show."""
        return self._transport.get_write_buffer_size() == 0

    @property
    def held(self) -> int:
        """Bytes that wait for the client, also while the connection is closing."""
        return self._transport.get_write_buffer_size()

    @property
    def unread(self) -> int:
        """Bytes that wait for the client; 0 while the connection is closing."""
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    def write(self, frame: bytes) -> None:
        """Write a frame; the transport keeps what the kernel does not take at once."""
        if not self.closed and not self._transport.is_closing():
            self._written += len(frame)
            self._transport.write(frame)

    def send(self, payload: bytes) -> None:
        """Write one message."""
        self.write(self.framing(payload))

    def end(self, frame: bytes) -> None:
        """Write the last frame."""
        self.write(frame)
        self.closed = True

    def close(self) -> None:
        """Close the connection once the client has read what waits."""
        self.closed = True
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once; what waits for the client is lost."""
        self.closed = True
        self._transport.abort()

    def stalled(self, now: float) -> float:
        """Return for how many seconds no waiting byte was sent; `now` is of any monotonic clock."""
        held = self._transport.get_write_buffer_size()
        # Sent bytes count, not waiting ones, which may grow while the client reads nothing.
        sent = self._written - held
        if held == 0 or sent > self._sent:
            self._sent = sent
            self._since = now
        return now - self._since
