"""A city of streets, and how vendors move in it. Pure: chance comes from the Random that is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import NamedTuple, Protocol

METRES_PER_DEGREE = 111_195.0
GPS_ERROR = 2.5
WALK = (0.8, 1.7)
DRIVE = (3.0, 13.0)
RED_LIGHT = 0.25
LONGEST_RED = 25.0


class City:
    """A disc round a centre with a street every `block` metres in both directions; metres east and north of it."""

    def __init__(self, lat: float, long: float, radius: float, block: float) -> None:
        self.lat, self.long, self.radius, self.block = lat, long, radius, block
        self._east = METRES_PER_DEGREE * max(math.cos(math.radians(lat)), 0.01)

    def degrees(self, east: float, north: float) -> tuple[float, float]:
        """The lat and long of a place; six decimals, which is a tenth of a metre."""
        long = self.long + east / self._east
        return round(self.lat + north / METRES_PER_DEGREE, 6), round((long + 180) % 360 - 180, 6)

    def anywhere(self, random: Random) -> tuple[float, float]:
        """Some place, all equally likely."""
        distance, angle = self.radius * math.sqrt(random.random()), random.uniform(0, math.tau)
        return distance * math.cos(angle), distance * math.sin(angle)

    def corner(self, random: Random) -> tuple[float, float]:
        """Some crossing of two streets."""
        east, north = self.anywhere(random)
        return round(east / self.block) * self.block, round(north / self.block) * self.block


class Spot(NamedTuple):
    """Where a vendor is, degrees; heading clockwise from north and speed in m/s where a phone would know them."""

    lat: float
    long: float
    heading: float | None = None
    speed: float | None = None


class Mover(Protocol):
    """Something that moves on for some seconds and then is somewhere."""

    def move(self, seconds: float) -> Spot: ...


class Parked:
    """Stands beside a street. Its phone says so with the error that GPS has."""

    def __init__(self, city: City, random: Random) -> None:
        self._city, self._random = city, random
        self._east, self._north = city.corner(random)
        self._east += random.uniform(-0.5, 0.5) * city.block

    def move(self, seconds: float) -> Spot:
        gauss = self._random.gauss
        return Spot(*self._city.degrees(self._east + gauss(0, GPS_ERROR), self._north + gauss(0, GPS_ERROR)))


class Walking:
    """Pushes a cart, roughly in one direction, and turns home at the city's edge."""

    def __init__(self, city: City, random: Random) -> None:
        self._city, self._random = city, random
        self._east, self._north = city.anywhere(random)
        self._course = random.uniform(0, math.tau)
        self._speed = random.uniform(*WALK)

    def move(self, seconds: float) -> Spot:
        self._course += self._random.uniform(-0.4, 0.4)
        if math.hypot(self._east, self._north) > self._city.radius:
            self._course = math.atan2(-self._north, -self._east)
        step = self._speed * seconds
        self._east += step * math.cos(self._course)
        self._north += step * math.sin(self._course)
        heading = round(math.degrees(math.pi / 2 - self._course)) % 360
        return Spot(*self._city.degrees(self._east, self._north), heading, round(self._speed, 1))


class Driving:
    """Follows streets from crossing to crossing: mostly straight on, sometimes round the corner, often a red light."""

    def __init__(self, city: City, random: Random) -> None:
        self._city, self._random = city, random
        self._place = list(city.corner(random))  # east, north
        self._axis = random.randrange(2)
        self._sign = random.choice((-1, 1))
        self._left = city.block * random.random()
        self._place[self._axis] -= self._sign * self._left
        self._speed = random.uniform(*DRIVE)
        self._waiting = 0.0

    def move(self, seconds: float) -> Spot:
        left = seconds
        while left > 0:
            if self._waiting > 0:
                waited = min(left, self._waiting)
                self._waiting -= waited
                left -= waited
                continue
            step = self._speed * left
            if step < self._left:
                self._place[self._axis] += self._sign * step
                self._left -= step
                break
            self._place[self._axis] += self._sign * self._left
            left -= self._left / self._speed
            self._cross()
        heading = (90 if self._axis == 0 else 0) + (0 if self._sign > 0 else 180)
        speed = 0.0 if self._waiting > 0 else round(self._speed, 1)
        return Spot(*self._city.degrees(self._place[0], self._place[1]), heading, speed)

    def _cross(self) -> None:
        random = self._random
        self._left = self._city.block
        self._speed = random.uniform(*DRIVE)
        if random.random() < RED_LIGHT:
            self._waiting = random.uniform(0, LONGEST_RED)
        if random.random() < 0.3:
            self._axis = 1 - self._axis
            self._sign = random.choice((-1, 1))
        if abs(self._place[self._axis] + self._sign * self._left) > self._city.radius:
            self._sign = -self._sign


MOVERS: dict[str, Callable[[City, Random], Mover]] = {"parked": Parked, "walking": Walking, "driving": Driving}


def mover(kind: str, city: City, random: Random) -> Mover:
    """One of `parked`, `walking`, `driving`."""
    return MOVERS[kind](city, random)
