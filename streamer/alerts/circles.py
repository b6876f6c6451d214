"""Circles as arrays of numbers: a position is compared with a hundred of them in a microsecond or two. Pure.

Positions are unit vectors: a circle contains one if its dot product with the centre is at least the cosine of the
radius, anywhere on the globe. The rounding error is less than ERROR, so callers test every result exactly.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from math import cos, pi
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamer.geo.shapes import EARTH_RADIUS, Circle

ERROR = 1e-14
"""Error of a product of unit vectors against `Circle.contains`: half a metre at a distance of a metre, less than a
millimetre at a kilometre.

In units of 2^-53 it is 90, and rounding makes no more than 79 at any distance: 6 by the angles of both vectors, 34 by
their parts (sines and cosines are taken to be within 4 units of the last place), 3 by the sum, 4 by the cosine of the
radius, and 32 by `contains` itself. Measured, it is 8.
"""

Numbers = NDArray[np.float64]
Border = Numbers
"""A column for each circle, x, y, z and least: a position is beyond if its product with x, y, z is at least so much."""


T = TypeVar("T")


class CircleTable:
    """The numbers of all circles in one array: reading them from objects would take ten times as long."""

    def __init__(self) -> None:
        self._numbers: Numbers = np.empty((5, 64))
        self._free: list[int] = []
        self._used = 0

    def put(self, circle: Circle, margin: float) -> int:
        """Adds a circle with the margin that a vendor must be outside before it has left; returns its number."""
        if self._free:
            number = self._free.pop()
        else:
            number = self._used
            self._used += 1
            if number == self._numbers.shape[1]:
                self._numbers = np.concatenate((self._numbers, np.empty_like(self._numbers)), axis=1)
        into = cos(min(circle.radius / EARTH_RADIUS, pi))
        out = cos(min((circle.radius + margin) / EARTH_RADIUS, pi))
        centre = vectors(np.float64(circle.lat), np.float64(circle.long))
        self._numbers[:, number] = (*centre, into - ERROR, -out - ERROR)
        return number

    def remove(self, number: int) -> None:
        """Removes a circle."""
        self._free.append(number)

    def take(self, numbers: Sequence[int]) -> Numbers:
        """Returns x, y, z and the smallest product inside and outside of some circles, one column per circle."""
        return self._numbers[:, np.asarray(numbers, dtype=np.intp)]


class Circles(Generic[T]):
    """Items that have circles, with the numbers of the circles."""

    __slots__ = ("__weakref__", "_into", "_out", "items")

    def __init__(self, items: list[T], numbers: Numbers) -> None:
        self.items = items
        self._into: Border = numbers[:4]
        self._out: Border = np.concatenate((-numbers[:3], numbers[4:]))

    def border(self, inside: Container[T]) -> Border:
        """Returns a vendor's border: crossing it means entering a circle, or leaving one of `inside` and its margin."""
        held = np.fromiter((item in inside for item in self.items), bool, len(self.items))
        return np.where(held, self._out, self._into)

    def turn(self, border: Border, column: int, *, is_inside: bool) -> None:
        """Changes the border of a vendor that has crossed it at one of the circles."""
        border[:, column] = (self._out if is_inside else self._into)[:, column]


def vectors(lat: Numbers | np.float64, long: Numbers | np.float64) -> tuple[Any, Any, Any]:
    """Returns x, y and z of the unit vectors of positions in degrees."""
    lat, long = np.radians(lat), np.radians(long)
    cos_lat = np.cos(lat)
    return cos_lat * np.cos(long), cos_lat * np.sin(long), np.sin(lat)


def crossed(borders: Sequence[Border], positions: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """Returns the borders that are crossed, each by its position, and the columns at which they are.

    Args:
        borders: At least one.
        positions: Of each border, in degrees.
    """
    sizes = [border.shape[1] for border in borders]
    of = np.repeat(np.arange(len(sizes)), sizes)
    x, y, z, least = np.concatenate(borders, axis=1)
    lat, long = np.array(positions).T
    here = vectors(lat, long)
    product = x * here[0][of]
    product += y * here[1][of]
    product += z * here[2][of]
    found = np.flatnonzero(product >= least)
    owners = of[found]
    columns = found - (np.cumsum(sizes) - sizes)[owners]
    return list(zip(owners.tolist(), columns.tolist(), strict=True))
