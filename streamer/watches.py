"""A watch's way into the live index: hear its cells first, then take the snapshot, so that nothing falls between."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from streamer import live, protocol
from streamer.bus import Bus
from streamer.geo import bus_cover
from streamer.live import LiveIndex, Vendor, ViewKey


class Watches:
    """All watches of this process, by the bus cells or vendors they need."""

    def __init__(self, index: LiveIndex, bus: Bus, clock: Callable[[], int]) -> None:
        self._index = index
        self._bus = bus
        self._clock = clock
        self._needs: dict[live.Watch, tuple[frozenset[int], frozenset[str]]] = {}

    def __len__(self) -> int:
        return len(self._needs)

    async def open(self, watch: live.Watch, wanted: protocol.Watch) -> None:
        """Start a watch or move it; its snapshot is written as soon as its cells are heard."""
        before = self._needs.get(watch)
        cells = bus_cover(wanted.area) if wanted.area is not None else frozenset()
        listed = wanted.vendors or frozenset()
        self._needs[watch] = (cells, listed)
        # Taken before the old ones are let go: what both need is heard without a break.
        # What is not heard in time comes as updates once it is.
        await self._bus.acquire(cells)
        if listed:
            await self._bus.follow(listed)
        if before is not None:
            self._release(before)
        watch.interval = wanted.interval
        self._index.watch(watch, ViewKey(wanted.area, wanted.vendors, wanted.open), self._clock())

    def close(self, watch: live.Watch) -> None:
        """End a watch."""
        needs = self._needs.pop(watch, None)
        if needs is not None:
            self._release(needs)
        self._index.unwatch(watch)

    def gap(self, cells: frozenset[int]) -> None:
        """What happened in these cells may have been missed: their watchers get snapshots."""
        self._index.resnapshot(
            [watch for watch, (needed, _) in self._needs.items() if not cells.isdisjoint(needed)], self._clock()
        )

    async def members(self, wanted: protocol.Watch) -> list[Vendor]:
        """The vendors that a watch would show now."""
        cells = bus_cover(wanted.area) if wanted.area is not None else frozenset[int]()
        listed: Iterable[str] = wanted.vendors or ()
        await self._bus.acquire(cells)
        try:
            if listed:
                await self._bus.follow(listed)
            return self._index.members(ViewKey(wanted.area, wanted.vendors, wanted.open))
        finally:
            self._bus.release(cells)
            if listed:
                self._bus.unfollow(listed)

    def _release(self, needs: tuple[frozenset[int], frozenset[str]]) -> None:
        cells, listed = needs
        self._bus.release(cells)
        self._bus.unfollow(listed)
