"""One Redis server, and the probe that decides whether it is available.

A server that refuses writes (demoted to a replica, out of memory, loading, without enough replicas) is as unavailable
as one that does not answer. Its connections are closed and opened again, as a proxy or a host name may lead to another
server by then. Subscriptions connect only after a successful probe, so that they reach a server that takes writes, too.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import structlog
from redis.exceptions import MovedError

from streamer.broker.redis_address import Host, describe
from streamer.broker.redis_connections import (
    CONNECTION_ERRORS,
    Answer,
    Connect,
    RequestConnection,
    SubscriptionConnection,
    is_fault,
)
from streamer.counters import Counters
from streamer.errors import Unavailable

log = structlog.get_logger()

PROBE_EVERY = 1.0
"""Seconds between two probes."""
PROBE_SCRIPT = "#!lua\nreturn 1"
"""A script with a shebang and no flags: Redis runs it only if it would take a write. It writes nothing."""


class RedisHandler(Protocol):
    """Receives the events of all nodes."""

    def on_message(self, channel: bytes, data: bytes) -> None:
        """Called when a message arrives."""

    def on_subscribed(self, channel: bytes) -> None:
        """Called when a channel is subscribed, again after every gap."""

    def on_answering(self, node: Node) -> None:
        """Called when a node answers, for the first time or again: its data may be lost or outdated."""

    def on_subscription(self, node: Node, up: bool) -> None:
        """Called when a node's subscriptions are up, or were lost."""

    def on_slots_moved(self) -> None:
        """Called when keys and channels moved between nodes."""


class Node:
    """One Redis server: two request connections, so that writes do not wait for long reads, and its subscriptions."""

    def __init__(
        self,
        where: Host,
        connect: Connect,
        handler: RedisHandler,
        misplaced: asyncio.Event,
        counters: Counters,
        timeout: float,
        name: str = "",
    ) -> None:
        self.where = where
        self.name = name or f"{where[0]}:{where[1]}"
        self.answers = False
        """Whether the last request was answered; a node that does not answer is only probed."""
        self.cause: str | None = "not connected yet"
        self.failures = 0
        """Requests and probes that failed since the node's last answer."""
        self.probe_key = b""
        """A key that this node serves."""
        self.requests = {"write": RequestConnection(connect, timeout), "read": RequestConnection(connect, timeout)}
        self.subscription = SubscriptionConnection(connect, self)
        self.tasks: list[asyncio.Task[None]] = []
        self._handler = handler
        self._misplaced = misplaced  # set when a key or channel has moved to another node
        self._counters = counters
        self._failed = asyncio.Event()
        self._down_since = time.monotonic()

    @property
    def up(self) -> bool:
        """Whether requests are answered and subscriptions are up."""
        return self.answers and self.subscription.up

    async def run(self, lane: str, commands: Sequence[tuple[Any, ...]]) -> list[Answer]:
        """Runs commands; returns the answers in order, Unavailable if there is none or the server takes no writes."""
        began = time.monotonic()
        try:
            answers = await self.requests[lane].run(commands)
        except CONNECTION_ERRORS as error:
            self.lost(describe(error))
            return [self._unavailable()] * len(commands)
        self._counters.redis[lane].observe(time.monotonic() - began)
        for at, answer in enumerate(answers):
            if type(answer) is not bytes and is_fault(answer):
                self.lost(describe(answer))
                answers[at] = self._unavailable()
        return answers

    def lost(self, cause: str) -> None:
        """Handles a failed request: closes all connections, and probes the node until it is available again."""
        self.cause = cause
        self.failures += 1
        for requests in self.requests.values():
            requests.cut()
        if self.answers:
            self.answers = False
            self._down_since = time.monotonic()
            self.failures = 1
            self.subscription.disconnect(cause)
            self._failed.set()
            log.warning("redis unavailable; this process serves its own vendors only", node=self.name, cause=cause)

    async def probe(self) -> None:
        """Probes whether the node takes writes, until cancelled."""
        delay = 0.1
        while True:
            try:
                await self._ask()
            except CONNECTION_ERRORS as error:
                self.lost(describe(error))
                delay = min(delay * 2, PROBE_EVERY)
                await asyncio.sleep(delay * random.uniform(0.5, 1))
                continue
            delay = 0.1
            self._failed.clear()
            self.subscription.connect()
            if not self.answers:
                self.answers, self.cause = True, None
                log.info(
                    "redis available",
                    node=self.name,
                    after_seconds=round(time.monotonic() - self._down_since, 1),
                    failures=self.failures,
                )
                self._handler.on_answering(self)
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_EVERY):
                    await self._failed.wait()

    async def _ask(self) -> None:
        command = ("EVAL", PROBE_SCRIPT, 1, self.probe_key) if self.probe_key else ("PING",)
        (answer,) = await self.requests["write"].run([command])
        if isinstance(answer, MovedError):
            self._misplaced.set()
        elif isinstance(answer, Exception):
            raise answer

    def start(self) -> None:
        """Starts the node's tasks unless they are running."""
        if not self.tasks:
            self.tasks = [
                asyncio.create_task(self.subscription.run(), name=f"broker-subscriptions-{self.name}"),
                asyncio.create_task(self.probe(), name=f"broker-probe-{self.name}"),
            ]

    def close(self) -> None:
        """Closes the request connections."""
        for requests in self.requests.values():
            requests.cut()

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"Redis at {self.name} can't be used: {self.cause}")

    # SubscriptionHandler

    def on_message(self, channel: bytes, data: bytes) -> None:
        """Passes a message on."""
        self._handler.on_message(channel, data)

    def on_subscribed(self, channel: bytes) -> None:
        """Passes the event on."""
        self._handler.on_subscribed(channel)

    def on_misplaced(self, channel: bytes) -> None:
        """Reports that a channel has moved to another node."""
        self._misplaced.set()

    def on_subscription(self, up: bool) -> None:
        """Reports that this node's subscriptions are up or lost; lost ones are restored after the next probe."""
        if not up:
            self.subscription.disconnect()
            self._failed.set()
        self._handler.on_subscription(self, up)
