"""Circles near a position on a plane, as arrays of numbers: what can't matter is left out at the cost of a subtraction.

Points are complex numbers, in metres. A plane is good for circles of up to FLAT metres within some kilometres; by how
much it errs is bounded, and whoever uses it looks exactly at what is nearer to an edge than that. Pure.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from functools import cache
from itertools import repeat
from math import cos, inf, pi, tan
from operator import sub
from typing import Generic, NamedTuple, Protocol, TypeVar

from streamer.geo.shapes import EARTH_RADIUS, Area, Circle

METRES = EARTH_RADIUS * pi / 180
"""Of a degree of latitude."""
FLAT = 2000.0
"""Metres of radius up to which a circle is compared on a plane."""
BAND = 0.05
"""Degrees of latitude that share a plane."""
BAND_METRES = 0.75 * BAND * METRES
"""How far from its middle a position of a band may be, and some metres."""
BEYOND = 100.0
"""Metres around an edge in which distances matter."""
FLAT_ERROR = 0.1
"""Metres for rounding."""

_RADIAN = pi / 180


class Placed(Protocol):
    """What is found: an area with the margin that a vendor must be outside before it has left."""

    area: Area | None
    margin: float
    placed: bool
    """It is in the grid; one that is not any more stays in some cells until these are looked at."""


T = TypeVar("T", bound=Placed)


class Plane(NamedTuple):
    """The plane of a band of latitude; `plane_of` returns the same object for all of a band."""

    wide: float
    """Metres of a degree of longitude."""
    bend: float
    """By how much distances err, as a share of them, for each metre from the middle of the band."""
    far: bool
    """Longitudes are counted from 0 to 360, so that 180 is no edge."""

    def point(self, lat: float, long: float) -> complex:
        """Returns a position on the plane."""
        return complex(lat * METRES, (long % 360.0 if self.far else long) * self.wide)

    def error(self, radius: float) -> float:
        """Returns the metres by which the distance to a centre may be wrong, some metres around a radius."""
        reach = radius + BEYOND
        return self.bend * reach * (reach + BAND_METRES) + FLAT_ERROR


@cache
def plane_of(band: int, far: bool) -> Plane:
    """Returns the plane of a band of latitude, counted in BAND from the equator."""
    lat = band * BAND * _RADIAN
    return Plane(METRES * cos(lat), abs(tan(lat)) / EARTH_RADIUS, far)


class Circles(Generic[T]):
    """Circles near a cell, in the order of how far their edge is from a position in it.

    What is no circle, or larger than FLAT, is in `other`.
    """

    __slots__ = ("_centre", "_error", "_items", "_margin", "_offsets", "_points", "_radii", "other")

    def __init__(self, found: Iterable[T], plane: Plane, lat: float, long: float) -> None:
        centre = self._centre = plane.point(lat, long)
        wide, far = plane.wide, plane.far
        self.other: list[T] = []
        rows: list[tuple[float, int, complex, T, float]] = []
        for item in found:
            area = item.area
            if type(area) is not Circle or area.radius > FLAT:
                self.other.append(item)
                continue
            point = complex(area.lat * METRES, (area.long % 360.0 if far else area.long) * wide)
            rows.append((abs(point - centre) - area.radius, len(rows), point, item, area.radius))
        rows.sort()
        self._items = [row[3] for row in rows]
        # Objects of their own, side by side in memory: of others most would be read from far away.
        self._offsets = array("d", [row[0] for row in rows])
        self._points = [row[2] + 0j for row in rows]
        self._radii = array("d", [row[4] for row in rows])
        self._margin = min((item.margin for item in self._items), default=inf)
        self._error = plane.error(max(self._radii, default=0.0))

    def within(self, point: complex, reach: float) -> list[tuple[T, complex, float, float]]:
        """Returns the items whose edge a vendor at a point can cross within `reach` metres, and some more.

        Who is outside crosses the edge on its way in; who is inside crosses the outer side of the margin.

        Returns:
            Items with their centre, their radius, and how far beyond the edge the point is (inside: negative).
        """
        away = abs(point - self._centre)
        low, high = self._margin - reach - self._error, reach + self._error
        first, last = bisect_left(self._offsets, low - away), bisect_right(self._offsets, high + away)
        radii, points = self._radii[first:last], self._points[first:last]
        outside = list(map(sub, map(abs, map(sub, points, repeat(point))), radii))
        items = self._items
        return [
            (items[first + number], points[number], radii[number], off)
            for number, off in enumerate(outside)
            if low < off < high
        ]
