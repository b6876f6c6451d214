"""OwnTracks over MQTT: stores what phones publish to a broker, and acks each message after its commit.

The broker keeps a persistent session: it sends unacked messages again, to this process or the next one. So a message
that can be stored later is not acked. One that can never be stored is acked, counted and logged with its reason, as it
would block those behind it. A repeated ping is one row, identified by its vendor and timestamp.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import structlog
from aiomqtt import Client, Message, MqttError, ProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from streamer.accounts.dataloader import DataLoader
from streamer.counters import Counters
from streamer.errors import DatabaseError, ErrorCode, ProtocolError, Unavailable
from streamer.ingest.batcher import backoff
from streamer.protocol import trackers
from streamer.storage.store import VendorRow
from streamer.transport.aiomqtt_compat import ack, ack_by_hand
from streamer.transport.http_ingest import HttpIngest
from streamer.transport.mqtt_url import MqttBroker
from streamer.transport.problem import MAX_BODY

log = structlog.get_logger()

TOPICS = "owntracks/+/+"
IN_FLIGHT = 100
"""Messages that are not acked yet; the broker holds the others back."""
QUEUED = 1000
"""Messages of QoS 0 that may wait here; further ones are dropped, as they are not acked."""
SESSION = 0xFFFFFFFF
"""Seconds for which the broker keeps the session of an absent bridge: the maximum of MQTT."""
KEEPALIVE = 30
LONGEST_PAUSE = 30.0
"""Maximum seconds between two attempts to connect."""
STEADY = 30.0
"""Seconds after which a connection counts as stable: the back-off restarts."""
LATER = frozenset({ErrorCode.RATE_LIMITED, ErrorCode.OVERLOADED})
"""Codes of messages that can be stored later."""


async def topic_vendor(vendors: DataLoader, user: str, device: str) -> VendorRow:
    """Returns the vendor of a topic `owntracks/USER/DEVICE`; raises ProtocolError when there is none.

    USER is a `users.clerkId` or the id of a vendor: the broker's access rules say who may publish as whom. DEVICE names
    one of the user's vendors; with exactly one vendor it may be anything.
    """
    rows = await vendors.vendors_of(user)
    named = [row for row in rows if row.vendor_id == device] or rows
    if not named and (row := await vendors.vendor(user)) is not None:
        named = [row]
    if not named:
        raise ProtocolError(
            ErrorCode.VENDOR_NOT_FOUND,
            f"{user!r} in the topic is neither the clerkId of a user with a vendor nor a vendor's id",
        )
    if len(named) > 1:
        raise ProtocolError(
            ErrorCode.VENDOR_NOT_FOUND,
            f"user {user!r} has {len(named)} vendors and {device!r} in the topic is not one: set the app's device id",
        )
    return named[0]


class Incoming(asyncio.Queue[Message]):
    """Received messages. Those with QoS 1 are never dropped: the broker sends no more than IN_FLIGHT of them."""

    def full(self) -> bool:
        return False

    def put_nowait(self, item: Message) -> None:
        if item.qos > 0 or self.qsize() < QUEUED:
            super().put_nowait(item)


class MqttBridge:
    """Subscribes to OwnTracks' topics of one broker and stores the messages.

    Args:
        client_id: The name of the session that the broker keeps; no two bridges may have the same.
    """

    def __init__(
        self,
        broker: MqttBroker,
        client_id: str,
        reports: HttpIngest,
        vendors: DataLoader,
        counters: Counters,
        clock: Callable[[], int],
    ) -> None:
        self.cause: str | None = "not connected yet"
        """Why nothing is received; None while connected."""
        self.messages: Counter[str] = Counter()
        """Messages that were acked: `stored`, `refused`, `empty` (no location)."""
        self.waiting = 0
        """Messages that are not acked yet."""
        self.outage: str | None = None
        """Why messages can't be stored; None while they can."""
        self._broker = broker
        self._client_id = client_id
        self._reports = reports
        self._vendors = vendors
        self._counters = counters
        self._clock = clock

    async def run(self) -> None:
        """Receives until cancelled, and connects again after each failure."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            try:
                await self._connected()
            except MqttError as error:
                failures = 1 if loop.time() - began > STEADY else failures + 1
                cause = f"MQTT broker {self._broker.where}: {error}"
                if cause != self.cause:
                    log.warning("nothing is received over MQTT; trying again", cause=cause)
                self.cause = cause
            await asyncio.sleep(backoff(failures, random.random(), 0.5, LONGEST_PAUSE))

    async def _connected(self) -> None:
        """Receives over one connection; raises MqttError at its end."""
        broker = self._broker
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # untyped there
        properties.SessionExpiryInterval = SESSION
        properties.ReceiveMaximum = IN_FLIGHT
        client = Client(
            broker.host,
            broker.port,
            username=broker.user,
            password=broker.password,
            identifier=self._client_id,
            protocol=ProtocolVersion.V5,
            clean_start=False,
            properties=properties,
            keepalive=KEEPALIVE,
            queue_type=Incoming,
            tls_context=broker.tls,
        )
        ack_by_hand(client)
        async with client:
            # Retained messages are old positions: only a new session needs them.
            options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
            for code in await client.subscribe(TOPICS, options=options):
                if isinstance(code, ReasonCode) and code.is_failure:
                    raise MqttError(f"subscribing to {TOPICS} was refused: {code}")
            self.cause = None
            log.info("receiving over MQTT", broker=broker.where, topics=TOPICS)
            await self._receive(client)

    async def _receive(self, client: Client) -> None:
        """Handles messages concurrently, and acks them in their order, as MQTT requires."""
        handled: asyncio.Queue[tuple[Message, asyncio.Task[None]]] = asyncio.Queue()
        room = asyncio.Semaphore(IN_FLIGHT)

        async def ack_all() -> None:
            while True:
                message, handling = await handled.get()
                await handling
                ack(client, message)
                self.waiting -= 1
                room.release()

        self.waiting = 0
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(ack_all(), name="mqtt-acks")
                async for message in client.messages:
                    await room.acquire()
                    self.waiting += 1
                    handled.put_nowait((message, tasks.create_task(self._handle(message), name="mqtt-message")))
        except* MqttError as ended:
            raise MqttError(str(ended.exceptions[0].__cause__ or ended.exceptions[0])) from None

    async def _handle(self, message: Message) -> None:
        """Returns once a message may be acked."""
        attempt = 0
        while True:
            attempt += 1
            try:
                result = await self._store(message)
            except ProtocolError as wrong:
                if wrong.code not in LATER:
                    self._refuse(message, wrong.code, wrong.message)
                    return
                wait = (wrong.retry_after_ms or 1000) / 1000
            except (Unavailable, DatabaseError) as away:
                if self.outage is None:
                    log.warning("messages over MQTT can't be stored; the broker keeps them", cause=str(away))
                self.outage = str(away)
                wait = backoff(attempt, random.random(), 0.5, LONGEST_PAUSE)
            except Exception as error:
                log.error("unexpected error while handling a message", topic=str(message.topic), exc_info=error)
                self._refuse(message, ErrorCode.INTERNAL, repr(error))
                return
            else:
                if self.outage is not None:
                    log.info("messages over MQTT are stored again")
                    self.outage = None
                self.messages[result] += 1
                return
            await asyncio.sleep(wait)

    async def _store(self, message: Message) -> str:
        """Stores the locations of a message; returns the result: `stored`, `refused` or `empty`."""
        payload = bytes(message.payload)
        if len(payload) > MAX_BODY:
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"{len(payload)} bytes; the limit is {MAX_BODY}")
        items = list(trackers.owntracks(payload))
        if not items:
            return "empty"
        asked = self._clock()
        _, user, device = str(message.topic).split("/")
        row = await topic_vendor(self._vendors, user, device)
        stored = await self._reports.take_tracked(row, asked, items, patient=True)
        return "stored" if stored else "refused"

    def _refuse(self, message: Message, code: ErrorCode, reason: str) -> None:
        self.messages["refused"] += 1
        self._counters.reject((code,))
        log.info("refused a message over MQTT", topic=str(message.topic), code=code, reason=reason)
