"""Counts of vendors by group over an area, for maps that are zoomed out.

A group is a square of 180°/2^k, cut along the cells of the grid: a cell belongs to the group of its centre. So a cell
wholly inside the area is counted at once, and only vendors in cells at the area's boundary are tested one by one.
Processes that count with the same key use the same groups, so their sums add up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from itertools import islice
from typing import NamedTuple

from streamer.geo.grid import cell_bounds, cover
from streamer.geo.shapes import Area, Box, Polygon
from streamer.live.index import LiveIndex
from streamer.live.vendor import Vendor
from streamer.protocol.messages import DEFAULT_DETAIL, Group

FINEST = 12
"""The smallest groups: 180°/2^12, 5 km."""
COARSEST = 5
"""The coarsest level whose cells are counted: after a change in a cell all its vendors are counted again."""
CELLS_IN_GROUP = 4
"""Minimum height of a group in cells, where the grid has cells that small."""
MOST_COVERED = 2_048
"""Largest cover of an area that is kept, in cells; for a larger area all cells with vendors are tested."""
AT_ONCE = 2_000
"""Vendors that are added up before the event loop gets a turn, and that are added up again each round."""
CELL_COST, TEST_COST, POLYGON_TEST_COST = 4, 2, 8
"""Cost of a cell and of a vendor at the area's boundary, relative to adding up one vendor."""
RECOUNTS = 3
"""Maximum number of recounts of cells that change during the count; each recount has fewer of them."""
SETTLED = 1 / 64
"""The share of a group's height by which its mean must move to be sent again."""

_SLACK = 1e-9
_COLUMNS = 1 << 20

Sums = list[float]
"""The number of vendors of a group, of open and of online ones, and the sums of lat and long."""


class CountsKey(NamedTuple):
    """What two watches with the same groups have in common."""

    area: Area
    level: int
    """Groups are 180°/2^level high and wide."""
    open: bool

    def name(self, group: int) -> str:
        """A group's name in messages."""
        return f"{self.level}.{group // _COLUMNS}.{group % _COLUMNS}"


def counts_key(area: Area, detail: int, only_open: bool) -> CountsKey:
    """The key for at most about `detail` groups: the finest level at which the area's box has no more."""
    bounds = area.bounds()
    width = bounds.east - bounds.west if bounds.west <= bounds.east else bounds.east - bounds.west + 360.0
    if isinstance(area, Polygon):
        detail = min(detail, DEFAULT_DETAIL)  # a cover with finer groups takes too long
    level = FINEST
    while level > 1 and _groups(bounds.north - bounds.south, level) * _groups(width, level) > detail:
        level -= 1
    return CountsKey(area, level, only_open)


def _groups(degrees: float, level: int) -> float:
    return degrees * (1 << level) / 180.0 + 1


class CellSums:
    """Sums of whole cells of an index, kept until something other than positions within the cell changes.

    `mine` decides which vendors are counted. Mean positions lag behind: AT_ONCE vendors are added up again each round.
    """

    def __init__(self, index: LiveIndex, mine: Callable[[Vendor], bool]) -> None:
        self.index = index
        self.mine = mine
        self.refreshed = 0
        """How often it was."""
        self._grids: dict[tuple[int, bool], dict[int, Sums | None]] = {}

    def of(self, level: int, only_open: bool) -> dict[int, Sums | None]:
        """The known sums of a level's cells."""
        self.index.recount.setdefault(level, {})
        return self._grids.setdefault((level, only_open), {})

    def refresh(self) -> None:
        """Forgets the sums of cells that changed, and the oldest sums."""
        self.refreshed += 1
        for (level, _), sums in self._grids.items():
            for at in self.index.recount[level]:
                sums.pop(at, None)
            budget = AT_ONCE
            for at, known in list(islice(sums.items(), AT_ONCE)):
                if budget <= 0:
                    break
                # The last one may exceed the budget: a cell of more vendors than that has its turn, too.
                budget -= int(known[0]) if known is not None else 1
                del sums[at]
        for changed in self.index.recount.values():
            changed.clear()

    def stop(self) -> None:
        """Stops counting."""
        self.index.recount.clear()
        self._grids.clear()


class Counter:
    """Counts the vendors of an index for one key."""

    def __init__(self, key: CountsKey) -> None:
        self._key = key
        step = 180.0 / (1 << key.level)
        self._step = step
        self._level = 0
        while self._level < COARSEST and 0.01 * (1 << (self._level + 1)) * CELLS_IN_GROUP <= step:
            self._level += 1
        area = key.area
        self._located: dict[int, tuple[bool | None, int]] = {}
        """For each cell that had vendors: whether it is wholly inside (None: outside), and its group."""
        self._whole: frozenset[int] | None = None
        self._boundary: frozenset[int] = frozenset()
        self._uncovered = not isinstance(area, Box) or self._estimate(area) <= MOST_COVERED

    def _estimate(self, box: Box) -> float:
        size = 0.01 * (1 << self._level)
        width = box.east - box.west if box.west <= box.east else box.east - box.west + 360.0
        return ((box.north - box.south) / size + 1) * (width / size + 1)

    async def count(self, cells: CellSums) -> dict[int, Sums]:
        """The sums by group; the event loop gets a turn after each step."""
        groups: dict[int, Sums] = {}
        for _ in self.steps(cells, groups):
            await asyncio.sleep(0)
        return groups

    def steps(self, cells: CellSums, groups: dict[int, Sums]) -> Iterator[None]:
        """Counts in steps of about AT_ONCE vendors; puts the sums by group into `groups`.

        Cells that change meanwhile are counted again: a vendor that moves from one to another counts once.
        """
        if self._uncovered:
            self._whole, self._boundary = cover(self._key.area, self._level)
            self._uncovered = False
            yield
        index, refreshed, since = cells.index, cells.refreshed, 0
        added: dict[int, tuple[int, Sums]] = {}
        yield from self._add(cells, groups, added)
        for _ in range(RECOUNTS):
            changed = {at for at, number in index.recount.get(self._level, {}).items() if number > since}
            if not changed or refreshed != cells.refreshed:
                break
            since = index.recounted
            whole = cells.of(self._level, self._key.open)
            for at in changed:
                whole.pop(at, None)
                if at in added:
                    group, sums = added.pop(at)
                    add(groups[group], [-value for value in sums])
            yield from self._add(cells, groups, added, changed)
        for group in [group for group, sums in groups.items() if not sums[0]]:
            del groups[group]

    def _add(
        self,
        cells: CellSums,
        groups: dict[int, Sums],
        added: dict[int, tuple[int, Sums]],
        only: Set[int] | None = None,
    ) -> Iterator[None]:
        """Adds the sums of all or some cells to their groups, and records them by cell in `added`."""
        only_open, contains = self._key.open, self._key.area.contains
        test_cost = POLYGON_TEST_COST if isinstance(self._key.area, Polygon) else TEST_COST
        whole, work = cells.of(self._level, only_open), 0
        for at, vendors, inside, group in self._cells(cells.index, only):
            work += CELL_COST
            if work >= AT_ONCE:
                yield
                work = 0
            if inside is None:
                continue
            sums = whole.get(at, _UNKNOWN) if inside else _UNKNOWN
            if sums is _UNKNOWN:
                refreshed, sums, rest = cells.refreshed, None, iter(tuple(vendors))
                size = AT_ONCE if inside else AT_ONCE // test_cost
                while some := list(islice(rest, size)):
                    work += len(some) * (1 if inside else test_cost)
                    tested = some if inside else [v for v in some if contains(v.shown.lat, v.shown.long)]
                    if (more := sum_of(tested, cells.mine, only_open)) is not None:
                        sums = more if sums is None else add(sums, more)
                    if work >= AT_ONCE:
                        yield
                        work = 0
                if inside and refreshed == cells.refreshed:
                    # Otherwise changes in the cell since then would be lost.
                    whole[at] = sums
            if sums is not None:
                added[at] = group, sums
                held = groups.get(group)
                groups[group] = sums.copy() if held is None else add(held, sums)

    def _cells(
        self, index: LiveIndex, only: Set[int] | None
    ) -> Iterator[tuple[int, Collection[Vendor], bool | None, int]]:
        """Each cell with vendors: its vendors, whether it is wholly inside the area (None: outside), and its group."""
        cells, located = index.cells(self._level), self._located
        if self._whole is not None:
            for inside, covered in ((True, self._whole), (False, self._boundary)):
                for at in covered if only is None else covered & only:
                    spot = cells.get(at)
                    if spot is not None and spot.vendors:
                        if at not in located:
                            located[at] = (inside, self._group(at))
                        yield at, spot.vendors, inside, located[at][1]
            return
        box = self._key.area
        assert isinstance(box, Box)
        for at in tuple(cells if only is None else only):
            spot = cells.get(at)
            if spot is not None and spot.vendors:
                if at not in located:
                    located[at] = (_inside(box, *cell_bounds(at, self._level)), self._group(at))
                yield at, spot.vendors, *located[at]

    def _group(self, at: int) -> int:
        south, west, north, east = cell_bounds(at, self._level)
        row = int(((south + north) / 2 + 90.0) / self._step)
        return row * _COLUMNS + int(((west + east) / 2 + 180.0) / self._step)


_UNKNOWN: Sums = []


def _inside(box: Box, south: float, west: float, north: float, east: float) -> bool | None:
    """Whether a cell is wholly inside a box; None if it is surely outside."""
    if north < box.south - _SLACK or south > box.north + _SLACK:
        return None
    rows = (south > box.south + _SLACK or box.south <= -90.0) and (north < box.north - _SLACK or box.north >= 90.0)
    after_west = west > box.west + _SLACK or box.west <= -180.0
    before_east = east < box.east - _SLACK or box.east >= 180.0
    if box.west <= box.east:
        if box.east - box.west < 360.0 and (east < box.west - _SLACK or west > box.east + _SLACK):
            # The first and last meridian are the same.
            return False if (west <= -180.0 and box.east >= 180.0) or (east >= 180.0 and box.west <= -180.0) else None
        return rows and after_west and before_east
    if east < box.west - _SLACK and west > box.east + _SLACK:
        return None
    return rows and (after_west or before_east)


def sum_of(vendors: Iterable[Vendor], mine: Callable[[Vendor], bool], only_open: bool) -> Sums | None:
    count = opened = online = 0
    lat = long = 0.0
    for vendor in vendors:
        if not mine(vendor):
            continue
        if vendor.card.open:
            opened += 1
        elif only_open:
            continue
        count += 1
        online += vendor.online
        lat += vendor.shown.lat
        long += vendor.shown.long
    return [count, opened, online, lat, long] if count else None


def add(held: Sums, more: Iterable[float]) -> Sums:
    """Adds sums to those held, in place."""
    for number, value in enumerate(more):
        held[number] += value
    return held


class CountsView:
    """The groups that were last sent to the watches of one key."""

    def __init__(self, key: CountsKey) -> None:
        self._key = key
        self._shown: dict[int, Group] = {}
        self._settled = SETTLED * 180.0 / (1 << key.level)

    def update(self, groups: Mapping[int, Sums]) -> list[Group]:
        """Applies new sums; returns the groups that changed enough to be sent, with a count of 0 if now empty."""
        changed: list[Group] = []
        for number, (count, opened, online, lat, long) in groups.items():
            held = self._shown.get(number)
            lat, long = lat / count, long / count
            if (
                held is None
                or (held.count, held.open, held.online) != (count, opened, online)
                or abs(held.lat - lat) > self._settled
                or abs(held.long - long) > self._settled
            ):
                group = Group(
                    self._key.name(number), round(lat, 5), round(long, 5), int(count), int(opened), int(online)
                )
                self._shown[number] = group
                changed.append(group)
        for number in [number for number in self._shown if number not in groups]:
            gone = self._shown.pop(number)
            changed.append(Group(gone.group, gone.lat, gone.long, 0, 0, 0))
        return changed

    def groups(self) -> list[Group]:
        """All groups."""
        return list(self._shown.values())
