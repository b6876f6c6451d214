"""Shares live vendors between processes through Redis: publishes this process's vendors and receives the others'.

Invariants that keep every map correct after any failure:

- Writers store, then publish. Readers subscribe, then read. So no change is missed. A vendor that left a cell while
  the cell was being read is not put back.
- After a gap, cells are read again and their watchers get snapshots. This process's vendors are written again.
- A vendor is in one cell. The process that takes it over or moves it drops the old entry. A process releases a vendor
  once another process reports a newer connection.
- Pending work (entries to drop, vendors to write) is kept until it is done. A node that is down stops only work on it.
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
        """The number of times that changes of other processes may have been missed."""
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
        """Whether every node of Redis takes writes and its subscriptions are up."""
        return self.nodes.cause is None

    @property
    def cause(self) -> str | None:
        """Why Redis is not up; None when it is."""
        return self.nodes.cause

    @property
    def pending(self) -> int:
        """The number of vendors with pending writes."""
        return self.publisher.pending

    @property
    def cells(self) -> frozenset[int]:
        """The broker cells that this process is subscribed to."""
        return self.subscriber.cells

    # this process's vendors

    def mark(self, vendor_id: str, parts: int) -> None:
        """Marks parts of a vendor's state for the next flush."""
        self.publisher.mark(vendor_id, parts)

    def mark_gone(self, vendor_id: str) -> None:
        """Removes a deleted vendor from the maps of all processes."""
        self.publisher.mark_gone(vendor_id)
        self.subscriber.forget(vendor_id)

    def correct(self, vendor_id: str, timestamp: int, lat: float, long: float) -> None:
        """Corrects a vendor's position in all processes to the one that PostgreSQL stored for its timestamp."""
        now = self._clock()
        if vendor_id in self.local_vendors:
            self.local_vendors.correct(vendor_id, timestamp, lat, long, now)
        else:
            self.publisher.broadcast_fix(vendor_id, Fix(timestamp, lat, long, stored=True))

    def drop_expired(self, vendor_ids: Iterable[str]) -> None:
        """Drops the entries of vendors that expired."""
        self.publisher.drop_expired(vendor_ids)

    async def once(self, vendor_ids: Sequence[str], every: int) -> dict[str, int]:
        """Limits each vendor to one action per `every` ms over all processes.

        Returns:
            The milliseconds left for each vendor that may not act yet. The others may act, and their time starts. A
            vendor whose node of Redis is down may act, too; nothing is recorded for it.
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

    # subscriptions

    def hold(self, cells: Iterable[int], vendor_ids: Iterable[str] = ()) -> None:
        """Subscribes to these cells, and to these vendors wherever they are, until `release`."""
        self.subscriber.hold(cells, vendor_ids)

    async def ready(self, cells: Iterable[int], vendor_ids: Iterable[str] = (), timeout: float = 2.0) -> bool:
        """Waits until held cells and vendors are read; False on timeout, then updates bring the rest."""
        return await self.subscriber.ready(cells, vendor_ids, timeout)

    def release(self, cells: Iterable[int], vendor_ids: Iterable[str] = ()) -> None:
        """Ends a `hold`; the cells stay subscribed for a while."""
        self.subscriber.release(cells, vendor_ids)

    # tasks, supervised by the caller

    def tasks(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """The broker's tasks, by name."""
        return {
            "broker-nodes": self.nodes.keep,
            "broker-publisher": self.publisher.run,
            "broker-subscriber": self.subscriber.run,
            "broker-heartbeat": lambda: self.membership.send_heartbeats(self._republish, self._on_data_lost),
            "broker-reaper": self.membership.reap,
            "broker-counts": self.counts.run,
        }

    async def close(self) -> None:
        """Flushes pending changes, within the timeout, and closes all connections."""
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
        """Runs commands of another component; the result holds an exception for each command without an answer."""
        return await self.nodes.run(commands)

    # RedisHandler

    def on_message(self, channel: bytes, data: bytes) -> None:
        """Handles a message. A bug raises, so that the supervisor restarts the task, which reads everything again."""
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
        """Schedules a read of a cell once its channel is subscribed."""
        if channel != BROADCAST:
            self.subscriber.on_subscribed(channel)
            return
        # Heartbeats arrive (again): those that were missed meanwhile must not count against a process.
        self.index.reset_heartbeats(self._clock())
        self.counts.extend_deadlines()
        self.index.frozen = False
        if self._heard_broadcast:
            self.subscriber.find_again()
            self._republish()
        self._heard_broadcast = True

    def on_answering(self, node: Node) -> None:
        """Reads and writes everything again: the node's data may be lost or outdated."""
        self.subscriber.wake()
        self.membership.wake()
        self._republish()
        self.subscriber.subscribe_all()
        self.counts.subscribe_all()

    def on_subscription(self, node: Node, up: bool) -> None:
        """Records a gap when a node's subscriptions are lost."""
        self.membership.assume_others()
        if up:
            return
        if self.subscriber.cells or self._heard_broadcast:
            self.gaps += 1
        if node is self.nodes.of(BROADCAST):
            self.index.frozen = True
        log.warning("gap: changes of other processes may be missed", node=node.name, cause=node.subscription.cause)

    def on_slots_moved(self) -> None:
        """Repeats subscriptions, reads and places on the nodes that serve the slots now."""
        self.subscriber.subscribe_all()
        self.counts.subscribe_all()
        self.subscriber.wake()
        self.publisher.retry_places()

    def _on_data_lost(self) -> None:
        """Writes all vendors again, and reads the cells for vendors that no process writes again."""
        self._republish()
        self.subscriber.read_again()

    def _republish(self) -> None:
        """Writes all vendors again, as Redis may have lost them."""
        self.membership.announced = False
        self.publisher.republish()
