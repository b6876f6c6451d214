"""The live index: the vendors on the map, their watchers, and what entered, moved or left. Pure.

Changes go in (`put_fix`, `put_card`, `put_presence`, `put_http`, `remove`, `expire`); `tick` turns all changes since
the last tick into one frame per watch. What a client holds is the state of its last frame, a function of the vendors'
states then, so nothing is remembered per watch and vendor:

- Watches of the same area share one `View`; its update is encoded once.
- A cell wholly inside an area needs no test: its moved vendors are joined once and shared by all views.
- A watch that can't be written to (or is paced by its interval) falls behind: then, and only then, it keeps the ids of
  what changed, merged, bounded by the vendors in its area.
- Boundary tests are measured now and then and charged to the clients of the watches. A watch whose client has used up
  what it may rests: it leaves its view, and gets a snapshot now and then.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping
from time import thread_time
from typing import NamedTuple

from streamer.geo.grid import BUS_LEVEL, LEVELS, cover, cover_level, parent
from streamer.geo.grid import cell as cell_at
from streamer.geo.shapes import Polygon
from streamer.live.cell import Cell
from streamer.live.fix import Fix, order
from streamer.live.resting import Resting
from streamer.live.vendor import NO_FIX, Before, Card, Owner, Presence, Vendor
from streamer.live.view import View, ViewKey
from streamer.live.visibility import Visibility
from streamer.live.watch import FrameKind, Rest, Watch
from streamer.protocol.messages import encode_snapshot

MEASURE_EVERY = 64
"""Moves in a cell of which one tick's boundary tests are measured, so that it takes a fraction of what they take."""
SLICE = 1000
"""Vendors that are looked at together for a snapshot."""
PART = 400
"""The same for the parts that follow a large snapshot."""
POLYGON_TESTS = 4
"""How many vendors one counts for whose polygon is tested: some polygons take as much."""
LEAST_CHARGE = 1e-4
"""CPU seconds for each watch of a view from which on they are charged."""
WORK = 5e-4
"""CPU seconds of one tick after which no more snapshots are begun or continued in it."""


Move = tuple[Vendor, float, float, float, float]
"""A vendor that moved within a cell: its position, and that of the last tick."""


class Ticked(NamedTuple):
    """What a tick did: frames written, and watches that still wait for their client or interval, or rest."""

    frames: int
    waiting: int


class LiveIndex:
    """Vendors and views of one process; `me` is its own name among the owners. Times are epoch milliseconds."""

    def __init__(
        self,
        me: str,
        *,
        offline_after: int = 60_000,
        leave_after: int = 600_000,
        visibility: Visibility | None = None,
        rest_share: float = 0.1,
        cpu_clock: Callable[[], float] = thread_time,
    ) -> None:
        self.me = me
        self.cpu_clock = cpu_clock
        self.visibility = visibility or Visibility()
        self.offline_after = offline_after
        self.leave_after = leave_after
        self.vendors: dict[str, Vendor] = {}
        self.views: dict[ViewKey, View] = {}
        self.owners: dict[str, Owner] = {}
        self.changes = 0
        """Vendors that changed, merged by tick."""
        self.held_back = 0
        """Updates that could not be sent to a watch yet and were merged into a later one."""
        self.sent = 0
        """Bytes of updates and snapshots written."""
        self.delivered = 0
        """Positions in them."""
        self.recount: dict[int, dict[int, int]] = {}
        """For each level whose cells are counted, the cells whose counts may have changed, and the change's number."""
        self.recounted = 0
        """The number of the last such change."""
        self.unfinished = False
        """Whether the next tick has more of a large snapshot for a client that can take it."""
        self.aside = 0.0
        """CPU seconds of the last tick that less frequent ticks would not save: tests, and parts of snapshots."""
        self.observer: Callable[[Mapping[Vendor, Before]], object] | None = None
        """Called in each tick with the vendors that changed since the last one, and what they were then."""
        self.frozen = False
        """While Redis is away nothing is heard of other processes, so none of them counts as lost."""
        # All are kept from the start: to fill one when a view first needs it would stop the loop for as long as there
        # are vendors, and a vendor changes its cell on the coarse ones seldom.
        self._grids: list[dict[int, Cell]] = [{} for _ in range(LEVELS)]
        self._viewed: dict[int, int] = {}
        """Views on each level's grid."""
        self._listed: dict[str, dict[View, None]] = {}
        self._changed: dict[Vendor, Before] = {}
        self._waiting: dict[Watch, None] = {}
        self._fresh: dict[Watch, None] = {}
        self._measured: dict[View, None] = {}
        """Views whose boundary tests were measured in the current tick."""
        self._resting = Resting(self._find, self._watch, lambda: self.cpu_clock(), rest_share)
        self._deadlines: list[tuple[int, int, Vendor]] = []
        self._order = 0
        self._departed: list[str] = []
        self._moved_cells: list[Cell] = []

    def put_fix(self, vendor_id: str, fix: Fix, now: int) -> bool:
        """Takes a fix if it replaces the one held; returns whether it was taken and its vendor is still known."""
        vendor = self.vendors.get(vendor_id)
        if vendor is None:
            vendor = self.vendors[vendor_id] = Vendor(vendor_id, now)
        elif (
            # The usual case is decided without comparing closely: neither is ahead of its time, and this one is newer.
            (fix.timestamp <= vendor.fix.timestamp or fix.timestamp > now or fix.ahead or vendor.fix.ahead)
            and vendor.fix is not NO_FIX
            and not fix.replaces(vendor.fix, now)
        ):
            return False
        self._remember(vendor)
        vendor.fix = fix
        vendor.forget_encoded()
        self._show(vendor)
        if vendor.live:
            return True
        self._settle(vendor, now)
        return self.vendors.get(vendor_id) is vendor

    def put_card(self, vendor_id: str, card: Card, now: int) -> bool:
        """Takes a card if it replaces the one held; returns whether anything that customers see changed.

        As with fixes, a version of a process whose clock is wrong yields to every other.
        """
        vendor = self._vendor(vendor_id, now)
        newer = order(card.version, vendor.card.version, now)
        if newer < 0 or (newer == 0 and card.register(vendor_id) <= vendor.card.register(vendor_id)):
            return False
        if card[1:] == vendor.card[1:] and vendor.card.version >= 0:
            vendor.card = card
            return False
        self._touch(vendor)
        vendor.card = card
        vendor.card_changed = True
        vendor.forget_encoded()
        if vendor.fix is not NO_FIX and self.visibility.closed_level is not None:
            self._show(vendor)
        self._settle(vendor, now)
        return True

    def put_presence(self, vendor_id: str, presence: Presence, now: int) -> bool:
        """Takes a presence unless a newer connection is known; returns whether it was taken."""
        vendor = self._vendor(vendor_id, now)
        held = vendor.presence
        newer = order(presence.since, held.since, now)
        if newer < 0 or (newer == 0 and presence <= held):
            return False
        if held.owner in self.owners:
            self.owners[held.owner].vendors.discard(vendor)
        vendor.presence = presence
        self.note_count(vendor)
        if presence.ended == 0:
            self._owner(presence.owner).vendors.add(vendor)
        self._settle(vendor, now)
        return True

    def put_http(self, vendor_id: str, at: int, now: int) -> bool:
        """Takes the time of a vendor's last ping over HTTP, which keeps it online for a while."""
        vendor = self._vendor(vendor_id, now)
        if order(at, vendor.http, now) <= 0:
            return False
        vendor.http = at
        self._settle(vendor, now)
        return True

    def remove(self, vendor_id: str) -> None:
        """Removes a vendor: it was deleted, or this process need not know it any more."""
        vendor = self.vendors.pop(vendor_id, None)
        if vendor is not None:
            self._leave(vendor)
            owner = self.owners.get(vendor.presence.owner)
            if owner is not None:
                owner.vendors.discard(vendor)

    def owner_heard(self, owner: str, at: int, now: int) -> None:
        """Takes a sign of life of a process."""
        known = self._owner(owner)
        known.heard = max(min(known.heard, now), at)  # ahead of now: heard before the clock was set back
        if known.lost and known.heard + self.offline_after > now:
            known.lost = False
            for vendor in tuple(known.vendors):
                self._settle(vendor, now)

    def pardon(self, now: int) -> None:
        """Counts every process that is not lost yet as heard now: none could be heard for a while."""
        for name, owner in tuple(self.owners.items()):
            if not owner.lost:
                self.owner_heard(name, now, now)

    def expire(self, now: int) -> list[str]:
        """Lets vendors go offline and leave by time; checks only those that are due. Returns the ids that left."""
        if not self.frozen:
            for name, owner in tuple(self.owners.items()):
                if name != self.me and owner.heard + self.offline_after <= now:
                    if not owner.lost:
                        owner.lost = True
                        for vendor in tuple(owner.vendors):
                            self._settle(vendor, now)
                    if not owner.vendors:
                        del self.owners[name]
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, _, vendor = heapq.heappop(self._deadlines)
            if vendor.deadline == deadline and self.vendors.get(vendor.vendor_id) is vendor:
                vendor.deadline = 0
                self._settle(vendor, now)
        departed, self._departed = self._departed, []
        return departed

    def watch(self, watch: Watch, key: ViewKey, now: int) -> None:
        """Starts a watch, or moves it: a snapshot replaces what the client holds for it, now or with a next tick."""
        self.unwatch(watch)
        payer = watch.payer
        if payer is not None and ((excess := payer.charge(0.0)) or self._resting.has(payer)):
            self._resting.add(watch, key, now, owed=True)
            if excess:
                payer.slowed(watch.id, excess)
        else:
            self._watch(watch, key, now)

    def _watch(self, watch: Watch, key: ViewKey, now: int) -> None:
        view = self.views.get(key) or self._attach(key)
        view.watches[watch] = None
        watch.view = view
        watch.snapshot_due = True
        self._snapshot(watch, now)

    def unwatch(self, watch: Watch) -> None:
        """Ends a watch; nothing more is sent for it."""
        view, watch.view = watch.view, None
        self._resting.remove(watch)
        self._waiting.pop(watch, None)
        self._fresh.pop(watch, None)
        watch.drop_pending()
        watch.behind = watch.snapshot_due = False
        watch.due = 0
        if view is not None:
            del view.watches[watch]
            if not view.watches:
                self._detach(view)

    def resnapshot(self, watches: Iterable[Watch]) -> None:
        """Sends each of these watches a snapshot with the next ticks, as changes may have been missed."""
        for watch in watches:
            if watch.view is not None:
                self._fresh.pop(watch, None)
                watch.drop_pending()
                watch.snapshot_due = True
                self._waiting[watch] = None

    def members(self, key: ViewKey) -> tuple[list[Vendor], list[Vendor]]:
        """Returns vendors in an area or list now, and, after SLICE of them, those for which `key.holds` decides."""
        view = self.views.get(key) or self._attach(key)
        try:
            found, rest = self._members(view)
            if rest is None:
                return found, []
            return found, rest.take(len(self.vendors))
        finally:
            if not view.watches:
                self._detach(view)

    def tick(self, now: int) -> Ticked:
        """Turns all changes since the last tick into at most one frame per watch, and writes those that can be."""
        try:
            return self._tick(now)
        except BaseException:
            self._start_over()
            raise

    def _tick(self, now: int) -> Ticked:
        frames, tested = 0, 0.0
        changed, self._changed = self._changed, {}
        self.changes += len(changed)
        if changed and self.observer is not None:
            self.observer(changed)
        if changed and self.views:
            changed_views: list[View] = []
            began = self.cpu_clock()
            self._collect(changed, changed_views)
            tested = self.cpu_clock() - began
            for view in changed_views:
                frames += self._deliver(view, now)
            for watch in self._fresh:
                self._catch_up(watch, changed)
            for view in changed_views:
                view.end_tick()
            for cell in self._moved_cells:
                cell.end_tick()
            self._moved_cells.clear()
            for view in self._measured:
                self._charge(view, now)
            self._measured.clear()
        for vendor in changed:
            vendor.card_changed = False
        for watch in self._fresh:
            watch.fresh = None
            self._waiting[watch] = None
        self._fresh.clear()
        self.unfinished = False
        work = 0.0
        for watch in tuple(self._waiting):
            if (watch.held(now) and watch.rest is None) or not watch.writer.ready():
                continue
            if watch.rest is None and not watch.snapshot_due:
                frames += self._flush(watch, 0, now)
            elif work < WORK:
                began = self.cpu_clock()
                size = PART // POLYGON_TESTS if watch.view and type(watch.view.key.area) is Polygon else PART
                frames += self._flush(watch, size, now)
                cost = self.cpu_clock() - began
                if watch.rest is not None and watch.payer is not None:
                    watch.payer.charge_rest(cost)
                work += cost
            else:
                self.unfinished = True
        if self._resting:
            began = self.cpu_clock()
            turns = self._resting.step(now)
            work += self.cpu_clock() - began
            frames += turns.frames
            self.sent += turns.sent
            self.delivered += turns.delivered
            self.unfinished |= self._resting.unfinished
        self.aside = tested + work
        return Ticked(frames, len(self._waiting) + len(self._resting))

    def _start_over(self) -> None:
        """Forgets a tick that failed halfway, and makes every watch right again by a snapshot."""
        for cells in self._grids:
            for cell in cells.values():
                cell.end_tick()
        self._moved_cells.clear()
        self._measured.clear()
        self._fresh.clear()
        for vendor in self.vendors.values():
            vendor.card_changed = False
        for view in self.views.values():
            view.end_tick()
            for watch in view.watches:
                watch.drop_pending()
                watch.snapshot_due = True
                self._waiting[watch] = None

    def cells(self, level: int) -> Mapping[int, Cell]:
        """Returns the cells of a level in which vendors are, or which are watched."""
        return self._grids[level]

    def note_count(self, vendor: Vendor) -> None:
        """Has the cell of a vendor counted again."""
        if self.recount and vendor.cell >= 0:
            self.recounted += 1
            for level, cells in self.recount.items():
                cells[parent(vendor.cell, level)] = self.recounted

    def in_bus_cell(self, id: int) -> tuple[Vendor, ...]:
        """Returns the live vendors in a cell of the grid that names Redis channels."""
        cell = self._grids[BUS_LEVEL].get(id)
        return tuple(cell.vendors) if cell is not None else ()

    @property
    def has_changes(self) -> bool:
        """Whether a tick would have anything new to send."""
        return bool(self._changed)

    def _vendor(self, vendor_id: str, now: int) -> Vendor:
        vendor = self.vendors.get(vendor_id)
        if vendor is None:
            vendor = self.vendors[vendor_id] = Vendor(vendor_id, now)
        return vendor

    def _owner(self, name: str) -> Owner:
        owner = self.owners.get(name)
        if owner is None:
            owner = self.owners[name] = Owner(0)
            owner.lost = name != self.me
        return owner

    def _touch(self, vendor: Vendor) -> None:
        self.note_count(vendor)
        self._remember(vendor)

    def _remember(self, vendor: Vendor) -> None:
        """Keeps what a vendor was at the last tick."""
        if vendor not in self._changed:
            self._changed[vendor] = (vendor.live, vendor.shown, vendor.cell, vendor.card.open)

    def _settle(self, vendor: Vendor, now: int) -> None:
        """Brings live, online and the next deadline in line with the vendor's registers and the time."""
        presence = vendor.presence
        connected = False
        if presence.owner or vendor.http:
            last = vendor.http
            if presence.ended:
                last = max(last, presence.ended)
            elif presence.owner:
                owner = self._owner(presence.owner)
                connected = not owner.lost
                last = max(last, owner.heard, presence.since)
            offline_at = last + self.offline_after
            leave_at = offline_at + self.leave_after
        else:
            # Its presence comes with the next register; one that never comes is waited for only until then.
            offline_at, leave_at = 0, vendor.born + self.offline_after
        online = connected or now < offline_at
        known = vendor.fix.timestamp >= 0 and vendor.card.version >= 0 and offline_at > 0
        live = known and (online or now < leave_at) and self.visibility.allows(vendor.card, online)
        if live != vendor.live or online != vendor.online:
            self._touch(vendor)
            if online != vendor.online:
                vendor.online = online
                vendor.card_changed = True
                vendor.forget_encoded()
            if live and not vendor.live:
                vendor.live = True
                self._place(vendor)
            elif vendor.live and not live:
                self._leave(vendor)
        if connected:
            return
        if not online and now >= leave_at:
            self.remove(vendor.vendor_id)
            self._departed.append(vendor.vendor_id)
            return
        # One look at a time: a deadline put off, as by every ping over HTTP, is found out when the old one comes.
        deadline = offline_at if online else leave_at
        if not vendor.deadline or deadline < vendor.deadline:
            vendor.deadline = deadline
            self._order += 1
            heapq.heappush(self._deadlines, (deadline, self._order, vendor))

    def _leave(self, vendor: Vendor) -> None:
        if vendor.live:
            self._touch(vendor)
            vendor.live = False
            for level in range(LEVELS):
                self._take_out(vendor, level, parent(vendor.cell, level))

    def _place(self, vendor: Vendor) -> None:
        for level in range(LEVELS):
            self._cell(level, parent(vendor.cell, level)).add(vendor)

    def _show(self, vendor: Vendor) -> None:
        """Brings where a vendor is seen, and its cell, in line with its fix and card."""
        fix = vendor.fix
        if self.visibility.closed_level is not None:
            fix = self.visibility.shown(fix, vendor.card)
        vendor.shown = fix
        to = cell_at(fix.lat, fix.long)
        if to == vendor.cell:
            return
        if vendor.live:
            self._move(vendor, to)
        else:
            vendor.cell = to

    def _move(self, vendor: Vendor, to: int) -> None:
        for level in range(LEVELS):
            old, new = parent(vendor.cell, level), parent(to, level)
            if old == new:
                break  # so are all coarser ones
            self._take_out(vendor, level, old)
            self._cell(level, new).add(vendor)
            if level in self.recount:
                self.recounted += 1
                self.recount[level][old] = self.recount[level][new] = self.recounted
        vendor.cell = to

    def _take_out(self, vendor: Vendor, level: int, id: int) -> None:
        cells = self._grids[level]
        cell = cells[id]
        cell.discard(vendor)
        if cell.unused:
            del cells[id]

    def _cell(self, level: int, id: int) -> Cell:
        cells = self._grids[level]
        cell = cells.get(id)
        if cell is None:
            cell = cells[id] = Cell(id)
        return cell

    def _attach(self, key: ViewKey) -> View:
        if key.area is None:
            view = self.views[key] = View(key, -1, (), 0)
            for vendor_id in key.vendors or ():
                self._listed.setdefault(vendor_id, {})[view] = None
            return view
        level = cover_level(key.area)
        self._viewed[level] = self._viewed.get(level, 0) + 1
        covered = cover(key.area, level)
        whole = [self._cell(level, id) for id in covered.full]
        boundary = [self._cell(level, id) for id in covered.boundary]
        view = self.views[key] = View(key, level, (*whole, *boundary), len(whole))
        alone = [view]
        for number, cell in enumerate(view.cells):
            cell.attach(alone, number < view.whole)
        return view

    def _detach(self, view: View) -> None:
        del self.views[view.key]
        for vendor_id in view.key.vendors or ():
            views = self._listed[vendor_id]
            del views[view]
            if not views:
                del self._listed[vendor_id]
        if view.cells:
            self._viewed[view.level] -= 1
        view.ended = True
        cells, view.cells = view.cells, ()
        for cell in cells:
            cell.view_ended()
            if cell.unused:
                del self._grids[view.level][cell.id]

    def _members(self, view: View) -> tuple[list[Vendor], Rest | None]:
        area, vendors_left, cells_left = view.key.area, list[Vendor](), list[Cell]()
        left = SLICE // POLYGON_TESTS if type(area) is Polygon else SLICE
        if area is None:
            found = [vendor for vendor in self._find(view.key) if vendor.live]
        else:
            found = []
            for number, cell in enumerate(view.cells):
                vendors: Collection[Vendor] = cell.vendors
                if not vendors:
                    continue
                if not left:
                    cells_left.append(cell)
                    continue
                if len(vendors) > left:
                    vendors = list(vendors)
                    vendors_left = vendors[left:]
                    del vendors[left:]
                left -= len(vendors)
                if number < view.whole:
                    found.extend(vendors)
                else:
                    found.extend([v for v in vendors if area.contains(v.shown.lat, v.shown.long)])
        rest = Rest(vendors_left, cells_left) if vendors_left or cells_left else None
        return [v for v in found if v.card.open] if view.only_open else found, rest

    def _find(self, key: ViewKey, cells: Iterable[int] = ()) -> list[Vendor]:
        """Returns the vendors in these cells, which cover the area, or those of the list, as far as they are known."""
        if key.area is None:
            return [vendor for id in key.vendors or () if (vendor := self.vendors.get(id)) is not None]
        grid, found = self._grids[cover_level(key.area)], list[Vendor]()
        for id in cells:
            if (cell := grid.get(id)) is not None:
                found.extend(cell.vendors)
        return found

    def _snapshot(self, watch: Watch, now: int) -> bool:
        """Writes the snapshot that is due if the client can take it; returns whether it could."""
        assert watch.view is not None
        if not watch.writer.ready():
            self._waiting[watch] = None
            return False
        members, rest = self._members(watch.view)
        frame = watch.writer.framing(encode_snapshot(watch.id, [v.card_bytes() for v in members]))
        watch.writer.write(frame)
        self.sent += len(frame)
        self.delivered += len(members)
        watch.snapshot_due = watch.behind = False
        watch.due = now + watch.interval
        self._waiting.pop(watch, None)
        if rest is not None:
            watch.rest = rest
            rest.held.update(members)
            watch.behind = self.unfinished = True
            self._waiting[watch] = None
        if self._changed:
            # The others get these changes with the next tick; this watch has some of them already.
            known = frozenset(self._changed)
            watch.fresh = (known, known.intersection(members))
            watch.behind = True
            self._fresh[watch] = None
        return True

    def _collect(self, changed: dict[Vendor, Before], changed_views: list[View]) -> None:
        """Notes in each view what changed for it, and lists the views for which anything may have."""
        for level, count in self._viewed.items():
            if not count:
                continue
            cells = self._grids[level]
            moved_cells: list[Cell] = []
            for vendor, before in changed.items():
                new = parent(vendor.cell, level) if vendor.live else -1
                old = parent(before[2], level) if before[0] else -1
                cell = cells.get(new)
                if old == new and not vendor.card_changed:
                    if cell is not None and cell.watched:
                        if cell.moved is None:
                            cell.moved = []
                            moved_cells.append(cell)
                        cell.moved.append(vendor)
                    continue
                views: dict[View, None] = {}
                for touched in {cell, cells.get(old)}:
                    if touched is not None:
                        views.update(dict.fromkeys(touched.whole))
                        views.update(dict.fromkeys(touched.boundary))
                for view in views:
                    if not view.ended:
                        self._note(view, vendor, before, changed_views)
            for cell in moved_cells:
                for view in cell.whole:
                    if not view.ended:
                        if not view.changed:
                            view.begin_tick()
                            changed_views.append(view)
                        view.moved_cells.append(cell)
                if cell.boundary:
                    self._collect_boundary(cell, changed, changed_views)
            self._moved_cells += moved_cells
        if self._listed:
            for vendor, before in changed.items():
                for view in self._listed.get(vendor.vendor_id, ()):
                    self._note(view, vendor, before, changed_views)

    def _collect_boundary(self, cell: Cell, changed: dict[Vendor, Before], changed_views: list[View]) -> None:
        """Does the same for the views that hold a part of a cell at most, and the vendors that moved within it."""
        # Where areas differ, most decisions of a tick are made here, so nothing is called but `contains`.
        moves = []
        for vendor in cell.moved or ():
            fix, old = vendor.shown, changed[vendor][1]
            moves.append((vendor, fix.lat, fix.long, old.lat, old.long))
        cell.unmeasured += len(moves)
        if cell.unmeasured < MEASURE_EVERY:
            self._test(cell.boundary, moves, changed_views)
            return
        stands_for, cell.unmeasured = cell.unmeasured / len(moves), 0
        for view in cell.boundary:
            began = self.cpu_clock()
            self._test((view,), moves, changed_views)
            view.cost += (self.cpu_clock() - began) * stands_for
            self._measured[view] = None

    def _test(self, views: Iterable[View], moves: list[Move], changed_views: list[View]) -> None:
        """Notes in each view which of its vendors moved in a cell that it holds a part of."""
        for view in views:
            if view.ended:
                continue
            area, only_open = view.key.area, view.only_open
            assert area is not None
            contains = area.contains
            for vendor, lat, long, old_lat, old_long in moves:
                if only_open and not vendor.card.open:
                    continue
                now, was = contains(lat, long), contains(old_lat, old_long)
                if now or was:
                    if not view.changed:
                        view.begin_tick()
                        changed_views.append(view)
                    if now and was:
                        view.moved.append(vendor)
                    else:
                        view.note(vendor, was=was, now=now)

    def _charge(self, view: View, now: int) -> None:
        """Charges what was measured of a view to those who watch, and has the watches of whoever used too much rest."""
        count = len(view.watches)
        if view.cost < LEAST_CHARGE * count:
            return
        share, view.cost = view.cost / max(count, 1), 0.0
        for watch in tuple(view.watches):
            if watch.payer is not None and (excess := watch.payer.charge(share)):
                self.unwatch(watch)
                self._resting.add(watch, view.key, now)
                watch.payer.slowed(watch.id, excess)

    def _note(self, view: View, vendor: Vendor, before: Before, changed_views: list[View]) -> None:
        was, now = view.key.held(vendor, before), view.key.holds(vendor)
        if not (was or now):
            return
        if not view.changed:
            view.begin_tick()
            changed_views.append(view)
        view.note(vendor, was=was, now=now)

    def _deliver(self, view: View, now: int) -> int:
        """Writes the view's update to each watch that can take it; the others fall behind. Returns the frames."""
        update: tuple[bytes, int] | None = None
        frame_of: dict[FrameKind, bytes] = {}
        frames = 0
        for watch in view.watches:
            if watch.fresh is not None or watch.snapshot_due:
                continue
            writer = watch.writer
            # The first comparison spares the usual watch a call.
            if watch.behind or (watch.due > now and watch.held(now)) or not writer.ready():
                watch.behind = True
                watch.merge(view)
                self.held_back += 1
                self._waiting[watch] = None
                continue
            if update is None:
                update = view.update()
                if update is None:
                    return frames
            frame = frame_of.get(watch.kind)
            if frame is None:
                frame = frame_of[watch.kind] = watch.kind.frame(update[0])
            writer.write(frame)
            self.sent += len(frame)
            if watch.interval:
                watch.due = now + watch.interval
            frames += 1
        if update is not None:
            self.delivered += frames * update[1]
        return frames

    def _catch_up(self, watch: Watch, changed: dict[Vendor, Before]) -> None:
        """Merges what changed for a watch since its snapshot, which was taken between two ticks."""
        view, fresh = watch.view, watch.fresh
        assert view is not None
        assert fresh is not None
        known, included = fresh
        watch.begin_merge()
        for vendor, before in changed.items():
            was = vendor in included if vendor in known else view.key.held(vendor, before)
            if view.key.holds(vendor):
                if not was:
                    watch.enter(vendor)
                elif vendor.card_changed:
                    watch.upsert(vendor)
                else:
                    watch.move(vendor)
            elif was:
                watch.leave(vendor)

    def _flush(self, watch: Watch, limit: int, now: int) -> int:
        if watch.snapshot_due:
            return int(self._snapshot(watch, now))
        update = watch.take_pending(limit)
        del self._waiting[watch]
        if watch.rest is None:
            watch.behind = False
        else:
            self._waiting[watch] = None  # behind the others
            self.unfinished = True
        if update is None:
            return 0
        body, positions = update
        frame = watch.kind.frame(body)
        watch.writer.write(frame)
        self.sent += len(frame)
        self.delivered += positions
        watch.due = now + watch.interval
        return 1
