"""The one place that reaches into aiohttp: takes a connection over from it once it has answered a request.

aiohttp parses the request, routes it and writes the response's head. After that the connection belongs to a protocol
object of ours, and none of aiohttp's objects (protocol, parser, request, response, task) stays alive for it.

Used beside aiohttp's public interface: `RequestHandler.set_parser`, which hands over the bytes after the request and
keeps aiohttp from parsing more; assigning `RequestHandler.transport`; `RequestHandler.connection_lost`, which ends
aiohttp's bookkeeping; `Request._prepare_hook` and `Application._make_request`, as answers to malformed requests pass
through them too. The tests of this module fail when one of these changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web


class _Request(web.Request):
    """A request whose answers do not name aiohttp's and Python's versions to attackers."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        await super()._prepare_hook(response)
        response.headers.pop("Server", None)


def hide_server(runner: web.AppRunner) -> None:
    """Removes the `Server` header from all answers, also to malformed requests, for which no signal is sent."""
    assert runner.server is not None
    make: Any = runner.app._make_request
    runner.server.request_factory = partial(make, _cls=_Request)


class Handover(web.StreamResponse):
    """A response of which aiohttp writes only the head; the protocol that takes over writes the rest."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Writes nothing, as the connection continues."""

    async def take_over(self, request: web.Request, made: Callable[[asyncio.Transport], asyncio.Protocol]) -> None:
        """Writes the head, then gives the connection to the protocol that `made` returns.

        The protocol gets `data_received` with the bytes after the request. `connection_made` is not called.

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
        transport.set_protocol(protocol)
        rest = _Rest()
        handler.set_parser(rest)
        handler.transport = None
        handler.connection_lost(None)
        if not transport.is_reading():
            transport.resume_reading()
        if rest.data:
            protocol.data_received(rest.data)


class _Rest:
    """Collects the bytes after the request."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Called by aiohttp in `connection_lost`."""
