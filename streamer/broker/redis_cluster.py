"""Redis nodes: which one serves a key, requests that fail node by node, subscriptions that are probed and restored.

One Redis is one node; of a Redis Cluster (`redis+cluster://`) the map of slots is followed. A node that does not answer
costs only what is on it: it is asked nothing until a probe of its own is answered again.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import structlog
from redis.asyncio import Connection
from redis.asyncio.connection import SSLConnection, parse_url
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisError, ResponseError, TryAgainError

from streamer import tls
from streamer.counters import Counters
from streamer.errors import SettingsError, Unavailable
from streamer.supervisor import end

log = structlog.get_logger()

PROBE = 0.5
"""Seconds between two probes of a subscription."""
DEAD = 2.0
"""A subscription silent for so long, probes included, is cut and made anew; with PROBE below 3 s, by contract."""
CHECK = 1.0
"""Seconds between two probes of a node's requests."""
PIPELINE = 500
"""Commands written before their answers are read."""
REDIRECTS = 4
"""How often a command follows a slot that moves."""
RESHAPE = 0.5
"""Seconds between two looks at the cluster's map while something is wrong with it."""
RESHAPE_IDLE = 15.0

LOST = (RedisError, OSError, TimeoutError)
Answer = Any
"""What Redis answered; an exception where it did not or refused."""


def in_words(lost: BaseException) -> str:
    """Why Redis can't be reached."""
    if isinstance(lost, TimeoutError) and not str(lost):
        # also what a Redis without TLS makes of a client with: it waits for the end of a line
        return "it did not answer in time: check that it runs, and speaks TLS if REDIS_URL says rediss://"
    return tls.trouble(lost, "REDIS_URL", "ssl_ca_certs") or f"{type(lost).__name__}: {lost}"


def check_url(url: str) -> None:
    """SettingsError for a URL by which no connection can be made: a parameter that is none, a certificate not there."""
    try:
        options: dict[str, Any] = {**parse_url(url.replace("+cluster", "", 1))}
        connection = options.pop("connection_class", Connection)(**options)
        if isinstance(connection, SSLConnection):
            connection.ssl_context.get()
    except OSError as error:
        files = [str(options[name]) for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") if name in options]
        raise SettingsError(f"REDIS_URL: a certificate can't be used, {error}: check {', '.join(files)}") from None
    except TypeError as error:
        name = str(error).rpartition("argument ")[2]
        raise SettingsError(
            f"REDIS_URL: there is no parameter {name}; for TLS say rediss:// and ssl_ca_certs"
        ) from None
    except (RedisError, ValueError) as error:
        raise SettingsError(f"REDIS_URL can't be used: {error}") from None


class Command(NamedTuple):
    """A command and the key (or channel) by which its node is found."""

    key: bytes
    words: tuple[Any, ...]


class Lane:
    """One connection for requests, used by one caller at a time; a connection whose state is unknown is not kept."""

    def __init__(self, connect: Callable[[], Connection], timeout: float) -> None:
        self._make = connect
        self._timeout = timeout
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()

    async def run(self, commands: Sequence[tuple[Any, ...]]) -> list[Answer]:
        """The answers in order, a refusal as its exception; raises when the connection failed or took too long."""
        answers: list[Answer] = []
        async with self._turn:
            try:
                for start in range(0, len(commands), PIPELINE):
                    async with asyncio.timeout(self._timeout):
                        await self._some(commands[start : start + PIPELINE], answers)
            except BaseException:
                self.cut()
                raise
        return answers

    async def _some(self, commands: Sequence[tuple[Any, ...]], answers: list[Answer]) -> None:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._make()
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        await connection.send_packed_command(connection.pack_commands(commands))
        for _ in commands:
            try:
                answers.append(await connection.read_response(timeout=float("inf")))
            except ResponseError as refused:
                answers.append(refused)

    def cut(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            reset(connection)


class Link:
    """One node's subscriptions: a connection that is probed, restored, and tells of gaps.

    `heard(channel, data)` gets each message; `subscribed(channel)` is called once a channel is heard, after every gap
    again; `misplaced(channel)` when the node does not serve it; `turned(up)` when the connection is there or lost.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        heard: Callable[[bytes, bytes], None],
        subscribed: Callable[[bytes], None],
        misplaced: Callable[[bytes], None],
        turned: Callable[[bool], None],
    ) -> None:
        self.wanted: set[bytes] = set()
        self.up = False
        self.cause = "not connected yet"
        self._make = connect
        self._heard = heard
        self._subscribed = subscribed
        self._misplaced = misplaced
        self._turned = turned
        self._active: set[bytes] = set()
        self._asked: deque[bytes] = deque()
        self._given_up: list[bytes] = []
        self._last = 0.0
        self._wake = asyncio.Event()

    def want(self, channel: bytes) -> None:
        """Have this channel heard as well."""
        kept = channel not in self.wanted and channel in self._active and channel not in self._asked
        self.wanted.add(channel)
        self._wake.set()
        if kept:
            self._subscribed(channel)  # dropped a moment ago, and not unsubscribed yet: no answer would come

    def drop(self, channel: bytes) -> None:
        """Hear this channel no more."""
        self.wanted.discard(channel)
        self._wake.set()

    async def run(self) -> None:
        """Stay connected for ever."""
        delay = 0.05
        while True:
            connection = self._make()
            try:
                await self._session(connection)
            except asyncio.CancelledError:
                self.up = False  # that is no gap
                raise
            except LOST as lost:
                self.cause = f"subscription: {in_words(lost)}"
            finally:
                was, self.up = self.up, False
                self._active.clear()
                self._asked.clear()
                self._given_up.clear()
                reset(connection)
                if was:
                    self._turned(False)
            delay = 0.05 if was else min(delay * 2, 1.0)
            await asyncio.sleep(delay * random.uniform(0.5, 1))

    async def _session(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEAD):
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        self._last = loop.time()
        reader = asyncio.create_task(self._read(connection), name="bus-read")
        try:
            while True:
                self._wake.clear()
                # One command a channel: those of a cluster's node are of many slots.
                missing, extra = self.wanted - self._active, self._active - self.wanted
                self._asked.extend(missing)
                self._active |= missing
                self._active -= extra
                self._given_up.extend(extra)
                commands = [("SSUBSCRIBE", name) for name in missing] + [("SUNSUBSCRIBE", name) for name in extra]
                async with asyncio.timeout(DEAD):
                    await connection.send_packed_command(connection.pack_commands([*commands, ("PING",)]))
                waker = asyncio.create_task(self._wake.wait())
                began = loop.time()
                try:
                    await asyncio.wait({reader, waker}, timeout=PROBE, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waker.cancel()
                if (late := loop.time() - began - PROBE) > PROBE:
                    self._last += late  # this process stood still: what came meanwhile is not read yet
                if reader.done():
                    reader.result()
                if loop.time() - self._last > DEAD:
                    raise TimeoutError(f"nothing heard for {DEAD} s")
        finally:
            reader.cancel()
            await asyncio.wait({reader}, timeout=1)
            if reader.done() and not reader.cancelled():
                reader.exception()  # told of above, if it came first

    async def _read(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                reply = await connection.read_response(timeout=float("inf"), disconnect_on_error=False)
            except ResponseError as refused:
                if not self._asked:
                    raise
                name = self._asked.popleft()
                self._active.discard(name)
                log.debug("a channel is refused", channel=name, cause=str(refused))
                self._misplaced(name)
                continue
            self._last = loop.time()
            if not self.up:
                self.up = True
                self._turned(True)
            kind = reply[0] if isinstance(reply, list) else None
            if kind == b"smessage":
                self._heard(reply[1], reply[2])
            elif kind == b"ssubscribe":
                with suppress(ValueError):
                    self._asked.remove(reply[1])
                self._subscribed(reply[1])
            elif kind == b"sunsubscribe" and reply[1] in self._given_up:
                self._given_up.remove(reply[1])
            elif kind == b"sunsubscribe" and reply[1] in self._active:
                self._active.discard(reply[1])
                self._misplaced(reply[1])


class Node:
    """One Redis server: two lanes, so that writing does not wait for what is read at length, and a link."""

    def __init__(self, where: tuple[str, int], write: Lane, read: Lane, link: Link, counters: Counters) -> None:
        self.where = where
        self._counters = counters
        self.link = link
        self.answers = False
        """Whether the last request was answered; one that does not answer is only probed."""
        self.cause: str | None = "not connected yet"
        self.lanes = {"write": write, "read": read}
        self.failed = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def up(self) -> bool:
        """Whether it answers and is heard."""
        return self.answers and self.link.up

    async def run(self, lane: str, commands: Sequence[tuple[Any, ...]]) -> list[Answer]:
        """The answers in order, or for each command why there is none."""
        began = time.monotonic()
        try:
            answers = await self.lanes[lane].run(commands)
            self._counters.redis[lane].observe(time.monotonic() - began)
            return answers
        except LOST as lost:
            self.lost(in_words(lost))
            return [Unavailable(f"Redis at {self.where[0]}:{self.where[1]} does not answer: {self.cause}")] * len(
                commands
            )

    def lost(self, cause: str) -> None:
        """A request failed."""
        self.cause = cause
        if self.answers:
            self.answers = False
            self.failed.set()
            log.warning("redis does not answer; vendors and watchers of this process go on", cause=cause)

    async def probe(self, answered: Callable[[Node], None]) -> None:
        """Ask for an answer from time to time, for ever; `answered(node)` when it came for the first time or again."""
        delay = 0.1
        while True:
            try:
                (pong,) = await self.lanes["write"].run([("PING",)])
                if isinstance(pong, Exception):
                    raise pong
            except LOST as lost:
                self.lost(in_words(lost))
                delay = min(delay * 2, CHECK)
                await asyncio.sleep(delay * random.uniform(0.5, 1))
                continue
            delay = 0.1
            self.failed.clear()
            if not self.answers:
                self.answers, self.cause = True, None
                log.info("redis answers", host=self.where[0], port=self.where[1])
                answered(self)
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK):
                    await self.failed.wait()


class Nodes:
    """All nodes of a Redis.

    `subscribed` and `heard` as in Link; `answered(node)` when a node does (again); `turned(node)` when its
    subscriptions are there or lost; `reshaped()` when slots are on other nodes than before.
    """

    def __init__(
        self,
        url: str,
        *,
        heard: Callable[[bytes, bytes], None],
        subscribed: Callable[[bytes], None],
        answered: Callable[[Node], None],
        turned: Callable[[Node], None],
        reshaped: Callable[[], None],
        timeout: float = 2.0,
        counters: Counters | None = None,
    ) -> None:
        self._counters = counters or Counters()
        split = urlsplit(url)
        self.cluster = split.scheme in ("redis+cluster", "rediss+cluster")
        plain = urlunsplit((split.scheme.removesuffix("+cluster"), *split[1:]))
        options: dict[str, Any] = {**parse_url(plain), "protocol": 2, "socket_timeout": timeout, "driver_info": None}
        self._make: Callable[..., Connection] = options.pop("connection_class", Connection)
        self._options = options
        self._heard = heard
        self._subscribed = subscribed
        self._answered = answered
        self._turned = turned
        self._reshaped = reshaped
        self._timeout = timeout
        self._nodes: dict[tuple[str, int], Node] = {}
        self._slots: list[Node | None] = []
        self._seed = (str(options.get("host", "localhost")), int(options.get("port", 6379)))
        self._misplaced = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._map_cause: str | None = None
        if self.cluster:
            self._map_cause = "the cluster's map is not read yet"
        else:
            self._one = self._add(self._seed)

    @property
    def cause(self) -> str | None:
        """Why not everything is served, None when it is."""
        if self._map_cause is not None:
            return self._map_cause
        for node in self._nodes.values():
            if not node.answers:
                return node.cause
            if not node.link.up:
                return node.link.cause
        return None

    def of(self, key: bytes) -> Node | None:
        """The node that serves a key or channel."""
        if not self.cluster:
            return self._one
        return self._slots[key_slot(key)] if self._slots else None

    def answers(self, key: bytes) -> bool:
        """Whether requests for a key are answered just now."""
        node = self.of(key)
        return node is not None and node.answers

    def up(self, key: bytes) -> bool:
        """Whether a channel's node answers and is heard."""
        node = self.of(key)
        return node is not None and node.up

    def want(self, channel: bytes) -> None:
        """Have a channel heard on the node that serves it, and on no other."""
        serving = self.of(channel)
        for node in self._nodes.values():
            if node is serving:
                if channel not in node.link.wanted:
                    node.link.want(channel)
            elif channel in node.link.wanted:
                node.link.drop(channel)

    def drop(self, channel: bytes) -> None:
        """Hear a channel no more."""
        for node in self._nodes.values():
            if channel in node.link.wanted:
                node.link.drop(channel)

    async def run(self, commands: Sequence[Command], lane: str = "write") -> list[Answer]:
        """Each command's answer in order, as its exception where there is none; slots that move are followed.

        Commands for one node are carried out in their order, as long as no slot moves.
        """
        answers: list[Answer] = [None] * len(commands)
        todo = list(range(len(commands)))
        for attempt in range(REDIRECTS):
            by_node: dict[Node, list[int]] = {}
            away: Unavailable | None = None
            for at in todo:
                node = self.of(commands[at].key)
                if node is not None and node.answers:
                    by_node.setdefault(node, []).append(at)
                else:
                    answers[at] = away = away or Unavailable(f"the Redis it is on does not answer: {self.cause}")
            if len(by_node) == 1:
                for node, some in by_node.items():
                    self._fill(answers, some, await node.run(lane, [commands[at].words for at in some]))
            elif by_node:
                found = await asyncio.gather(
                    *[node.run(lane, [commands[at].words for at in some]) for node, some in by_node.items()]
                )
                for some, got in zip(by_node.values(), found, strict=True):
                    self._fill(answers, some, got)
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
                await self._look()
        return answers

    @staticmethod
    def _fill(answers: list[Answer], places: list[int], got: list[Answer]) -> None:
        for at, answer in zip(places, got, strict=True):
            answers[at] = answer

    # its task

    async def keep(self) -> None:
        """Keep all nodes probed and heard and the cluster's map true, for ever; raises what a node's task died of."""
        loop = asyncio.get_running_loop()
        looked = loop.time() - RESHAPE_IDLE
        try:
            while True:
                for node in self._nodes.values():
                    self._start(node)
                wrong = self._map_cause is not None or self._misplaced.is_set() or self.cause is not None
                if self.cluster and (wrong or loop.time() - looked > RESHAPE_IDLE):
                    self._misplaced.clear()
                    await self._look()
                    looked = loop.time()
                    continue_at = RESHAPE
                else:
                    continue_at = 1.0
                for node in self._nodes.values():
                    for task in node.tasks:
                        if task.done():
                            node.tasks.remove(task)
                            task.result()
                            raise RuntimeError(f"{task.get_name()} returned")
                await asyncio.sleep(continue_at)
        finally:
            tasks = [task for node in self._nodes.values() for task in node.tasks]
            for node in self._nodes.values():
                node.tasks = []
            await end(tasks)

    async def close(self) -> None:
        """Let go of all connections."""
        if self._looking is not None:
            await end([self._looking])
        for node in self._nodes.values():
            for lane in node.lanes.values():
                lane.cut()

    def _start(self, node: Node) -> None:
        if not node.tasks:
            name = f"{node.where[0]}:{node.where[1]}"
            node.tasks = [
                asyncio.create_task(node.link.run(), name=f"bus-link-{name}"),
                asyncio.create_task(node.probe(self._answered), name=f"bus-probe-{name}"),
            ]

    # the map

    def _add(self, where: tuple[str, int]) -> Node:
        known = self._nodes.get(where)
        if known is not None:
            return known

        def connect() -> Connection:
            options = dict(self._options)
            if "path" not in options:
                options["host"], options["port"] = where
            return self._make(**options)

        def misplaced(_: bytes) -> None:
            self._misplaced.set()

        link = Link(connect, self._heard, self._subscribed, misplaced, lambda _: self._turned(node))
        node = Node(where, Lane(connect, self._timeout), Lane(connect, self._timeout), link, self._counters)
        self._nodes[where] = node
        return node

    async def _look(self) -> None:
        """Read the cluster's map anew; callers at the same time share one look."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._read_map(), name="bus-map")
        await asyncio.wait({self._looking})
        self._looking.result()

    async def _read_map(self) -> None:
        known = sorted(self._nodes.values(), key=lambda node: not node.answers)
        for where in dict.fromkeys([*(node.where for node in known), self._seed]):
            lane = Lane(partial(self._make, **{**self._options, "host": where[0], "port": where[1]}), self._timeout)
            try:
                (slots,) = await lane.run([("CLUSTER", "SLOTS")])
                if isinstance(slots, Exception):
                    raise slots
            except LOST as lost:
                if not self._slots:
                    self._map_cause = f"the cluster's map can't be read: {in_words(lost)}"
                continue
            finally:
                lane.cut()
            if slots:
                self._draw(slots, where[0])
                return

    def _draw(self, slots: Iterable[Any], host: str) -> None:
        before = self._slots
        self._slots = [None] * 16384
        serving: set[Node] = set()
        for first, last, master, *_ in slots:
            there = self._add((master[0].decode() if master[0] else host, int(master[1])))
            serving.add(there)
            for slot in range(first, last + 1):
                self._slots[slot] = there
        uncovered = self._slots.count(None)
        self._map_cause = f"{uncovered} slots of the cluster are served by no node" if uncovered else None
        for where, node in tuple(self._nodes.items()):
            if node not in serving:
                del self._nodes[where]
                for task in node.tasks:
                    task.cancel()
                for lane in node.lanes.values():
                    lane.cut()
        if before != self._slots:
            self._reshaped()


def reset(connection: Connection) -> None:
    """Let go of a connection at once; what it has not sent is never sent, as it would come too late to be true."""
    writer = connection._writer
    if writer is not None:
        raw = writer.get_extra_info("socket")
        if raw is not None:  # as it is once a TLS connection is lost
            with suppress(OSError):
                # A reset, or the kernel would go on sending by itself.
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    connection._close()  # type: ignore[no-untyped-call]  # the one way that waits for nothing


def refused(answer: Answer) -> bool:
    """Whether an answer is none."""
    return isinstance(answer, Exception)
