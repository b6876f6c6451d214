"""The server processes by their signs of life: this one gives its own, and knows which of the others are silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from math import inf

import structlog

from streamer.broker.redis_cluster import Command, Nodes, refused
from streamer.broker.redis_schema import (
    CHUNK,
    DROP,
    OWNERS,
    OWNERS_TTL,
    ROAM,
    SCAN,
    CellBatch,
    Reading,
    Registers,
    cells_key,
    positions_key,
)
from streamer.geo.grid import named_cell
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import LocalVendors

log = structlog.get_logger()

REFRESH = 3600.0
"""Seconds between two full rewrites of this process's vendors; below every TTL of what they keep alive."""
ALIVE = 2.0
"""Seconds between two signs of life of a process, at most."""
SILENT = 3
"""After so many missed signs of life a process is doubted: vendors with a socket open here are taken over."""
ALONE_AFTER = SILENT * ALIVE
"""Seconds without a word from another process after which this one takes itself for the only one."""


class Membership:
    """Tells of this process and hears of the others, in the index; `forgotten()` when Redis does not know it any more.

    For `alone_after` seconds without a word from another process there is taken to be one.
    """

    def __init__(
        self,
        nodes: Nodes,
        index: LiveIndex,
        local_vendors: LocalVendors,
        clock: Callable[[], int],
        *,
        forgotten: Callable[[], None],
        alone_after: float = ALONE_AFTER,
    ) -> None:
        self.known = False
        """Redis knows of this process."""
        self.lasts = index.offline_after + index.leave_after
        """Milliseconds after its last sign of life for which a vendor stays on the map."""
        self._nodes = nodes
        self._index = index
        self._local_vendors = local_vendors
        self._clock = clock
        self._forgotten = forgotten
        self._alone_after = alone_after
        self._alive = min(ALIVE, index.offline_after / 5000)
        # Until when, in the loop's time, others are taken to be there; and that one was heard.
        self._company_until = inf
        self._company = asyncio.Event()
        self._wake = asyncio.Event()

    def heard_one(self) -> None:
        """Another process is there, or could be without being heard."""
        self._company_until = asyncio.get_running_loop().time() + self._alone_after
        self._company.set()

    @property
    def alone(self) -> bool:
        """Whether no other process is there, as far as can be heard."""
        return asyncio.get_running_loop().time() > self._company_until

    async def company(self, within: float) -> None:
        """Wait until another process is heard, at most so many seconds."""
        self._company.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._company.wait()

    async def introduce(self) -> None:
        """Have Redis know of this process before its vendors: who reads of one never heard of takes it for dead."""
        if not self.known:
            # If Redis forgets what comes after this, it has forgotten this too.
            (added,) = await self._nodes.run([Command(ROAM, ("ZADD", OWNERS, self._clock(), self._index.me))])
            self.known = not refused(added)

    async def hear_of(self, owners: Iterable[str]) -> None:
        """Learn when processes not heard of yet gave their last sign of life; one that can't be asked for, just now."""
        unknown = [owner for owner in owners if owner != self._index.me and owner not in self._index.owners]
        if not unknown:
            return
        (heard,) = await self._nodes.run([Command(OWNERS, ("ZMSCORE", OWNERS, *unknown))], "read")
        now = self._clock()
        scores = [now] * len(unknown) if refused(heard) else heard
        for owner, at in zip(unknown, scores, strict=True):
            self._index.owner_heard(owner, min(int(float(at or 0)), now), now)

    def heard_at(self, owner: str) -> int:
        """A process's last sign of life, epoch ms."""
        if owner == self._index.me:
            return self._clock()
        known = self._index.owners.get(owner)
        return 0 if known is None else known.heard

    def silent(self, owner: str) -> bool:
        """Whether a process has missed signs of life, as far as can be told while Redis is there."""
        return not self._index.frozen and self.heard_at(owner) + self._alive * SILENT * 1000 < self._clock()

    def outlived(self, registers: Registers, now: int) -> bool:
        """Whether a vendor left the map by time, whoever served it; not one of whom that can't be told."""
        last = registers.last(self.heard_at)
        return last is not None and last + self.lasts <= now

    # its tasks

    def wake(self) -> None:
        """Give a sign of life now."""
        self._wake.set()

    async def live(self) -> None:
        """Give a sign of life, and rewrite all vendors before what Redis holds of them ends."""
        loop = asyncio.get_running_loop()
        refreshed = loop.time()
        hello = CellBatch().message(self._index.me)
        while True:
            added, *_ = await self._nodes.run(
                [
                    Command(ROAM, ("ZADD", OWNERS, self._clock(), self._index.me)),
                    Command(ROAM, ("EXPIRE", OWNERS, OWNERS_TTL)),
                    Command(ROAM, ("EXPIRE", cells_key(self._index.me), OWNERS_TTL)),
                    Command(ROAM, ("SPUBLISH", ROAM, hello)),
                ]
            )
            if not refused(added):
                if added and self.known:
                    log.warning("redis forgot this process; its vendors are written anew")
                    self._forgotten()
                self.known = True
            if loop.time() - refreshed > REFRESH:
                refreshed = loop.time()
                await self._nodes.run([Command(ROAM, ("DEL", cells_key(self._index.me)))])
                self._forgotten()
            self._doubt()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._alive):
                    await self._wake.wait()
            self._wake.clear()

    async def reap(self) -> None:
        """Clean up after processes that are dead for so long that all their vendors have left the map."""
        while True:
            await asyncio.sleep(min(30.0, self.lasts / 4000))
            latest = self._clock() - self.lasts - 1000
            (dead,) = await self._nodes.run([Command(ROAM, ("ZRANGEBYSCORE", OWNERS, "-inf", latest, "LIMIT", 0, 1))])
            if refused(dead) or not dead:
                continue
            # One of the others does it if it is not there any more.
            (removed,) = await self._nodes.run([Command(ROAM, ("ZREM", OWNERS, dead[0]))])
            if not refused(removed) and removed:
                await self._reap(dead[0].decode())

    # inside

    def _doubt(self) -> None:
        """Take over from silent processes the vendors that have a socket open here too."""
        now = self._clock()
        for name, owner in self._index.owners.items():
            if name != self._index.me and owner.vendors and self.silent(name):
                for vendor in tuple(owner.vendors):
                    self._local_vendors.reclaim(vendor.vendor_id, now)

    async def _reap(self, owner: str) -> None:
        key = cells_key(owner)
        (names,) = await self._nodes.run([Command(ROAM, ("SMEMBERS", key))], "read")
        dropped = 0
        for name in () if refused(names) else names:
            dropped += await self._clean(named_cell(name.decode()))
        await self._nodes.run([Command(ROAM, ("DEL", key))])
        log.info("cleaned up after a process that is gone", process=owner, cells=len(names), registers=dropped)

    async def _clean(self, at: int) -> int:
        """Drop a cell's entries of vendors that left the map by time."""
        key, reading = positions_key(at), Reading()
        while True:
            (part,) = await self._nodes.run([Command(key, ("HSCAN", key, reading.cursor, "COUNT", SCAN))], "read")
            if refused(part):
                return 0
            if reading.take(part):
                break
        await self.hear_of(reading.owners())
        now = self._clock()
        stale = [
            word
            for id, registers in reading.found.items()
            if self.outlived(registers, now)
            for word in (id, *registers.versions())
        ]
        counts = await self._nodes.run(list(dropping(at, stale)), "read")
        return sum(count for count in counts if not refused(count))


def dropping(at: int, words: Sequence[str | bytes]) -> Iterator[Command]:
    """Have entries dropped from a cell; `words` are each vendor's id and the versions up to which it goes."""
    key = positions_key(at)
    for start in range(0, len(words), CHUNK * 4):
        yield Command(key, ("EVAL", DROP, 1, key, *words[start : start + CHUNK * 4]))
