"""Receives the other processes' vendors for this process's watchers, and puts them into the index."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

import orjson

from streamer.broker.cell_reader import SLICE, CellReader
from streamer.broker.context import Context, SubscribedCell
from streamer.broker.membership import Membership
from streamer.broker.placement import read_places
from streamer.broker.publisher import RETRY, SWEPT, Publisher, turns
from streamer.broker.redis_schema import BROADCAST, channel, parse_message
from streamer.geo.grid import BUS_LEVEL, bus_cell, parent
from streamer.live.fix import Fix
from streamer.live.local_vendors import Part
from streamer.live.vendor import Card, Presence, Vendor

SWEEP_EVERY = 60.0


class Subscriber:
    """Subscribes to watched cells, and handles their messages."""

    def __init__(self, context: Context, membership: Membership, publisher: Publisher) -> None:
        self._context = context
        self._nodes = context.nodes
        self._index = context.index
        self._local_vendors = context.local_vendors
        self._clock = context.clock
        self._handler = context.handler
        self._membership = membership
        self._publisher = publisher
        self._own_origin = orjson.dumps([context.index.me])[:-1]
        self._cells = context.cells
        self._cell_of: dict[bytes, int] = {}
        self._listed: dict[str, int] = {}
        """The number of watches by the id of the watched vendor."""
        self._followed: dict[str, int] = {}
        """The cells in which these vendors are."""
        self._to_find: set[str] = set()
        self._wake = asyncio.Event()
        self.reader = CellReader(context, membership, self._followed, self._wake)

    @property
    def cells(self) -> frozenset[int]:
        """The broker cells that this process is subscribed to."""
        return frozenset(self._cells)

    # subscriptions

    def hold(self, cells: Iterable[int], vendor_ids: Iterable[str] = ()) -> None:
        """Subscribes to these cells, and to these vendors wherever they are, until `release`."""
        for at in cells:
            self._hold(at)
        for id in vendor_ids:
            self._listed[id] = self._listed.get(id, 0) + 1

    async def ready(self, cells: Iterable[int], vendor_ids: Iterable[str] = (), timeout: float = 2.0) -> bool:
        """Waits until held cells and vendors are read; False on timeout, then updates bring the rest."""
        ids = list(vendor_ids)
        complete = True
        try:
            async with asyncio.timeout(timeout):
                if ids:
                    complete = await self._find([id for id in ids if id not in self._followed])
                wanted = {*cells, *[self._followed[id] for id in ids if id in self._followed]}
                pending = [(at, cell) for at in wanted if not (cell := self._cells[at]).loaded]
                for at, cell in pending:
                    if self._nodes.up(channel(at)):
                        await cell.ready.wait()
                    else:
                        complete = False
        except TimeoutError:
            # The look-up of the listed vendors may have been cancelled before it could schedule a retry.
            self._find_later([id for id in ids if id not in self._followed])
            return False
        return complete

    def release(self, cells: Iterable[int], vendor_ids: Iterable[str] = ()) -> None:
        """Ends a `hold`; the cells stay subscribed for a while."""
        now = asyncio.get_running_loop().time()
        for at in cells:
            cell = self._cells[at]
            cell.refs -= 1
            if cell.refs == 0:
                cell.idle_since = now
        for id in vendor_ids:
            count = self._listed[id] - 1
            if count:
                self._listed[id] = count
                continue
            del self._listed[id]
            self._to_find.discard(id)
            followed = self._followed.pop(id, None)
            if followed is not None:
                self.release((followed,))

    async def unsubscribe_idle(self, now: float) -> None:
        """Unsubscribes from cells that had no watch for `linger` seconds; `now`: the loop's time."""
        linger = self._context.config.linger
        idle = [
            at
            for at, cell in self._cells.items()
            if cell.refs == 0 and cell.idle_since is not None and now - cell.idle_since > linger
        ]
        for at in idle:
            del self._cells[at], self._cell_of[channel(at)]
            self._nodes.drop(channel(at))
            self.reader.forget(at)
        unheard = [vendor for at in idle for vendor in self._index.in_bus_cell(at)]
        for number, vendor in enumerate(unheard, 1):
            id = vendor.vendor_id
            if id not in self._local_vendors and self._index.vendors.get(id) is vendor:
                self._context.remove_unheard(vendor)  # it may have moved, or the cell may be watched again
            if number % SLICE == 0:
                await asyncio.sleep(0)

    async def sweep(self) -> None:
        """Removes vendors that late messages and changes of process can leave behind."""
        index = self._index
        strays: list[Vendor] = []
        for some in turns(list(index.vendors.values()), SWEPT):
            strays += filter(self._is_stray, some)
            await asyncio.sleep(0)
        for some in turns(strays, SLICE):
            early = [cell.early for cell in self._cells.values() if cell.early]
            for vendor in some:
                id = vendor.vendor_id
                # It may have changed since it was tested.
                if index.vendors.get(id) is vendor and self._is_stray(vendor) and not any(id in ids for ids in early):
                    index.remove(id)
            await asyncio.sleep(0)
        self.reader.sweep()
        await self._publisher.sweep()

    # messages

    def on_message(self, name: bytes, data: bytes) -> None:
        """Handles a message of another process."""
        if data.startswith(self._own_origin):
            return
        concerns = self._is_relevant if name == BROADCAST else None
        origin, fixes, cards, presences, https, gone = parse_message(data, concerns)
        self._membership.assume_others()
        now = self._clock()
        self._index.owner_heard(origin, now, now)
        if self.reader.gone:
            for id, presence in presences:
                self.reader.seen(id, presence.since)
            for id, seen_at in https:
                self.reader.seen(id, seen_at)
            fixes = [one for one in fixes if not self.reader.is_gone(one[0])]
            cards = [one for one in cards if not self.reader.is_gone(one[0])]
            presences = [one for one in presences if not self.reader.is_gone(one[0])]
            https = [one for one in https if not self.reader.is_gone(one[0])]
        if name == BROADCAST:
            self._on_broadcast(fixes, cards, presences, https, gone, now)
            return
        at = self._cell_of.get(name)
        if at is None:
            return  # just unsubscribed
        vendors = self._index.vendors
        cell, reading = self._cells[at], self.reader.readings.get(at)
        fresh = {fix[0] for fix in fixes} if cards or presences or https else ()

        def wanted(id: str) -> bool:
            if id not in vendors and id not in fresh:
                if cell.loaded and reading is None:
                    return False  # a late message: the vendor has left
                cell.early.add(id)
            return True

        self._put_registers(cards, presences, https, wanted, now)
        for id, fix in fixes:
            self._note_tie(id, fix)
            if self._index.put_fix(id, fix, now):
                here = parent(vendors[id].cell, BUS_LEVEL)
                if id in self._local_vendors:
                    self._publisher.mark(id, Part.FIX)  # the process that dropped it may not have written it elsewhere
                elif here != at:
                    if id in self._listed:
                        self._follow(id, here)
                    self._context.remove_unheard(vendors[id])
            if reading is not None:
                reading.heard.add(id)
                if bus_cell(fix.lat, fix.long) != at:
                    reading.left[id] = max(fix.version, reading.left.get(id, 0))
        for id in gone:
            self._on_gone(id)
        self._handler.on_index_changed()

    def _is_relevant(self, vendor_id: str) -> bool:
        """Whether a broadcast about a vendor is relevant to this process."""
        return vendor_id in self._local_vendors or vendor_id in self._listed or vendor_id in self.reader.gone

    def forget(self, vendor_id: str) -> None:
        """Ignores what reads return of a deleted vendor."""
        self.reader.forget_vendor(vendor_id)

    def on_subscribed(self, name: bytes) -> None:
        """Schedules a read of a cell whose channel is subscribed now."""
        at = self._cell_of.get(name)
        if at is not None:
            self.reader.read(at)

    def read_again(self) -> None:
        """Schedules another read of all cells that were read, as Redis may have lost them."""
        for at, cell in self._cells.items():
            if cell.loaded:
                self.reader.read(at)

    def find_again(self) -> None:
        """Looks up the cells of listed vendors again, as their moves may have been missed."""
        self._to_find.update(self._listed)
        self._wake.set()

    def subscribe_all(self) -> None:
        """Subscribes to all channels on the nodes that serve them now."""
        for name in (BROADCAST, *self._cell_of):
            self._nodes.want(name)

    def wake(self) -> None:
        """Retries pending reads."""
        self._wake.set()

    # task

    async def run(self) -> None:
        """Reads cells once their channels are subscribed, finds listed vendors, and unsubscribes from idle cells."""
        loop = asyncio.get_running_loop()
        config = self._context.config
        swept = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(1.0, config.linger, config.grace)):
                    await self._wake.wait()
            self._wake.clear()
            self.reader.recheck(loop.time())
            while True:
                if self._to_find:
                    ids, self._to_find = self._to_find.intersection(self._listed), set()
                    await self._find(list(ids))
                if not await self.reader.read_some() and not self._to_find:
                    break
            await self.unsubscribe_idle(loop.time())
            if loop.time() - swept > SWEEP_EVERY:
                swept = loop.time()
                await self.sweep()

    # internal

    def _is_stray(self, vendor: Vendor) -> bool:
        """Whether a vendor is neither local nor in a subscribed cell."""
        return vendor.vendor_id not in self._local_vendors and (
            vendor.timestamp < 0 or parent(vendor.cell, BUS_LEVEL) not in self._cells
        )

    def _put_registers(
        self,
        cards: list[tuple[str, Card]],
        presences: list[tuple[str, Presence]],
        https: list[tuple[str, int]],
        wanted: Callable[[str], bool],
        now: int,
    ) -> None:
        index = self._index
        for id, card in cards:
            if wanted(id):
                index.put_card(id, card, now)
        for id, seen_at in https:
            if wanted(id):
                index.put_http(id, seen_at, now)
        for id, presence in presences:
            if wanted(id):
                index.put_presence(id, presence, now)

    def _on_gone(self, vendor_id: str) -> None:
        self._publisher.forget(vendor_id)
        self.forget(vendor_id)
        if vendor_id in self._local_vendors:
            self._local_vendors.delete(vendor_id)
            self._handler.on_vendor_deleted(vendor_id)
        else:
            self._index.remove(vendor_id)

    def _on_broadcast(
        self,
        fixes: list[tuple[str, Fix]],
        cards: list[tuple[str, Card]],
        presences: list[tuple[str, Presence]],
        https: list[tuple[str, int]],
        gone: list[str],
        now: int,
    ) -> None:
        index, local_vendors = self._index, self._local_vendors
        for id in gone:
            self._on_gone(id)
        own = [fix[0] for fix in fixes if fix[0] in local_vendors]
        wanted = {*own, *[fix[0] for fix in fixes if fix[0] in self._listed]}
        if not wanted:
            if gone:
                self._handler.on_index_changed()
            return
        self._put_registers(cards, presences, https, wanted.__contains__, now)
        for id, fix in fixes:
            if id not in wanted:
                continue
            self._note_tie(id, fix)
            newer = index.put_fix(id, fix, now)
            here = parent(index.vendors[id].cell, BUS_LEVEL)
            if id in self._listed:
                self._follow(id, here)
            if id not in local_vendors:
                continue
            entry = self._publisher.placement.entries.get(id)
            if bus_cell(fix.lat, fix.long) != here or (entry is not None and entry.cell != here):
                # One of the two processes wrote an outdated position, which must be dropped.
                self._publisher.mark(id, Part.ALL)
            elif newer:
                self._publisher.mark(id, Part.FIX)  # broadcast, but perhaps not written to its cell yet
        for id in own:
            self._publisher.keep_or_release(id, now)
        self._handler.on_index_changed()

    def _note_tie(self, vendor_id: str, fix: Fix) -> None:
        """Reports two positions with one timestamp; the process that would correct them may have been killed."""
        if vendor_id in self._local_vendors and (vendor := self._index.vendors.get(vendor_id)) is not None:
            held = vendor.fix
            if fix.timestamp == held.timestamp and fix[1:3] != held[1:3] and not (fix.stored or held.stored):
                self._handler.on_tie(vendor_id, fix.timestamp)

    async def _find(self, vendor_ids: list[str]) -> bool:
        """Subscribes to the cells in which listed vendors are; False when a place can't be read now."""
        places = await read_places(self._nodes, vendor_ids)
        for id, place in places.items():
            vendor = self._index.vendors.get(id)
            if vendor is not None and vendor.fix.version > (-1 if place is None else int(place.version)):
                self._follow(id, parent(vendor.cell, BUS_LEVEL))  # a message came meanwhile
            elif place is not None:
                self._follow(id, place.cell)
        if unknown := [id for id in vendor_ids if id not in places]:
            asyncio.get_running_loop().call_later(RETRY, self._find_later, unknown)
        return not unknown

    def _find_later(self, vendor_ids: list[str]) -> None:
        self._to_find.update(id for id in vendor_ids if id in self._listed)
        if self._to_find:
            self._wake.set()

    def _follow(self, vendor_id: str, at: int) -> None:
        """Records that a listed vendor is in this cell now."""
        old = self._followed.get(vendor_id)
        if vendor_id not in self._listed or old == at:
            return
        self._followed[vendor_id] = at
        self._hold(at)
        if old is not None:
            self.release((old,))

    def _hold(self, at: int) -> None:
        cell = self._cells.get(at)
        if cell is None:
            cell = self._cells[at] = SubscribedCell()
            self._cell_of[channel(at)] = at
            self._nodes.want(channel(at))
        cell.refs += 1
        cell.idle_since = None
