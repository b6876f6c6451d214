"""The grid of cells over the globe, and which cells cover an area. Pure. `docs/architecture.md` explains the design.

A cover is exact: every position of a `full` cell is inside the area, positions of a `boundary` cell are tested one by
one with `contains`, and no other cell has a position inside. Rounding cannot break this: a value that is compared with
the edge of a cell is first widened or narrowed by far more than floats can err (`ANGLE_SLACK`, `LENGTH_SLACK`), always
towards the boundary.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import asin, atan2, ceil, cos, degrees, floor, nextafter, pi, radians, sin, sqrt
from typing import NamedTuple

from streamer.geo.shapes import ANGLE_SLACK, EARTH_RADIUS, LENGTH_SLACK, Area, Box, Circle, Polygon

LEVELS = 7
"""The levels of the grid: 0 (0.01° of latitude, 1.1 km) to 6 (0.64°, 71 km), each cell four of the level below."""

BUS_LEVEL = 4
"""The level whose cells name Redis channels and keys: 0.16°, 17.8 km."""

METRES_HIGH = EARTH_RADIUS * pi / 18_000
"""The height of a finest cell."""

COVER_CELLS = 120
"""Cells that `cover_level` allows in the box around an area. A circle then has up to 95."""

_TOP = LEVELS - 1
_ROWS = 18_000
_COLUMN_BITS = 20
_COLUMN_MASK = (1 << _COLUMN_BITS) - 1
_RADIAN = pi / 180
_HALF_RADIAN = pi / 360

_Span = tuple[float, float]


def _top_columns(band: int) -> int:
    """The number of top cells of a band of 64 finest rows: the largest at which no cell is wider than it is high."""
    south = (band << _TOP) / 100 - 90.0
    north = south + (1 << _TOP) / 100
    widest = 0.0 if south <= 0.0 <= north else min(abs(south), abs(north))
    return max(1, ceil(360.0 * cos(radians(widest)) / ((1 << _TOP) / 100)))


def _column_scale(columns: int) -> float:
    """Columns a degree, such that the last float below 180° east still falls into the last column."""
    scale = columns / 360.0
    while 360.0 * scale >= columns:
        scale = nextafter(scale, 0.0)
    return scale


_TOP_COLUMNS = tuple(_top_columns(band) for band in range(((_ROWS - 1) >> _TOP) + 1))
_BAND_SCALES = tuple(_column_scale(columns << _TOP) for columns in _TOP_COLUMNS)
# For each finest row its columns a degree and its first cell. The last row appears twice, for the pole itself.
_ROW_TABLE: tuple[tuple[float, int], ...] = tuple(
    (_BAND_SCALES[row >> _TOP], row << _COLUMN_BITS) for row in (*range(_ROWS), _ROWS - 1)
)


def cell(lat: float, long: float) -> int:
    """Returns the finest cell (level 0) of a position: row << 20 | column."""
    scale, first = _ROW_TABLE[int((lat + 90.0) * 100.0)]
    return first | int((long + 180.0) * scale) if long < 180.0 else first


def parent(cell: int, level: int) -> int:
    """Returns the cell of `level` in which a finest cell lies."""
    return (cell >> (_COLUMN_BITS + level)) << _COLUMN_BITS | (cell & _COLUMN_MASK) >> level


def level_of(metres: float) -> int:
    """Returns the finest level, up to `BUS_LEVEL`, whose cells have at least this height."""
    return next((level for level in range(BUS_LEVEL) if METRES_HIGH * (1 << level) >= metres), BUS_LEVEL)


def bus_cell(lat: float, long: float) -> int:
    """Returns the cell of `BUS_LEVEL` in which a position lies."""
    return parent(cell(lat, long), BUS_LEVEL)


def cell_name(cell: int) -> str:
    """Returns a cell as "row.column", for names of channels and keys."""
    return f"{cell >> _COLUMN_BITS}.{cell & _COLUMN_MASK}"


def named_cell(name: str) -> int:
    """Returns the cell of a name that `cell_name` made.

    Raises:
        ValueError: It is no such name.
    """
    row, dot, column = name.partition(".")
    if not (dot and row.isdecimal() and column.isdecimal() and int(column) <= _COLUMN_MASK):
        raise ValueError(f"{name!r} is no name of a cell: it must be a row and a column, as in '812.403'")
    return int(row) << _COLUMN_BITS | int(column)


def cell_bounds(cell: int, level: int) -> tuple[float, float, float, float]:
    """Returns the edges of a cell of `level` as (south, west, north, east), to within rounding (about 1e-13°)."""
    row = cell >> _COLUMN_BITS
    column = cell & _COLUMN_MASK
    south, north = _row_bounds(row, level)
    columns = _columns(row, level)
    return south, column * 360.0 / columns - 180.0, north, (column + 1) * 360.0 / columns - 180.0


def _row_bounds(row: int, level: int) -> tuple[float, float]:
    return (row << level) / 100 - 90.0, min(((row + 1) << level) / 100 - 90.0, 90.0)


def _columns(row: int, level: int) -> int:
    return _TOP_COLUMNS[row >> (_TOP - level)] << (_TOP - level)


def _scale(row: int, level: int) -> float:
    return _BAND_SCALES[row >> (_TOP - level)] / (1 << level)


def _rows(south: float, north: float, level: int) -> range:
    """The rows of a level between two parallels, widened."""
    first = int(max(south - ANGLE_SLACK + 90.0, 0.0) * 100.0) >> level
    last = min(int((north + ANGLE_SLACK + 90.0) * 100.0), _ROWS - 1) >> level
    return range(first, last + 1)


class Cover(NamedTuple):
    """The cells of one level over an area: all positions in `full` are inside, some in `boundary`, none elsewhere."""

    full: frozenset[int]
    boundary: frozenset[int]


def cover(area: Area, level: int) -> Cover:
    """Returns the cells of `level` that an area touches, tight to about one ring of cells."""
    if isinstance(area, Polygon):
        if level not in area.covers:
            area.covers[level] = _polygon_cover(area, level)
        return Cover(*area.covers[level])
    full: set[int] = set()
    touched: set[int] = set()
    for row, outer, inner in _circle_spans(area, level) if isinstance(area, Circle) else _box_spans(area, level):
        first_cell = row << _COLUMN_BITS
        columns = _columns(row, level)
        scale = _scale(row, level)
        touched.update(first_cell | column % columns for column in _between(outer, scale, columns))
        if inner is not None:
            span = _between(inner, scale, columns)
            # A column is full only when the span ends beyond it, or covers all longitudes.
            whole = span if inner[1] - inner[0] >= 360.0 else span[1:-1]
            full.update(first_cell | column % columns for column in whole)
    return Cover(frozenset(full), frozenset(touched - full))


def _between(span: _Span, scale: float, columns: int) -> range:
    """The columns from one longitude to another, beyond the row's where the span leaves -180..180."""
    west, east = span
    if east - west >= 360.0:
        return range(columns)
    return range(floor((west + 180.0) * scale), floor((east + 180.0) * scale) + 1)


def _circle_spans(circle: Circle, level: int) -> Iterator[tuple[int, _Span, _Span | None]]:
    """For each row the longitudes that the circle reaches anywhere in it, and those it reaches everywhere in it."""
    lat, long = circle.lat, circle.long
    outer_angle = (circle.radius + LENGTH_SLACK) / EARTH_RADIUS
    inner_angle = (circle.radius - LENGTH_SLACK) / EARTH_RADIUS
    # A circle larger than a hemisphere is described by its complement: all of it counts as boundary.
    hole = outer_angle >= pi / 2
    outer = 1.0 if hole else sin(outer_angle / 2) ** 2
    inner = 0.0 if hole or inner_angle <= 0.0 else sin(inner_angle / 2) ** 2
    # Northwards a circle widens up to one parallel, where meridians are its tangents or at a pole inside, then narrows.
    phi = lat * _RADIAN
    widest = degrees(atan2(sin(phi), sqrt(max(0.0, cos(phi - outer_angle) * cos(phi + outer_angle)))))
    for row in _rows(max(lat - degrees(outer_angle), -90.0), min(lat + degrees(outer_angle), 90.0), level):
        south, north = _row_bounds(row, level)
        south -= ANGLE_SLACK
        north += ANGLE_SLACK
        half = 180.0 if hole else _half_width(circle, outer, min(max(widest, south), north))
        least = min(_half_width(circle, inner, south), _half_width(circle, inner, north)) if inner else -1.0
        inside = _widened(long, least, -ANGLE_SLACK) if least > 0.0 else None
        yield row, _widened(long, max(half, 0.0), ANGLE_SLACK), inside


def _half_width(circle: Circle, haversine: float, lat: float) -> float:
    """Degrees of longitude that a circle reaches from its centre at a parallel: 180 for all, -1 for none."""
    s = sin((lat - circle.lat) * _HALF_RADIAN)
    rest = haversine - s * s
    if rest < 0.0:
        return -1.0
    whole = circle.cos_lat * cos(lat * _RADIAN)
    return 180.0 if rest >= whole else degrees(2 * asin(sqrt(rest / whole)))


def _widened(long: float, half: float, slack: float) -> _Span:
    return (-180.0, 180.0) if half >= 180.0 else (long - half - slack, long + half + slack)


def _box_spans(box: Box, level: int) -> Iterator[tuple[int, _Span, _Span | None]]:
    """For each row the longitudes that the box reaches anywhere in it, and those it reaches everywhere in it."""
    west, width = box.west, box.width
    outer = (west - ANGLE_SLACK, west + width + ANGLE_SLACK)
    inner = outer if width >= 360.0 else (west + ANGLE_SLACK, west + width - ANGLE_SLACK)
    for row in _rows(box.south, box.north, level):
        south, north = _row_bounds(row, level)
        above = south - ANGLE_SLACK > box.south or box.south == -90.0
        below = north + ANGLE_SLACK < box.north or box.north == 90.0
        yield row, outer, inner if above and below and inner[0] < inner[1] else None


def _polygon_cover(polygon: Polygon, level: int) -> Cover:
    """Cells that an edge touches are boundary. Between two of them in a row, one position decides for all."""
    bounds = polygon.bounds()
    first_row = _rows(bounds.south, bounds.north, level)[0]
    rows: list[tuple[float, float, float, int, set[int]]] = []
    for row in _rows(bounds.south, bounds.north, level):
        south, north = _row_bounds(row, level)
        rows.append((south - ANGLE_SLACK, north + ANGLE_SLACK, _scale(row, level), _columns(row, level), set()))
    for x1, y1, x2, y2 in polygon.edges:
        crossed = _rows(min(y1, y2), max(y1, y2), level)
        left, right = x1 + 180.0 - ANGLE_SLACK, x2 + 180.0 + ANGLE_SLACK
        clipped = len(crossed) > 1 and abs(y2 - y1) > ANGLE_SLACK
        slope = (x2 - x1) / (y2 - y1) if clipped else 0.0
        for south, north, scale, columns, touched in rows[crossed[0] - first_row : crossed[-1] - first_row + 1]:
            west, east = left, right
            if clipped:
                enters, leaves = left + (south - y1) * slope, left + (north - y1) * slope
                if enters > leaves:
                    enters, leaves = leaves, enters
                if enters > west:
                    west = enters
                if leaves + 2 * ANGLE_SLACK < east:
                    east = leaves + 2 * ANGLE_SLACK
            column, last = floor(west * scale), floor(east * scale)
            touched.add(column % columns)
            while column < last:
                column += 1
                touched.add(column % columns)
    full: set[int] = set()
    boundary: set[int] = set()
    for row, (south, north, _, columns, touched) in enumerate(rows, first_row):
        first_cell = row << _COLUMN_BITS
        boundary.update([first_cell | column for column in touched])
        stops = sorted(touched) or [-1]
        stops.append(stops[0] + columns if touched else columns)
        for before, after in pairwise(stops):
            if after - before < 2:
                continue
            column = (before + 1) % columns
            if polygon.contains((south + north) / 2, (column + 0.5) * 360.0 / columns - 180.0):
                full.update([first_cell | run % columns for run in range(before + 1, after)])
    return Cover(frozenset(full), frozenset(boundary))


def cover_level(area: Area) -> int:
    """Returns the finest level at which the box around an area has about `COVER_CELLS` cells, else the coarsest."""
    bounds = area.bounds()
    widest = 0.0 if bounds.south <= 0.0 <= bounds.north else min(abs(bounds.south), abs(bounds.north))
    # In cells of level 0, as high as wide; one more of each, as an area seldom begins where a cell does.
    wide = bounds.width * cos(widest * _RADIAN) * 100.0
    high = (bounds.north - bounds.south) * 100.0
    for level in range(_TOP):
        if (wide / (1 << level) + 1) * (high / (1 << level) + 1) <= COVER_CELLS:
            return level
    return _TOP


def bus_cover(area: Area) -> frozenset[int]:
    """Returns the cells of `BUS_LEVEL` that an area touches: whatever is inside has its `bus_cell` here."""
    full, boundary = cover(area, BUS_LEVEL)
    return full | boundary
