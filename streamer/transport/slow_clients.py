"""Cuts HTTP connections that are too slow to send a request or a body, or to read an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler

CHECK_EVERY = 1.0
"""Seconds between two checks of all HTTP connections."""


class SlowClients:
    """Watches the connections that aiohttp serves; WebSockets and event streams are not among them.

    A new connection has `handshake` seconds for its first request's head. A body must arrive, and an answer be read,
    within `request` seconds. With more than `limit` connections, those without a request so far are cut at once.
    """

    def __init__(self, handshake: float, request: float, limit: int) -> None:
        self.cut = 0
        self._handshake = handshake
        self._request = request
        self._limit = limit
        self._new: dict[BaseProtocol, float] = {}
        """Connections without a request yet, and since when."""
        self._known: set[BaseProtocol] = set()
        """Connections that have sent one."""
        self._served: set[BaseProtocol] = set()
        """Connections whose request is being handled."""
        self._sending: dict[BaseProtocol, float] = {}
        """Of these, those whose request has a body, and since when."""
        self._taking: dict[BaseProtocol, float] = {}
        """Connections that have not read all of their answer, and since when."""

    @web.middleware
    async def through(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note each request while it is handled."""
        connection = request.protocol
        self._known.add(connection)
        self._served.add(connection)
        if request.body_exists:
            self._sending[connection] = asyncio.get_running_loop().time()
        try:
            return await handler(request)
        finally:
            self._sending.pop(connection, None)
            self._served.discard(connection)

    async def watch(self, connections: Callable[[], Collection[RequestHandler]]) -> None:
        """Check all connections until cancelled."""
        while True:
            await asyncio.sleep(CHECK_EVERY)
            self.check(connections(), asyncio.get_running_loop().time())

    def check(self, connections: Collection[RequestHandler], now: float) -> None:
        """Cut the connections that are too slow; `now` is the event loop's time."""
        crowded = len(connections) > self._limit
        new: dict[BaseProtocol, float] = {}
        taking: dict[BaseProtocol, float] = {}
        for connection in connections:
            if connection in self._served:
                if now - self._sending.get(connection, now) > self._request:
                    self._cut(connection)
            elif connection not in self._known:
                since = new[connection] = self._new.get(connection, now)
                if crowded or now - since > self._handshake:
                    self._cut(connection)
            elif connection.transport is not None and connection.transport.get_write_buffer_size():
                since = taking[connection] = self._taking.get(connection, now)
                if now - since > self._request:
                    self._cut(connection)
        self._new, self._taking = new, taking
        self._known.intersection_update(connections)

    def _cut(self, connection: BaseProtocol) -> None:
        self.cut += 1
        if connection.transport is not None:
            connection.transport.abort()
