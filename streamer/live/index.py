"""The live index: the vendors on the map, their watchers, and what entered, moved or left. Pure.

`VendorIndex` receives the changes of vendors; `tick` turns all changes since the last tick into one frame per watch.
What a client holds is a function of the vendors' states at its last frame, so nothing is stored per watch and vendor:

- Watches of the same area share one `View`; its update is encoded once.
- A cell wholly inside an area needs no test: its moved vendors are joined once and shared by all views.
- A watch that can't be written to (or waits for its interval) falls behind. Only then it keeps the ids of what changed,
  merged, bounded by the vendors in its area.
- Boundary tests are measured by sampling and charged to the clients of the watches. A watch whose client has used up
  its budget rests: it leaves its view, and gets occasional snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from time import thread_time
from typing import NamedTuple

from streamer.geo.grid import cover, cover_level, parent
from streamer.geo.shapes import Polygon
from streamer.live.cell import Cell
from streamer.live.resting import Resting
from streamer.live.vendor import Before, Vendor
from streamer.live.vendor_index import VendorIndex
from streamer.live.view import View, ViewKey
from streamer.live.visibility import Visibility
from streamer.live.watch import FrameKind, Rest, Watch
from streamer.protocol.messages import encode_snapshot

MEASURE_EVERY = 64
"""Moves in a cell after which one tick's boundary tests are measured, so that measuring costs little."""
SLICE = 1000
"""Vendors that are tested at once for a snapshot."""
PART = 400
"""The same for the parts that follow a large snapshot."""
POLYGON_TESTS = 4
"""Cost of a polygon test, in vendors: some polygons take as long as this many."""
LEAST_CHARGE = 1e-4
"""CPU seconds per watch of a view from which on they are charged."""
WORK = 5e-4
"""CPU seconds of one tick after which no more snapshots are started or continued in it."""


Move = tuple[Vendor, float, float, float, float]
"""A vendor that moved within a cell: its position, and that of the last tick."""


class Ticked(NamedTuple):
    """What a tick did: frames written, and watches that are still `waiting`."""

    frames: int
    waiting: int


class LiveIndex(VendorIndex):
    """Vendors and views of one process; `me` is its own name among the owners. Times are epoch milliseconds."""

    def __init__(
        self,
        me: str,
        *,
        offline_after: int = 60_000,
        leave_after: int = 600_000,
        visibility: Visibility | None = None,
        rest_share: float = 0.05,
        cpu_clock: Callable[[], float] = thread_time,
    ) -> None:
        super().__init__(me, offline_after=offline_after, leave_after=leave_after, visibility=visibility)
        self.cpu_clock = cpu_clock
        self.views: dict[ViewKey, View] = {}
        self.changes = 0
        """Vendors that changed, merged by tick."""
        self.held_back = 0
        """Updates that could not be sent to a watch yet and were merged into a later one."""
        self.sent = 0
        """Bytes of updates and snapshots written."""
        self.delivered = 0
        """Positions in them."""
        self.unfinished = False
        """Whether the next tick has more of a large snapshot for a client that is ready for it."""
        self.aside = 0.0
        """CPU seconds of the last tick that less frequent ticks would not save: tests, and parts of snapshots."""
        self.observer: Callable[[Mapping[Vendor, Before]], object] | None = None
        """Called in each tick with the vendors that changed since the last one, and their state then."""
        self._viewed: dict[int, int] = {}
        """Views on each level's grid."""
        self._listed: dict[str, dict[View, None]] = {}
        self._waiting: dict[Watch, None] = {}
        self._fresh: dict[Watch, None] = {}
        self._measured: dict[View, None] = {}
        """Views whose boundary tests were measured in the current tick."""
        self._resting = Resting(self._find, self._watch, lambda: self.cpu_clock(), rest_share)
        self._moved_cells: list[Cell] = []

    @property
    def waiting(self) -> int:
        """Watches that wait for their client or interval, or rest."""
        return len(self._waiting) + len(self._resting)

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
        """Returns vendors in an area or list now, and those beyond SLICE, which the caller tests with `key.holds`."""
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
            self._reset_tick()
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
            turns = self._resting.step(now, work)
            work += self.cpu_clock() - began
            frames += turns.frames
            self.sent += turns.sent
            self.delivered += turns.delivered
            self.unfinished |= self._resting.unfinished
        self.aside = tested + work
        return Ticked(frames, self.waiting)

    def _reset_tick(self) -> None:
        """Discards a tick that failed midway, and corrects every watch by a snapshot."""
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
            # The other watches get these changes with the next tick; this one has some of them already.
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
        """Does the same for the views that contain only a part of a cell, and the vendors that moved within it."""
        # With many different areas most of a tick is spent here, so only `contains` is called.
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
        """Notes in each view which of its vendors moved in a cell that it contains only a part of."""
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
        """Charges a view's measured CPU time to its clients; watches of clients beyond their budgets rest."""
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
            # The first comparison saves a call for most watches.
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
