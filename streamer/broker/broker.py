"""Redis between the processes: publishes this one's vendors, receives the others', keeps all current positions.

What makes every map true, whatever fails:

- Stored, then published; subscribed, then read: no change falls between. A vendor that left during a read stays away.
- After a gap cells are read again and their watchers get snapshots; this process's vendors are written again.
- A vendor is in one cell. A process that takes it over or moves it drops the old entry; one that learns of a newer
  connection elsewhere releases it.
- What is not done yet (an entry to drop, a vendor to write) is kept until it is; a node that is away stops only what
  is on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import structlog

from streamer.broker.context import BrokerConfig, BrokerEventHandler, Context
from streamer.broker.counts import ASK, SUMS, Counts
from streamer.broker.membership import Membership
from streamer.broker.publisher import Publisher
from streamer.broker.redis_address import RedisAddress
from streamer.broker.redis_cluster import Nodes
from streamer.broker.redis_connections import Command
from streamer.broker.redis_node import Node
from streamer.broker.redis_schema import BROADCAST, UnknownMessage, once_key
from streamer.broker.subscriber import Subscriber
from streamer.counters import Counters
from streamer.errors import Unavailable
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import LocalVendors

log = structlog.get_logger()


class Broker:
    """This process's side of Redis."""

    def __init__(
        self,
        config: BrokerConfig,
        index: LiveIndex,
        clock: Callable[[], int],
        handler: BrokerEventHandler,
        counters: Counters | None = None,
    ) -> None:
        self.index = index
        self.gaps = 0
        """How often changes of other processes may have been missed."""
        self._clock = clock
        self._timeout = config.timeout
        self._heard_broadcast = False
        address = RedisAddress(config.url, config.timeout)
        self.nodes = Nodes(address, self, timeout=config.timeout, counters=counters)
        self.local_vendors = LocalVendors(index, self.mark, handler.on_index_changed)
        context = Context(config, self.nodes, index, self.local_vendors, clock, handler)
        self.membership = Membership(context)
        self.publisher = Publisher(context, self.membership)
        self.subscriber = Subscriber(context, self.membership, self.publisher)
        self.counts = Counts(context)

    @property
    def up(self) -> bool:
        """Whether all of Redis takes writes and is heard."""
        return self.nodes.cause is None

    @property
    def cause(self) -> str | None:
        """Why not, None when it is."""
        return self.nodes.cause

    @property
    def pending(self) -> int:
        """Vendors of which something is still to be written."""
        return self.publisher.pending

    @property
    def cells(self) -> frozenset[int]:
        """The broker cells that this process is subscribed to."""
        return self.subscriber.cells

    # what this process's vendors do

    def mark(self, vendor_id: str, parts: int) -> None:
        """Has the next flush write parts of a vendor's state."""
        self.publisher.mark(vendor_id, parts)

    def mark_gone(self, vendor_id: str) -> None:
        """Takes a deleted vendor off every process's map."""
        self.publisher.mark_gone(vendor_id)
        self.subscriber.forget(vendor_id)

    def correct(self, vendor_id: str, timestamp: int, lat: float, long: float) -> None:
        """Has every process show the position that PostgreSQL holds for a timestamp, where it shows another one."""
        now = self._clock()
        if vendor_id in self.local_vendors:
            self.local_vendors.correct(vendor_id, timestamp, lat, long, now)
        else:
            self.publisher.broadcast_fix(vendor_id, Fix(timestamp, lat, long, stored=True))

    def departed(self, vendor_ids: Iterable[str]) -> None:
        """Drops the entries of vendors that left the map by time."""
        self.publisher.departed(vendor_ids)

    async def once(self, vendor_ids: Sequence[str], every: int) -> dict[str, int]:
        """Limits each vendor to one action per `every` ms over all processes.

        Returns:
            The milliseconds left for each vendor that may not act yet. The others may, and are remembered; so are,
            by nobody, those whose Redis is away.
        """
        commands: list[Command] = []
        for vendor_id in vendor_ids:
            key = once_key(vendor_id)
            commands.append(Command(key, ("SET", key, self.index.me, "NX", "PX", every)))
            commands.append(Command(key, ("PTTL", key)))
        answers = await self.nodes.run(commands) if commands else []
        return {
            vendor_id: int(left)
            for vendor_id, done, left in zip(vendor_ids, answers[::2], answers[1::2], strict=True)
            if done is None and type(left) is int and left > 0
        }

    # what this process's watchers need

    def hold(self, cells: Iterable[int], vendor_ids: Iterable[str] = ()) -> None:
        """Subscribes to these cells, and to these vendors wherever they are, until they are released."""
        self.subscriber.hold(cells, vendor_ids)

    async def ready(self, cells: Iterable[int], vendor_ids: Iterable[str] = (), timeout: float = 2.0) -> bool:
        """Waits until what is held is read; False when it is not in time, and updates bring the rest."""
        return await self.subscriber.ready(cells, vendor_ids, timeout)

    def release(self, cells: Iterable[int], vendor_ids: Iterable[str] = ()) -> None:
        """Ends a `hold`; the cells stay subscribed for a while."""
        self.subscriber.release(cells, vendor_ids)

    # tasks, supervised by the owner

    def tasks(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """The loops that keep the broker going, by name."""
        return {
            "broker-nodes": self.nodes.keep,
            "broker-publisher": self.publisher.run,
            "broker-subscriber": self.subscriber.run,
            "broker-heartbeat": lambda: self.membership.send_heartbeats(self._republish),
            "broker-reaper": self.membership.reap,
            "broker-counts": self.counts.run,
        }

    async def close(self) -> None:
        """Publishes what is left, bounded, and closes all connections."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self.publisher.flush()
        await self.nodes.close()

    async def now(self) -> int:
        """Redis's time, epoch ms; raises Unavailable."""
        (answer,) = await self.nodes.run([Command(BROADCAST, ("TIME",))], "read")
        if isinstance(answer, Exception):
            raise Unavailable(str(answer)) from answer
        return int(answer[0]) * 1000 + int(answer[1]) // 1000

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Carries out another part's commands; an exception for each answer that did not come."""
        return await self.nodes.run(commands)

    # RedisHandler

    def on_message(self, channel: bytes, data: bytes) -> None:
        """Takes a message in; raises what is an error of our own, so that its task starts over and reads all again."""
        try:
            if channel == ASK:
                self.counts.on_ask(data)
            elif channel == SUMS:
                self.counts.on_sums(data)
            else:
                self.subscriber.on_message(channel, data)
                if channel == BROADCAST:
                    self.counts.on_broadcast(data)
        except UnknownMessage as error:
            log.error("a message of another version is not understood", channel=channel, cause=str(error))

    def on_subscribed(self, channel: bytes) -> None:
        """Has a cell read once its channel is heard."""
        if channel != BROADCAST:
            self.subscriber.on_subscribed(channel)
            return
        # Heartbeats are heard (again): no process is given up for those that were missed meanwhile.
        self.index.pardon(self._clock())
        self.counts.pardon()
        self.index.frozen = False
        if self._heard_broadcast:
            self.subscriber.follow_again()
            self._republish()
        self._heard_broadcast = True

    def on_answering(self, node: Node) -> None:
        """Reads and writes all again: what the node holds may be lost or old."""
        self.subscriber.wake()
        self.membership.wake()
        self._republish()
        self.subscriber.want_all()
        self.counts.want_all()

    def on_subscription(self, node: Node, up: bool) -> None:
        """Notes a gap when a node is no longer heard."""
        self.membership.heard_other()
        if up:
            return
        if self.subscriber.cells or self._heard_broadcast:
            self.gaps += 1
        if node is self.nodes.of(BROADCAST):
            self.index.frozen = True
        log.warning("gap: changes of other processes may be missed", node=node.name, cause=node.subscription.cause)

    def on_slots_moved(self) -> None:
        """Subscribes, reads and places again on the nodes that serve the slots now."""
        self.subscriber.want_all()
        self.counts.want_all()
        self.subscriber.wake()
        self.publisher.place_again()

    def _republish(self) -> None:
        """Writes all again, as Redis may have lost it."""
        self.membership.known = False
        self.publisher.republish()
