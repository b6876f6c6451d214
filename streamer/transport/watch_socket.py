"""A customer app's WebSocket (`GET /v1/watch`): opens, moves and ends watches."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from streamer.accounts.tokens import Identity
from streamer.errors import ErrorCode, ProtocolError
from streamer.ingest.cost import PREPAID
from streamer.ingest.rate_limit import Limit
from streamer.ingest.session import BadMessageLimit
from streamer.live.watch import Watch
from streamer.protocol import messages
from streamer.transport.connection_limits import ConnectionSlot
from streamer.transport.services import Services
from streamer.transport.watch_budget import WatchBudget
from streamer.transport.websocket import WebSocket
from streamer.transport.writer import Writer

UNPACED = 4
"""Watches of a connection whose updates are not delayed."""
REFUSED_AS_TOO_MUCH = frozenset({ErrorCode.AREA_TOO_LARGE, ErrorCode.TOO_MANY_WATCHES, ErrorCode.OVERLOADED})
"""The message is correct, so it does not count as bad: a customer who zooms out may send many of them in a row."""
PACE = 6
"""Milliseconds that each further watch adds to its minimum time between updates, as each watch costs frames."""


class WatchSocket(WebSocket):
    """Serves one connection of a customer."""

    __slots__ = ("_bad_messages", "_budget", "_watches")
    kind = "watch"
    _watches: dict[str, Watch]

    def __init__(
        self, services: Services, transport: asyncio.Transport, writer: Writer, slot: ConnectionSlot, deflate: bool
    ) -> None:
        super().__init__(services, transport, writer, slot, deflate)
        self.limit = Limit(services.settings.watch_messages, self.since, "one message moves a whole watch")
        self._bad_messages = BadMessageLimit(services.settings.max_bad_messages)
        self._watches = {}
        self._budget = WatchBudget(slot.cost, writer, services.connections.now)

    @property
    def token_required(self) -> bool:
        return self.services.settings.watch_auth == "required"

    async def open(self, identity: Identity | None) -> None:
        """Nothing is sent before the first watch."""

    def receive(self, data: bytes) -> None:
        try:
            message = messages.decode_watch(data, self.services.bounds, self._watches)
            if type(message) is messages.Watch:
                self.slot.cost.charge(PREPAID, self.heard)
                self.wait(self._watch, message)
            elif type(message) is messages.Unwatch:
                self._unwatch(message.id)
                self._bad_messages.good()
            else:
                assert type(message) is messages.Auth
                self.wait(self.authenticate, message.token)
                self._bad_messages.good()
        except ProtocolError as wrong:
            self._reply(wrong, messages.named(data))

    def release(self) -> None:
        for watch in self._watches.values():
            self.services.subscriptions.close(watch)
        self._watches = {}

    async def _watch(self, wanted: messages.Watch) -> None:
        """Open a watch, or move the one with this id."""
        try:
            while self.services.time_slice.over():  # noqa: ASYNC110  # a time slice ends with the loop's iteration
                await asyncio.sleep(0)
            watch = self._watches.get(wanted.id) or Watch(wanted.id, self.writer, payer=self._budget)
            pace = PACE * max(0, len({*self._watches, wanted.id}) - UNPACED)
            if wanted.interval < pace:
                wanted = replace(wanted, interval=pace)
            await self.services.subscriptions.open(watch, wanted, self.slot.cost.client)
            self._watches[wanted.id] = watch
            self.services.changed()
            self._bad_messages.good()
        except ProtocolError as wrong:
            self._reply(wrong, wanted.id)
        finally:
            self.slot.cost.charge(-PREPAID, self.registry.now())

    def _unwatch(self, id: str) -> None:
        watch = self._watches.pop(id, None)
        if watch is None:
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"there is no watch {id!r} to end")
        self.services.subscriptions.close(watch)
        self.writer.send(messages.encode_unwatched(id))

    def _reply(self, wrong: ProtocolError, id: str | None) -> None:
        """Answer a message that can't be served; Disconnect after too many bad ones in a row."""
        if wrong.code not in REFUSED_AS_TOO_MUCH:
            self._bad_messages.bad(wrong)
        self.services.counters.refused[wrong.code] += 1
        self.writer.send(messages.encode_error(wrong.code, wrong.message, id, wrong.retry_after_ms))
