"""A minimal stand-in for the server, to test the load test's clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from loadtest.clients.target import Target

Talk = Callable[[web.WebSocketResponse], Awaitable[None]]


@asynccontextmanager
async def standing_in(talks: Mapping[str, Talk], **options: Any) -> AsyncIterator[Target]:
    """A server with a handler per path; `options` are aiohttp's for its WebSockets."""

    async def handle(talk: Talk, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=1 << 20, **options)
        await socket.prepare(request)
        await talk(socket)
        return socket

    app = web.Application()
    for path, talk in talks.items():
        app.router.add_get(path, partial(handle, talk))
    async with TestServer(app, host="127.0.0.1") as server:
        assert server.port is not None
        yield Target("127.0.0.1", server.port, False)
