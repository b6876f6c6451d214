"""How far a position is from the edge of an area, at least; and a grid that finds the areas near a position. Pure.

An alert is looked at only when a vendor may have crossed its edge. So near a position only the areas are of interest
whose edge is near; far from all edges a move costs one comparison.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import asin, ceil, cos, hypot, inf, log2, pi, sin
from typing import Generic, TypeVar

from streamer.alerts.plane import METRES, Circles, Placed, Plane
from streamer.geo.shapes import EARTH_RADIUS, Area, Box, Circle, distance

REACH = 25.0
"""Metres from an edge within which an area is near."""
MARGIN = 20.0
"""Metres that a vendor must be outside before it has left: positions of GPS scatter by about as much."""
MARGIN_SHARE = 0.1
"""Of a small area's width or height the margin is at most so much."""
SHARPNESS = 6
"""Cells of the grid along an area, about."""
FINEST = 0.001
"""Degrees of latitude of the smallest cell."""
MOST_LEVEL = 12
MOST_FLATTENED = 4000
"""Cells that keep their circles as numbers."""
NEAR_POLE = 89.0
"""Degrees beyond which no flat projection is good enough: all edges count as near."""

_RADIAN = pi / 180


def margin_of(area: Area) -> float:
    """Returns the metres that a vendor must be outside of an area before it has left."""
    return min(MARGIN, MARGIN_SHARE * min(area.extent()))


def holds(area: Area, margin: float, was_inside: bool, lat: float, long: float) -> bool:
    """Returns whether a vendor is inside: exactly on the way in, and with the margin on the way out."""
    if area.contains(lat, long):
        return True
    return was_inside and margin > 0.0 and edge_distance(area, lat, long) <= margin


def edge_distance(area: Area, lat: float, long: float) -> float:
    """Returns the metres from a position to the edge of an area, or less: how far it may move without crossing it."""
    if isinstance(area, Circle):
        return abs(distance(lat, long, area.lat, area.long) - area.radius)
    if abs(lat) > NEAR_POLE:
        return 0.0
    if isinstance(area, Box):
        return _box_distance(area, lat, long)
    width = METRES * cos(lat * _RADIAN)
    nearest = inf
    for x1, y1, x2, y2 in area.edges:
        ay, by = (y1 - lat) * METRES, (y2 - lat) * METRES
        for shifted in (long, long + 360.0, long - 360.0):
            if not x1 - 180.0 <= shifted <= x2 + 180.0:
                continue
            ax, bx = (x1 - shifted) * width, (x2 - shifted) * width
            dx, dy = bx - ax, by - ay
            length = dx * dx + dy * dy
            along = 0.0 if length == 0.0 else max(0.0, min(1.0, -(ax * dx + ay * dy) / length))
            nearest = min(nearest, hypot(ax + along * dx, ay + along * dy))
    # Flat: it errs by about a hundredth over the 20 km that an area may have.
    return max(0.0, nearest * 0.95 - 0.5) if nearest < inf else 0.0


def _box_distance(box: Box, lat: float, long: float) -> float:
    parallels = [abs(lat - box.south) * METRES, abs(lat - box.north) * METRES]
    if box.width >= 360.0:
        return min(parallels)
    meridians = [_to_meridian(lat, long - edge) for edge in (box.west, box.east)]
    east = (long - box.west) % 360.0 <= box.width
    north = box.south <= lat <= box.north
    if north and east:
        return min(parallels + meridians)
    # Outside the nearest point is a corner, or on an edge: at least as far as the edge's line.
    return max(0.0 if north else min(parallels), 0.0 if east else min(meridians))


def _to_meridian(lat: float, degrees: float) -> float:
    """The great-circle distance to a meridian so many degrees away; the pole when it is beyond."""
    degrees = abs((degrees + 180.0) % 360.0 - 180.0)
    if degrees >= 90.0:
        return (90.0 - abs(lat)) * METRES
    return EARTH_RADIUS * asin(cos(lat * _RADIAN) * sin(degrees * _RADIAN))


T = TypeVar("T", bound=Placed)
Key = tuple[int, int]


class EdgeCell(Generic[T]):
    """The areas whose edge is near a cell, and those that contain all of it."""

    __slots__ = ("circles", "cleaned", "edges", "plane", "whole")

    def __init__(self) -> None:
        self.cleaned = 0
        """How many removals there had been when it was cleaned last."""
        self.edges: list[T] = []
        self.whole: list[T] = []
        self.plane: Plane | None = None
        """The plane of `circles`, which hold the edges as long as they are in use."""
        self.circles: Circles[T] | None = None

    def add(self, item: T, whole: bool) -> None:
        """Adds an area."""
        (self.whole if whole else self.edges).append(item)
        self.circles = None

    def clean(self) -> None:
        """Takes out the areas that are not in the grid any more."""
        self.edges = [item for item in self.edges if item.placed]
        self.whole = [item for item in self.whole if item.placed]
        self.circles = None


class EdgeGrid(Generic[T]):
    """Areas by grid cells: those whose edge is within REACH of a cell, and those that contain all of it.

    An area is on the level on which it is some cells wide. A row of a level has as many cells as keep them about as
    wide as high.
    """

    def __init__(self) -> None:
        self._levels: dict[int, dict[Key, EdgeCell[T]]] = {}
        self._removals = 0
        self._sweeping: list[tuple[int, Key]] = []
        self._flattened: deque[EdgeCell[T]] = deque()

    def add(self, item: T, area: Area) -> None:
        """Adds what has an area; it must not have been added before."""
        item.placed = True
        level = level_of(area)
        cells = self._levels.setdefault(level, {})
        for key, whole in touched(area, level):
            found = cells.get(key)
            if found is None:
                found = cells[key] = EdgeCell()
                found.cleaned = self._removals
            found.add(item, whole)

    def remove(self, item: T) -> None:
        """Removes what was added: to find it in its cells would take long, so these are cleaned when they are used."""
        item.placed = False
        self._removals += 1

    def at(self, lat: float, long: float) -> Iterator[EdgeCell[T]]:
        """Yields the cells of a position: every area that it is in, or whose edge is near, is in one of them."""
        for level, cells in self._levels.items():
            found = cells.get(key_of(lat, long, level))
            if found is not None:
                self._clean(found)
                yield found

    def circles_at(self, lat: float, long: float, plane: Plane) -> Iterator[Circles[T]]:
        """Yields what `at` does, on a plane: every area that can matter is in one of them."""
        for cell in self.at(lat, long):
            circles = cell.circles
            if circles is None or cell.plane is not plane:
                if circles is None:
                    self._flattened.append(cell)
                if len(self._flattened) > MOST_FLATTENED:
                    self._flattened.popleft().circles = None
                circles = cell.circles = Circles(cell.edges, plane, lat, long)
                cell.plane = plane
            yield circles

    def sweep(self, most: int) -> None:
        """Cleans so many of the cells that nobody looks at."""
        if not self._sweeping:
            self._sweeping = [(level, key) for level, cells in self._levels.items() for key in cells]
        for _ in range(min(most, len(self._sweeping))):
            level, key = self._sweeping.pop()
            cells = self._levels[level]
            found = cells[key]
            self._clean(found)
            if not (found.edges or found.whole):
                del cells[key]

    def _clean(self, cell: EdgeCell[T]) -> None:
        if cell.cleaned != self._removals:
            cell.cleaned = self._removals
            cell.clean()


def level_of(area: Area) -> int:
    """Returns the level of the grid on which an area is some cells wide."""
    extent = min(max(area.extent()), 4e7)
    return min(MOST_LEVEL, max(0, ceil(log2(max(extent, 1.0) / SHARPNESS / (FINEST * METRES)))))


def key_of(lat: float, long: float, level: int) -> tuple[int, int]:
    """Returns the cell of a position."""
    height = FINEST * (1 << level)
    row = int((lat + 90.0) / height)
    columns = columns_of(row, height)
    return row, int((long + 180.0) / 360.0 * columns) % columns


def columns_of(row: int, height: float) -> int:
    """Returns the number of cells in a row."""
    south = row * height - 90.0
    widest = 0.0 if south <= 0.0 <= south + height else min(abs(south), abs(south + height))
    return max(1, int(360.0 / height * cos(min(widest, 90.0) * _RADIAN)))


def touched(area: Area, level: int) -> Iterator[tuple[tuple[int, int], bool]]:
    """Yields each cell that an area touches or comes near, and whether the area contains all of it."""
    height = FINEST * (1 << level)
    near = REACH + margin_of(area) + 1.0
    bounds = area.bounds()
    spread = near / METRES
    first = max(0, int((bounds.south - spread + 90.0) / height))
    last = min(int(180.0 / height), int((bounds.north + spread + 90.0) / height))
    for row in range(first, last + 1):
        south, north = row * height - 90.0, (row + 1) * height - 90.0
        columns = columns_of(row, height)
        narrow = cos(min(max(abs(south), abs(north)), 90.0) * _RADIAN)
        west, width = bounds.west, bounds.width
        if narrow * 360.0 > 0.01:
            west, width = west - spread / narrow, width + 2 * spread / narrow
        if narrow * 360.0 <= 0.01 or width >= 360.0:
            span = range(columns)
        else:
            begin = int((west + 540.0) / 360.0 * columns)
            end = int((west + 540.0 + width) / 360.0 * columns)
            span = range(begin, min(end, begin + columns - 1) + 1)
        lat = min((south + north) / 2, 90.0)
        wide = cos(min(abs(south), abs(north), 90.0) * _RADIAN) if south * north > 0 else 1.0
        half = hypot(height / 2, 180.0 / columns * wide) * METRES * 1.001
        for number in span:
            column = number % columns
            long = (column + 0.5) * 360.0 / columns - 180.0
            if edge_distance(area, lat, long) <= half + near:
                yield (row, column), False
            elif area.contains(lat, long):
                yield (row, column), True
