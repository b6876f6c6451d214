"""Tracks which server processes are alive: sends this process's heartbeats and detects silent processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from math import inf

import structlog

from streamer.broker.context import HEARTBEAT, MISSED_HEARTBEATS, Context
from streamer.broker.redis_cluster import Nodes
from streamer.broker.redis_connections import Command, refused
from streamer.broker.redis_schema import (
    BROADCAST,
    CHUNK,
    DROP,
    PROCESSES,
    PROCESSES_TTL,
    SCAN,
    CellBatch,
    Reading,
    Registers,
    cells_key,
    positions_key,
)
from streamer.geo.grid import named_cell

log = structlog.get_logger()

REWRITE_EVERY = 3600.0
"""Seconds between two full rewrites of this process's vendors; below every TTL that they renew."""
REAP_EVERY = 30.0
"""Maximum number of seconds between two checks for dead processes."""


class Membership:
    """Heartbeats of this process and of the others, kept in the index."""

    def __init__(self, context: Context) -> None:
        self.announced = False
        """Whether this process is in Redis's set of processes."""
        index = context.index
        self.vendor_ttl = index.offline_after + index.leave_after
        """Milliseconds for which a vendor stays on the map after it was last seen."""
        self._nodes = context.nodes
        self._index = index
        self._local_vendors = context.local_vendors
        self._clock = context.clock
        self._alone_after = context.config.alone_after
        self._interval = min(HEARTBEAT, index.offline_after / 5000)
        self.silence = MISSED_HEARTBEATS * self._interval
        """Seconds without a heartbeat after which a process is silent."""
        # The loop's time until which other processes are assumed to exist.
        self._others_until = inf
        self._other_heard = asyncio.Event()
        self._wake = asyncio.Event()

    def assume_others(self) -> None:
        """Assumes for a while that there are other processes: one sent a message, or messages may be missed."""
        self._others_until = asyncio.get_running_loop().time() + self._alone_after
        self._other_heard.set()

    @property
    def alone(self) -> bool:
        """Whether no other process has been heard recently."""
        return asyncio.get_running_loop().time() > self._others_until

    async def wait_for_other(self, timeout: float) -> None:
        """Waits until another process is heard, at most `timeout` seconds."""
        self._other_heard.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._other_heard.wait()

    async def announce(self) -> None:
        """Adds this process to Redis before its vendors: readers consider an unknown process dead."""
        if not self.announced:
            # If Redis loses a later write, it has lost this one too.
            (added,) = await self._nodes.run([Command(BROADCAST, ("ZADD", PROCESSES, self._clock(), self._index.me))])
            self.announced = not refused(added)

    async def fetch_heartbeats(self, processes: Iterable[str]) -> None:
        """Reads the last heartbeats of unknown processes from Redis; without an answer, assumes a heartbeat now."""
        unknown = [name for name in processes if name != self._index.me and not self._heard(name)]
        if not unknown:
            return
        (found,) = await self._nodes.run([Command(PROCESSES, ("ZMSCORE", PROCESSES, *unknown))], "read")
        now = self._clock()
        scores = [now] * len(unknown) if refused(found) else found
        for name, at in zip(unknown, scores, strict=True):
            self._index.owner_heard(name, min(int(float(at or 0)), now), now)

    def heard_at(self, process: str) -> int:
        """A process's last heartbeat, epoch ms; 0 if there was none. While none can arrive: now."""
        if process == self._index.me or self._index.frozen:
            return self._clock()
        return self._heard(process)

    def _heard(self, process: str) -> int:
        known = self._index.owners.get(process)
        return 0 if known is None else known.heard

    def silent(self, process: str) -> bool:
        """Whether a process has missed its heartbeats; never true while Redis is down."""
        return not self._index.frozen and self.heard_at(process) + self.silence * 1000 < self._clock()

    def expired(self, registers: Registers, now: int) -> bool:
        """Whether a vendor expired, whichever process served it; False if its registers have no time."""
        last = registers.last_seen(self.heard_at)
        return last is not None and last + self.vendor_ttl <= now

    # tasks

    def wake(self) -> None:
        """Sends a heartbeat now."""
        self._wake.set()

    async def send_heartbeats(self, republish: Callable[[], None], lost: Callable[[], None]) -> None:
        """Sends heartbeats until cancelled; calls `republish` before data expires, `lost` after Redis lost its data."""
        loop = asyncio.get_running_loop()
        rewritten = loop.time()
        hello = CellBatch().message(self._index.me)
        cells = cells_key(self._index.me)
        while True:
            added, *_ = await self._nodes.run(
                [
                    Command(BROADCAST, ("ZADD", PROCESSES, self._clock(), self._index.me)),
                    Command(BROADCAST, ("EXPIRE", PROCESSES, PROCESSES_TTL)),
                    Command(BROADCAST, ("EXPIRE", cells, PROCESSES_TTL)),
                    Command(BROADCAST, ("SPUBLISH", BROADCAST, hello)),
                ]
            )
            if not refused(added):
                if added and self.announced:
                    log.warning("redis lost this process; its vendors are written again")
                    lost()
                self.announced = True
            if loop.time() - rewritten > REWRITE_EVERY:
                rewritten = loop.time()
                await self._nodes.run([Command(BROADCAST, ("DEL", cells))])
                republish()
            self._take_over_from_silent()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._wake.wait()
            self._wake.clear()

    async def reap(self) -> None:
        """Removes processes from Redis that have been dead until all their vendors expired; runs until cancelled."""
        while True:
            await asyncio.sleep(min(REAP_EVERY, self.vendor_ttl / 4000))
            latest = self._clock() - self.vendor_ttl - 1000
            command = ("ZRANGEBYSCORE", PROCESSES, "-inf", latest, "LIMIT", 0, 1)
            (dead,) = await self._nodes.run([Command(BROADCAST, command)])
            if not refused(dead) and dead:
                await self._reap(dead[0].decode())

    def _take_over_from_silent(self) -> None:
        now = self._clock()
        for name, process in self._index.owners.items():
            if name != self._index.me and process.vendors and self.silent(name):
                for vendor in tuple(process.vendors):
                    self._local_vendors.take_over(vendor.vendor_id, now)

    async def _reap(self, process: str) -> None:
        key = cells_key(process)
        (names,) = await self._nodes.run([Command(BROADCAST, ("SMEMBERS", key))], "read")
        if refused(names):
            return
        # Only the process whose ZREM succeeds cleans up.
        (removed,) = await self._nodes.run([Command(BROADCAST, ("ZREM", PROCESSES, process))])
        if refused(removed) or not removed:
            return
        dropped = 0
        for name in names:
            dropped += await self._drop_expired(named_cell(name.decode()))
        await self._nodes.run([Command(BROADCAST, ("DEL", key))])
        log.info("cleaned up after a dead process", process=process, cells=len(names), registers=dropped)

    async def _drop_expired(self, at: int) -> int:
        """Drops a cell's entries of vendors that expired."""
        reading = await read_cell(self._nodes, at)
        await self.fetch_heartbeats(reading.processes())
        now = self._clock()
        expired = [
            word
            for id, registers in reading.found.items()
            if self.expired(registers, now)
            for word in (id, *registers.versions())
        ]
        counts = await self._nodes.run(list(drop_commands(at, expired)), "read")
        return sum(count for count in counts if not refused(count))


async def read_cell(nodes: Nodes, at: int) -> Reading:
    """Returns a cell's registers from Redis; partial if Redis stops answering."""
    key, reading = positions_key(at), Reading()
    while True:
        (part,) = await nodes.run([Command(key, ("HSCAN", key, reading.cursor, "COUNT", SCAN))], "read")
        if refused(part) or reading.take(part):
            return reading
        await asyncio.sleep(0)


def drop_commands(at: int, words: Sequence[str | bytes]) -> Iterator[Command]:
    """Commands that drop entries from a cell; `words` are each vendor's id and the versions up to which to drop it."""
    key = positions_key(at)
    for start in range(0, len(words), CHUNK * 4):
        yield Command(key, ("EVAL", DROP, 1, key, *words[start : start + CHUNK * 4]))
