"""Positions, areas and grid cells on a sphere: exact containment, and covers of areas by cells. Pure, no I/O.

Degrees everywhere: `lat` in -90..90, `long` in -180..180; metres for lengths. `docs/grid.md` says why the grid is so.

What makes a cover exact: a cell wholly inside an area (`full`) needs no test, on the `rim` each position is tested with
`contains`, and no position inside lies outside both. Rounding can't break this: what is compared with a cell's edge is
first widened or narrowed by far more than floats can err (`_ANGLE_SLACK`, `_LENGTH_SLACK`), only ever towards the rim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import asin, atan2, ceil, cos, degrees, floor, inf, nextafter, pi, radians, sin, sqrt
from typing import NamedTuple

from streamer.errors import ErrorCode, ProtocolError

EARTH_RADIUS = 6_371_008.8
"""The sphere of the protocol, metres."""

LEVELS = 7
"""The grid's levels: 0 (0.01° of latitude, 1.1 km) to 6 (0.64°, 71 km), each cell four of the level below."""

BUS_LEVEL = 4
"""The level whose cells name Redis channels and keys: 0.16°, 17.8 km."""

COVER_CELLS = 120
"""How many cells `cover_level` lets the box around an area have: a circle then has up to 95."""

_TOP = LEVELS - 1
_ROWS = 18_000
_COLUMN_BITS = 20
_COLUMN_MASK = (1 << _COLUMN_BITS) - 1

_DIAMETER = 2 * EARTH_RADIUS
_RADIAN = pi / 180
_HALF_RADIAN = pi / 360

# Containment errs by about 1e-8 m, grid edges by about 1e-13°: these are thousands of times more, but nothing to cells.
_ANGLE_SLACK = 1e-9
_LENGTH_SLACK = 1e-3

_BINS = 32

_Span = tuple[float, float]
_Edge = tuple[float, float, float, float]


def distance(lat1: float, long1: float, lat2: float, long2: float) -> float:
    """The great-circle distance in metres between two positions; the same in both directions, to the last bit."""
    s = sin((lat2 - lat1) * _HALF_RADIAN)
    t = sin((long2 - long1) * _HALF_RADIAN)
    return _metres(s * s + cos(lat1 * _RADIAN) * cos(lat2 * _RADIAN) * t * t)


def _metres(haversine: float) -> float:
    return _DIAMETER * asin(sqrt(min(haversine, 1.0)))


def _haversine(metres: float) -> float:
    """The largest haversine whose distance is at most so many metres."""
    if metres >= _metres(1.0):
        return inf
    haversine = sin(metres / _DIAMETER) ** 2
    while _metres(haversine) > metres:
        haversine = nextafter(haversine, 0.0)
    while _metres(above := nextafter(haversine, 1.0)) <= metres:
        haversine = above
    return haversine


def _check_position(what: str, lat: float, long: float) -> None:
    if not (-90.0 <= lat <= 90.0 and -180.0 <= long <= 180.0):
        raise ProtocolError(
            ErrorCode.INVALID_COORDINATES,
            f"{what} is at lat {lat!r}, long {long!r}: give a lat from -90 to 90 and a long from -180 to 180.",
        )


@dataclass(frozen=True, slots=True)
class Circle:
    """All positions whose `distance` to the centre is at most `radius` metres, bit for bit as `distance` says.

    Raises ProtocolError for a centre off the globe, or a radius that is negative or no number.
    """

    lat: float
    long: float
    radius: float
    _cos: float = field(init=False, repr=False, compare=False)
    _haversine: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_position("The centre of the circle", self.lat, self.long)
        if not 0.0 <= self.radius < inf:
            raise ProtocolError(
                ErrorCode.INVALID_AREA, f"The radius is {self.radius!r}: give a number of metres that is not negative."
            )
        object.__setattr__(self, "_cos", cos(self.lat * _RADIAN))
        object.__setattr__(self, "_haversine", _haversine(self.radius))

    def contains(self, lat: float, long: float) -> bool:
        """Whether a position is inside or on the rim."""
        s = sin((lat - self.lat) * _HALF_RADIAN)
        t = sin((long - self.long) * _HALF_RADIAN)
        return s * s + self._cos * cos(lat * _RADIAN) * t * t <= self._haversine

    def bounds(self) -> Box:
        """The smallest box around the circle, or a millimetre larger; all the way round if a pole is inside."""
        angle = (self.radius + _LENGTH_SLACK) / EARTH_RADIUS
        south = self.lat - degrees(angle)
        north = self.lat + degrees(angle)
        if south <= -90.0 or north >= 90.0 or sin(angle) >= self._cos:
            return Box(max(south, -90.0), -180.0, min(north, 90.0), 180.0)
        half = degrees(asin(sin(angle) / self._cos)) + _ANGLE_SLACK
        return Box(south, _wrap(self.long - half), north, _wrap(self.long + half))

    def extent(self) -> tuple[float, float]:
        """Width and height in metres: the diameter, twice."""
        return 2 * self.radius, 2 * self.radius


@dataclass(frozen=True, slots=True)
class Box:
    """All positions between two parallels and two meridians, edges included; `east` < `west` crosses the antimeridian.

    -180 and 180 are the same meridian. Raises ProtocolError for a corner off the globe, or `south` above `north`.
    """

    south: float
    west: float
    north: float
    east: float

    def __post_init__(self) -> None:
        _check_position("The south-west corner of the box", self.south, self.west)
        _check_position("The north-east corner of the box", self.north, self.east)
        if self.south > self.north:
            raise ProtocolError(
                ErrorCode.INVALID_AREA,
                f"The box's south-west corner (lat {self.south!r}) is north of its north-east corner "
                f"(lat {self.north!r}): swap them.",
            )

    def contains(self, lat: float, long: float) -> bool:
        """Whether a position is inside or on an edge."""
        if not self.south <= lat <= self.north:
            return False
        west = self.west
        east = self.east
        if west <= long <= east:
            return True
        if east < west and (long >= west or long <= east):
            return True
        return (long == 180.0 and west == -180.0) or (long == -180.0 and east == 180.0)

    def bounds(self) -> Box:
        """The box itself."""
        return self

    def extent(self) -> tuple[float, float]:
        """Width and height in metres: great-circle distances, the width where the box is widest."""
        widest = 0.0 if self.south <= 0.0 <= self.north else min(self.south, self.north, key=abs)
        # Two meridians are farthest apart 180° round; a box beyond that is as wide as the cap it surrounds.
        width = min(self.east - self.west if self.west <= self.east else self.east - self.west + 360.0, 180.0)
        return distance(widest, 0.0, widest, width), distance(self.south, 0.0, self.north, 0.0)


@dataclass(frozen=True, slots=True)
class Polygon:
    """All positions an odd number of edges away from the outside; points are (long, lat) as in GeoJSON, closed or not.

    Edges are straight in longitude and latitude; one that spans over 180° goes the other way, over the antimeridian.
    A ring that goes round the axis surrounds the pole it is nearer to. A position on a western or southern edge is
    inside, one on an eastern or northern edge is not: of two polygons side by side, one contains their common edge.
    Raises ProtocolError for under three points, or a point off the globe.
    """

    points: tuple[tuple[float, float], ...]
    _south: float = field(init=False, repr=False, compare=False)
    _west: float = field(init=False, repr=False, compare=False)
    _north: float = field(init=False, repr=False, compare=False)
    _east: float = field(init=False, repr=False, compare=False)
    _round: float = field(init=False, repr=False, compare=False)
    _width: float = field(init=False, repr=False, compare=False)
    _south_pole: bool = field(init=False, repr=False, compare=False)
    _bins: tuple[tuple[tuple[float, float, float, float, float], ...], ...] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if len(self.points) < 3:
            raise ProtocolError(
                ErrorCode.INVALID_AREA, f"The polygon has {len(self.points)} point(s): give at least three."
            )
        for index, (long, lat) in enumerate(self.points):
            _check_position(f"Point {index} of the polygon", lat, long)
        edges, winding = _edges(self.points)
        south = min(lat for _, lat in self.points)
        north = max(lat for _, lat in self.points)
        south_nearer = south + north < 0.0
        south_pole = winding % 2 == 1 and south_nearer
        if winding:
            south, north = (-90.0, north) if south_nearer else (south, 90.0)
        west = min(x1 for x1, _, _, _ in edges)
        east = max(x2 for _, _, x2, _ in edges)
        overall = max(east - west, 360.0 * abs(winding))
        width = min(overall, 360.0)
        # Edges by bins of longitude, each bin with all that touch it: `contains` looks at one bin only.
        bins: list[list[tuple[float, float, float, float, float]]] = [[] for _ in range(_BINS + 1)]
        # Of a ring wider than the globe, what hangs over its eastern end comes in again at its western.
        for back in range(int(overall / 360.0) + 1):
            for x1, y1, x2, y2 in _edges(self.points, back)[0] if back else edges:
                if x1 < x2 and west < x2 and x1 - west < width:
                    first = int(max(x1 - west, 0.0) / width * _BINS)
                    last = int(min(x2 - west, width) / width * _BINS)
                    for edges_here in bins[first : last + 1]:
                        edges_here.append((x1, x2, y1, x2 - x1, y2 - y1))
        for name, value in (
            ("_south", south),
            ("_west", west),
            ("_north", north),
            ("_east", west + 360.0 if width >= 360.0 else east),
            # Where the western end comes again, if that is a longitude `contains` can meet.
            ("_round", west + 360.0 if width >= 360.0 or west == -180.0 else inf),
            ("_width", width),
            ("_south_pole", south_pole),
            ("_bins", tuple(map(tuple, bins))),
        ):
            object.__setattr__(self, name, value)

    def contains(self, lat: float, long: float) -> bool:
        """Whether a position is inside: the parity of the edges between it and the south pole."""
        if not self._south <= lat <= self._north:
            return False
        west = self._west
        if long < west:
            long += 360.0
        if long >= self._east:
            if long < self._round:
                return False
            long = west
            if self._width == 0.0:
                return False
        inside = self._south_pole
        for x1, x2, y1, width, height in self._bins[int((long - west) / self._width * _BINS)]:
            if x1 <= long < x2 and lat >= y1 + (long - x1) / width * height:
                inside = not inside
        return inside

    def bounds(self) -> Box:
        """The smallest box around the polygon; all the way round if its ring goes round the axis."""
        if self._width >= 360.0:
            return Box(self._south, -180.0, self._north, 180.0)
        return Box(self._south, self._west, self._north, _wrap(self._east))

    def extent(self) -> tuple[float, float]:
        """Width and height in metres of the box around the polygon."""
        return self.bounds().extent()


Area = Circle | Box | Polygon


def _wrap(long: float) -> float:
    """A longitude from -540 to 540, as one from -180 to 180."""
    if long > 180.0:
        return long - 360.0
    return long + 360.0 if long < -180.0 else long


def _edges(points: tuple[tuple[float, float], ...], back: int = 0) -> tuple[list[_Edge], int]:
    """The edges of a closed ring, and how often it goes round the axis eastwards.

    Each edge is (x1, y1, x2, y2) with x1 <= x2: longitudes that go on beyond ±180 where the ring does, the westernmost
    in -180..180, or `back` turns west of that. An edge is the same in whichever direction its ring goes, so that two
    rings which share it agree.
    """
    closed = (*points, points[0])
    turn = 0
    turns = [0]
    for (before, _), (long, _) in pairwise(closed):
        turn += -1 if long - before > 180.0 else 1 if long - before < -180.0 else 0
        turns.append(turn)
    # Turns are integers, and added last: the same corner in the same turn is the same float wherever it comes from.
    westmost = min((long + 360.0 * turn, turn) for (long, _), turn in zip(closed, turns, strict=True))[1] + back
    ring = [(long + 360.0 * (turn - westmost), lat) for (long, lat), turn in zip(closed, turns, strict=True)]
    return [(*min(a, b), *max(a, b)) for a, b in pairwise(ring)], turn


def _top_columns(band: int) -> int:
    """How many top cells a band of 64 finest rows has: as many as keep each no wider than it is high."""
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
# For each finest row its columns a degree and its first cell; then once more the last one, for the pole itself.
_ROW_TABLE: tuple[tuple[float, int], ...] = tuple(
    (_BAND_SCALES[row >> _TOP], row << _COLUMN_BITS) for row in (*range(_ROWS), _ROWS - 1)
)


def cell(lat: float, long: float) -> int:
    """The finest cell (level 0) of a position: row << 20 | column."""
    scale, first = _ROW_TABLE[int((lat + 90.0) * 100.0)]
    return first | int((long + 180.0) * scale) if long < 180.0 else first


def parent(cell: int, level: int) -> int:
    """The cell of `level` that a finest cell lies in."""
    return (cell >> (_COLUMN_BITS + level)) << _COLUMN_BITS | (cell & _COLUMN_MASK) >> level


def bus_cell(lat: float, long: float) -> int:
    """The cell of `BUS_LEVEL` that a position lies in."""
    return parent(cell(lat, long), BUS_LEVEL)


def cell_name(cell: int) -> str:
    """A cell as "row.column", for names of channels and keys."""
    return f"{cell >> _COLUMN_BITS}.{cell & _COLUMN_MASK}"


def named_cell(name: str) -> int:
    """The cell that `cell_name` made a name of; ValueError for what is no such name."""
    row, dot, column = name.partition(".")
    if not (dot and row.isdecimal() and column.isdecimal() and int(column) <= _COLUMN_MASK):
        raise ValueError(f"{name!r} is no name of a cell: it should be a row and a column, as in '812.403'.")
    return int(row) << _COLUMN_BITS | int(column)


def cell_bounds(cell: int, level: int) -> tuple[float, float, float, float]:
    """The edges of a cell of `level` as (south, west, north, east), to within rounding (about 1e-13°)."""
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
    first = int(max(south - _ANGLE_SLACK + 90.0, 0.0) * 100.0) >> level
    last = min(int((north + _ANGLE_SLACK + 90.0) * 100.0), _ROWS - 1) >> level
    return range(first, last + 1)


class Cover(NamedTuple):
    """The cells of one level over an area: in `full` every position is inside, in `rim` some may be, elsewhere none."""

    full: frozenset[int]
    rim: frozenset[int]


def cover(area: Area, level: int) -> Cover:
    """The cells of `level` that an area touches; sound for every position, tight to about one ring of cells."""
    if isinstance(area, Polygon):
        return _polygon_cover(area, level)
    full: set[int] = set()
    touched: set[int] = set()
    for row, outer, inner in _circle_spans(area, level) if isinstance(area, Circle) else _box_spans(area, level):
        first_cell = row << _COLUMN_BITS
        columns = _columns(row, level)
        scale = _scale(row, level)
        touched.update(first_cell | column % columns for column in _between(outer, scale, columns))
        if inner is not None:
            span = _between(inner, scale, columns)
            # A span that ends in a column fills it only when there is no end: all the way round.
            whole = span if inner[1] - inner[0] >= 360.0 else span[1:-1]
            full.update(first_cell | column % columns for column in whole)
    return Cover(frozenset(full), frozenset(touched - full))


def _between(span: _Span, scale: float, columns: int) -> range:
    """The columns from one longitude to another, not yet brought back into the row where the span leaves -180..180."""
    west, east = span
    if east - west >= 360.0:
        return range(columns)
    return range(floor((west + 180.0) * scale), floor((east + 180.0) * scale) + 1)


def _circle_spans(circle: Circle, level: int) -> Iterator[tuple[int, _Span, _Span | None]]:
    """For each row the longitudes that the circle reaches anywhere in it, and those it reaches everywhere in it."""
    lat, long = circle.lat, circle.long
    outer_angle = (circle.radius + _LENGTH_SLACK) / EARTH_RADIUS
    inner_angle = (circle.radius - _LENGTH_SLACK) / EARTH_RADIUS
    # Beyond a quarter of the globe a circle is the hole in it: no use here, all of it is rim.
    hole = outer_angle >= pi / 2
    outer = 1.0 if hole else sin(outer_angle / 2) ** 2
    inner = 0.0 if hole or inner_angle <= 0.0 else sin(inner_angle / 2) ** 2
    # Northwards a circle widens up to one parallel, where meridians are its tangents or at a pole inside, then narrows.
    phi = lat * _RADIAN
    widest = degrees(atan2(sin(phi), sqrt(max(0.0, cos(phi - outer_angle) * cos(phi + outer_angle)))))
    for row in _rows(max(lat - degrees(outer_angle), -90.0), min(lat + degrees(outer_angle), 90.0), level):
        south, north = _row_bounds(row, level)
        south -= _ANGLE_SLACK
        north += _ANGLE_SLACK
        half = 180.0 if hole else _half_width(circle, outer, min(max(widest, south), north))
        least = min(_half_width(circle, inner, south), _half_width(circle, inner, north)) if inner else -1.0
        inside = _widened(long, least, -_ANGLE_SLACK) if least > 0.0 else None
        yield row, _widened(long, max(half, 0.0), _ANGLE_SLACK), inside


def _half_width(circle: Circle, haversine: float, lat: float) -> float:
    """How many degrees of longitude a circle reaches from its centre at a parallel: 180 all round, -1 not at all."""
    s = sin((lat - circle.lat) * _HALF_RADIAN)
    rest = haversine - s * s
    if rest < 0.0:
        return -1.0
    whole = circle._cos * cos(lat * _RADIAN)
    return 180.0 if rest >= whole else degrees(2 * asin(sqrt(rest / whole)))


def _widened(long: float, half: float, slack: float) -> _Span:
    return (-180.0, 180.0) if half >= 180.0 else (long - half - slack, long + half + slack)


def _box_spans(box: Box, level: int) -> Iterator[tuple[int, _Span, _Span | None]]:
    """For each row the longitudes that the box reaches anywhere in it, and those it reaches everywhere in it."""
    west = box.west
    east = box.east if box.west <= box.east else box.east + 360.0
    outer = (west - _ANGLE_SLACK, east + _ANGLE_SLACK)
    inner = outer if east - west >= 360.0 else (west + _ANGLE_SLACK, east - _ANGLE_SLACK)
    for row in _rows(box.south, box.north, level):
        south, north = _row_bounds(row, level)
        above = south - _ANGLE_SLACK > box.south or box.south == -90.0
        below = north + _ANGLE_SLACK < box.north or box.north == 90.0
        yield row, outer, inner if above and below and inner[0] < inner[1] else None


def _polygon_cover(polygon: Polygon, level: int) -> Cover:
    """Cells that an edge touches are the rim; between them nothing changes, so one position decides for each run."""
    bounds = polygon.bounds()
    rows: dict[int, set[int]] = {row: set() for row in _rows(bounds.south, bounds.north, level)}
    for x1, y1, x2, y2 in _edges(polygon.points)[0]:
        crossed = _rows(min(y1, y2), max(y1, y2), level)
        for row in crossed:
            west, east = x1, x2
            if len(crossed) > 1 and abs(y2 - y1) > _ANGLE_SLACK:
                south, north = _row_bounds(row, level)
                run = (x2 - x1) / (y2 - y1)
                at_south = x1 + (south - _ANGLE_SLACK - y1) * run
                at_north = x1 + (north + _ANGLE_SLACK - y1) * run
                west = max(x1, min(at_south, at_north))
                east = min(x2, max(at_south, at_north))
            columns = _columns(row, level)
            span = (west - _ANGLE_SLACK, east + _ANGLE_SLACK)
            rows[row].update(column % columns for column in _between(span, _scale(row, level), columns))
    full: set[int] = set()
    rim: set[int] = set()
    for row, touched in rows.items():
        first_cell = row << _COLUMN_BITS
        columns = _columns(row, level)
        rim.update(first_cell | column for column in touched)
        south, north = _row_bounds(row, level)
        stops = sorted(touched) or [-1]
        stops.append(stops[0] + columns if touched else columns)
        for before, after in pairwise(stops):
            if after - before < 2:
                continue
            column = (before + 1) % columns
            if polygon.contains((south + north) / 2, (column + 0.5) * 360.0 / columns - 180.0):
                full.update(first_cell | run % columns for run in range(before + 1, after))
    return Cover(frozenset(full), frozenset(rim))


def cover_level(area: Area) -> int:
    """The finest level at which the box around an area is some `COVER_CELLS` cells or fewer, else the coarsest."""
    bounds = area.bounds()
    widest = 0.0 if bounds.south <= 0.0 <= bounds.north else min(abs(bounds.south), abs(bounds.north))
    width = bounds.east - bounds.west if bounds.west <= bounds.east else bounds.east - bounds.west + 360.0
    # In cells of level 0, as high as wide; one more of each, as an area seldom begins where a cell does.
    wide = width * cos(widest * _RADIAN) * 100.0
    high = (bounds.north - bounds.south) * 100.0
    for level in range(_TOP):
        if (wide / (1 << level) + 1) * (high / (1 << level) + 1) <= COVER_CELLS:
            return level
    return _TOP


def bus_cover(area: Area) -> frozenset[int]:
    """The cells of `BUS_LEVEL` that an area touches: whatever is inside has its `bus_cell` here."""
    full, rim = cover(area, BUS_LEVEL)
    return full | rim
