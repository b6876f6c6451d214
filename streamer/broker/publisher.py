"""What this process's vendors do on its way into Redis and to the other processes, until it is told. No hearing.

What is not done yet, an entry to drop or a vendor to write, is kept until it is; a node that is away stops only what is
on it. A vendor has one place: who takes it over or moves it drops the old entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

import structlog

from streamer.broker.membership import Membership, dropping
from streamer.broker.redis_cluster import Command, Nodes, refused
from streamer.broker.redis_schema import (
    ANY_VERSION,
    AT_TTL,
    CELL_TTL,
    CHUNK,
    PLACE,
    ROAM,
    UNPLACE,
    WRITE,
    CellBatch,
    Registers,
    Versions,
    cells_key,
    channel,
    new_mark,
    place,
    place_key,
    placed,
    positions_key,
    versions_of,
)
from streamer.errors import Unavailable
from streamer.geo.grid import BUS_LEVEL, cell_name, parent
from streamer.live.index import LiveIndex, Vendor
from streamer.live.local_vendors import LocalVendors, Part

log = structlog.get_logger()

RETRY = 0.5
"""Seconds until what a node did not take is tried again."""
BEQUEATHED = 3.0
"""Seconds for which the last fix of a vendor that was left to another process is told: it may just not hear."""
ALONE_GAP = 2.0
"""Seconds between two flushes of the only process: nobody hears them but who starts later, and reads."""
ROAMING = -1
"""In place of a cell: what is said to all."""
OUTDATED = -1
"""In place of a cell: another process knows of a newer fix."""


class Posted(NamedTuple):
    """Where this process wrote a vendor, the versions it wrote, and whether that is `sure` to have been done."""

    cell: int
    versions: Versions
    sure: bool = True


class Leaving(NamedTuple):
    """An entry to be dropped where it is no newer than this; `gone`: the vendor is to leave every map."""

    versions: Versions
    gone: bool
    unplace: bool


class Flush:
    """What is told together: by cell what to store, drop and publish, and what is said to all."""

    __slots__ = ("batches", "leaving", "roam", "roaming", "told")

    def __init__(self) -> None:
        self.batches: dict[int, CellBatch] = {}
        self.told: dict[int, dict[str, tuple[int, Versions]]] = {}
        """The parts of vendors that are told, and the versions of what is told."""
        self.leaving: dict[int, dict[str, Leaving]] = {}
        self.roam = CellBatch()
        self.roaming: list[str] = []
        """Vendors of which all processes are told."""

    def tell(self, at: int, vendor: Vendor, parts: int) -> None:
        """Write parts of a vendor into its cell; of its presence all processes are told."""
        self._batch(at).add(vendor, parts)
        self.told.setdefault(at, {})[vendor.vendor_id] = (parts, versions_of(vendor))
        if parts & Part.PRESENCE:
            self.roam.add(vendor, Part.ALL, store=False)
            self.roaming.append(vendor.vendor_id)

    def drop(self, at: int, entries: Mapping[str, Leaving], index: LiveIndex) -> None:
        """Drop a cell's entries; those who listen there are told where the vendors are now, if anywhere."""
        self.leaving[at] = dict(entries)
        batch = self._batch(at)
        for id, entry in entries.items():
            vendor = index.vendors.get(id)
            if entry.gone:
                batch.gone.append(id)
            elif vendor is not None and vendor.timestamp >= 0 and vendor.card.version >= 0:
                batch.add(vendor, Part.ALL, store=False)

    def commands(self, me: str, known: Container[int]) -> Iterator[tuple[int, Command]]:
        """What Redis has to do, and for which cell (or ROAMING); `known`: cells that it was told this process is in."""
        for at, batch in self.batches.items():
            key = positions_key(at)
            if at in self.told and at not in known:
                yield ROAMING, Command(ROAM, ("SADD", cells_key(me), cell_name(at)))
            for start in range(0, len(batch.fields), CHUNK * 2):
                fields = batch.fields[start : start + CHUNK * 2]
                yield at, Command(key, ("EVAL", WRITE, 1, key, CELL_TTL, new_mark(), *fields))
            drops = [word for id, entry in self.leaving.get(at, {}).items() for word in (id, *entry.versions)]
            for command in dropping(at, drops):
                yield at, command
            # Stored before it is published: who subscribes and then reads misses nothing.
            if batch.says():
                yield at, Command(channel(at), ("SPUBLISH", channel(at), batch.message(me)))
        if self.roam.says():
            yield ROAMING, Command(ROAM, ("SPUBLISH", ROAM, self.roam.message(me)))

    def _batch(self, at: int) -> CellBatch:
        return self.batches.get(at) or self.batches.setdefault(at, CellBatch())


class Publisher:
    """Writes and publishes what is marked, `flush_gap` seconds apart, or `alone_gap` when nobody else is there.

    `given(vendor)` is called when a vendor was left to another process, `changed()` when the index changed.
    """

    def __init__(
        self,
        nodes: Nodes,
        index: LiveIndex,
        local_vendors: LocalVendors,
        owners: Membership,
        clock: Callable[[], int],
        *,
        changed: Callable[[], None],
        given: Callable[[Vendor], None],
        flush_gap: float = 0.15,
        alone_gap: float = ALONE_GAP,
    ) -> None:
        self.next = 0.0
        """When a change that comes now can first be told to the others, in the loop's time; may have passed."""
        self.posted: dict[str, Posted] = {}
        """What of this process's vendors is in Redis."""
        self._nodes = nodes
        self._index = index
        self._local_vendors = local_vendors
        self._membership = owners
        self._clock = clock
        self._changed = changed
        self._given = given
        self._flush_gap = flush_gap
        self._alone_gap = alone_gap
        self._dirty: dict[str, int] = {}
        self._retry: dict[str, int] = {}
        self._unplaced: set[str] = set()
        self._gone: set[str] = set()
        # left to another process, which may not know of their last fix here; and until when that is told
        self._bequeathed: dict[str, tuple[Vendor, float]] = {}
        self._leaving: dict[int, dict[str, Leaving]] = {}
        self._marks: dict[int, bytes] = {}
        self._wake = asyncio.Event()

    @property
    def pending(self) -> int:
        """Vendors of which something is still to be written."""
        return len(self._dirty.keys() | self._retry.keys()) + sum(map(len, self._leaving.values()))

    def mark(self, vendor_id: str, parts: int) -> None:
        """A part of a vendor's state changed: it is written with the next flush."""
        self._dirty[vendor_id] = self._dirty.get(vendor_id, 0) | parts
        self._wake.set()

    def mark_gone(self, vendor_id: str) -> None:
        """A vendor was deleted: take it off every process's map."""
        self.forget(vendor_id)
        self._gone.add(vendor_id)
        self._wake.set()

    def departed(self, vendor_ids: Iterable[str]) -> None:
        """Vendors left the map by time; their entries in Redis are not needed any more."""
        for vendor_id in vendor_ids:
            if self._local_vendors.departed(vendor_id):
                posted = self.posted.pop(vendor_id, None)
                if posted is not None:
                    self._leave(posted.cell, vendor_id, Leaving(posted.versions, gone=False, unplace=True))

    def forget(self, vendor_id: str) -> None:
        """A vendor was deleted: its entry goes, whatever is in it."""
        self._dirty.pop(vendor_id, None)
        self._retry.pop(vendor_id, None)
        self._bequeathed.pop(vendor_id, None)
        posted = self.posted.pop(vendor_id, None)
        if posted is not None:
            self._leave(posted.cell, vendor_id, Leaving(ANY_VERSION, gone=True, unplace=True))

    def serve(self, vendor_id: str, now: int) -> None:
        """Another process told of this one's vendor: go on serving it, or don't."""
        vendor = self._index.vendors.get(vendor_id)
        if vendor is None:
            return
        owner, ended = vendor.presence.owner, vendor.presence.ended
        if owner != self._index.me and (ended or self._membership.silent(owner)):
            self._local_vendors.reclaim(vendor_id, now)
        self.give_way(vendor_id)

    def give_way(self, vendor_id: str) -> None:
        """Leave a vendor to the process that has its newest connection or HTTP ping, if no socket is open here."""
        if self._local_vendors.superseded(vendor_id):
            vendor = self._index.vendors[vendor_id]
            self._local_vendors.let_go(vendor_id)
            unsaid = self._dirty.pop(vendor_id, 0) | self._retry.pop(vendor_id, 0)
            posted = self.posted.pop(vendor_id, None)
            # What is to be written anew may have been forgotten by Redis.
            said = (
                posted is not None
                and posted.sure
                and posted.versions.fix >= versions_of(vendor).fix
                and not unsaid & Part.FIX
            )
            if vendor.timestamp >= 0 and not said:
                self._bequeathed[vendor_id] = (vendor, asyncio.get_running_loop().time() + BEQUEATHED)
                self._wake.set()
            if posted is not None and posted.cell != parent(vendor.cell, BUS_LEVEL):
                self._leave(posted.cell, vendor_id, Leaving(posted.versions, gone=False, unplace=False))
            self._given(vendor)

    def write_anew(self) -> None:
        """Redis may not hold what it was told any more: tell it all again."""
        self._marks.clear()
        self._unplaced.clear()
        for vendor_id in self._local_vendors.sockets:
            self.mark(vendor_id, Part.ALL)

    def place_again(self) -> None:
        """Tell again where those are whose place could not be told."""
        unplaced, self._unplaced = self._unplaced, set()
        for vendor_id in unplaced:
            self.mark(vendor_id, Part.ALL)

    def sweep(self) -> None:
        """Let go of what a vendor's change of process can leave behind."""
        for id in [id for id, count in self._local_vendors.sockets.items() if count == 0]:
            self.give_way(id)
        for id in [id for id in self.posted if id not in self._local_vendors]:
            posted = self.posted.pop(id)
            self._leave(posted.cell, id, Leaving(posted.versions, gone=False, unplace=False))
        self._unplaced.intersection_update(self._local_vendors.sockets)

    # its task

    async def run(self) -> None:
        """Flush what is marked, for ever."""
        loop = asyncio.get_running_loop()
        self._membership.heard_one()
        while True:
            if self._retry or self._leaving or self._gone or self._bequeathed:
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY):
                        await self._wake.wait()
            else:
                await self._wake.wait()
            self._wake.clear()
            started = loop.time()
            count = len(self._dirty)
            await self.flush()
            # While a node is away a flush gives way to nobody, and what it could not do may wake the next one at once.
            least = self._flush_gap if self._retry or self._leaving else min(self._flush_gap, count * 0.005)
            self.next = started + least
            await asyncio.sleep(max(least - (loop.time() - started), 0))
            if self._membership.alone:
                # Whoever joins says so, and is told at once.
                self.next = started + self._alone_gap
                await self._membership.company(max(self._alone_gap - (loop.time() - started), 0))

    async def flush(self) -> None:
        """Write and publish what changed; what could not be is kept for the next time."""
        dirty, self._dirty = self._dirty, {}
        retry, self._retry = self._retry, {}
        for vendor_id, parts in retry.items():
            dirty[vendor_id] = dirty.get(vendor_id, 0) | parts
        try:
            await self._write(dirty)
        except BaseException:
            for vendor_id, parts in dirty.items():
                self.mark(vendor_id, parts)
            raise

    # inside

    async def _write(self, dirty: dict[str, int]) -> None:
        if dirty:
            await self._membership.introduce()
        claims = [id for id, parts in dirty.items() if parts & Part.CLAIM and id in self._local_vendors]
        seen = await self._adopt(claims) if claims else {}
        moved = await self._place(dirty, seen)
        flush = Flush()
        for id, parts in dirty.items():
            self._take(flush, id, parts, moved)
        for at, entries in self._leaving.items():
            if self._nodes.answers(channel(at)):
                flush.drop(at, entries, self._index)
        bequeathed = tuple(self._bequeathed.items())
        for _, (vendor, _) in bequeathed:
            flush.roam.add(vendor, Part.FIX, store=False)
        gone = tuple(self._gone)
        flush.roam.gone += gone
        if unfound := [id for id in gone if not any(id in entries for entries in self._leaving.values())]:
            await self._drop_unfound(unfound)
        commands = list(flush.commands(self._index.me, self._marks))
        if not commands:
            return
        failed: set[int] = set()
        answers = await self._nodes.run([command for _, command in commands])
        for (at, command), answer in zip(commands, answers, strict=True):
            if refused(answer):
                failed.add(at)
                if not isinstance(answer, Unavailable):
                    log.error("redis refused a write", cause=str(answer), key=command.key)
            elif command.words[1] is WRITE:
                self._remember(at, answer)
        self._settle(failed, flush)
        if ROAMING not in failed:
            self._gone.difference_update(gone)
            now = asyncio.get_running_loop().time()
            for id, bequest in bequeathed:
                if bequest[1] <= now and self._bequeathed.get(id) is bequest:
                    del self._bequeathed[id]
        await self._unplace(failed, flush)

    def _take(self, flush: Flush, vendor_id: str, parts: int, moved: dict[str, int]) -> None:
        """Have a flush tell of a vendor, or see that a later one does; `moved`: cells that were told just now."""
        vendor = self._tellable(vendor_id)
        if vendor is None:
            return
        at = parent(vendor.cell, BUS_LEVEL)
        posted = self.posted.get(vendor_id)
        if vendor_id in moved:
            if moved[vendor_id] != at:
                if moved[vendor_id] != OUTDATED:
                    # It moved on meanwhile, perhaps back: what it was before in any cell is on its way out.
                    self.posted[vendor_id] = Posted(moved[vendor_id], versions_of(vendor), sure=False)
                self._again_later(vendor_id, Part.ALL)
                return
            parts = Part.ALL
        elif posted is None or posted.cell != at:
            self.mark(vendor_id, parts)
            return
        if self._nodes.answers(channel(at)):
            flush.tell(at, vendor, parts)
        else:
            self._again_later(vendor_id, parts)

    async def _drop_unfound(self, vendor_ids: list[str]) -> None:
        """Vendors that were deleted, but not written by this process: they may be where another one left them."""
        values = await self._nodes.run([Command(place_key(id), ("GET", place_key(id))) for id in vendor_ids])
        for id, value in zip(vendor_ids, values, strict=True):
            spot = None if refused(value) else placed(value)
            if spot is not None:
                self._leave(spot.cell, id, Leaving(ANY_VERSION, gone=True, unplace=True))

    async def _unplace(self, failed: set[int], flush: Flush) -> None:
        """Forget the places of vendors that left the map."""
        commands = []
        for at, entries in flush.leaving.items():
            for id, entry in entries.items():
                if entry.unplace and at not in failed:
                    key, owner = place_key(id), "" if entry.gone else self._index.me
                    commands.append(Command(key, ("EVAL", UNPLACE, 1, key, entry.versions.fix, owner)))
        await self._nodes.run(commands)

    def _settle(self, failed: set[int], flush: Flush) -> None:
        """Book what a flush did, and keep what it could not do."""
        for at, states in flush.told.items():
            for id, (parts, versions) in states.items():
                if id in self._local_vendors:
                    # Also where it failed: what was asked for may have been done.
                    self.posted[id] = Posted(at, versions, sure=at not in failed)
                    if at in failed:
                        self._again_later(id, parts)
                else:
                    # Let go, departed or deleted while this was on its way.
                    self._leave(at, id, Leaving(versions, gone=False, unplace=False))
        for at, entries in flush.leaving.items():
            held = self._leaving.get(at)
            if at in failed or held is None:
                continue
            for id, entry in entries.items():
                if held.get(id) is entry:
                    del held[id]
            if not held:
                del self._leaving[at]
        if ROAMING in failed:
            for id in flush.roaming:
                self._again_later(id, Part.PRESENCE)

    def _tellable(self, vendor_id: str) -> Vendor | None:
        """A vendor of this process of which there is something to tell: where it is, and what its card shows."""
        vendor = self._index.vendors.get(vendor_id)
        if vendor is None or vendor.timestamp < 0 or vendor.card.version < 0 or vendor_id not in self._local_vendors:
            return None
        return vendor

    def _again_later(self, vendor_id: str, parts: int) -> None:
        self._retry[vendor_id] = self._retry.get(vendor_id, 0) | parts

    def _leave(self, at: int, vendor_id: str, entry: Leaving) -> None:
        """Have an entry dropped, now or when its node is there again."""
        self._leaving.setdefault(at, {})[vendor_id] = entry
        self._wake.set()

    def _remember(self, at: int, mark: bytes) -> None:
        """The mark of a cell written to: if it is another one than before, the rest is written anew."""
        known = self._marks.get(at)
        self._marks[at] = mark
        if known is not None and known != mark:
            log.warning("redis forgot a cell; its vendors are written anew", cell=cell_name(at))
            for id, posted in self.posted.items():
                if posted.cell == at:
                    self.mark(id, Part.ALL)

    async def _adopt(self, vendor_ids: list[str]) -> dict[str, bytes]:
        """Learn where vendors that this process begins to serve were, and go on from there if they are still live.

        Gives what their places are, unless a living process said so: it is about to write there what is newer.
        One whose place can't be asked is looked for again later.
        """
        seen: dict[str, tuple[bytes, str]] = {}
        by_cell: dict[int, list[str]] = {}
        values = await self._nodes.run([Command(place_key(id), ("GET", place_key(id))) for id in vendor_ids])
        for id, value in zip(vendor_ids, values, strict=True):
            if refused(value):
                self._unplaced.add(id)
                continue
            spot = placed(value)
            if spot is not None:
                seen[id] = (value, spot.owner)
                by_cell.setdefault(spot.cell, []).append(id)
        commands, asked = [], []
        for at, ids in by_cell.items():
            for start in range(0, len(ids), CHUNK):
                some = ids[start : start + CHUNK]
                fields = [name + id.encode() for id in some for name in Registers.NAMES]
                commands.append(Command(positions_key(at), ("HMGET", positions_key(at), *fields)))
                asked.append((at, some))
        found: list[tuple[str, int, Registers]] = []
        for (at, some), answer in zip(asked, await self._nodes.run(commands, "read"), strict=True):
            for number, id in enumerate(some):
                if refused(answer):
                    self._unplaced.add(id)
                else:
                    found.append((id, at, Registers(*answer[number * 4 : number * 4 + 4])))
        owners = {owner for _, _, registers in found if (owner := registers.owner()) is not None}
        await self._membership.hear_of(owners | {owner for _, owner in seen.values()})
        now, local_vendors, index = self._clock(), self._local_vendors, self._index
        for id, at, registers in found:
            if id not in local_vendors or registers.fix is None:
                continue
            self.posted.setdefault(id, Posted(at, registers.versions()))
            if (registers.last(self._membership.heard_at) or 0) > now - self._membership.lasts:
                registers.put(index, now)
                if local_vendors.sockets[id] > 0:
                    if index.vendors[id].presence.owner != index.me:
                        local_vendors.claim(id, now)  # its newest connection is here, whatever another's clock says
                else:
                    self.give_way(id)
        self._changed()
        return {id: value for id, (value, owner) in seen.items() if owner == index.me or self._membership.silent(owner)}

    async def _place(self, dirty: dict[str, int], seen: dict[str, bytes]) -> dict[str, int]:
        """Tell where vendors are that moved to another cell or process; gives their cells as told."""
        told: dict[str, int] = {}
        commands: list[Command] = []
        vendors: list[Vendor] = []
        for id, parts in dirty.items():
            vendor = self._tellable(id)
            if vendor is None:
                continue
            at = parent(vendor.cell, BUS_LEVEL)
            posted = self.posted.get(id)
            if posted is None or posted.cell != at or parts & Part.CLAIM:
                told[id] = at
                vendors.append(vendor)
                key = place_key(id)
                value = place(vendor.timestamp, at, self._index.me)
                commands.append(Command(key, ("EVAL", PLACE, 1, key, value, seen.get(id) or b"", AT_TTL)))
        if not commands:
            return told
        states = [(vendor.timestamp, versions_of(vendor)) for vendor in vendors]
        answers = await self._nodes.run(commands)
        for vendor, (timestamp, versions), answer in zip(vendors, states, answers, strict=True):
            id = vendor.vendor_id
            at = told[id]
            if refused(answer):
                # Its place is told once that node is there; those who watch its cell need not wait.
                self._unplaced.add(id)
                spot = None
            else:
                spot = placed(answer)
                if spot is not None and spot.timestamp > timestamp and answer != seen.get(id):
                    told[id] = OUTDATED
                    self._again_later(id, Part.ALL)
                    self._wake.set()
                    continue
            entries = self._leaving.get(at)
            if entries is not None and entries.pop(id, None) is not None and not entries:
                del self._leaving[at]
            posted = self.posted.get(id)
            for old in {spot and spot.cell, posted and posted.cell} - {None, at}:
                assert old is not None
                self._leave(old, id, Leaving(versions, gone=False, unplace=False))
        return told
