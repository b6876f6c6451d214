"""Redis between the processes: publish what this one's vendors do, hear of the others', keep where everyone is now.

`registers.py` says what is kept where, `nodes.py` how it gets there. What makes every map true, whatever fails:

- Stored, then published; subscribed, then read: nothing falls between. Who was heard to leave during a read stays away.
- After a gap cells are read again and their watchers get snapshots; this process's vendors are written anew.
- A vendor has one place. Who takes it over or moves it drops the old entry; who hears of a newer one elsewhere yields.
- What is not done yet (an old entry to drop, a vendor to write) is kept until it is; a node that is away stops only
  what is on it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from math import inf
from typing import Any, NamedTuple

import orjson
import structlog

from streamer.errors import Unavailable
from streamer.fleet import Fleet, Part
from streamer.geo import BUS_LEVEL, bus_cell, cell_name, named_cell, parent
from streamer.live import Card, LiveIndex, Presence, Vendor
from streamer.nodes import Command, Node, Nodes, refused
from streamer.registers import (
    ALWAYS,
    ANY_VERSION,
    AT_TTL,
    CELL_TTL,
    DROP,
    MARK,
    OWNERS,
    OWNERS_TTL,
    PLACE,
    READ,
    ROAM,
    UNPLACE,
    WRITE,
    CellBatch,
    Registers,
    Versions,
    cells_key,
    channel,
    once_key,
    place,
    place_key,
    placed,
    positions_key,
    versions_of,
)
from streamer.tally import Tally

log = structlog.get_logger()

REFRESH = 3600.0
"""Seconds between two full rewrites of this process's vendors; below every TTL of what they keep alive."""
ALIVE = 2.0
"""Seconds between two signs of life of a process, at most."""
SILENT = 3
"""After so many missed signs of life a process is doubted: vendors with a socket open here are taken over."""
LINGER = 30.0
"""Seconds for which a cell nobody watches any more is still heard: a customer pans back."""
GRACE = 10.0
"""Seconds in which the others rewrite their vendors when Redis forgot what it held."""
RETRY = 0.5
"""Seconds until what a node did not take is tried again."""
BEQUEATHED = 3.0
"""Seconds for which the last fix of a vendor that was left to another process is told: it may just not hear."""
ALONE_AFTER = SILENT * ALIVE
"""Seconds without a word from another process after which this one takes itself for the only one."""
ALONE_GAP = 2.0
"""Seconds between two flushes of the only process: nobody hears them but who starts later, and reads."""
SWEEP = 60.0
CHUNK = 400
"""Vendors in one EVAL: Lua's stack bounds how many arguments it can unpack."""
SCAN = 1000
"""Registers asked for at a time."""
ROUND = 16
"""Cells read at the same time."""
ROAMING = -1
"""In place of a cell: what is said to all."""
OUTDATED = -1
"""In place of a cell: another process knows of a newer fix."""
SLICE = 500
"""Vendors taken into the index before the event loop gets its turn."""


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


class Reading:
    """A cell being read; who is heard of meanwhile is known better by that."""

    __slots__ = ("cursor", "found", "heard", "left", "mark")

    def __init__(self) -> None:
        self.cursor: bytes | int = 0
        self.mark: bytes | None = None
        self.found: dict[str, Registers] = {}
        self.heard: set[str] = set()
        self.left: dict[str, int] = {}

    def again(self) -> None:
        """Begin anew: a cursor means nothing to another node, or to the same one after a restart."""
        self.cursor, self.mark = 0, None
        self.found.clear()

    def take(self, answer: Sequence[Any]) -> bool:
        """A part of the cell; tells whether it was the last."""
        self.cursor, flat = answer
        found = self.found
        for field, value in zip(flat[::2], flat[1::2], strict=True):
            if field == MARK:
                continue
            id = field[1:].decode()
            registers = found.get(id)
            if registers is None:
                registers = found[id] = Registers()
            registers.take(field[:1], value)
        return int(self.cursor) == 0


class Bus:
    """This process's side of Redis.

    `changed()` is called when the index changed; `gap(cells, vendor_ids)` when changes in these cells, or of these
    listed vendors, may have been missed; `deleted(vendor_id)` when another process found a vendor of this one deleted.
    """

    def __init__(
        self,
        url: str,
        index: LiveIndex,
        clock: Callable[[], int],
        *,
        changed: Callable[[], None],
        gap: Callable[[frozenset[int], frozenset[str]], None],
        deleted: Callable[[str], None] = lambda _: None,
        timeout: float = 2.0,
        flush_gap: float = 0.15,
        alone_after: float = ALONE_AFTER,
        alone_gap: float = ALONE_GAP,
        linger: float = LINGER,
        grace: float = GRACE,
        tally: Tally | None = None,
    ) -> None:
        self.url = url
        self.index = index
        self.fleet = Fleet(index, self.mark, changed)
        self.gaps = 0
        self.linger = linger
        self.grace = grace
        self._clock = clock
        self._changed = changed
        self._gap = gap
        self._deleted = deleted
        self._timeout = timeout
        self._flush_gap = flush_gap
        self.next = 0.0
        """When a change that comes now can first be told to the others, in the loop's time; may have passed."""
        self._alone_after = alone_after
        self._alone_gap = alone_gap
        self._alive = min(ALIVE, index.offline_after / 5000)
        self._lasts = index.offline_after + index.leave_after
        self._mine = orjson.dumps([index.me])[:-1]
        self._nodes = Nodes(
            url,
            heard=self._hear,
            subscribed=self._subscribed,
            answered=self._answered,
            turned=self._turned,
            reshaped=self._reshaped,
            timeout=timeout,
            tally=tally,
        )
        # writing
        self._dirty: dict[str, int] = {}
        self._retry: dict[str, int] = {}
        self._unplaced: set[str] = set()
        self._gone: set[str] = set()
        # left to another process, which may not know of their last fix here; and until when that is told
        self._bequeathed: dict[str, tuple[Vendor, float]] = {}
        self._posted: dict[str, Posted] = {}
        self._leaving: dict[int, dict[str, Leaving]] = {}
        self._marks: dict[int, bytes] = {}
        self._known = False
        self._wake = asyncio.Event()
        # Until when, in the loop's time, others are taken to be there; and that one was heard.
        self._company_until = inf
        self._company = asyncio.Event()
        self._alive_wake = asyncio.Event()
        # hearing and reading
        self._roaming = False
        self._cells: dict[int, Listened] = {}
        self._named: dict[bytes, int] = {}
        self._to_load: set[int] = set()
        self._readings: dict[int, Reading] = {}
        self._gapped: set[int] = set()
        self._again: set[int] = set()
        # who was not in the cell that was read, and the timestamp it was known by
        self._missing: dict[str, tuple[int, int]] = {}
        self._recheck: dict[int, float] = {}
        self._load_wake = asyncio.Event()
        self._listed: dict[str, int] = {}
        self._followed: dict[str, int] = {}
        self._to_follow: set[str] = set()

    @property
    def up(self) -> bool:
        """Whether all of Redis answers and is heard."""
        return self._nodes.cause is None

    @property
    def cause(self) -> str | None:
        """Why not, None when it is."""
        return self._nodes.cause

    # what the process's vendors do

    def mark(self, vendor_id: str, parts: int) -> None:
        """A part of a vendor's state changed: it is written with the next flush."""
        self._dirty[vendor_id] = self._dirty.get(vendor_id, 0) | parts
        self._wake.set()

    def mark_gone(self, vendor_id: str) -> None:
        """A vendor was deleted: take it off every process's map."""
        self._forget(vendor_id)
        self._gone.add(vendor_id)
        self._wake.set()

    def departed(self, vendor_ids: Iterable[str]) -> None:
        """Vendors left the map by time; their entries in Redis are not needed any more."""
        for vendor_id in vendor_ids:
            if self.fleet.departed(vendor_id):
                posted = self._posted.pop(vendor_id, None)
                if posted is not None:
                    self._leave(posted.cell, vendor_id, Leaving(posted.versions, gone=False, unplace=True))

    async def once(self, vendor_ids: Sequence[str], every: int) -> dict[str, int]:
        """Which of these did something, on whatever process, less than `every` ms ago: ms until they may again.

        The others may, and are remembered as having done it now; so are those whose Redis is away, by nobody.
        """
        commands: list[Command] = []
        for vendor_id in vendor_ids:
            key = once_key(vendor_id)
            commands.append(Command(key, ("SET", key, self.index.me, "NX", "PX", every)))
            commands.append(Command(key, ("PTTL", key)))
        answers = await self._nodes.run(commands) if commands else []
        return {
            vendor_id: int(left)
            for vendor_id, done, left in zip(vendor_ids, answers[::2], answers[1::2], strict=True)
            if done is None and type(left) is int and left > 0
        }

    # what its watchers need

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

    @property
    def pending(self) -> int:
        """Vendors of which something is still to be written."""
        return len(self._dirty.keys() | self._retry.keys()) + sum(map(len, self._leaving.values()))

    @property
    def cells(self) -> frozenset[int]:
        """The bus cells that this process hears."""
        return frozenset(self._cells)

    # its tasks, to be supervised by the owner

    def tasks(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """The loops that keep the bus going, by name."""
        return {
            "bus-nodes": self._nodes.keep,
            "bus-flush": self._flush_loop,
            "bus-load": self._load_loop,
            "bus-alive": self._alive_loop,
            "bus-reap": self._reap_loop,
        }

    async def close(self) -> None:
        """Say what is left to say, and let go of all connections."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._flush()
        await self._nodes.close()

    async def probe(self) -> None:
        """Unavailable unless all of Redis answers."""
        if (cause := self._nodes.cause) is not None:
            raise Unavailable(f"Redis does not answer: {cause}")

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Carry out another part's commands, between our own; an exception for each answer that did not come."""
        return await self._nodes.run(commands)

    # writing

    async def _flush_loop(self) -> None:
        loop = asyncio.get_running_loop()
        self._in_company()
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
            await self._flush()
            # While a node is away a flush gives way to nobody, and what it could not do may wake the next one at once.
            least = self._flush_gap if self._retry or self._leaving else min(self._flush_gap, count * 0.005)
            self.next = started + least
            await asyncio.sleep(max(least - (loop.time() - started), 0))
            if loop.time() > self._company_until:
                # Whoever joins says so, and is told at once.
                self._company.clear()
                self.next = started + self._alone_gap
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(self._alone_gap - (loop.time() - started), 0)):
                        await self._company.wait()

    def _in_company(self) -> None:
        """Another process is there, or could be without being heard."""
        self._company_until = asyncio.get_running_loop().time() + self._alone_after
        self._company.set()

    async def _flush(self) -> None:
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

    async def _write(self, dirty: dict[str, int]) -> None:
        fleet, index, nodes = self.fleet, self.index, self._nodes
        if not self._known and dirty:
            # Before its vendors: who reads of a process that was never heard of takes it for dead. And if Redis forgets
            # what comes after this, it has forgotten this too.
            (added,) = await nodes.run([Command(ROAM, ("ZADD", OWNERS, self._clock(), index.me))])
            self._known = not refused(added)
        claims = [id for id, parts in dirty.items() if parts & Part.CLAIM and id in fleet]
        seen = await self._adopt(claims) if claims else {}
        moved = await self._place(dirty, seen)
        batches: dict[int, CellBatch] = {}
        told: dict[int, dict[str, tuple[int, Versions]]] = {}
        roam = CellBatch()
        roaming: list[str] = []
        for id, parts in dirty.items():
            vendor = self._tellable(id)
            if vendor is None:
                continue
            at = parent(vendor.cell, BUS_LEVEL)
            posted = self._posted.get(id)
            if id in moved:
                if moved[id] != at:
                    if moved[id] != OUTDATED:
                        # It moved on meanwhile, perhaps back: what it was before in any cell is on its way out.
                        self._posted[id] = Posted(moved[id], versions_of(vendor), sure=False)
                    self._again_later(id, Part.ALL)
                    continue
                parts = Part.ALL
            elif posted is None or posted.cell != at:
                self.mark(id, parts)
                continue
            if not nodes.answers(channel(at)):
                self._again_later(id, parts)
                continue
            (batches.get(at) or batches.setdefault(at, CellBatch())).add(vendor, parts)
            told.setdefault(at, {})[id] = (parts, versions_of(vendor))
            if parts & Part.PRESENCE:
                roam.add(vendor, Part.ALL, store=False)
                roaming.append(id)
        leaving = {at: dict(entries) for at, entries in self._leaving.items() if nodes.answers(channel(at))}
        for at, entries in leaving.items():
            batch = batches.get(at) or batches.setdefault(at, CellBatch())
            for id, entry in entries.items():
                vendor = index.vendors.get(id)
                if entry.gone:
                    batch.gone.append(id)
                elif vendor is not None and vendor.timestamp >= 0 and vendor.card.version >= 0:
                    batch.add(vendor, Part.ALL, store=False)
        bequeathed = tuple(self._bequeathed.items())
        for _, (vendor, _) in bequeathed:
            roam.add(vendor, Part.FIX, store=False)
        gone = tuple(self._gone)
        roam.gone += gone
        if unfound := [id for id in gone if not any(id in entries for entries in self._leaving.values())]:
            await self._drop_unfound(unfound)
        commands: list[Command] = []
        of: list[int] = []
        for at, batch in batches.items():
            key = positions_key(at)
            if at in told and at not in self._marks:
                commands.append(Command(ROAM, ("SADD", cells_key(index.me), cell_name(at))))
                of.append(ROAMING)
            for start in range(0, len(batch.fields), CHUNK * 2):
                fields = batch.fields[start : start + CHUNK * 2]
                commands.append(Command(key, ("EVAL", WRITE, 1, key, CELL_TTL, new_mark(), *fields)))
            drops = [word for id, entry in leaving.get(at, {}).items() for word in (id, *entry.versions)]
            for start in range(0, len(drops), CHUNK * 4):
                commands.append(Command(key, ("EVAL", DROP, 1, key, *drops[start : start + CHUNK * 4])))
            # Stored before it is published: who subscribes and then reads misses nothing.
            if batch.says():
                commands.append(Command(channel(at), ("SPUBLISH", channel(at), batch.message(index.me))))
            of += [at] * (len(commands) - len(of))
        if roam.says():
            commands.append(Command(ROAM, ("SPUBLISH", ROAM, roam.message(index.me))))
            of.append(ROAMING)
        if not commands:
            return
        failed: set[int] = set()
        for at, command, answer in zip(of, commands, await nodes.run(commands), strict=True):
            if refused(answer):
                failed.add(at)
                if not isinstance(answer, Unavailable):
                    log.error("redis refused a write", cause=str(answer), key=command.key)
            elif command.words[1] is WRITE:
                self._remember(at, answer)
        self._settle(failed, told, leaving)
        if ROAMING in failed:
            for id in roaming:
                self._again_later(id, Part.PRESENCE)
        else:
            self._gone.difference_update(gone)
            now = asyncio.get_running_loop().time()
            for id, bequest in bequeathed:
                if bequest[1] <= now and self._bequeathed.get(id) is bequest:
                    del self._bequeathed[id]
        await self._unplace(failed, leaving)

    async def _drop_unfound(self, vendor_ids: list[str]) -> None:
        """Vendors that were deleted, but not written by this process: they may be where another one left them."""
        values = await self._nodes.run([Command(place_key(id), ("GET", place_key(id))) for id in vendor_ids])
        for id, value in zip(vendor_ids, values, strict=True):
            spot = None if refused(value) else placed(value)
            if spot is not None:
                self._leave(spot.cell, id, Leaving(ANY_VERSION, gone=True, unplace=True))

    async def _unplace(self, failed: set[int], leaving: dict[int, dict[str, Leaving]]) -> None:
        """Forget the places of vendors that left the map."""
        commands = []
        for at, entries in leaving.items():
            for id, entry in entries.items():
                if entry.unplace and at not in failed:
                    key, owner = place_key(id), "" if entry.gone else self.index.me
                    commands.append(Command(key, ("EVAL", UNPLACE, 1, key, entry.versions.fix, owner)))
        await self._nodes.run(commands)

    def _settle(
        self,
        failed: set[int],
        told: dict[int, dict[str, tuple[int, Versions]]],
        leaving: dict[int, dict[str, Leaving]],
    ) -> None:
        """Book what a flush did, and keep what it could not do."""
        for at, states in told.items():
            for id, (parts, versions) in states.items():
                if id in self.fleet:
                    # Also where it failed: what was asked for may have been done.
                    self._posted[id] = Posted(at, versions, sure=at not in failed)
                    if at in failed:
                        self._again_later(id, parts)
                else:
                    # Let go, departed or deleted while this was on its way.
                    self._leave(at, id, Leaving(versions, gone=False, unplace=False))
        for at, entries in leaving.items():
            held = self._leaving.get(at)
            if at in failed or held is None:
                continue
            for id, entry in entries.items():
                if held.get(id) is entry:
                    del held[id]
            if not held:
                del self._leaving[at]

    def _tellable(self, vendor_id: str) -> Vendor | None:
        """A vendor of this process of which there is something to tell: where it is, and what its card shows."""
        vendor = self.index.vendors.get(vendor_id)
        if vendor is None or vendor.timestamp < 0 or vendor.card.version < 0 or vendor_id not in self.fleet:
            return None
        return vendor

    def _again_later(self, vendor_id: str, parts: int) -> None:
        self._retry[vendor_id] = self._retry.get(vendor_id, 0) | parts

    def _leave(self, at: int, vendor_id: str, entry: Leaving) -> None:
        """Have an entry dropped, now or when its node is there again."""
        self._leaving.setdefault(at, {})[vendor_id] = entry
        self._wake.set()

    def _forget(self, vendor_id: str) -> None:
        """A vendor was deleted: its entry goes, whatever is in it."""
        self._dirty.pop(vendor_id, None)
        self._retry.pop(vendor_id, None)
        self._bequeathed.pop(vendor_id, None)
        posted = self._posted.pop(vendor_id, None)
        if posted is not None:
            self._leave(posted.cell, vendor_id, Leaving(ANY_VERSION, gone=True, unplace=True))
        for reading in self._readings.values():
            reading.left[vendor_id] = int(ALWAYS)

    def _remember(self, at: int, mark: bytes) -> None:
        """The mark of a cell written to: if it is another one than before, the rest is written anew."""
        known = self._marks.get(at)
        self._marks[at] = mark
        if known is not None and known != mark:
            log.warning("redis forgot a cell; its vendors are written anew", cell=cell_name(at))
            for id, posted in self._posted.items():
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
        await self._hear_of(owners | {owner for _, owner in seen.values()})
        now, fleet, index = self._clock(), self.fleet, self.index
        for id, at, registers in found:
            if id not in fleet or registers.fix is None:
                continue
            self._posted.setdefault(id, Posted(at, registers.versions()))
            if (registers.last(self._heard_at) or 0) > now - self._lasts:
                registers.put(self.index, now)
                if fleet.sockets[id] > 0:
                    if self.index.vendors[id].presence.owner != self.index.me:
                        fleet.claim(id, now)  # its newest connection is here, whatever another's clock says
                else:
                    self._yield(id)
        self._changed()
        return {id: value for id, (value, owner) in seen.items() if owner == index.me or self._silent(owner)}

    def _serve(self, vendor_id: str, now: int) -> None:
        """Another process told of this one's vendor: go on serving it, or don't."""
        vendor = self.index.vendors.get(vendor_id)
        if vendor is None:
            return
        owner, ended = vendor.presence.owner, vendor.presence.ended
        if owner != self.index.me and (ended or self._silent(owner)):
            self.fleet.reclaim(vendor_id, now)
        self._yield(vendor_id)

    def _yield(self, vendor_id: str) -> None:
        """Leave a vendor to the process that has its newest connection or HTTP ping, if no socket is open here."""
        if self.fleet.superseded(vendor_id):
            vendor = self.index.vendors[vendor_id]
            self.fleet.let_go(vendor_id)
            unsaid = self._dirty.pop(vendor_id, 0) | self._retry.pop(vendor_id, 0)
            posted = self._posted.pop(vendor_id, None)
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
            self._left_what_is_heard(vendor)

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
            posted = self._posted.get(id)
            if posted is None or posted.cell != at or parts & Part.CLAIM:
                told[id] = at
                vendors.append(vendor)
                key = place_key(id)
                value = place(vendor.timestamp, at, self.index.me)
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
            posted = self._posted.get(id)
            for old in {spot and spot.cell, posted and posted.cell} - {None, at}:
                assert old is not None
                self._leave(old, id, Leaving(versions, gone=False, unplace=False))
        return told

    # hearing

    def _hear(self, name: bytes, data: bytes) -> None:
        if data.startswith(self._mine):
            return
        try:
            origin, fixes, cards, presences, https, gone = orjson.loads(data)
        except ValueError as bad:
            log.error("a message of another version is not understood", channel=name, cause=str(bad))
            return
        self._in_company()
        now = self._clock()
        index = self.index
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
                if id in self.fleet:
                    self.mark(id, Part.FIX)  # who left it may have said so without writing it
                elif here != at:
                    if id in self._listed:
                        self._follow_to(id, here)
                    self._left_what_is_heard(vendors[id])
            if reading is not None:
                reading.heard.add(id)
                if bus_cell(lat, long) != at:
                    reading.left[id] = max(timestamp, reading.left.get(id, 0))
        for id in gone:
            self._hear_gone(id)
        self._changed()

    def _left_what_is_heard(self, vendor: Vendor) -> None:
        """Of a vendor that went where this process does not listen, it would hear nothing more."""
        if parent(vendor.cell, BUS_LEVEL) not in self._cells:
            self.index.remove(vendor.vendor_id)
            self._changed()

    def _hear_gone(self, vendor_id: str) -> None:
        self._forget(vendor_id)
        if vendor_id in self.fleet:
            self.fleet.delete(vendor_id)
            self._deleted(vendor_id)
        else:
            self.index.remove(vendor_id)

    def _hear_roam(
        self, fixes: list[Any], cards: list[Any], presences: list[Any], https: list[Any], gone: list[str], now: int
    ) -> None:
        index, fleet = self.index, self.fleet
        for id in gone:
            self._hear_gone(id)
        mine = [fix[0] for fix in fixes if fix[0] in fleet]
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
            posted = self._posted.get(id)
            if id in fleet and (told != here or (posted is not None and posted.cell != here)):
                # Another process moved it, and what is written here is outdated; or that one's is, and must yield.
                self.mark(id, Part.ALL)
            elif id in fleet and newer:
                self.mark(id, Part.FIX)  # said to all, but maybe not yet written and told where it is
        for id in mine:
            self._serve(id, now)
        self._changed()

    # reading

    async def _load_loop(self) -> None:
        """Read cells once their channels are subscribed, follow listed vendors, and let idle cells go."""
        loop = asyncio.get_running_loop()
        swept = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(1.0, self.linger, self.grace)):
                    await self._load_wake.wait()
            self._load_wake.clear()
            now = loop.time()
            for at in [at for at, when in self._recheck.items() if when <= now]:
                del self._recheck[at]
                if at in self._cells:
                    self._to_load.add(at)
            await self._read()
            self._let_go(loop.time())
            if now - swept > SWEEP:
                swept = now
                self._sweep()

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
        index = self.index
        await self._hear_of({owner for held in reading.found.values() if (owner := held.owner()) is not None})
        listened = self._cells.get(at)
        if listened is None or self._readings.get(at) is not reading:
            return
        stale: list[bytes] = []
        for number, (id, registers) in enumerate(reading.found.items()):
            if number % SLICE == SLICE - 1:
                self._changed()
                await asyncio.sleep(0)
                if self._cells.get(at) is not listened or self._readings.get(at) is not reading:
                    return
            if reading.left.get(id, -1) >= registers.timestamp():
                continue
            now = self._clock()
            last = registers.last(self._heard_at)
            if last is not None and last + self._lasts <= now:
                stale += (id.encode(), *registers.versions())
                continue
            registers.put(index, now)
            vendor = index.vendors.get(id)
            if vendor is not None and id not in self.fleet and vendor.timestamp >= 0:
                self._left_what_is_heard(vendor)
        del self._readings[at]
        self._look_for_missing(at, listened, reading)
        for id in listened.early:
            vendor = index.vendors.get(id)
            if vendor is not None and vendor.timestamp < 0 and id not in self.fleet:
                index.remove(id)
        listened.early.clear()
        if listened.loaded and at in self._gapped:
            self._again.add(at)
        listened.loaded = True
        listened.ready.set()
        self._gapped.discard(at)
        self._changed()
        if stale:
            key = positions_key(at)
            await self._nodes.run(
                [
                    Command(key, ("EVAL", DROP, 1, key, *stale[start : start + CHUNK * 4]))
                    for start in range(0, len(stale), CHUNK * 4)
                ],
                "read",
            )

    def _look_for_missing(self, at: int, listened: Listened, reading: Reading) -> None:
        """Who is in the index but not in Redis left, unless Redis forgot the cell: then it may be written anew yet."""
        missing = [
            vendor
            for vendor in self.index.in_bus_cell(at)
            if vendor.vendor_id not in reading.found
            and vendor.vendor_id not in reading.heard
            and vendor.vendor_id not in self.fleet
        ]
        if listened.loaded and listened.mark != reading.mark:
            listened.mark = reading.mark
            listened.doubtful = True
            self._recheck[at] = asyncio.get_running_loop().time() + self.grace
            return
        listened.mark = reading.mark
        if listened.doubtful:
            # Its process had the time to write it; one that is silent can't, and its vendors leave by time.
            listened.doubtful = False
            missing = [v for v in missing if v.presence.owner and not self._silent(v.presence.owner)]
        self._missing.update((vendor.vendor_id, (at, vendor.timestamp)) for vendor in missing)

    def _close_gap(self) -> None:
        """All that could be read again was: who was found nowhere left, and who watches there gets a snapshot."""
        missing, self._missing = self._missing, {}
        for id, (at, timestamp) in missing.items():
            vendor = self.index.vendors.get(id)
            if (
                vendor is not None
                and vendor.timestamp == timestamp  # else it was heard of since: it came back
                and id not in self.fleet
                and parent(vendor.cell, BUS_LEVEL) == at
                and self._followed.get(id, at) == at
            ):
                self.index.remove(id)
                self._changed()
        if self._again:
            again, self._again = frozenset(self._again), set()
            self._gap(again, frozenset(id for id, at in self._followed.items() if at in again))

    async def _hear_of(self, owners: Iterable[str]) -> None:
        """Learn when processes not heard of yet gave their last sign of life; one that can't be asked for, just now."""
        unknown = [owner for owner in owners if owner != self.index.me and owner not in self.index.owners]
        if not unknown:
            return
        (heard,) = await self._nodes.run([Command(OWNERS, ("ZMSCORE", OWNERS, *unknown))], "read")
        now = self._clock()
        scores = [now] * len(unknown) if refused(heard) else heard
        for owner, at in zip(unknown, scores, strict=True):
            self.index.owner_heard(owner, min(int(float(at or 0)), now), now)

    def _heard_at(self, owner: str) -> int:
        """A process's last sign of life, epoch ms."""
        if owner == self.index.me:
            return self._clock()
        known = self.index.owners.get(owner)
        return 0 if known is None else known.heard

    def _silent(self, owner: str) -> bool:
        """Whether a process has missed signs of life, as far as can be told while Redis is there."""
        return not self.index.frozen and self._heard_at(owner) + self._alive * SILENT * 1000 < self._clock()

    async def _find(self, vendor_ids: list[str]) -> bool:
        """Begin to hear the cells in which listed vendors are; False when that can't be known now."""
        complete = True
        places = await self._nodes.run([Command(place_key(id), ("GET", place_key(id))) for id in vendor_ids], "read")
        for id, value in zip(vendor_ids, places, strict=True):
            if refused(value):
                complete = False
                continue
            spot = placed(value)
            vendor = self.index.vendors.get(id)
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
            self._load_wake.set()

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

    def _let_go(self, now: float) -> None:
        idle = [
            at
            for at, c in self._cells.items()
            if c.refs == 0 and c.idle_since is not None and now - c.idle_since > self.linger
        ]
        for at in idle:
            del self._cells[at], self._named[channel(at)]
            self._nodes.drop(channel(at))
            self._to_load.discard(at)
            self._gapped.discard(at)
            self._readings.pop(at, None)
            self._recheck.pop(at, None)
        for at in idle:
            for vendor in self.index.in_bus_cell(at):
                if vendor.vendor_id not in self.fleet:
                    self.index.remove(vendor.vendor_id)

    def _sweep(self) -> None:
        """Let go of what late messages and a vendor's change of process can leave behind."""
        early = {id for listened in self._cells.values() for id in listened.early}
        strays = [
            id
            for id, vendor in self.index.vendors.items()
            if id not in self.fleet
            and id not in early
            and (vendor.timestamp < 0 or parent(vendor.cell, BUS_LEVEL) not in self._cells)
        ]
        for id in strays:
            self.index.remove(id)
        for id in [id for id, count in self.fleet.sockets.items() if count == 0]:
            self._yield(id)
        for id in [id for id in self._posted if id not in self.fleet]:
            posted = self._posted.pop(id)
            self._leave(posted.cell, id, Leaving(posted.versions, gone=False, unplace=False))
        self._unplaced.intersection_update(self.fleet.sockets)

    # signs of life

    async def _alive_loop(self) -> None:
        """Give a sign of life, and rewrite all vendors before what Redis holds of them ends."""
        loop = asyncio.get_running_loop()
        refreshed = loop.time()
        hello = CellBatch().message(self.index.me)
        while True:
            added, *_ = await self._nodes.run(
                [
                    Command(ROAM, ("ZADD", OWNERS, self._clock(), self.index.me)),
                    Command(ROAM, ("EXPIRE", OWNERS, OWNERS_TTL)),
                    Command(ROAM, ("EXPIRE", cells_key(self.index.me), OWNERS_TTL)),
                    Command(ROAM, ("SPUBLISH", ROAM, hello)),
                ]
            )
            if not refused(added):
                if added and self._known:
                    log.warning("redis forgot this process; its vendors are written anew")
                    self._write_anew()
                self._known = True
            if loop.time() - refreshed > REFRESH:
                refreshed = loop.time()
                await self._nodes.run([Command(ROAM, ("DEL", cells_key(self.index.me)))])
                self._write_anew()
            self._doubt()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._alive):
                    await self._alive_wake.wait()
            self._alive_wake.clear()

    def _write_anew(self) -> None:
        self._known = False
        self._marks.clear()
        self._unplaced.clear()
        for vendor_id in self.fleet.sockets:
            self.mark(vendor_id, Part.ALL)

    def _doubt(self) -> None:
        """Take over from silent processes the vendors that have a socket open here too."""
        now = self._clock()
        for name, owner in self.index.owners.items():
            if name != self.index.me and owner.vendors and self._silent(name):
                for vendor in tuple(owner.vendors):
                    self.fleet.reclaim(vendor.vendor_id, now)

    async def _reap_loop(self) -> None:
        """Clean up after processes that are dead for so long that all their vendors have left the map."""
        while True:
            await asyncio.sleep(min(30.0, self._lasts / 4000))
            latest = self._clock() - self._lasts - 1000
            (dead,) = await self._nodes.run([Command(ROAM, ("ZRANGEBYSCORE", OWNERS, "-inf", latest, "LIMIT", 0, 1))])
            if refused(dead) or not dead:
                continue
            # One of the others does it if it is not there any more.
            (removed,) = await self._nodes.run([Command(ROAM, ("ZREM", OWNERS, dead[0]))])
            if not refused(removed) and removed:
                await self._reap(dead[0].decode())

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
        await self._hear_of({owner for held in reading.found.values() if (owner := held.owner()) is not None})
        latest = self._clock() - self._lasts
        stale = [
            word
            for id, held in reading.found.items()
            if (last := held.last(self._heard_at)) is not None and last <= latest
            for word in (id.encode(), *held.versions())
        ]
        dropped = 0
        for start in range(0, len(stale), CHUNK * 4):
            (count,) = await self._nodes.run(
                [Command(key, ("EVAL", DROP, 1, key, *stale[start : start + CHUNK * 4]))], "read"
            )
            dropped += 0 if refused(count) else count
        return dropped

    # what the nodes tell

    def _subscribed(self, name: bytes) -> None:
        at = self._named.get(name)
        if at is not None:
            if self._cells[at].loaded:
                self._gapped.add(at)
            self._to_load.add(at)
            self._load_wake.set()
        elif name == ROAM:
            self._unfreeze()

    def _unfreeze(self) -> None:
        """Signs of life are heard (again): nobody is given up for what was not heard meanwhile."""
        self.index.pardon(self._clock())
        self.index.frozen = False
        if self._roaming:
            self._to_follow.update(self._listed)
            self._load_wake.set()
            self._write_anew()
        self._roaming = True

    def _answered(self, node: Node) -> None:
        """A node answers (again): what it holds may be gone or old."""
        self._load_wake.set()
        self._alive_wake.set()
        self._write_anew()
        self._want_all()

    def _turned(self, node: Node) -> None:
        self._in_company()
        if node.link.up:
            return
        if self._cells or self._roaming:
            self.gaps += 1
        if node is self._nodes.of(ROAM):
            self.index.frozen = True
        log.warning("a gap in what is heard of other processes", cause=node.link.cause)

    def _reshaped(self) -> None:
        self._want_all()
        self._load_wake.set()
        unplaced, self._unplaced = self._unplaced, set()
        for id in unplaced:
            self.mark(id, Part.ALL)

    def _want_all(self) -> None:
        for name in (ROAM, *self._named):
            self._nodes.want(name)


def new_mark() -> str:
    """A mark for a cell that Redis does not hold yet."""
    return secrets.token_hex(6)
