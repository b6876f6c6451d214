"""The one place that reaches into aiohttp: takes a connection over from it once it has answered a request.

aiohttp parses the request, routes it and writes the response's head. After that the connection belongs to a protocol
object of ours, and nothing of aiohttp (its protocol, parser, request, response and task) stays alive for it.

What is used beside aiohttp's public interface: `RequestHandler.set_parser`, which hands over the bytes that came behind
the request and keeps aiohttp from parsing more; assigning `RequestHandler.transport`; and calling
`RequestHandler.connection_lost`, which ends aiohttp's bookkeeping. The tests of this module fail when one of these
changes; `LETS_GO = False` then serves connections with aiohttp's protocol left in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

LETS_GO = True
"""Whether aiohttp's protocol leaves the connection; otherwise it stays and passes on what it receives."""
WRITE_LIMIT = 64 << 10
POLL_EVERY = 0.05
"""Seconds between two looks at the write buffer, where aiohttp gets the transport's callbacks in our place."""


class Handover(web.StreamResponse):
    """A response of which aiohttp writes the head only; what follows is written by the protocol that took over."""

    def __init__(self, *, status: int, headers: dict[str, str]) -> None:
        super().__init__(status=status, headers=headers)
        self._kept: asyncio.Future[None] | None = None

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing; wait for the end of a connection that aiohttp still reads."""
        if self._kept is not None:
            await self._kept

    async def take_over(self, request: web.Request, made: Callable[[asyncio.Transport], asyncio.Protocol]) -> None:
        """Write the head, then give the connection to the protocol that `made` returns.

        The protocol gets `data_received` with what came behind the request. `connection_made` is not called.

        Raises:
            ConnectionResetError: the client went away before.
        """
        if request.transport is None:
            raise ConnectionResetError("the client went away before its request was answered")
        await self.prepare(request)
        transport = request.transport
        handler: Any = request.protocol  # its parser is typed as aiohttp's own
        if transport is None:
            raise ConnectionResetError("the client went away while its request was answered")
        protocol = made(transport)
        if LETS_GO:
            transport.set_protocol(protocol)
            rest = _Rest()
            handler.set_parser(rest)
            handler.transport = None
            handler.connection_lost(None)
            if not transport.is_reading():
                transport.resume_reading()
            if rest.data:
                protocol.data_received(rest.data)
        else:
            self._kept = asyncio.get_running_loop().create_future()
            handler.keep_alive(False)
            handler.set_parser(_Relay(protocol, transport, self._kept))


class _Rest:
    """Takes what came behind the request."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """aiohttp calls it when it lets go."""


class _Relay:
    """Passes on what aiohttp's protocol receives, in place of its parser of WebSocket frames."""

    def __init__(self, protocol: asyncio.Protocol, transport: asyncio.Transport, ended: asyncio.Future[None]) -> None:
        self._protocol = protocol
        self._transport = transport
        self._ended = ended
        self._full = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._protocol.data_received(data)
        if not self._full and self._transport.get_write_buffer_size() > WRITE_LIMIT:
            self._full = True
            self._protocol.pause_writing()
            self._look()
        return False, b""

    def feed_eof(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
            self._protocol.connection_lost(None)

    def _look(self) -> None:
        if self._ended.done():
            return
        if self._transport.get_write_buffer_size() > WRITE_LIMIT:
            asyncio.get_running_loop().call_later(POLL_EVERY, self._look)
        else:
            self._full = False
            self._protocol.resume_writing()
