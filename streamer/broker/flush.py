"""One flush: collects what to write, drop and publish, by cell."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

from streamer.broker.membership import drop_commands
from streamer.broker.redis_connections import Command
from streamer.broker.redis_schema import (
    BROADCAST,
    CELL_TTL,
    CHUNK,
    WRITE,
    CellBatch,
    Versions,
    cells_key,
    channel,
    new_epoch,
    positions_key,
    versions_of,
)
from streamer.geo.grid import cell_name
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import Part
from streamer.live.vendor import Vendor

EVERYWHERE = -1
"""Used in place of a cell for broadcasts to all processes."""


class Dropping(NamedTuple):
    """An entry to drop from a cell unless it is newer than `versions`.

    `gone`: the vendor was deleted and leaves every map. `unplace`: its place is deleted as well.
    """

    versions: Versions
    gone: bool = False
    unplace: bool = False


class Flush:
    """Writes, drops and messages by cell, and the broadcasts, that are sent together."""

    __slots__ = ("_batches", "_last", "broadcast_ids", "dropping", "written")

    def __init__(self) -> None:
        self.written: dict[int, dict[str, tuple[int, Versions]]] = {}
        """By cell and vendor: the parts to write, and their versions."""
        self.dropping: dict[int, dict[str, Dropping]] = {}
        self.broadcast_ids: list[str] = []
        """Vendors whose presence is broadcast."""
        self._batches: dict[int, list[CellBatch]] = {}
        self._last: dict[int, CellBatch] = {}

    def broadcast(self) -> CellBatch:
        """The batch that takes the next broadcast vendor."""
        return self._batch(EVERYWHERE)

    def write(self, at: int, vendor: Vendor, parts: int) -> None:
        """Writes parts of a vendor into its cell; a change of its presence is broadcast."""
        self._batch(at).add(vendor, parts)
        self.written.setdefault(at, {})[vendor.vendor_id] = (parts, versions_of(vendor))
        if parts & Part.PRESENCE:
            self.broadcast().add(vendor, Part.ALL, store=False)
            self.broadcast_ids.append(vendor.vendor_id)

    def drop(self, at: int, entries: Mapping[str, Dropping], index: LiveIndex) -> None:
        """Drops a cell's entries; its subscribers receive the vendors' new positions or deletions."""
        self.dropping[at] = dict(entries)
        for id, entry in entries.items():
            vendor = index.vendors.get(id)
            if entry.gone:
                self._batch(at).add_gone(id)
            elif vendor is not None and vendor.timestamp >= 0 and vendor.card.version >= 0:
                self._batch(at).add(vendor, Part.ALL, store=False)

    def commands(self, me: str, known: Container[int]) -> Iterator[tuple[int, Command]]:
        """The commands, each with its cell or EVERYWHERE; `known`: cells already in this process's set in Redis."""
        for at in dict.fromkeys((*self._batches, *self.dropping)):
            if at == EVERYWHERE:
                continue
            key, batches = positions_key(at), self._batches.get(at, ())
            if at in self.written and at not in known:
                yield EVERYWHERE, Command(BROADCAST, ("SADD", cells_key(me), cell_name(at)))
            for batch in batches:
                if batch.fields:
                    yield at, Command(key, ("EVAL", WRITE, 1, key, CELL_TTL, new_epoch(), *batch.fields))
            drops = [word for id, entry in self.dropping.get(at, {}).items() for word in (id, *entry.versions)]
            for command in drop_commands(at, drops):
                yield at, command
            # Stored before it is published: a process that subscribes and then reads misses nothing.
            for batch in batches:
                yield at, Command(channel(at), ("SPUBLISH", channel(at), batch.message(me)))
        for batch in self._batches.get(EVERYWHERE, ()):
            yield EVERYWHERE, Command(BROADCAST, ("SPUBLISH", BROADCAST, batch.message(me)))

    def _batch(self, at: int) -> CellBatch:
        """The last batch, or a new one if that is full: a receiver handles a message without yielding to others."""
        batch = self._last.get(at)
        if batch is None or batch.vendors >= CHUNK:
            batch = self._last[at] = CellBatch()
            self._batches.setdefault(at, []).append(batch)
        return batch
