"""Connections to one Redis server, for requests and for subscriptions."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import structlog
from redis.asyncio import Connection
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from streamer.broker.redis_address import describe
from streamer.broker.redis_compat import reset

log = structlog.get_logger()

PING_EVERY = 0.5
"""Seconds between two pings of a subscription."""
SILENCE_LIMIT = 2.0
"""Seconds without a reply after which a subscription reconnects; with PING_EVERY below the documented 3 s."""
PIPELINE = 500
"""Maximum number of commands written before their answers are read."""

TURN = 32 << 10
"""Bytes of messages after which the reader yields to the event loop: about 400 fixes, 3 ms."""

CONNECTION_ERRORS = (RedisError, OSError, TimeoutError)
Answer = Any
"""An answer of Redis; an exception if it did not answer or refused."""

FAULTS = (ReadOnlyError, MasterDownError, OutOfMemoryError)
FAULT_PREFIXES = ("NOREPLICAS", "MISCONF")
"""Errors of a whole server for which redis-py has no class."""

Connect = Callable[[], Awaitable[Connection]]


class Command(NamedTuple):
    """A command, and the key or channel that determines its node."""

    key: bytes
    words: tuple[Any, ...]


def refused(answer: Answer) -> bool:
    """Whether an answer is an error: Redis did not answer, or refused."""
    return isinstance(answer, Exception)


def is_fault(answer: Answer) -> bool:
    """Whether an error means that the whole server can't take writes."""
    if isinstance(answer, ClusterDownError):
        return "Hash slot" not in str(answer)  # the other slots of this node are served
    return isinstance(answer, FAULTS) or (isinstance(answer, ResponseError) and str(answer).startswith(FAULT_PREFIXES))


class RequestConnection:
    """One connection for requests, used by one caller at a time; closed whenever its state is unknown."""

    def __init__(self, connect: Connect, timeout: float) -> None:
        self._connect = connect
        self._timeout = timeout
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._cut_requested = False

    async def run(self, commands: Sequence[tuple[Any, ...]]) -> list[Answer]:
        """Runs commands; returns the answers in order, refusals as exceptions. Raises when the connection fails."""
        answers: list[Answer] = []
        async with self._lock:
            keep = False
            try:
                for start in range(0, len(commands), PIPELINE):
                    async with asyncio.timeout(self._timeout):
                        await self._pipeline(commands[start : start + PIPELINE], answers)
                keep = not self._cut_requested
            finally:
                self._cut_requested = False
                if not keep:
                    self._reset()
        return answers

    async def _pipeline(self, commands: Sequence[tuple[Any, ...]], answers: list[Answer]) -> None:
        if self._connection is None:
            self._connection = await self._connect()
        connection = self._connection
        await connection.send_packed_command(connection.pack_commands(commands))
        for _ in commands:
            try:
                answers.append(await connection.read_response(timeout=float("inf")))
            except ResponseError as refusal:
                answers.append(refusal)

    def cut(self) -> None:
        """Closes the connection once the running request ends; the next request opens a new one."""
        self._cut_requested = self._lock.locked()
        if not self._cut_requested:
            self._reset()

    def _reset(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            reset(connection)


class SubscriptionHandler(Protocol):
    """Receives the events of a node's subscriptions."""

    def on_message(self, channel: bytes, data: bytes) -> None:
        """Called when a message arrives."""

    def on_subscribed(self, channel: bytes) -> None:
        """Called when a channel is subscribed, again after every gap."""

    def on_misplaced(self, channel: bytes) -> None:
        """Called when the node does not serve a channel."""

    def on_subscription(self, up: bool) -> None:
        """Called when the connection is up, or was lost."""


class SubscriptionConnection:
    """One node's subscriptions: sends pings, reconnects, and reports gaps."""

    def __init__(self, connect: Connect, handler: SubscriptionHandler) -> None:
        self.wanted: set[bytes] = set()
        self.up = False
        self.cause = "not connected yet"
        self._connect = connect
        self._handler = handler
        self._connection: Connection | None = None
        self._active: set[bytes] = set()
        self._requested: deque[bytes] = deque()
        self._dropped: list[bytes] = []
        self._last_reply = 0.0
        self._wake = asyncio.Event()
        self._usable = asyncio.Event()

    def want(self, channel: bytes) -> None:
        """Subscribes to another channel."""
        kept = channel not in self.wanted and channel in self._active and channel not in self._requested
        self.wanted.add(channel)
        self._wake.set()
        if kept:
            self._handler.on_subscribed(channel)  # still subscribed, so Redis will not confirm it again

    def drop(self, channel: bytes) -> None:
        """Unsubscribes from a channel."""
        self.wanted.discard(channel)
        self._wake.set()

    def connect(self) -> None:
        """Connects and stays connected, now that the node is available."""
        self._usable.set()

    def disconnect(self, cause: str | None = None) -> None:
        """Closes the connection until `connect`."""
        self._usable.clear()
        self.cause = cause or self.cause
        self._wake.set()

    async def run(self) -> None:
        """Maintains the subscriptions while the node is available, until cancelled."""
        delay = 0.05
        while True:
            await self._usable.wait()
            try:
                await self._session()
            except asyncio.CancelledError:
                self.up = False  # a shutdown is no gap
                raise
            except CONNECTION_ERRORS as error:
                if self._usable.is_set():
                    self.cause = f"subscription: {describe(error)}"
            finally:
                was_up, self.up = self.up, False
                self._active.clear()
                self._requested.clear()
                self._dropped.clear()
                connection, self._connection = self._connection, None
                if connection is not None:
                    reset(connection)
                if was_up:
                    self._handler.on_subscription(False)
            delay = 0.05 if was_up else min(delay * 2, 1.0)
            await asyncio.sleep(delay * random.uniform(0.5, 1))

    async def _session(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SILENCE_LIMIT):
            connection = self._connection = await self._connect()
        self._last_reply = loop.time()
        reader = asyncio.create_task(self._read(connection), name="broker-subscription")
        try:
            while True:
                self._wake.clear()
                await self._synchronize(connection)
                waker = asyncio.create_task(self._wake.wait())
                began = loop.time()
                try:
                    await asyncio.wait({reader, waker}, timeout=PING_EVERY, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waker.cancel()
                if (late := loop.time() - began - PING_EVERY) > PING_EVERY:
                    self._last_reply += late  # this process was suspended, and has not read yet what arrived meanwhile
                if reader.done():
                    reader.result()
                if not self._usable.is_set():
                    raise ConnectionError(self.cause)
                if loop.time() - self._last_reply > SILENCE_LIMIT:
                    raise TimeoutError(f"no reply within {SILENCE_LIMIT} s")
        finally:
            reader.cancel()
            await asyncio.wait({reader}, timeout=1)
            if reader.done() and not reader.cancelled():
                reader.exception()  # retrieved; raised above if it came first

    async def _synchronize(self, connection: Connection) -> None:
        """Sends pending subscriptions and unsubscriptions, and a ping."""
        missing, extra = self.wanted - self._active, self._active - self.wanted
        self._requested.extend(missing)
        self._active |= missing
        self._active -= extra
        self._dropped.extend(extra)
        # One command per channel, as the channels of a cluster node are in different slots.
        commands = [("SSUBSCRIBE", name) for name in missing] + [("SUNSUBSCRIBE", name) for name in extra]
        async with asyncio.timeout(SILENCE_LIMIT):
            await connection.send_packed_command(connection.pack_commands([*commands, ("PING",)]))

    async def _read(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        handler, taken = self._handler, 0
        while True:
            if taken > TURN:
                taken = 0
                await asyncio.sleep(0)  # reading buffered replies never suspends the task
            try:
                reply = await connection.read_response(timeout=float("inf"), disconnect_on_error=False)
            except ResponseError as refusal:
                if not self._requested:
                    raise
                name = self._requested.popleft()
                self._active.discard(name)
                level = log.error if isinstance(refusal, NoPermissionError) else log.debug
                level("redis refused a subscription", channel=name, cause=str(refusal))
                handler.on_misplaced(name)
                continue
            self._last_reply = loop.time()
            if not self.up:
                self.up = True
                handler.on_subscription(True)
            kind = reply[0] if isinstance(reply, list) else None
            if kind == b"smessage":
                taken += len(reply[2])
                handler.on_message(reply[1], reply[2])
            elif kind == b"ssubscribe":
                with suppress(ValueError):
                    self._requested.remove(reply[1])
                handler.on_subscribed(reply[1])
            elif kind == b"sunsubscribe" and reply[1] in self._dropped:
                self._dropped.remove(reply[1])
            elif kind == b"sunsubscribe" and reply[1] in self._active:
                self._active.discard(reply[1])
                handler.on_misplaced(reply[1])
