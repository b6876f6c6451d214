"""Tracks the cell of each local vendor's entry in Redis, and the entries that are still to be dropped.

A vendor has one place in Redis. The process that takes it over, or moves it to another cell, drops the old entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from streamer.broker.context import Context
from streamer.broker.flush import Dropping, Flush
from streamer.broker.membership import Membership
from streamer.broker.redis_cluster import Nodes
from streamer.broker.redis_connections import Command, refused
from streamer.broker.redis_schema import (
    ANY_VERSION,
    AT_TTL,
    CHUNK,
    PLACE,
    UNPLACE,
    Place,
    Registers,
    Versions,
    parse_place,
    place_key,
    place_value,
    positions_key,
    versions_of,
)
from streamer.geo.grid import BUS_LEVEL, parent
from streamer.live.vendor import Vendor

OUTDATED = -1
"""Used in place of a cell: another process has written a newer fix."""


class Entry(NamedTuple):
    """The cell and versions that this process wrote of a vendor; `sure`: Redis confirmed the write."""

    cell: int
    versions: Versions
    sure: bool = True


class Placement:
    """Entries and places of this process's vendors; sets `wake` when there is something to drop or to retry."""

    def __init__(self, context: Context, membership: Membership, wake: asyncio.Event) -> None:
        self.entries: dict[str, Entry] = {}
        """This process's vendors in Redis."""
        self.dropping: dict[int, dict[str, Dropping]] = {}
        """Entries to drop, by cell, as soon as their node is available."""
        self.unplaced: set[str] = set()
        """Vendors whose place could not be read or written."""
        self._nodes = context.nodes
        self._index = context.index
        self._local_vendors = context.local_vendors
        self._clock = context.clock
        self._membership = membership
        self._wake = wake

    def drop(self, at: int, vendor_id: str, entry: Dropping) -> None:
        """Schedules the drop of an entry."""
        self.dropping.setdefault(at, {})[vendor_id] = entry
        self._wake.set()

    def cancel_drop(self, at: int, vendor_id: str) -> None:
        """Cancels the scheduled drop of an entry."""
        entries = self.dropping.get(at)
        if entries is not None and entries.pop(vendor_id, None) is not None and not entries:
            del self.dropping[at]

    def dropped(self, at: int, entries: Mapping[str, Dropping]) -> None:
        """Removes dropped entries from the schedule; one that was added meanwhile stays."""
        held = self.dropping.get(at)
        if held is None:
            return
        for id, entry in entries.items():
            if held.get(id) is entry:
                del held[id]
        if not held:
            del self.dropping[at]

    def sweep(self, vendor_ids: Iterable[str]) -> None:
        """Drops the entries of vendors that another process serves by now."""
        for id in vendor_ids:
            if id in self._local_vendors:
                continue
            self.unplaced.discard(id)
            entry = self.entries.pop(id, None)
            if entry is not None:
                self.drop(entry.cell, id, Dropping(entry.versions))

    async def adopt(self, vendor_ids: Iterable[str]) -> dict[str, bytes]:
        """Merges the state that Redis holds of vendors that this process begins to serve.

        Returns:
            The places found, except those written by another live process: it is about to write a newer one.
        """
        found: dict[str, tuple[bytes, str]] = {}
        by_cell: dict[int, list[str]] = {}
        ids = list(vendor_ids)
        values = await self._nodes.run([Command(place_key(id), ("GET", place_key(id))) for id in ids])
        for id, value in zip(ids, values, strict=True):
            if refused(value):
                self.unplaced.add(id)
            elif (place := parse_place(value)) is not None:
                found[id] = (value, place.process)
                by_cell.setdefault(place.cell, []).append(id)
        read = await self._read_registers(by_cell)
        processes = {process for _, _, registers in read if (process := registers.process()) is not None}
        await self._membership.fetch_heartbeats(processes | {process for _, process in found.values()})
        self._merge(read)
        me, silent = self._index.me, self._membership.silent
        return {id: value for id, (value, process) in found.items() if process == me or silent(process)}

    async def _read_registers(self, by_cell: Mapping[int, list[str]]) -> list[tuple[str, int, Registers]]:
        commands, asked = [], []
        for at, ids in by_cell.items():
            for start in range(0, len(ids), CHUNK):
                some = ids[start : start + CHUNK]
                fields = [name + id.encode() for id in some for name in Registers.NAMES]
                commands.append(Command(positions_key(at), ("HMGET", positions_key(at), *fields)))
                asked.append((at, some))
        read: list[tuple[str, int, Registers]] = []
        for (at, some), answer in zip(asked, await self._nodes.run(commands, "read"), strict=True):
            if refused(answer):
                self.unplaced.update(some)
                continue
            for number, id in enumerate(some):
                read.append((id, at, Registers(*answer[number * 4 : number * 4 + 4])))
        return read

    def _merge(self, read: Iterable[tuple[str, int, Registers]]) -> None:
        now, local_vendors, index = self._clock(), self._local_vendors, self._index
        for id, at, registers in read:
            if id not in local_vendors or registers.fix is None:
                continue
            self.entries.setdefault(id, Entry(at, registers.versions()))
            last = registers.last_seen(self._membership.heard_at)
            if last is None or last + self._membership.vendor_ttl <= now:
                continue
            registers.put(index, now)
            if local_vendors.sockets[id] > 0 and index.vendors[id].presence.owner != index.me:
                # The newest connection is this process's, even if the other process's clock is ahead.
                local_vendors.claim(id, now)

    async def place(self, vendors: Mapping[str, Vendor], found: Mapping[str, bytes]) -> dict[str, int]:
        """Writes the places of vendors that moved to another cell or process.

        Args:
            vendors: the vendors that moved.
            found: places returned by `adopt`, which may be replaced even if they are newer.

        Returns:
            The cell written for each vendor, or OUTDATED.
        """
        commands: list[Command] = []
        cells: dict[str, int] = {}
        versions: dict[str, Versions] = {}
        for id, vendor in vendors.items():
            cells[id] = parent(vendor.cell, BUS_LEVEL)
            versions[id] = versions_of(vendor)
            key = place_key(id)
            value = place_value(versions[id].fix, cells[id], self._index.me)
            commands.append(Command(key, ("EVAL", PLACE, 1, key, value, found.get(id) or b"", AT_TTL)))
        answers = await self._nodes.run(commands) if commands else []
        for id, answer in zip(vendors, answers, strict=True):
            place = None
            if refused(answer):
                # The place is written once its node is available; the cell's watchers need not wait for it.
                self.unplaced.add(id)
            else:
                place = parse_place(answer)
                if place is not None and place.version > versions[id].fix and answer != found.get(id):
                    cells[id] = OUTDATED
                    self._wake.set()
                    continue
            self.cancel_drop(cells[id], id)
            entry = self.entries.get(id)
            for old in {place and place.cell, entry and entry.cell} - {None, cells[id]}:
                assert old is not None
                self.drop(old, id, Dropping(versions[id]))
        return cells

    async def unplace(self, flush: Flush, failed: set[int]) -> None:
        """Deletes the places of vendors that left the map."""
        commands = []
        for at, entries in flush.dropping.items():
            for id, entry in entries.items():
                if entry.unplace and at not in failed:
                    key, process = place_key(id), "" if entry.gone else self._index.me
                    commands.append(Command(key, ("EVAL", UNPLACE, 1, key, entry.versions.fix, process)))
        await self._nodes.run(commands)

    async def drop_unknown(self, vendor_ids: Iterable[str]) -> None:
        """Schedules the drop of deleted vendors from the cells where another process may have written them."""
        ids = [id for id in vendor_ids if not any(id in entries for entries in self.dropping.values())]
        for id, place in (await read_places(self._nodes, ids, "write")).items():
            if place is not None:
                self.drop(place.cell, id, Dropping(ANY_VERSION, gone=True, unplace=True))


async def read_places(nodes: Nodes, vendor_ids: Sequence[str], lane: str = "read") -> dict[str, Place | None]:
    """Returns the places of vendors, without those whose node does not answer."""
    commands = [Command(place_key(id), ("GET", place_key(id))) for id in vendor_ids]
    values = await nodes.run(commands, lane) if commands else []
    return {id: parse_place(value) for id, value in zip(vendor_ids, values, strict=True) if not refused(value)}
