"""Opens watches: subscribes to their cells first, then takes the snapshot, so that no change is missed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from streamer.broker.broker import Broker
from streamer.errors import ErrorCode, ProtocolError
from streamer.geo.grid import bus_cover
from streamer.geo.shapes import Polygon
from streamer.live import watch as live_watch
from streamer.live.counts import CountsKey, counts_key
from streamer.live.index import PART, POLYGON_TESTS, LiveIndex
from streamer.live.vendor import Vendor
from streamer.live.view import ViewKey
from streamer.live.visibility import Visibility
from streamer.protocol import messages

MOST_COUNTED = 64
"""Maximum number of a client's simultaneous `counts` watches and reads: an eighth of a process's limit."""


class Needs(NamedTuple):
    """The broker cells and listed vendors that a watch depends on."""

    cells: frozenset[int]
    listed: frozenset[str]


def needs_of(wanted: messages.Watch) -> Needs:
    """Returns what a watch depends on."""
    if wanted.area is None:
        return Needs(frozenset(), wanted.vendors or frozenset())
    return shared_needs(bus_cover(wanted.area))


@lru_cache(1024)
def shared_needs(cells: frozenset[int]) -> Needs:
    """Returns the same object for the same cells, as all watches in a town share a few."""
    return Needs(cells, frozenset())


def key_of(wanted: messages.Watch) -> CountsKey:
    """Returns the key of a `counts` watch."""
    assert wanted.area is not None
    assert wanted.detail is not None
    return counts_key(wanted.area, wanted.detail, wanted.open)


class Subscriptions:
    """All watches of this process, by the broker cells or vendors they depend on."""

    def __init__(self, index: LiveIndex, broker: Broker, clock: Callable[[], int]) -> None:
        self._index = index
        self._broker = broker
        self._clock = clock
        self._needs: dict[live_watch.Watch, Needs] = {}
        self._counted: dict[live_watch.Watch, tuple[CountsKey, str | None]] = {}
        """The key and client of each `counts` watch."""
        self._counts_of: Counter[str] = Counter()

    @property
    def visibility(self) -> Visibility:
        """The rules of which vendors customers see."""
        return self._index.visibility

    def __len__(self) -> int:
        return len(self._needs) + len(self._counted)

    async def open(self, watch: live_watch.Watch, wanted: messages.Watch, client: str | None = None) -> None:
        """Starts a watch or moves it; its snapshot is written as soon as its cells are subscribed.

        Raises:
            ProtocolError: `client` watches too many counts.
        """
        if wanted.detail is not None:
            await self._open_counts(watch, wanted, client)
            return
        needs = needs_of(wanted)
        # The new cells are held before the old ones are released, so cells in both stay subscribed.
        self._broker.hold(*needs)
        try:
            # Vendors of cells that are not ready in time follow as updates.
            await self._broker.ready(*needs)
            if isinstance(wanted.area, Polygon):
                # Its cover on the fine grid and the snapshot may take several more milliseconds.
                await asyncio.sleep(0)
        except BaseException:
            self._broker.release(*needs)
            raise
        before = self._needs.get(watch)
        self._needs[watch] = needs
        if before is not None:
            self._broker.release(*before)
        self._close_counts(watch)
        watch.interval = wanted.interval
        self._index.watch(watch, ViewKey(wanted.area, wanted.vendors, wanted.open), self._clock())

    async def _open_counts(self, watch: live_watch.Watch, wanted: messages.Watch, client: str | None) -> None:
        key = key_of(wanted)
        before = self._counted.get(watch)
        if before is None:
            self._count(client)
        try:
            await self._broker.counts.open(watch, key, wanted.interval)
        except BaseException:
            if before is None:
                self._uncount(client)
            raise
        self._counted[watch] = key, client if before is None else before[1]
        if before is not None:
            self._broker.counts.close(watch, before[0], moved=before[0] == key)
        needs = self._needs.pop(watch, None)
        if needs is not None:
            self._broker.release(*needs)
            self._index.unwatch(watch)

    def _close_counts(self, watch: live_watch.Watch) -> bool:
        counted = self._counted.pop(watch, None)
        if counted is None:
            return False
        self._broker.counts.close(watch, counted[0])
        self._uncount(counted[1])
        return True

    def _count(self, client: str | None) -> None:
        if client is not None:
            if self._counts_of[client] >= MOST_COUNTED:
                raise ProtocolError(
                    ErrorCode.TOO_MANY_WATCHES,
                    f"you already have {MOST_COUNTED} watches or reads of counts on this server: end one of them",
                )
            self._counts_of[client] += 1

    def _uncount(self, client: str | None) -> None:
        if client is not None:
            self._counts_of[client] -= 1
            if not self._counts_of[client]:
                del self._counts_of[client]

    async def groups(self, wanted: messages.Watch, client: str | None = None) -> list[messages.Group]:
        """Returns the groups that a `counts` watch would show now."""
        self._count(client)
        try:
            return await self._broker.counts.groups(key_of(wanted))
        finally:
            self._uncount(client)

    def close(self, watch: live_watch.Watch) -> None:
        """Ends a watch."""
        if self._close_counts(watch):
            return
        needs = self._needs.pop(watch, None)
        if needs is not None:
            self._broker.release(*needs)
        self._index.unwatch(watch)

    def gap(self, cells: frozenset[int], vendor_ids: frozenset[str]) -> None:
        """Sends new snapshots to the watches of these cells and listed vendors, as changes may have been missed."""
        self._index.resnapshot(
            [
                watch
                for watch, needs in self._needs.items()
                if not (cells.isdisjoint(needs.cells) and vendor_ids.isdisjoint(needs.listed))
            ]
        )

    async def vendor(self, vendor_id: str) -> tuple[Vendor | None, bool]:
        """Returns a vendor, visible to customers or not, and whether the look-up was complete, so None means absent."""
        needs = Needs(frozenset(), frozenset((vendor_id,)))
        self._broker.hold(*needs)
        try:
            complete = await self._broker.ready(*needs)
            return self._index.vendors.get(vendor_id), complete
        finally:
            self._broker.release(*needs)

    async def members(self, wanted: messages.Watch) -> tuple[list[Vendor], bool]:
        """Returns the vendors that a watch would show now, and whether the list is known to be complete."""
        needs = needs_of(wanted)
        self._broker.hold(*needs)
        try:
            complete = await self._broker.ready(*needs)
            key = ViewKey(wanted.area, wanted.vendors, wanted.open)
            found, rest = self._index.members(key)
            size = PART // POLYGON_TESTS if isinstance(wanted.area, Polygon) else PART
            while rest:
                await asyncio.sleep(0)
                some = rest[-size:]
                del rest[-size:]
                found += [vendor for vendor in some if key.holds(vendor)]
            return found, complete
        finally:
            self._broker.release(*needs)
