"""Connections that ask for nothing: a client that is slow to say what it wants must not hold a place for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.web_protocol import RequestHandler

LOOK_EVERY = 1.0
"""Seconds between two looks at all connections."""


class SlowClients:
    """Cuts connections that have not sent a whole request in time, or do not take what they asked for.

    A new one has `handshake` seconds for its first request's head. A body has to come, and an answer to be taken,
    within `request` seconds. Those who are served for longer, as sockets and event streams are, are not looked at.
    """

    def __init__(self, handshake: float, request: float, most: int) -> None:
        self.cut = 0
        self._handshake = handshake
        self._request = request
        self._most = most
        self._new: dict[BaseProtocol, float] = {}
        """Those who have asked for nothing yet, and since when."""
        self._known: set[BaseProtocol] = set()
        """Those who have."""
        self._served: set[BaseProtocol] = set()
        self._sending: dict[BaseProtocol, float] = {}
        """Of those who are served, the ones who send a body, and since when."""
        self._taking: dict[BaseProtocol, float] = {}
        """Those who have not taken all of their answer, and since when."""

    @web.middleware
    async def through(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Know of each request while it is served."""
        door = request.protocol
        self._known.add(door)
        self._served.add(door)
        if request.body_exists:
            self._sending[door] = asyncio.get_running_loop().time()
        try:
            return await handler(request)
        finally:
            self._sending.pop(door, None)
            self._served.discard(door)

    async def watch(self, connections: Callable[[], Collection[RequestHandler]]) -> None:
        """Look at all connections, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            self.look(connections(), asyncio.get_running_loop().time())

    def look(self, connections: Collection[RequestHandler], now: float) -> None:
        """Cut those who are too slow; when there are too many, also the ones that have asked for nothing yet."""
        crowded = len(connections) > self._most
        new: dict[BaseProtocol, float] = {}
        taking: dict[BaseProtocol, float] = {}
        for door in connections:
            if door in self._served:
                if now - self._sending.get(door, now) > self._request:
                    self._end(door)
            elif door not in self._known:
                since = new[door] = self._new.get(door, now)
                if crowded or now - since > self._handshake:
                    self._end(door)
            elif door.transport is not None and door.transport.get_write_buffer_size():
                since = taking[door] = self._taking.get(door, now)
                if now - since > self._request:
                    self._end(door)
        self._new, self._taking = new, taking
        self._known.intersection_update(connections)

    def _end(self, door: BaseProtocol) -> None:
        self.cut += 1
        if door.transport is not None:
            door.transport.abort()
