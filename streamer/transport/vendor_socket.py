"""A vendor app's WebSocket (`GET /v1/vendor`): pings to the batcher and the live index, acks back."""

from __future__ import annotations

import asyncio

from streamer.accounts.dataloader import card_of
from streamer.accounts.permissions import owned_vendor
from streamer.accounts.tokens import Identity
from streamer.errors import CloseCode, Disconnect, ErrorCode, ProtocolError, Unavailable
from streamer.ingest.batcher import Chunk, Rejected
from streamer.ingest.producer import Producer
from streamer.ingest.rate_limit import Allowance, Limit
from streamer.ingest.session import Pending, VendorSession
from streamer.live.fix import Fix
from streamer.live.vendor import Card
from streamer.protocol import messages
from streamer.protocol.messages import Reject, Status
from streamer.storage.store import VendorRow
from streamer.transport.admission import RETRY_AFTER_MS
from streamer.transport.connection_limits import ConnectionSlot
from streamer.transport.services import Services
from streamer.transport.websocket import WebSocket
from streamer.transport.writer import Writer

CLOSE_CODES = {ErrorCode.VENDOR_NOT_FOUND: CloseCode.NOT_FOUND, ErrorCode.FORBIDDEN: CloseCode.FORBIDDEN}


class VendorSocket(WebSocket):
    """Serves one connection of one vendor."""

    __slots__ = ("_allowance", "_asked_for", "_producer", "_row", "_session")
    kind = "vendor"
    free_size = 1024
    _allowance: Allowance | None
    _row: VendorRow
    _session: VendorSession
    _producer: Producer

    def __init__(
        self,
        services: Services,
        transport: asyncio.Transport,
        writer: Writer,
        slot: ConnectionSlot,
        deflate: bool,
        *,
        vendor_id: str | None,
    ) -> None:
        super().__init__(services, transport, writer, slot, deflate)
        self.limit = Limit(services.settings.vendor_messages, self.since)
        self._asked_for = vendor_id
        self._allowance = None
        """Held while the vendor is connected."""

    async def open(self, identity: Identity | None) -> None:
        assert identity is not None
        services = self.services
        settings, clock = services.settings, services.clock
        read_at, known = clock(), services.change_poller.generation
        self._row = row = await self._owned(identity, self._asked_for)
        durable = await services.dataloader.durable(row)
        self.writer.send(messages.encode_hello(row.vendor_id, clock(), durable, settings.max_batch))
        live_max_age = int(settings.live_max_age * 1000)
        self._session = VendorSession(
            services.bounds,
            live_max_age=live_max_age,
            max_bad_messages=settings.max_bad_messages,
            counters=services.counters,
        )
        self._allowance = allowance = services.allowances.of(row.vendor_id, self.registry.now())
        self._producer = Producer(
            services.batcher, self._session, allowance, row.vendor_id, live_max_age, self._settled, self.registry.now
        )
        self.vendor_id = row.vendor_id
        allowance.connections += 1
        services.local_vendors.connect(row.vendor_id, card_of(row, read_at), clock())
        if services.change_poller.generation != known:
            await self._owned(identity, row.vendor_id)  # it may have been deleted since it was read

    def receive(self, data: bytes) -> None:
        now = self.services.clock()
        received = self._session.receive(data, now)
        for reply in received.replies:
            self.writer.send(reply)
        if (newest := received.newest) is not None:
            self.services.local_vendors.fix(self._row.vendor_id, Fix(*newest[1:]), now)
        if received.pending is not None:
            chunk = self._producer.take(received.pings, received.pending, now)
            if chunk is not None:
                self.wait(self._put, chunk)
            elif self._producer.excessive:
                self.wait(self._producer.rest)
        elif received.status is not None:
            self.wait(self._set_status, received.status)
        elif received.auth is not None:
            self.wait(self._authenticate_again, received.auth.token)

    def release(self) -> None:
        if self._allowance is not None:
            self._allowance.connections -= 1
            self._allowance = None
            self.services.local_vendors.disconnect(self._row.vendor_id, self.services.clock())

    @property
    def settled(self) -> bool:
        return super().settled and (self._allowance is None or not self._session.unsettled)

    async def _owned(self, identity: Identity, vendor_id: str | None) -> VendorRow:
        try:
            return await owned_vendor(self.services.dataloader, identity, vendor_id)
        except ProtocolError as wrong:
            code = CLOSE_CODES.get(wrong.code, CloseCode.NOT_THIS_PROTOCOL)
            raise Disconnect(code, wrong.code, wrong.message) from None

    def _settled(self, pending: Pending, rejected: Rejected) -> None:
        """Pings were committed or rejected."""
        rejects = [Reject(seq, *reason) for seq, reason in rejected.items()] if rejected else ()
        for reply in self._session.settled(pending, rejects):
            self.writer.send(reply)
        if rejects and any(reject.code is ErrorCode.VENDOR_NOT_FOUND for reject in rejects):
            self.services.vendors_deleted((self._row.vendor_id,))

    async def _put(self, chunk: Chunk) -> None:
        """Wait for room in the buffer. If the client disconnects first, its pings count as never sent."""
        await self._producer.put(chunk)
        if self._producer.excessive:
            await self._producer.rest()

    async def _set_status(self, status: Status) -> None:
        """Open or close the vendor for business; asks the app to repeat a status that could not be saved."""
        assert self._allowance is not None
        services, row, open = self.services, self._row, status.open
        if (wait := self._allowance.change(self.registry.now())) > 0:
            message = f"Status not saved (open: {str(open).lower()}): it changed too often; send it again later"
            retry = max(1000, round(wait * 1000))
            self.writer.send(messages.encode_error(ErrorCode.RATE_LIMITED, message, retry_after_ms=retry))
            return
        try:
            await services.store.set_open(row.vendor_id, open, status.hidden, row.clerk_id)
        except Unavailable as away:
            message = f"Status not saved (open: {str(open).lower()}); send it again: {away.public_message}"
            self.writer.send(messages.encode_error(ErrorCode.OVERLOADED, message, retry_after_ms=RETRY_AFTER_MS))
        else:
            now = services.clock()
            services.local_vendors.card(row.vendor_id, Card(now, row.name, open, row.primary_image, status.hidden), now)

    async def _authenticate_again(self, token: str) -> None:
        before = self.clerk_id
        if (await self.authenticate(token)).clerk_id != before:
            raise Disconnect(CloseCode.FORBIDDEN, ErrorCode.FORBIDDEN, "the new token is another user's")
