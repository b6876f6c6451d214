"""What this process hears and reads of the others' vendors, for its own watchers. Nothing of its vendors is told here.

Subscribed, then read, then merged: nothing falls between, and who was heard to leave during a read stays away. After a
gap cells are read again, and their watchers get snapshots.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import orjson
import structlog

from streamer.broker.membership import Membership, dropping
from streamer.broker.publisher import RETRY, Publisher
from streamer.broker.redis_cluster import Command, Nodes, refused
from streamer.broker.redis_schema import (
    ALWAYS,
    CELL_TTL,
    READ,
    ROAM,
    SCAN,
    Reading,
    channel,
    new_mark,
    place_key,
    placed,
    positions_key,
)
from streamer.geo.grid import BUS_LEVEL, bus_cell, parent
from streamer.live.index import Card, LiveIndex, Presence, Vendor
from streamer.live.local_vendors import LocalVendors, Part

log = structlog.get_logger()

LINGER = 30.0
"""Seconds for which a cell nobody watches any more is still heard: a customer pans back."""
GRACE = 10.0
"""Seconds in which the others rewrite their vendors when Redis forgot what it held."""
SWEEP = 60.0
ROUND = 16
"""Cells read at the same time."""
SLICE = 500
"""Vendors taken into the index before the event loop gets its turn."""


class Listened:
    """A bus cell that this process hears."""

    __slots__ = ("doubtful", "early", "idle_since", "loaded", "mark", "ready", "refs")

    def __init__(self) -> None:
        self.refs = 0
        self.loaded = False
        self.ready = asyncio.Event()
        self.idle_since: float | None = None
        self.mark: bytes | None = None
        # Redis forgot the cell: who is missing in it may only not be written anew yet
        self.doubtful = False
        # heard of before they were read: of some, only a register may have come
        self.early: set[str] = set()


class Subscriber:
    """Hears the cells that somebody watches, and reads them first and after every gap; puts all of it into the index.

    `changed()` is called when the index changed; `gap(cells, vendor_ids)` when changes in these cells, or of these
    listed vendors, may have been missed; `deleted(vendor_id)` when another process found a vendor of this one deleted.
    """

    def __init__(
        self,
        nodes: Nodes,
        index: LiveIndex,
        local_vendors: LocalVendors,
        owners: Membership,
        publisher: Publisher,
        clock: Callable[[], int],
        *,
        changed: Callable[[], None],
        gap: Callable[[frozenset[int], frozenset[str]], None],
        deleted: Callable[[str], None],
        linger: float = LINGER,
        grace: float = GRACE,
    ) -> None:
        self._nodes = nodes
        self._index = index
        self._local_vendors = local_vendors
        self._membership = owners
        self._publisher = publisher
        self._clock = clock
        self._changed = changed
        self._gap = gap
        self._deleted = deleted
        self._linger = linger
        self._grace = grace
        self._mine = orjson.dumps([index.me])[:-1]
        self._cells: dict[int, Listened] = {}
        self._named: dict[bytes, int] = {}
        self._to_load: set[int] = set()
        self._readings: dict[int, Reading] = {}
        self._gapped: set[int] = set()
        self._again: set[int] = set()
        # who was not in the cell that was read, and the timestamp it was known by
        self._missing: dict[str, tuple[int, int]] = {}
        self._recheck: dict[int, float] = {}
        self._wake = asyncio.Event()
        self._listed: dict[str, int] = {}
        self._followed: dict[str, int] = {}
        self._to_follow: set[str] = set()

    @property
    def cells(self) -> frozenset[int]:
        """The bus cells that this process hears."""
        return frozenset(self._cells)

    # what watchers need

    def hold(self, cells: Iterable[int], vendor_ids: Iterable[str] = ()) -> None:
        """Hear these cells, and of these vendors wherever they are, until they are released."""
        for at in cells:
            self._hold(at)
        for id in vendor_ids:
            self._listed[id] = self._listed.get(id, 0) + 1

    async def ready(self, cells: Iterable[int], vendor_ids: Iterable[str] = (), timeout: float = 2.0) -> bool:
        """Wait until what is held is read; False when that is not so in time, and updates bring the rest."""
        ids = list(vendor_ids)
        complete = True
        try:
            async with asyncio.timeout(timeout):
                if ids:
                    complete = await self._find([id for id in ids if id not in self._followed])
                wanted = {*cells, *[self._followed[id] for id in ids if id in self._followed]}
                pending = [(at, listened) for at in wanted if not (listened := self._cells[at]).loaded]
                for at, listened in pending:
                    if self._nodes.up(channel(at)):
                        await listened.ready.wait()
                    else:
                        complete = False
        except TimeoutError:
            # The look-up of the listed ones may have been broken off, and with it what would have tried it again.
            self._find_again([id for id in ids if id not in self._followed])
            return False
        return complete

    def release(self, cells: Iterable[int], vendor_ids: Iterable[str] = ()) -> None:
        """A watch needs these no more; the cells are heard a while longer."""
        now = asyncio.get_running_loop().time()
        for at in cells:
            listened = self._cells[at]
            listened.refs -= 1
            if listened.refs == 0:
                listened.idle_since = now
        for id in vendor_ids:
            count = self._listed[id] - 1
            if count:
                self._listed[id] = count
                continue
            del self._listed[id]
            self._to_follow.discard(id)
            followed = self._followed.pop(id, None)
            if followed is not None:
                self.release((followed,))

    def let_go(self, now: float) -> None:
        """Hear no more the cells that nobody has watched for long, at `now` in the loop's time."""
        idle = [
            at
            for at, c in self._cells.items()
            if c.refs == 0 and c.idle_since is not None and now - c.idle_since > self._linger
        ]
        for at in idle:
            del self._cells[at], self._named[channel(at)]
            self._nodes.drop(channel(at))
            self._to_load.discard(at)
            self._gapped.discard(at)
            self._readings.pop(at, None)
            self._recheck.pop(at, None)
        for at in idle:
            for vendor in self._index.in_bus_cell(at):
                if vendor.vendor_id not in self._local_vendors:
                    self._index.remove(vendor.vendor_id)

    # what is heard

    def hear(self, name: bytes, data: bytes) -> None:
        """A message came over a channel."""
        if data.startswith(self._mine):
            return
        try:
            origin, fixes, cards, presences, https, gone = orjson.loads(data)
        except ValueError as bad:
            log.error("a message of another version is not understood", channel=name, cause=str(bad))
            return
        self._membership.heard_one()
        now = self._clock()
        index = self._index
        index.owner_heard(origin, now, now)
        if name == ROAM:
            self._hear_roam(fixes, cards, presences, https, gone, now)
            return
        at = self._named.get(name)
        if at is None:
            return  # let go a moment ago
        listened, reading, vendors = self._cells[at], self._readings.get(at), index.vendors
        fresh = {fix[0] for fix in fixes} if cards or presences or https else ()

        def wanted(id: str) -> bool:
            if id not in vendors and id not in fresh:
                if listened.loaded and reading is None:
                    return False  # it left, and this is late
                listened.early.add(id)
            return True

        for id, *card in cards:
            if wanted(id):
                index.put_card(id, Card(*card), now)
        for id, since, owner, ended in presences:
            if wanted(id):
                index.put_presence(id, Presence(since, owner, ended), now)
        for id, seen_at in https:
            if wanted(id):
                index.put_http(id, seen_at, now)
        for id, timestamp, lat, long, heading, speed in fixes:
            if index.put_fix(id, timestamp, lat, long, heading, speed, now) and id in vendors:
                here = parent(vendors[id].cell, BUS_LEVEL)
                if id in self._local_vendors:
                    self._publisher.mark(id, Part.FIX)  # who left it may have said so without writing it
                elif here != at:
                    if id in self._listed:
                        self._follow_to(id, here)
                    self.left(vendors[id])
            if reading is not None:
                reading.heard.add(id)
                if bus_cell(lat, long) != at:
                    reading.left[id] = max(timestamp, reading.left.get(id, 0))
        for id in gone:
            self._hear_gone(id)
        self._changed()

    def left(self, vendor: Vendor) -> None:
        """Of a vendor that went where this process does not listen, it would hear nothing more."""
        if parent(vendor.cell, BUS_LEVEL) not in self._cells:
            self._index.remove(vendor.vendor_id)
            self._changed()

    def forget(self, vendor_id: str) -> None:
        """A vendor was deleted: what is being read of it is outdated."""
        for reading in self._readings.values():
            reading.left[vendor_id] = int(ALWAYS)

    def subscribed(self, name: bytes) -> None:
        """A channel is heard from now on (again), so that its cell can be read."""
        at = self._named.get(name)
        if at is not None:
            if self._cells[at].loaded:
                self._gapped.add(at)
            self._to_load.add(at)
            self._wake.set()

    def follow_again(self) -> None:
        """Where listed vendors are may have been missed."""
        self._to_follow.update(self._listed)
        self._wake.set()

    def want_all(self) -> None:
        """Have all channels subscribed wherever their nodes are now."""
        for name in (ROAM, *self._named):
            self._nodes.want(name)

    def wake(self) -> None:
        """Read what could not be read before."""
        self._wake.set()

    # its task

    async def run(self) -> None:
        """Read cells once their channels are subscribed, follow listed vendors, and let idle cells go."""
        loop = asyncio.get_running_loop()
        swept = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(1.0, self._linger, self._grace)):
                    await self._wake.wait()
            self._wake.clear()
            now = loop.time()
            for at in [at for at, when in self._recheck.items() if when <= now]:
                del self._recheck[at]
                if at in self._cells:
                    self._to_load.add(at)
            await self._read()
            self.let_go(loop.time())
            if now - swept > SWEEP:
                swept = now
                self._sweep()

    # inside

    def _hear_gone(self, vendor_id: str) -> None:
        self._publisher.forget(vendor_id)
        self.forget(vendor_id)
        if vendor_id in self._local_vendors:
            self._local_vendors.delete(vendor_id)
            self._deleted(vendor_id)
        else:
            self._index.remove(vendor_id)

    def _hear_roam(
        self, fixes: list[Any], cards: list[Any], presences: list[Any], https: list[Any], gone: list[str], now: int
    ) -> None:
        index, local_vendors = self._index, self._local_vendors
        for id in gone:
            self._hear_gone(id)
        mine = [fix[0] for fix in fixes if fix[0] in local_vendors]
        wanted = {*mine, *[fix[0] for fix in fixes if fix[0] in self._listed]}
        if not wanted:
            if gone:
                self._changed()
            return
        for id, *card in cards:
            if id in wanted:
                index.put_card(id, Card(*card), now)
        for id, at in https:
            if id in wanted:
                index.put_http(id, at, now)
        for id, since, owner, ended in presences:
            if id in wanted:
                index.put_presence(id, Presence(since, owner, ended), now)
        for id, timestamp, lat, long, heading, speed in fixes:
            if id not in wanted:
                continue
            newer = index.put_fix(id, timestamp, lat, long, heading, speed, now)
            vendor, told = index.vendors.get(id), bus_cell(lat, long)
            if vendor is None:
                continue
            here = parent(vendor.cell, BUS_LEVEL)
            if id in self._listed:
                self._follow_to(id, here)
            posted = self._publisher.posted.get(id)
            if id in local_vendors and (told != here or (posted is not None and posted.cell != here)):
                # Another process moved it, and what is written here is outdated; or that one's is, and must yield.
                self._publisher.mark(id, Part.ALL)
            elif id in local_vendors and newer:
                self._publisher.mark(id, Part.FIX)  # said to all, but maybe not yet written and told where it is
        for id in mine:
            self._publisher.serve(id, now)
        self._changed()

    async def _read(self) -> None:
        """Read all that is to be read where Redis answers."""
        while True:
            if self._to_follow:
                ids, self._to_follow = self._to_follow.intersection(self._listed), set()
                await self._find(list(ids))
            for at in self._to_load:
                if at in self._cells:
                    before = self._readings.pop(at, None)
                    self._readings[at] = reading = Reading()
                    if before is not None:
                        reading.heard, reading.left = before.heard, before.left
            self._to_load.clear()
            turn = [(at, reading) for at, reading in self._readings.items() if self._nodes.answers(channel(at))][:ROUND]
            commands = []
            for at, reading in turn:
                # to the end of the line, so that a large cell does not hold up the small ones
                self._readings[at] = self._readings.pop(at)
                key = positions_key(at)
                if reading.mark is None:
                    commands.append(Command(key, ("EVAL", READ, 1, key, CELL_TTL, new_mark())))
                commands.append(Command(key, ("HSCAN", key, reading.cursor, "COUNT", SCAN)))
            answers = iter(await self._nodes.run(commands, "read"))
            failed = False
            for at, reading in turn:
                mark = next(answers) if reading.mark is None else reading.mark
                part = next(answers)
                if refused(mark) or refused(part):
                    failed = True
                    reading.again()
                    continue
                reading.mark = mark
                if reading.take(part) and self._readings.get(at) is reading:
                    await self._take_in(at, reading)
            if not self._gapped & self._readings.keys():
                self._close_gap()
            if failed:
                await asyncio.sleep(0.1)
            if not (self._to_load or self._to_follow or any(self._nodes.answers(channel(at)) for at in self._readings)):
                self._close_gap()
                return

    async def _take_in(self, at: int, reading: Reading) -> None:
        """Merge what was read of a cell into the index, and see who is in the index but was not read."""
        index = self._index
        await self._membership.hear_of(reading.owners())
        listened = self._cells.get(at)
        if listened is None or self._readings.get(at) is not reading:
            return
        stale: list[str | bytes] = []
        for number, (id, registers) in enumerate(reading.found.items()):
            if number % SLICE == SLICE - 1:
                self._changed()
                await asyncio.sleep(0)
                if self._cells.get(at) is not listened or self._readings.get(at) is not reading:
                    return
            if reading.left.get(id, -1) >= registers.timestamp():
                continue
            now = self._clock()
            if self._membership.outlived(registers, now):
                stale += (id, *registers.versions())
                continue
            registers.put(index, now)
            vendor = index.vendors.get(id)
            if vendor is not None and id not in self._local_vendors and vendor.timestamp >= 0:
                self.left(vendor)
        del self._readings[at]
        self._look_for_missing(at, listened, reading)
        for id in listened.early:
            vendor = index.vendors.get(id)
            if vendor is not None and vendor.timestamp < 0 and id not in self._local_vendors:
                index.remove(id)
        listened.early.clear()
        if listened.loaded and at in self._gapped:
            self._again.add(at)
        listened.loaded = True
        listened.ready.set()
        self._gapped.discard(at)
        self._changed()
        if stale:
            await self._nodes.run(list(dropping(at, stale)), "read")

    def _look_for_missing(self, at: int, listened: Listened, reading: Reading) -> None:
        """Who is in the index but not in Redis left, unless Redis forgot the cell: then it may be written anew yet."""
        missing = [
            vendor
            for vendor in self._index.in_bus_cell(at)
            if vendor.vendor_id not in reading.found
            and vendor.vendor_id not in reading.heard
            and vendor.vendor_id not in self._local_vendors
        ]
        if listened.loaded and listened.mark != reading.mark:
            listened.mark = reading.mark
            listened.doubtful = True
            self._recheck[at] = asyncio.get_running_loop().time() + self._grace
            return
        listened.mark = reading.mark
        if listened.doubtful:
            # Its process had the time to write it; one that is silent can't, and its vendors leave by time.
            listened.doubtful = False
            missing = [v for v in missing if v.presence.owner and not self._membership.silent(v.presence.owner)]
        self._missing.update((vendor.vendor_id, (at, vendor.timestamp)) for vendor in missing)

    def _close_gap(self) -> None:
        """All that could be read again was: who was found nowhere left, and who watches there gets a snapshot."""
        missing, self._missing = self._missing, {}
        for id, (at, timestamp) in missing.items():
            vendor = self._index.vendors.get(id)
            if (
                vendor is not None
                and vendor.timestamp == timestamp  # else it was heard of since: it came back
                and id not in self._local_vendors
                and parent(vendor.cell, BUS_LEVEL) == at
                and self._followed.get(id, at) == at
            ):
                self._index.remove(id)
                self._changed()
        if self._again:
            again, self._again = frozenset(self._again), set()
            self._gap(again, frozenset(id for id, at in self._followed.items() if at in again))

    async def _find(self, vendor_ids: list[str]) -> bool:
        """Begin to hear the cells in which listed vendors are; False when that can't be known now."""
        complete = True
        places = await self._nodes.run([Command(place_key(id), ("GET", place_key(id))) for id in vendor_ids], "read")
        for id, value in zip(vendor_ids, places, strict=True):
            if refused(value):
                complete = False
                continue
            spot = placed(value)
            vendor = self._index.vendors.get(id)
            if vendor is not None and vendor.timestamp > (-1 if spot is None else spot.timestamp):
                self._follow_to(id, parent(vendor.cell, BUS_LEVEL))  # it was heard of while it was asked for
            elif spot is not None:
                self._follow_to(id, spot.cell)
        if not complete:
            unknown = [id for id, value in zip(vendor_ids, places, strict=True) if refused(value)]
            asyncio.get_running_loop().call_later(RETRY, self._find_again, unknown)
        return complete

    def _find_again(self, vendor_ids: list[str]) -> None:
        self._to_follow.update(id for id in vendor_ids if id in self._listed)
        if self._to_follow:
            self._wake.set()

    def _follow_to(self, vendor_id: str, at: int) -> None:
        """A listed vendor is in this cell now."""
        old = self._followed.get(vendor_id)
        if vendor_id not in self._listed or old == at:
            return
        self._followed[vendor_id] = at
        self._hold(at)
        if old is not None:
            self.release((old,))

    def _hold(self, at: int) -> None:
        """Hear a cell, or hear it on."""
        listened = self._cells.get(at)
        if listened is None:
            listened = self._cells[at] = Listened()
            self._named[channel(at)] = at
            self._nodes.want(channel(at))
        listened.refs += 1
        listened.idle_since = None

    def _sweep(self) -> None:
        """Let go of what late messages and a vendor's change of process can leave behind."""
        early = {id for listened in self._cells.values() for id in listened.early}
        strays = [
            id
            for id, vendor in self._index.vendors.items()
            if id not in self._local_vendors
            and id not in early
            and (vendor.timestamp < 0 or parent(vendor.cell, BUS_LEVEL) not in self._cells)
        ]
        for id in strays:
            self._index.remove(id)
        self._publisher.sweep()
