"""A city of streets. Pure: chance comes from the Random that is passed in."""

from __future__ import annotations

import math
from random import Random

METRES_PER_DEGREE = 111_195.0


class City:
    """A disc around a centre, with streets `block` metres apart in both directions. Places are metres from it."""

    def __init__(self, lat: float, long: float, radius: float, block: float) -> None:
        self.lat, self.long, self.radius, self.block = lat, long, radius, block
        self._east = METRES_PER_DEGREE * max(math.cos(math.radians(lat)), 0.01)

    def degrees(self, east: float, north: float) -> tuple[float, float]:
        """Returns the lat and long of a place; six decimals, which is a tenth of a metre."""
        long = self.long + east / self._east
        return round(self.lat + north / METRES_PER_DEGREE, 6), round((long + 180) % 360 - 180, 6)

    def anywhere(self, random: Random) -> tuple[float, float]:
        """Returns a place, all equally likely."""
        distance, angle = self.radius * math.sqrt(random.random()), random.uniform(0, math.tau)
        return distance * math.cos(angle), distance * math.sin(angle)

    def corner(self, random: Random) -> tuple[float, float]:
        """Returns a crossing of two streets."""
        east, north = self.anywhere(random)
        return round(east / self.block) * self.block, round(north / self.block) * self.block
