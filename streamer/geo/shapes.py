"""Areas on a sphere: circles, boxes and polygons, and exactly which positions they contain. Pure, no I/O.

Degrees everywhere: `lat` in -90..90, `long` in -180..180; metres for lengths.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import asin, cos, degrees, inf, isqrt, nextafter, pi, sin, sqrt

from streamer.errors import ErrorCode, ProtocolError

EARTH_RADIUS = 6_371_008.8
"""The sphere of the protocol, metres."""

# Rounding errors of containment are about 1e-8 m and 1e-13°. These are thousands of times larger, and still negligible.
ANGLE_SLACK = 1e-9
LENGTH_SLACK = 1e-3

_DIAMETER = 2 * EARTH_RADIUS
_RADIAN = pi / 180
_HALF_RADIAN = pi / 360

MOST_FLAT_LAT = 80.0
MOST_FLAT_LONG = 170.0
MOST_FLAT_ANGLE = 0.01
"""Radians: circles of up to 64 km are compared on a plane first."""

MAX_COLUMNS = 8
MAX_ROWS = 32
"""Bins of a polygon by longitude and by latitude: columns cost time to build, rows almost nothing."""

_Edge = tuple[float, float, float, float]
_Column = tuple[bytes, dict[int, tuple[float, ...]], tuple[Sequence[int], ...]]
"""The bins of a column by row: their parities, longitudes at which it turns, and numbers of the edges near by.

Numbers are packed in bytes, as the garbage collector scans every container, and a thousand polygons would be millions.
"""


def distance(lat1: float, long1: float, lat2: float, long2: float) -> float:
    """Returns the great-circle distance in metres between two positions, the same in both directions."""
    s = sin((lat2 - lat1) * _HALF_RADIAN)
    t = sin((long2 - long1) * _HALF_RADIAN)
    return _metres(s * s + cos(lat1 * _RADIAN) * cos(lat2 * _RADIAN) * t * t)


def _metres(haversine: float) -> float:
    return _DIAMETER * asin(sqrt(min(haversine, 1.0)))


def _largest_haversine(metres: float) -> float:
    """The largest haversine whose distance is at most `metres`."""
    if metres >= _metres(1.0):
        return inf
    haversine = sin(metres / _DIAMETER) ** 2
    while _metres(haversine) > metres:
        haversine = nextafter(haversine, 0.0)
    while _metres(above := nextafter(haversine, 1.0)) <= metres:
        haversine = above
    return haversine


def check_position(what: str, lat: float, long: float) -> None:
    """Raises ProtocolError when a position is not on the globe."""
    if not (-90.0 <= lat <= 90.0 and -180.0 <= long <= 180.0):
        raise ProtocolError(
            ErrorCode.INVALID_COORDINATES,
            f"{what} is at lat {lat!r}, long {long!r}: give a lat from -90 to 90 and a long from -180 to 180",
        )


def _plane_bounds(lat: float, long: float, angle: float) -> tuple[float, float]:
    """Returns the squared degrees on a plane below which a position is in a circle, and above which it is not.

    In between, a few metres at most, the distance on the sphere must be computed; for a circle that is large, or near a
    pole or the antimeridian, always. Within the circle a degree of longitude varies by a share of angle * tan(lat) at
    most, and a sine differs from its angle by a share of a sixth of its square.
    """
    if abs(lat) > MOST_FLAT_LAT or angle > MOST_FLAT_ANGLE or abs(long) > MOST_FLAT_LONG:
        return -1.0, inf
    cos_lat = cos(lat * _RADIAN)
    error = angle * sin(abs(lat) * _RADIAN) / cos_lat * 1.1 + (angle / cos_lat) ** 2 + 1e-9
    square = degrees(angle) ** 2
    return square * (1.0 - error), square * (1.0 + error)


@dataclass(frozen=True, slots=True)
class Circle:
    """All positions whose `distance` to the centre is at most `radius` metres, exact to the last bit.

    Raises:
        ProtocolError: The centre is not on the globe, or the radius is negative or not finite.
    """

    lat: float
    long: float
    radius: float
    cos_lat: float = field(init=False, repr=False, compare=False)
    _haversine: float = field(init=False, repr=False, compare=False)
    _inside: float = field(init=False, repr=False, compare=False)
    _outside: float = field(init=False, repr=False, compare=False)
    """Squared degrees below and above which the distance on a plane decides."""

    def __post_init__(self) -> None:
        check_position("The centre of the circle", self.lat, self.long)
        if not 0.0 <= self.radius < inf:
            raise ProtocolError(
                ErrorCode.INVALID_AREA, f"radius is {self.radius!r}: give a number of metres that is not negative"
            )
        object.__setattr__(self, "cos_lat", cos(self.lat * _RADIAN))
        object.__setattr__(self, "_haversine", _largest_haversine(self.radius))
        inside, outside = _plane_bounds(self.lat, self.long, self.radius / EARTH_RADIUS)
        object.__setattr__(self, "_inside", inside)
        object.__setattr__(self, "_outside", outside)

    def contains(self, lat: float, long: float) -> bool:
        """Returns whether a position is inside or on the boundary."""
        y, x = lat - self.lat, (long - self.long) * self.cos_lat
        square = x * x + y * y
        if square > self._outside:
            return False
        if square < self._inside:
            return True
        s = sin((lat - self.lat) * _HALF_RADIAN)
        t = sin((long - self.long) * _HALF_RADIAN)
        return s * s + self.cos_lat * cos(lat * _RADIAN) * t * t <= self._haversine

    def bounds(self) -> Box:
        """Returns the smallest box around the circle (or a millimetre larger); all longitudes if a pole is inside."""
        angle = (self.radius + LENGTH_SLACK) / EARTH_RADIUS
        south = self.lat - degrees(angle)
        north = self.lat + degrees(angle)
        if south <= -90.0 or north >= 90.0 or sin(angle) >= self.cos_lat:
            return Box(max(south, -90.0), -180.0, min(north, 90.0), 180.0)
        half = degrees(asin(sin(angle) / self.cos_lat)) + ANGLE_SLACK
        return Box(south, _wrap(self.long - half), north, _wrap(self.long + half))

    def extent(self) -> tuple[float, float]:
        """Returns width and height in metres: the diameter, twice."""
        return 2 * self.radius, 2 * self.radius


@dataclass(frozen=True, slots=True)
class Box:
    """All positions between two parallels and two meridians, edges included; `east` < `west` crosses the antimeridian.

    -180 and 180 are the same meridian.

    Raises:
        ProtocolError: A corner is not on the globe, or `south` is above `north`.
    """

    south: float
    west: float
    north: float
    east: float

    def __post_init__(self) -> None:
        check_position("The south-west corner of the box", self.south, self.west)
        check_position("The north-east corner of the box", self.north, self.east)
        if self.south > self.north:
            raise ProtocolError(
                ErrorCode.INVALID_AREA,
                f"the south-west corner of the box (lat {self.south!r}) is north of its north-east corner "
                f"(lat {self.north!r}): swap them",
            )

    def contains(self, lat: float, long: float) -> bool:
        """Returns whether a position is inside or on an edge."""
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
        """Returns the box itself."""
        return self

    @property
    def width(self) -> float:
        """Degrees of longitude from west to east."""
        width = self.east - self.west
        return width if width >= 0.0 else width + 360.0

    def extent(self) -> tuple[float, float]:
        """Returns width and height in metres: great-circle distances, the width where the box is widest."""
        widest = 0.0 if self.south <= 0.0 <= self.north else min(self.south, self.north, key=abs)
        # Two meridians are farthest apart at 180°. A wider box is as wide as the cap that it surrounds.
        width = min(self.width, 180.0)
        return distance(widest, 0.0, widest, width), distance(self.south, 0.0, self.north, 0.0)


@dataclass(frozen=True, slots=True)
class Polygon:
    """All positions inside a ring by the even-odd rule; points are (long, lat) as in GeoJSON, closed or not.

    Edges are straight in longitude and latitude. An edge that spans over 180° crosses the antimeridian instead. A ring
    around the axis surrounds the pole it is nearer to. A position on a western or southern edge is inside, one on an
    eastern or northern edge is not: two adjacent polygons never share a position.

    The edges are sorted into bins of longitude and latitude when positions are tested there, so a test looks only at
    the edges near the position, however many the polygon has.

    Raises:
        ProtocolError: There are fewer than three points, a point is not on the globe, or the ring goes around the
            axis more than once.
    """

    points: tuple[tuple[float, float], ...]
    edges: tuple[_Edge, ...] = field(init=False, repr=False, compare=False)
    """Each as (x1, y1, x2, y2) with x1 <= x2; longitudes continue beyond ±180 where the ring crosses it."""
    _south: float = field(init=False, repr=False, compare=False)
    _west: float = field(init=False, repr=False, compare=False)
    _north: float = field(init=False, repr=False, compare=False)
    _east: float = field(init=False, repr=False, compare=False)
    _wraps_at: float = field(init=False, repr=False, compare=False)
    _south_pole: bool = field(init=False, repr=False, compare=False)
    _per_long: float = field(init=False, repr=False, compare=False)
    _per_lat: float = field(init=False, repr=False, compare=False)
    _columns: list[_Column | None] = field(init=False, repr=False, compare=False)
    covers: dict[int, tuple[frozenset[int], frozenset[int]]] = field(init=False, repr=False, compare=False)
    """Cached results of `grid.cover` by level: it is expensive, and needed several times."""

    def __post_init__(self) -> None:
        if len(self.points) < 3:
            raise ProtocolError(
                ErrorCode.INVALID_AREA, f"the polygon has {len(self.points)} point(s): give at least three"
            )
        for index, (long, lat) in enumerate(self.points):
            if not (-90.0 <= lat <= 90.0 and -180.0 <= long <= 180.0):
                check_position(f"Point {index} of the polygon", lat, long)
        points, turns = self.points, tuple(_turns(self.points))
        if turns[-1]:
            # Where a ring around the axis is cut open must not depend on its first point and direction.
            first = points.index(min(points))
            points = points[first:] + points[:first]
            turns = tuple(_turns(points))
        edges = _edges(points, turns)
        winding = turns[-1]
        west = min(edge[0] for edge in edges)
        east = max(edge[2] for edge in edges)
        if abs(winding) > 1 or east - west >= 720.0:
            raise ProtocolError(
                ErrorCode.INVALID_AREA, "the polygon goes around a pole more than once: give a ring that does so once"
            )
        if east - west > 360.0:
            # Edges beyond a whole turn are repeated at the western end.
            edges += [edge for edge in _edges(points, turns, 1) if edge[2] > west]
        south = min(lat for _, lat in self.points)
        north = max(lat for _, lat in self.points)
        south_nearer = south + north < 0.0
        if winding:
            south, north = (-90.0, north) if south_nearer else (south, 90.0)
        width = 360.0 if winding else min(east - west, 360.0)
        columns, rows = min(MAX_COLUMNS, isqrt(len(edges))), min(MAX_ROWS, isqrt(4 * len(edges)))
        for name, value in (
            ("edges", tuple(edges)),
            ("_south", south),
            ("_west", west),
            ("_north", north),
            ("_east", west + 360.0 if width >= 360.0 else east),
            # The longitude at which the western end repeats, if `contains` can reach it.
            ("_wraps_at", west + 360.0 if width >= 360.0 or west == -180.0 else inf),
            ("_south_pole", bool(winding) and south_nearer),
            # One bin for polygons thinner than the resolution of positions.
            ("_per_long", columns / width if width > ANGLE_SLACK else 0.0),
            ("_per_lat", rows / (north - south) if north - south > ANGLE_SLACK else 0.0),
            ("_columns", [None] * (columns + 1)),
            ("covers", {}),
        ):
            object.__setattr__(self, name, value)

    def contains(self, lat: float, long: float) -> bool:
        """Returns whether a position is inside: by the parity of the edges between it and the south pole."""
        if not self._south <= lat <= self._north:
            return False
        west = self._west
        if long < west:
            long += 360.0
        if long >= self._east:
            if long < self._wraps_at or west == self._east:
                return False
            long = west
        number = int((long - west) * self._per_long)
        column = self._columns[number]
        if column is None:
            column = self._columns[number] = self._column(number)
        row = int((lat - self._south) * self._per_lat)
        parities, turns, near = column
        inside = parities[row] == 1
        if turns and row in turns and bisect_right(turns[row], long) & 1:
            inside = not inside
        edges = self.edges
        for edge in near[row]:
            x1, y1, x2, y2 = edges[edge]
            if x1 <= long < x2 and lat >= y1 + (long - x1) / (x2 - x1) * (y2 - y1):
                inside = not inside
        return inside

    def _column(self, number: int) -> _Column:
        """The bins of one column.

        An edge is in the bins that it may touch. In the bins above them only its longitudes count: either everywhere,
        or from one of its ends on. Where both edges of a corner are below, these ends cancel out.
        """
        south, per_lat = self._south, self._per_lat
        rows = int((self._north - south) * per_lat) + 1
        near: list[list[int]] = [[] for _ in range(rows)]
        inside = [False] * (rows + 1)
        ends: list[list[float]] = [[] for _ in range(rows + 1)]
        step = 1 / self._per_long if self._per_long else ANGLE_SLACK
        west = self._west + number * step - ANGLE_SLACK
        east = self._west + (number + 1) * step + ANGLE_SLACK
        for edge, (x1, y1, x2, y2) in enumerate(self.edges):
            if x1 > east or x2 <= west or x1 == x2:
                continue
            width, height = x2 - x1, y2 - y1
            low = y1 if x1 >= west else y1 + (west - x1) / width * height
            high = y2 if x2 <= east else y1 + (east - x1) / width * height
            if high < low:
                low, high = high, low
            first = int((low - ANGLE_SLACK - south) * per_lat)
            above = int((high + ANGLE_SLACK - south) * per_lat) + 1
            for row in range(max(first, 0), min(above, rows)):
                near[row].append(edge)
            if above < rows:
                if x1 <= west:
                    inside[above] = not inside[above]
                else:
                    ends[above].append(x1)
                if x2 <= east:
                    ends[above].append(x2)
        parities, turns = bytearray(), dict[int, tuple[float, ...]]()
        parity, turned = self._south_pole, set[float]()
        for row in range(rows):
            parity ^= inside[row]
            parities.append(parity)
            for x in ends[row]:
                turned ^= {x}
            if turned:
                turns[row] = tuple(sorted(turned))
        kind = bytes if len(self.edges) <= 256 else tuple
        return bytes(parities), turns, tuple([kind(edges) for edges in near])

    def bounds(self) -> Box:
        """Returns the smallest box around the polygon; all longitudes if its ring goes around the axis."""
        if self._east - self._west >= 360.0:
            return Box(self._south, -180.0, self._north, 180.0)
        return Box(self._south, self._west, self._north, _wrap(self._east))

    def extent(self) -> tuple[float, float]:
        """Returns width and height in metres of the box around the polygon."""
        return self.bounds().extent()


Area = Circle | Box | Polygon


def _wrap(long: float) -> float:
    """A longitude from -540 to 540, as one from -180 to 180."""
    if long > 180.0:
        return long - 360.0
    return long + 360.0 if long < -180.0 else long


def _turns(points: tuple[tuple[float, float], ...]) -> Iterator[int]:
    """How often a closed ring has gone around the axis eastwards, at each of its points and at the first one again."""
    turn = 0
    yield turn
    for (before, _), (long, _) in pairwise((*points, points[0])):
        turn += -1 if long - before > 180.0 else 1 if long - before < -180.0 else 0
        yield turn


def _edges(points: tuple[tuple[float, float], ...], turns: tuple[int, ...], back: int = 0) -> list[_Edge]:
    """The edges of a closed ring, the westernmost longitude in -180..180, or `back` turns west of that.

    An edge is the same in whichever direction its ring goes, so that two rings which share it agree.
    """
    closed = (*points, points[0])
    # Turns are integers and added last: the same corner in the same turn is the same float wherever it comes from.
    westmost = min((long + 360.0 * turn, turn) for (long, _), turn in zip(closed, turns, strict=True))[1] + back
    ring = [(long + 360.0 * (turn - westmost), lat) for (long, lat), turn in zip(closed, turns, strict=True)]
    return [(*a, *b) if a <= b else (*b, *a) for a, b in pairwise(ring)]
