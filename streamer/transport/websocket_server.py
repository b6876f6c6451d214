"""The WebSocket endpoints: `GET /v1/vendor` and `GET /v1/watch`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from streamer.protocol.deflate import Deflater
from streamer.protocol.frames import DeflateFraming, text_frame
from streamer.transport.aiohttp_compat import Handover
from streamer.transport.handshake import handshake
from streamer.transport.identify import token_of
from streamer.transport.services import Services
from streamer.transport.vendor_socket import VendorSocket
from streamer.transport.watch_socket import WatchSocket
from streamer.transport.websocket import WebSocket
from streamer.transport.writer import Writer, bound_unsent


class WebSocketServer:
    """Opens WebSockets."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._deflated_frame = DeflateFraming(Deflater()).text_frame

    async def vendor(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/vendor`: a vendor app reports where it is."""
        vendor_id = request.query.get("vendorId")
        return await self._open(request, lambda *args: VendorSocket(self._services, *args, vendor_id=vendor_id))

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/watch`: a customer app watches areas or vendors."""
        return await self._open(request, lambda *args: WatchSocket(self._services, *args))

    async def _open(self, request: web.Request, made: Callable[..., WebSocket]) -> web.StreamResponse:
        headers = handshake(request)
        deflate = "Sec-WebSocket-Extensions" in headers
        await self._services.admission.admit(request)
        token = token_of(request)

        def protocol(transport: asyncio.Transport) -> WebSocket:
            bound_unsent(transport)
            writer = Writer(transport, self._deflated_frame if deflate else text_frame)
            socket = made(transport, writer, self._services.admission.open_slot(request), deflate)
            self._services.connections.add(socket)
            socket.start(token)
            return socket

        response = Handover(status=101, headers=headers)
        await response.take_over(request, protocol)
        return response
