"""Reads subscribed cells from Redis, initially and after every gap, and merges them into the index.

A cell is subscribed, then read, then merged, so no change is missed. A vendor that left the cell during the read, by a
message, is not put back. After a gap the watchers of a cell get snapshots once it is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from streamer.broker.context import Context, SubscribedCell
from streamer.broker.membership import Membership, drop_commands
from streamer.broker.redis_connections import Command, refused
from streamer.broker.redis_schema import ALWAYS, CELL_TTL, READ, SCAN, Reading, channel, new_epoch, positions_key
from streamer.geo.grid import BUS_LEVEL, parent
from streamer.live.vendor import Vendor

AT_ONCE = 16
"""Cells read at the same time."""
SLICE = 500
"""Vendors merged or removed before the task yields to the event loop."""
PAUSE = 0.1
"""Seconds to wait after a failed read."""


class CellReader:
    """Reads cells on request; sets `wake` when a cell is to be read.

    `followed`: the cells of the vendors that are watched by id.
    """

    def __init__(
        self, context: Context, membership: Membership, followed: Mapping[str, int], wake: asyncio.Event
    ) -> None:
        self.readings: dict[int, Reading] = {}
        """The reads in progress, by cell."""
        self.gone: dict[str, int] = {}
        """Deleted vendors, and when this process received the deletion, epoch ms."""
        self._context = context
        self._nodes = context.nodes
        self._index = context.index
        self._local_vendors = context.local_vendors
        self._clock = context.clock
        self._cells = context.cells
        self._membership = membership
        self._followed = followed
        self._wake = wake
        self._to_read: set[int] = set()
        self._gapped: set[int] = set()
        """Cells in which changes may have been missed; they are to be read again."""
        self._read_again: set[int] = set()
        """Cells that were read again after a gap: their watchers are to get snapshots."""
        self._missing: dict[str, tuple[int, int]] = {}
        """Vendors of the index that were missing in a cell that was read: the cell and the version in the index."""
        self._recheck: dict[int, float] = {}
        """The loop's time at which a cell that Redis lost is read again."""

    def read(self, at: int) -> None:
        """Schedules a read of a cell whose channel was just subscribed; after a gap, it is read again."""
        if self._cells[at].loaded:
            self._gapped.add(at)
        self._to_read.add(at)
        self._wake.set()

    def recheck(self, now: float) -> None:
        """Schedules another read of the cells that Redis lost, where one is due; `now`: the loop's time."""
        for at in [at for at, when in self._recheck.items() if when <= now]:
            del self._recheck[at]
            if at in self._cells:
                self._to_read.add(at)

    def forget(self, at: int) -> None:
        """Stops reading a cell."""
        self._to_read.discard(at)
        self._gapped.discard(at)
        self.readings.pop(at, None)
        self._recheck.pop(at, None)

    def forget_vendor(self, vendor_id: str) -> None:
        """Ignores what reads return of a deleted vendor: Redis and other processes may keep it a while longer."""
        self.gone[vendor_id] = self._clock()
        for reading in self.readings.values():
            reading.left[vendor_id] = int(ALWAYS)

    def sweep(self) -> None:
        """Forgets the vendors that were deleted so long ago that nobody keeps them."""
        now = self._clock()
        self.gone = {id: at for id, at in self.gone.items() if at + self._membership.vendor_ttl > now}

    def is_gone(self, vendor_id: str) -> bool:
        """Returns whether a vendor was deleted and not restored since."""
        if vendor_id in self._local_vendors:
            self.gone.pop(vendor_id, None)
        return vendor_id in self.gone

    def seen(self, vendor_id: str, at: int) -> None:
        """Records that a vendor was seen: a deleted vendor may have been restored."""
        if at > self.gone.get(vendor_id, at):
            del self.gone[vendor_id]

    async def read_some(self) -> bool:
        """Reads the next part of pending cells whose nodes answer; returns whether there is more."""
        for at in self._to_read:
            if at in self._cells:
                before = self.readings.pop(at, None)
                self.readings[at] = reading = Reading()
                if before is not None:
                    reading.heard, reading.left = before.heard, before.left
        self._to_read.clear()
        turn = [(at, reading) for at, reading in self.readings.items() if self._nodes.answers(channel(at))][:AT_ONCE]
        commands = []
        for at, reading in turn:
            # Moved to the end of the queue, so that a large cell does not delay small ones.
            self.readings[at] = self.readings.pop(at)
            key = positions_key(at)
            if reading.epoch is None:
                commands.append(Command(key, ("EVAL", READ, 1, key, CELL_TTL, new_epoch())))
            commands.append(Command(key, ("HSCAN", key, reading.cursor, "COUNT", SCAN)))
        answers = iter(await self._nodes.run(commands, "read"))
        failed = False
        for at, reading in turn:
            epoch = next(answers) if reading.epoch is None else reading.epoch
            part = next(answers)
            if refused(epoch) or refused(part):
                failed = True
                reading.restart()
                continue
            reading.epoch = epoch
            if reading.take(part) and self.readings.get(at) is reading:
                await self._merge(at, reading)
        more = bool(self._to_read) or any(self._nodes.answers(channel(at)) for at in self.readings)
        if not more or not self._gapped & self.readings.keys():
            self._close_gap()
        if failed:
            await asyncio.sleep(PAUSE)
        return more

    async def _merge(self, at: int, reading: Reading) -> None:
        """Merges a cell that was read, and records which vendors of the index were missing in it."""
        index = self._index
        await self._membership.fetch_heartbeats(reading.processes())
        cell = self._cells.get(at)
        if cell is None or self.readings.get(at) is not reading:
            return
        expired: list[str | bytes] = []
        for number, (id, registers) in enumerate(reading.found.items()):
            if number % SLICE == SLICE - 1:
                self._context.handler.on_index_changed()
                await asyncio.sleep(0)
                if self._cells.get(at) is not cell or self.readings.get(at) is not reading:
                    return
            if reading.left.get(id, -1) >= registers.version():
                continue
            now = self._clock()
            if id in self.gone:
                self.seen(id, registers.last_seen(lambda _: 0) or 0)
                if self.is_gone(id):
                    continue
            if self._membership.expired(registers, now):
                expired += (id, *registers.versions())
                continue
            registers.put(index, now)
            vendor = index.vendors.get(id)
            if vendor is not None and id not in self._local_vendors and vendor.timestamp >= 0:
                self._context.remove_unheard(vendor)
        del self.readings[at]
        self._note_missing(at, cell, reading)
        for id in cell.early:
            vendor = index.vendors.get(id)
            if vendor is not None and vendor.timestamp < 0 and id not in self._local_vendors:
                index.remove(id)
        cell.early.clear()
        if cell.loaded and at in self._gapped:
            self._read_again.add(at)
        cell.loaded = True
        cell.ready.set()
        self._gapped.discard(at)
        self._context.handler.on_index_changed()
        if expired:
            await self._nodes.run(list(drop_commands(at, expired)), "read")

    def _note_missing(self, at: int, cell: SubscribedCell, reading: Reading) -> None:
        """Records vendors of the index that are missing in Redis. They left, unless Redis lost the cell."""
        missing = [
            vendor
            for vendor in self._index.in_bus_cell(at)
            if vendor.vendor_id not in reading.found
            and vendor.vendor_id not in reading.heard
            and vendor.vendor_id not in self._local_vendors
        ]
        loop_now = asyncio.get_running_loop().time()
        if cell.loaded and cell.epoch != reading.epoch:
            cell.doubtful_until = loop_now + self._context.config.grace
        cell.epoch = reading.epoch
        if cell.doubtful_until is not None:
            over = cell.doubtful_until <= loop_now
            for vendor in missing:
                if self._abandoned(vendor, over):
                    # Otherwise only the processes that knew it would show it, until it expires.
                    self._local_vendors.adopt(vendor, self._clock())
            if not over:
                # The others are written again by their processes, or these turn out to be silent.
                self._recheck[at] = min(cell.doubtful_until, loop_now + self._membership.silence)
                return
            cell.doubtful_until = None
            missing = [vendor for vendor in missing if vendor.vendor_id not in self._local_vendors]
        self._missing.update((vendor.vendor_id, (at, vendor.fix.version)) for vendor in missing)

    def _abandoned(self, vendor: Vendor, over: bool) -> bool:
        """Whether no process will write a vendor again that Redis lost; `over`: all had time to do so."""
        # A ping over HTTP does not name its process.
        named = bool(vendor.presence.owner) and not vendor.http
        return (named or over) and self._membership.silent(vendor.presence.owner)

    def _close_gap(self) -> None:
        """Ends a gap after all reads: removes vendors that were in no cell, and requests snapshots."""
        missing, self._missing = self._missing, {}
        for id, (at, version) in missing.items():
            vendor = self._index.vendors.get(id)
            if (
                vendor is not None
                and vendor.fix.version == version  # otherwise a message brought it back since
                and id not in self._local_vendors
                and parent(vendor.cell, BUS_LEVEL) == at
                and self._followed.get(id, at) == at
            ):
                self._index.remove(id)
                self._context.handler.on_index_changed()
        if self._read_again:
            again, self._read_again = frozenset(self._read_again), set()
            self._context.handler.on_gap(again, frozenset(id for id, at in self._followed.items() if at in again))
