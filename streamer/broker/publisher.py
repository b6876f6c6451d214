"""Writes and publishes the changes of this process's vendors.

Pending work (entries to drop, vendors to write) is kept until it is done. A node that is down stops only work on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

import structlog

from streamer.broker.context import Context
from streamer.broker.flush import EVERYWHERE, Dropping, Flush
from streamer.broker.membership import Membership
from streamer.broker.placement import OUTDATED, Entry, Placement
from streamer.broker.redis_connections import Answer, Command, refused
from streamer.broker.redis_schema import ANY_VERSION, WRITE, Versions, channel, versions_of
from streamer.cadence import Cadence
from streamer.errors import Unavailable
from streamer.geo.grid import BUS_LEVEL, cell_name, parent
from streamer.live.fix import Fix
from streamer.live.local_vendors import Part
from streamer.live.vendor import Vendor

log = structlog.get_logger()

T = TypeVar("T")

RETRY = 0.5
"""Seconds until failed writes are retried."""
HANDOVER = 3.0
"""Seconds for which the last fix of a handed-over vendor is broadcast, as its new process may miss a message."""


TURN = 250
"""Vendors after which a flush yields to the event loop: about a millisecond."""
SWEPT = 2000
"""Vendors after which a sweep yields, which has nothing to do for most: about a millisecond."""


class Publisher:
    """Flushes marked vendors at the configured pace, or every `alone_gap` seconds while there is no other process."""

    def __init__(self, context: Context, membership: Membership) -> None:
        self._context = context
        self._cadence = Cadence(context.config.pace, context.config.utilisation)
        self._nodes = context.nodes
        self._index = context.index
        self._local_vendors = context.local_vendors
        self._membership = membership
        self._dirty: dict[str, int] = {}
        self._retry: dict[str, int] = {}
        self._gone: set[str] = set()
        self._handed_over: dict[str, tuple[Fix, float]] = {}
        """Fixes of handed-over vendors, and the loop's time until which they are broadcast to the new process."""
        self._epochs: dict[int, bytes] = {}
        """The epochs of the cells that this process wrote to, and added to its set in Redis."""
        self._wake = asyncio.Event()
        self.placement = Placement(context, membership, self._wake)

    @property
    def pending(self) -> int:
        """The number of vendors with pending writes."""
        return len(self._dirty.keys() | self._retry.keys()) + sum(map(len, self.placement.dropping.values()))

    def mark(self, vendor_id: str, parts: int) -> None:
        """Marks parts of a vendor's state for the next flush."""
        self._dirty[vendor_id] = self._dirty.get(vendor_id, 0) | parts
        self._wake.set()

    def mark_gone(self, vendor_id: str) -> None:
        """Removes a deleted vendor from the maps of all processes."""
        self.forget(vendor_id)
        self._gone.add(vendor_id)
        self._wake.set()

    def drop_expired(self, vendor_ids: Iterable[str]) -> None:
        """Drops the entries of local vendors that expired."""
        for vendor_id in vendor_ids:
            if self._local_vendors.release_expired(vendor_id):
                entry = self.placement.entries.pop(vendor_id, None)
                if entry is not None:
                    self.placement.drop(entry.cell, vendor_id, Dropping(entry.versions, unplace=True))

    def forget(self, vendor_id: str) -> None:
        """Drops the entry of a deleted vendor, whatever its version."""
        self._dirty.pop(vendor_id, None)
        self._retry.pop(vendor_id, None)
        self._handed_over.pop(vendor_id, None)
        entry = self.placement.entries.pop(vendor_id, None)
        if entry is not None:
            self.placement.drop(entry.cell, vendor_id, Dropping(ANY_VERSION, gone=True, unplace=True))

    def keep_or_release(self, vendor_id: str, now: int) -> None:
        """Keeps or releases a local vendor after another process published it."""
        vendor = self._index.vendors.get(vendor_id)
        if vendor is None:
            return
        owner, ended = vendor.presence.owner, vendor.presence.ended
        if owner != self._index.me and (ended or self._membership.silent(owner)):
            self._local_vendors.take_over(vendor_id, now)
        self.release_superseded(vendor_id)

    def release_superseded(self, vendor_id: str) -> None:
        """Releases a vendor to the process with its newest connection or HTTP ping, if no socket is open here."""
        if not self._local_vendors.superseded(vendor_id):
            return
        vendor = self._index.vendors[vendor_id]
        self._local_vendors.release(vendor_id)
        unpublished = self._dirty.pop(vendor_id, 0) | self._retry.pop(vendor_id, 0)
        entry = self.placement.entries.pop(vendor_id, None)
        # A vendor that waits to be written again may be lost in Redis.
        known = (
            entry is not None
            and entry.sure
            and entry.versions.fix >= versions_of(vendor).fix
            and not unpublished & Part.FIX
        )
        if vendor.timestamp >= 0 and not known:
            self.broadcast_fix(vendor_id, vendor.fix)
        if entry is not None and entry.cell != parent(vendor.cell, BUS_LEVEL):
            self.placement.drop(entry.cell, vendor_id, Dropping(entry.versions))
        self._context.remove_unheard(vendor)

    def broadcast_fix(self, vendor_id: str, fix: Fix) -> None:
        """Broadcasts a fix that arrived here to the process that serves the vendor."""
        self._handed_over[vendor_id] = (fix, asyncio.get_running_loop().time() + HANDOVER)
        self._wake.set()

    def republish(self) -> None:
        """Writes all vendors again, as Redis may have lost them."""
        self._epochs = {}  # a flush in progress keeps to the old ones: what it wrote may be lost, too
        self.placement.unplaced.clear()
        for vendor_id in self._local_vendors.sockets:
            self.mark(vendor_id, Part.ALL)

    def retry_places(self) -> None:
        """Writes the vendors again whose place could not be read or written."""
        unplaced, self.placement.unplaced = self.placement.unplaced, set()
        for vendor_id in unplaced:
            self.mark(vendor_id, Part.ALL)

    async def sweep(self) -> None:
        """Drops entries that a vendor's change of process can leave behind."""
        for some in turns(list(self._local_vendors.sockets), SWEPT):
            for id in some:
                if self._local_vendors.sockets.get(id) == 0:
                    self.release_superseded(id)
            await asyncio.sleep(0)
        for some in turns([*self.placement.entries, *self.placement.unplaced], SWEPT):
            self.placement.sweep(some)
            await asyncio.sleep(0)

    # task

    async def run(self) -> None:
        """Flushes marked vendors until cancelled."""
        loop = asyncio.get_running_loop()
        config, placement = self._context.config, self.placement
        self._membership.assume_others()
        while True:
            if self._retry or placement.dropping or self._gone or self._handed_over:
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY):
                        await self._wake.wait()
            else:
                await self._wake.wait()
            self._wake.clear()
            started = loop.time()
            await self._cadence.round(self.flush())
            # While a node is down, a flush never suspends, and its failed writes may wake the next one at once.
            failing = self._retry or placement.dropping
            await asyncio.sleep(config.pace.ceiling if failing else self._cadence.wait())
            if self._membership.alone:
                # A new process announces itself, which triggers an immediate publish.
                await self._membership.wait_for_other(max(config.alone_gap - (loop.time() - started), 0))

    async def flush(self) -> None:
        """Writes and publishes changes; failed writes are kept for the next flush."""
        dirty, self._dirty = self._dirty, {}
        retry, self._retry = self._retry, {}
        for vendor_id, parts in retry.items():
            dirty[vendor_id] = dirty.get(vendor_id, 0) | parts
        try:
            await self._flush(dirty)
        except BaseException:
            for vendor_id, parts in dirty.items():
                self.mark(vendor_id, parts)
            raise

    async def _flush(self, dirty: dict[str, int]) -> None:
        placed = await self._place(dirty) if dirty else {}
        flush = Flush()
        for number, (id, parts) in enumerate(dirty.items(), 1):
            self._collect(flush, id, parts, placed)
            if number % TURN == 0:
                await asyncio.sleep(0)
        for at, entries in self.placement.dropping.items():
            if self._nodes.answers(channel(at)):
                flush.drop(at, entries, self._index)
        handed_over = tuple(self._handed_over.items())
        for id, (fix, _) in handed_over:
            flush.broadcast().add_fix(id, fix)
        gone = tuple(self._gone)
        for id in gone:
            flush.broadcast().add_gone(id)
        await self.placement.drop_unknown(gone)
        epochs = self._epochs
        commands = list(flush.commands(self._index.me, epochs))
        if not commands:
            return
        answers = await self._nodes.run([command for _, command in commands])
        failed = self._failed(commands, answers, epochs)
        self._record_outcome(flush, failed)
        if EVERYWHERE not in failed:
            self._gone.difference_update(gone)
            now = asyncio.get_running_loop().time()
            for id, handover in handed_over:
                if handover[1] <= now and self._handed_over.get(id) is handover:
                    del self._handed_over[id]
        await self.placement.unplace(flush, failed)

    async def _place(self, dirty: dict[str, int]) -> dict[str, int]:
        """Adopts the vendors this process begins to serve, and places those that moved to another cell."""
        await self._membership.announce()
        claims = [id for id, parts in dirty.items() if parts & Part.CLAIM and id in self._local_vendors]
        found: dict[str, bytes] = {}
        for some in turns(claims, TURN):
            found |= await self.placement.adopt(some)
            for id in some:
                self.release_superseded(id)
            self._context.handler.on_index_changed()
            await asyncio.sleep(0)
        moved = []
        for id, parts in dirty.items():
            vendor = self._publishable(id)
            if vendor is not None:
                entry = self.placement.entries.get(id)
                if entry is None or entry.cell != parent(vendor.cell, BUS_LEVEL) or parts & Part.CLAIM:
                    moved.append(id)
        placed: dict[str, int] = {}
        for some in turns(moved, TURN):
            vendors = {id: vendor for id in some if (vendor := self._publishable(id)) is not None}
            placed |= await self.placement.place(vendors, found)
            await asyncio.sleep(0)
        return placed

    def _collect(self, flush: Flush, vendor_id: str, parts: int, placed: dict[str, int]) -> None:
        """Adds a vendor to this flush, or keeps it for a later one; `placed`: the cells written in this flush."""
        vendor = self._publishable(vendor_id)
        if vendor is None:
            return
        at = parent(vendor.cell, BUS_LEVEL)
        entry = self.placement.entries.get(vendor_id)
        if vendor_id in placed:
            if placed[vendor_id] != at:
                if placed[vendor_id] != OUTDATED:
                    # It moved again meanwhile, perhaps back, so its older entries in any cell must be dropped.
                    self.placement.entries[vendor_id] = Entry(placed[vendor_id], versions_of(vendor), sure=False)
                self._retry_later(vendor_id, Part.ALL)
                return
            parts = Part.ALL
        elif entry is None or entry.cell != at:
            self.mark(vendor_id, parts)
            return
        if self._nodes.answers(channel(at)):
            flush.write(at, vendor, parts)
        else:
            self._retry_later(vendor_id, parts)

    def _failed(self, commands: list[tuple[int, Command]], answers: list[Answer], epochs: dict[int, bytes]) -> set[int]:
        """Returns the cells of which a command failed; records the epochs of the cells that were written.

        A new epoch means that Redis lost the cell: all of it is written again.
        """
        failed: set[int] = set()
        lost: set[int] = set()
        for (at, command), answer in zip(commands, answers, strict=True):
            if refused(answer):
                failed.add(at)
                if not isinstance(answer, Unavailable):
                    log.error("redis refused a write", cause=str(answer), key=command.key)
            elif command.words[1] is WRITE:
                if epochs.get(at, answer) != answer:
                    log.warning("redis lost a cell; its vendors are written again", cell=cell_name(at))
                    lost.add(at)
                epochs[at] = answer
        if lost:
            for id, entry in self.placement.entries.items():
                if entry.cell in lost:
                    self.mark(id, Part.ALL)
        return failed

    def _record_outcome(self, flush: Flush, failed: set[int]) -> None:
        """Records a flush's successful writes, and keeps the failed ones."""
        for at, vendors in flush.written.items():
            for id, (parts, versions) in vendors.items():
                if id in self._local_vendors:
                    # Also after a failure, as the command may have been carried out.
                    self.placement.entries[id] = Entry(at, versions, sure=at not in failed)
                    if at in failed:
                        self._retry_later(id, parts)
                elif not self._written_by_other(id, at, versions):
                    # Released, expired or deleted during the write.
                    self.placement.drop(at, id, Dropping(versions))
        for at, entries in flush.dropping.items():
            if at not in failed:
                self.placement.dropped(at, entries)
        if EVERYWHERE in failed:
            for id in flush.broadcast_ids:
                self._retry_later(id, Part.PRESENCE)

    def _written_by_other(self, vendor_id: str, at: int, versions: Versions) -> bool:
        """Whether another process writes the same versions into the same cell: both adopted the vendor at once."""
        vendor = self._index.vendors.get(vendor_id)
        return vendor is not None and parent(vendor.cell, BUS_LEVEL) == at and versions_of(vendor) == versions

    def _publishable(self, vendor_id: str) -> Vendor | None:
        """A vendor of this process whose position and card are known."""
        vendor = self._index.vendors.get(vendor_id)
        if vendor is None or vendor.timestamp < 0 or vendor.card.version < 0 or vendor_id not in self._local_vendors:
            return None
        return vendor

    def _retry_later(self, vendor_id: str, parts: int) -> None:
        """Schedules parts of a vendor for a later flush."""
        self._retry[vendor_id] = self._retry.get(vendor_id, 0) | parts


def turns(items: list[T], size: int) -> Iterator[list[T]]:
    """Returns the items in parts of a size, between which the caller yields to the event loop."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
