"""All nodes of a Redis: routes requests and channels to the node that serves them, and follows slots that move.

A single Redis is one node, as is a primary with Sentinels. A Redis Cluster has a node per primary of its slot map.
A failing node affects only its own keys and channels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any

import structlog
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, TryAgainError

from streamer.broker.redis_address import Host, RedisAddress, describe
from streamer.broker.redis_connections import CONNECTION_ERRORS, Answer, Command, RequestConnection
from streamer.broker.redis_node import Node, RedisHandler
from streamer.counters import Counters
from streamer.errors import Unavailable
from streamer.single_flight import SingleFlight
from streamer.supervisor import end

log = structlog.get_logger()

SLOTS = 16384
REDIRECTS = 4
"""Attempts of a command whose slot moves."""
MAP_EVERY = 0.5
"""Seconds between two reads of the cluster's slot map while it is outdated or a node fails."""
MAP_EVERY_IDLE = 15.0
SENTINEL_EVERY = 2.0
"""Seconds between two requests to the Sentinels for the current primary."""


class Nodes:
    """All nodes of a Redis; events go to `handler`."""

    def __init__(
        self, address: RedisAddress, handler: RedisHandler, *, timeout: float = 2.0, counters: Counters | None = None
    ) -> None:
        self.address = address
        self.cluster = address.cluster
        self._counters = counters or Counters()
        self._handler = handler
        self._timeout = timeout
        self._nodes: dict[Host, Node] = {}
        self._slots: list[Node | None] = []
        self._map_outdated = asyncio.Event()
        self._map = SingleFlight(self._read_map, "broker-cluster-map")
        self._map_cause: str | None = None
        self._primary: Host | None = None
        if self.cluster:
            self._map_cause = "the cluster's map is not read yet"
        else:
            self._one = self._add(address.seed)
            self._one.probe_key = b"v2:probe"

    @property
    def cause(self) -> str | None:
        """Why a part of Redis is not available; None when all of it is."""
        if self._map_cause is not None:
            return self._map_cause
        for node in self._nodes.values():
            if not node.answers:
                return node.cause
            if not node.subscription.up:
                return node.subscription.cause
        return None

    def of(self, key: bytes) -> Node | None:
        """The node that serves a key or channel."""
        if not self.cluster:
            return self._one
        return self._slots[key_slot(key)] if self._slots else None

    def answers(self, key: bytes) -> bool:
        """Whether the node of a key answers requests now."""
        node = self.of(key)
        return node is not None and node.answers

    def up(self, key: bytes) -> bool:
        """Whether a channel's node answers and its subscriptions are up."""
        node = self.of(key)
        return node is not None and node.up

    def want(self, channel: bytes) -> None:
        """Subscribes to a channel on the node that serves it, and unsubscribes on others."""
        serving = self.of(channel)
        for node in self._nodes.values():
            if node is serving:
                if channel not in node.subscription.wanted:
                    node.subscription.want(channel)
            elif channel in node.subscription.wanted:
                node.subscription.drop(channel)

    def drop(self, channel: bytes) -> None:
        """Unsubscribes from a channel."""
        for node in self._nodes.values():
            if channel in node.subscription.wanted:
                node.subscription.drop(channel)

    async def run(self, commands: Sequence[Command], lane: str = "write") -> list[Answer]:
        """Runs commands and follows slots that move; returns the answers in order, an exception where there is none.

        Commands for one node run in their order, as long as no slot moves.
        """
        answers: list[Answer] = [None] * len(commands)
        todo = list(range(len(commands)))
        for attempt in range(REDIRECTS):
            await self._run_once(commands, todo, lane, answers)
            if not self.cluster:
                break
            todo = [at for at in todo if isinstance(answers[at], MovedError | AskError | TryAgainError)]
            if not todo:
                break
            if attempt:
                await asyncio.sleep(0.05 * attempt)
            for at in tuple(todo):
                ask = answers[at]
                if isinstance(ask, AskError) and not isinstance(ask, MovedError):
                    there = self._add((ask.host, ask.port))
                    answers[at] = (await there.run(lane, [("ASKING",), commands[at].words]))[1]
                    if not isinstance(answers[at], TryAgainError):
                        todo.remove(at)
            if any(isinstance(answers[at], MovedError) for at in todo):
                await self._map.result()
        return answers

    async def _run_once(
        self, commands: Sequence[Command], todo: Iterable[int], lane: str, answers: list[Answer]
    ) -> None:
        by_node: dict[Node, list[int]] = {}
        away: Unavailable | None = None
        for at in todo:
            node = self.of(commands[at].key)
            if node is not None and node.answers:
                by_node.setdefault(node, []).append(at)
            else:
                answers[at] = away = away or Unavailable(f"Redis can't be used: {self.cause}")

        async def run_on(node: Node, places: list[int]) -> None:
            got = await node.run(lane, [commands[at].words for at in places])
            for at, answer in zip(places, got, strict=True):
                answers[at] = answer

        if len(by_node) == 1:  # without the cost of tasks
            await run_on(*next(iter(by_node.items())))
        elif by_node:
            await asyncio.gather(*[run_on(node, places) for node, places in by_node.items()])

    # task

    async def keep(self) -> None:
        """Probes nodes, maintains subscriptions and the slot map until cancelled; raises the error of a failed task."""
        loop = asyncio.get_running_loop()
        looked = loop.time() - MAP_EVERY_IDLE
        try:
            while True:
                for node in self._nodes.values():
                    node.start()
                pause = 1.0
                if self.cluster:
                    wrong = self._map_outdated.is_set() or self.cause is not None
                    if wrong or loop.time() - looked > MAP_EVERY_IDLE:
                        self._map_outdated.clear()
                        await self._map.result()
                        looked = loop.time()
                        pause = MAP_EVERY
                elif self.address.service is not None and loop.time() - looked > SENTINEL_EVERY:
                    await self._check_primary()
                    looked = loop.time()
                for node in self._nodes.values():
                    for task in node.tasks:
                        if task.done():
                            node.tasks.remove(task)
                            task.result()
                            raise RuntimeError(f"{task.get_name()} returned")
                await asyncio.sleep(pause)
        finally:
            tasks = [task for node in self._nodes.values() for task in node.tasks]
            for node in self._nodes.values():
                node.tasks = []
            await end(tasks)

    async def close(self) -> None:
        """Closes all connections."""
        await self._map.close()
        for node in self._nodes.values():
            node.close()
        await self.address.close()

    # discovery of nodes

    def _add(self, where: Host) -> Node:
        known = self._nodes.get(where)
        if known is None:
            # With Sentinels, each new connection asks them for the current primary.
            connect = partial(self.address.connect, None if self.address.service else where)
            name = self.address.service or ""
            known = self._nodes[where] = Node(
                where, connect, self._handler, self._map_outdated, self._counters, self._timeout, name
            )
        return known

    async def _check_primary(self) -> None:
        """Switches to another primary as soon as the Sentinels agree on it, even if the old one still takes writes."""
        try:
            primary = await self.address.primary()
        except CONNECTION_ERRORS as error:
            log.debug("the sentinels do not answer", cause=describe(error))
            return
        if self._primary is not None and primary != self._primary:
            self._one.lost(f"the Sentinels made {primary[0]}:{primary[1]} the primary")
        self._primary = primary

    async def _read_map(self) -> None:
        """Reads the cluster's slot map."""
        known = sorted(self._nodes.values(), key=lambda node: not node.answers)
        for where in dict.fromkeys([*(node.where for node in known), self.address.seed]):
            requests = RequestConnection(partial(self.address.connect, where), self._timeout)
            try:
                (slots,) = await requests.run([("CLUSTER", "SLOTS")])
                if isinstance(slots, Exception):
                    raise slots
            except CONNECTION_ERRORS as error:
                if not self._slots:
                    self._map_cause = f"the cluster's map can't be read: {describe(error)}"
                continue
            finally:
                requests.cut()
            if slots:
                self._apply_map(slots, where[0])
                return

    def _apply_map(self, slots: Iterable[Any], host: str) -> None:
        before = self._slots
        self._slots = [None] * SLOTS
        serving: set[Node] = set()
        for first, last, master, *_ in slots:
            node = self._add((master[0].decode() if master[0] else host, int(master[1])))
            serving.add(node)
            self._slots[first : last + 1] = [node] * (last + 1 - first)
        uncovered = self._slots.count(None)
        self._map_cause = f"{uncovered} slots of the cluster are served by no node" if uncovered else None
        for where, node in tuple(self._nodes.items()):
            if node not in serving:
                del self._nodes[where]
                for task in node.tasks:
                    task.cancel()
                node.close()
            elif not node.probe_key or self.of(node.probe_key) is not node:
                node.probe_key = next(key for n in count() if self.of(key := b"v2:probe:%d" % n) is node)
        if before != self._slots:
            self._handler.on_slots_moved()
