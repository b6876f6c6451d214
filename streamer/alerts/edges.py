"""A lower bound of the distance from a position to the edge of an area, and a grid of cells with their areas. Pure.

A vendor that moves within a cell can only cross edges that pass through the cell.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import lru_cache
from math import asin, ceil, cos, hypot, inf, log2, pi, sin
from typing import Any, Generic, Protocol, TypeVar
from weakref import ref

from streamer.alerts.circles import Circles, CircleTable
from streamer.geo.shapes import EARTH_RADIUS, Area, Box, Circle, distance

MARGIN = 20.0
"""Metres that a vendor must be outside before it has left: GPS positions scatter by about as much."""
MARGIN_SHARE = 0.1
"""Maximum margin of a small area, as a share of its width or height."""
SHARPNESS = 6
"""Approximate number of grid cells along an area."""
FINEST = 0.001
"""Degrees of latitude of the smallest cell."""
MOST_LEVEL = 12
ROWS = 10_000
"""Rows of the grid whose number of cells is cached."""
SPARE = 1.0
"""Metres by which an area is widened for rounding when its cells are found."""
STAY = 10.0
"""Metres outside a cell in which it is still used, so that a vendor at its edge does not change cells all the time."""
METRES = EARTH_RADIUS * pi / 180
"""Of a degree of latitude."""
NEAR_POLE = 89.0
"""Degrees of latitude beyond which a flat projection is not good enough: all edges count as near."""

_RADIAN = pi / 180


def margin_of(area: Area) -> float:
    """Returns the metres that a vendor must be outside of an area before it has left."""
    return min(MARGIN, MARGIN_SHARE * min(area.extent()))


def holds(area: Area, margin: float, was_inside: bool, lat: float, long: float) -> bool:
    """Returns whether a vendor is inside: exactly when entering, with the margin when leaving."""
    if area.contains(lat, long):
        return True
    return was_inside and margin > 0.0 and edge_distance(area, lat, long) <= margin


def edge_distance(area: Area, lat: float, long: float) -> float:
    """Returns at most the metres from a position to the edge of an area: how far it may move without crossing it."""
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
    """The great-circle distance to a meridian this many degrees away, or to the pole if the meridian is beyond it."""
    degrees = abs((degrees + 180.0) % 360.0 - 180.0)
    if degrees >= 90.0:
        return (90.0 - abs(lat)) * METRES
    return EARTH_RADIUS * asin(cos(lat * _RADIAN) * sin(degrees * _RADIAN))


class Placed(Protocol):
    """An item of the grid: an area with the margin that a vendor must be outside before it has left."""

    area: Area | None
    margin: float
    cells: list[EdgeCell[Any]]
    """The cells that it is in."""
    circle: int
    """Its number in the table, if its area is a circle."""


T = TypeVar("T", bound=Placed)
Key = tuple[int, int, int]
"""Level, row and column."""
Bounds = tuple[float, float, float, float]
"""South, north, west and east, in degrees."""
EVERYWHERE = (-inf, inf, -inf, inf)


class EdgeCell(Generic[T]):
    """The areas whose edge, or the outer side of whose margin, may pass through a cell, and those that contain it."""

    __slots__ = ("_circles", "_numbers", "_round", "_table", "key", "other", "version", "whole")

    def __init__(self, key: Key, table: CircleTable) -> None:
        self.key = key
        self.version = 0
        """Incremented with each change."""
        self.other: list[T] = []
        """Boxes and polygons whose edge may pass through it."""
        self.whole: list[T] = []
        self._round: list[T] = []
        self._numbers = array("l")
        self._table = table
        self._circles: ref[Circles[T]] | None = None

    def __bool__(self) -> bool:
        return bool(self._round or self.other or self.whole)

    @property
    def edges(self) -> list[T]:
        """All areas whose edge may pass through it."""
        return self._round + self.other

    def circles(self) -> Circles[T]:
        """Returns the circles whose edge may pass through it; one object is shared while it is in use."""
        circles = None if self._circles is None else self._circles()
        if circles is None:
            circles = Circles(self._round.copy(), self._table.take(self._numbers))
            self._circles = ref(circles)
        return circles

    def add(self, item: T, *, whole: bool) -> None:
        """Adds an area."""
        self._circles = None
        self.version += 1
        if whole:
            self.whole.append(item)
        elif isinstance(item.area, Circle):
            self._round.append(item)
            self._numbers.append(item.circle)
        else:
            self.other.append(item)

    def remove(self, item: T) -> None:
        """Removes an area."""
        self._circles = None
        self.version += 1
        edges = self._round if isinstance(item.area, Circle) else self.other
        try:
            number = edges.index(item)
        except ValueError:
            self.whole.remove(item)
            return
        del edges[number]
        if edges is self._round:
            del self._numbers[number]


class EdgeGrid(Generic[T]):
    """Areas by grid cells.

    An area is on the level on which it is some cells wide. A row of a level has as many cells as keep them about as
    wide as high.
    """

    def __init__(self) -> None:
        self._levels: dict[int, dict[Key, EdgeCell[T]]] = {}
        self._table = CircleTable()
        self.made = 0
        """The number of cells created so far."""

    def add(self, item: T, area: Area) -> None:
        """Adds an item, which must not be in the grid yet."""
        if isinstance(area, Circle):
            item.circle = self._table.put(area, item.margin)
        level = level_of(area)
        cells = self._levels.setdefault(level, {})
        for key, whole in touched(area, level):
            cell = cells.get(key)
            if cell is None:
                cell = cells[key] = EdgeCell(key, self._table)
                self.made += 1
            cell.add(item, whole=whole)
            item.cells.append(cell)

    def remove(self, item: T) -> None:
        """Removes an item."""
        cell: EdgeCell[T]
        for cell in item.cells:
            cell.remove(item)
            if not cell:
                level = cell.key[0]
                del self._levels[level][cell.key]
                if not self._levels[level]:
                    del self._levels[level]
        item.cells = []
        if isinstance(item.area, Circle):
            self._table.remove(item.circle)

    def at(self, lat: float, long: float) -> tuple[list[EdgeCell[T]], Bounds]:
        """Returns the cells of a position: every area that it is in, or in whose margin, is in one of them.

        Also returns the bounds within which the result is valid, even if there are no cells.
        """
        keys = [key_of(lat, long, level) for level in self._levels]
        south, north, west, east = zip(*map(_good_for, keys), EVERYWHERE, strict=True)
        found = [cell for key in keys if (cell := self._levels[key[0]].get(key)) is not None]
        return found, (max(south), min(north), max(west), min(east))


def level_of(area: Area) -> int:
    """Returns the level of the grid on which an area is some cells wide."""
    extent = min(max(area.extent()), 4e7)
    return min(MOST_LEVEL, max(0, ceil(log2(max(extent, 1.0) / SHARPNESS / (FINEST * METRES)))))


def key_of(lat: float, long: float, level: int) -> Key:
    """Returns the cell of a position."""
    height = FINEST * (1 << level)
    row = int((lat + 90.0) / height)
    columns = columns_of(row, height)
    return level, row, int((long + 180.0) / 360.0 * columns) % columns


@lru_cache(ROWS)
def columns_of(row: int, height: float) -> int:
    """Returns the number of cells in a row."""
    south = row * height - 90.0
    widest = 0.0 if south <= 0.0 <= south + height else min(abs(south), abs(south + height))
    return max(1, int(360.0 / height * cos(min(widest, 90.0) * _RADIAN)))


def _good_for(key: Key) -> Bounds:
    level, row, column = key
    height = FINEST * (1 << level)
    columns = columns_of(row, height)
    south, west = row * height - 90.0, column * 360.0 / columns - 180.0
    more = STAY / METRES
    # the wider degrees of its two parallels, so that it is no more than STAY
    wide = more / cos(min(abs(south), abs(south + height), 90.0) * _RADIAN) if south * (south + height) > 0 else more
    return south - more, south + height + more, west - wide, west + 360.0 / columns + wide


def touched(area: Area, level: int) -> Iterator[tuple[Key, bool]]:
    """Yields each cell that an area touches, or its margin, and whether the area contains all of it."""
    height = FINEST * (1 << level)
    near = margin_of(area) + 1.5 * STAY + SPARE
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
                yield (level, row, column), False
            elif area.contains(lat, long):
                yield (level, row, column), True
