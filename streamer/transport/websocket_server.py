"""The WebSocket endpoints: `GET /v1/vendor` and `GET /v1/watch`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from aiohttp import web

from streamer.accounts.change_poller import ChangePoller
from streamer.accounts.dataloader import DataLoader
from streamer.accounts.tokens import Authenticator
from streamer.broker.subscriptions import Subscriptions
from streamer.counters import Counters
from streamer.ingest.batcher import Batcher
from streamer.ingest.rate_limit import Allowances
from streamer.live.local_vendors import LocalVendors
from streamer.protocol.deflate import Deflater
from streamer.protocol.frames import DeflateFraming, text_frame
from streamer.protocol.messages import Bounds
from streamer.settings import Settings
from streamer.storage.store import Store
from streamer.transport.admission import Admission
from streamer.transport.aiohttp_compat import Handover
from streamer.transport.connection import ConnectionRegistry
from streamer.transport.handshake import handshake
from streamer.transport.identify import token_of
from streamer.transport.vendor_socket import VendorSocket
from streamer.transport.watch_socket import WatchSocket
from streamer.transport.websocket import Turn, WebSocket
from streamer.transport.writer import Writer, bound_unsent


@dataclass(eq=False, kw_only=True)
class WebSocketServer:
    """Opens WebSockets, and holds the parts of the server that they share."""

    settings: Settings
    bounds: Bounds
    connections: ConnectionRegistry
    admission: Admission
    authenticator: Authenticator
    counters: Counters
    clock: Callable[[], int]
    """Returns epoch milliseconds."""
    # for vendors
    store: Store
    dataloader: DataLoader
    batcher: Batcher
    local_vendors: LocalVendors
    change_poller: ChangePoller
    allowances: Allowances
    vendors_deleted: Callable[[Collection[str]], None]
    """Takes vendors, found deleted, off every map."""
    # for customers
    subscriptions: Subscriptions
    changed: Callable[[], None]
    """Has the next tick come soon."""

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.turn = Turn(self.loop)
        self._deflated_frame = DeflateFraming(Deflater()).text_frame

    async def vendor(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/vendor`: a vendor app reports where it is."""
        vendor_id = request.query.get("vendorId")
        return await self._open(request, lambda *args: VendorSocket(self, *args, vendor_id=vendor_id))

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/watch`: a customer app watches areas or vendors."""
        return await self._open(request, lambda *args: WatchSocket(self, *args))

    async def _open(self, request: web.Request, made: Callable[..., WebSocket]) -> web.StreamResponse:
        headers = handshake(request)
        deflate = "Sec-WebSocket-Extensions" in headers
        await self.admission.admit(request)
        token = token_of(request)

        def protocol(transport: asyncio.Transport) -> WebSocket:
            bound_unsent(transport)
            writer = Writer(transport, self._deflated_frame if deflate else text_frame)
            socket = made(transport, writer, self.admission.open_slot(request), deflate)
            self.connections.add(socket)
            socket.start(token)
            return socket

        response = Handover(status=101, headers=headers)
        await response.take_over(request, protocol)
        return response
