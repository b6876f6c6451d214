"""How the vendors of a city move: parked, walking or driving. Pure: chance comes from the Random that is passed in."""

from __future__ import annotations

import math
from random import Random

from loadtest.behaviour import City, Spot, VendorBehaviour

GPS_ERROR = 2.5
WALK = (0.8, 1.7)
DRIVE = (3.0, 13.0)
RED_LIGHT = 0.25
LONGEST_RED = 25.0


class Parked(VendorBehaviour):
    """Stands beside a street; its positions scatter as those of GPS do."""

    def __init__(self, city: City, random: Random, index: int = 0) -> None:
        super().__init__(city, random, index)
        self._east, self._north = city.corner(random)
        self._east += random.uniform(-0.5, 0.5) * city.block

    def on_tick(self, seconds: float) -> Spot:
        gauss = self.random.gauss
        return Spot(*self.city.degrees(self._east + gauss(0, GPS_ERROR), self._north + gauss(0, GPS_ERROR)))


class Walking(VendorBehaviour):
    """Walks roughly in one direction, and back at the edge of the city."""

    def __init__(self, city: City, random: Random, index: int = 0) -> None:
        super().__init__(city, random, index)
        self._east, self._north = city.anywhere(random)
        self._course = random.uniform(0, math.tau)
        self._speed = random.uniform(*WALK)

    def on_tick(self, seconds: float) -> Spot:
        self._course += self.random.uniform(-0.4, 0.4)
        if math.hypot(self._east, self._north) > self.city.radius:
            self._course = math.atan2(-self._north, -self._east)
        step = self._speed * seconds
        self._east += step * math.cos(self._course)
        self._north += step * math.sin(self._course)
        heading = round(math.degrees(math.pi / 2 - self._course)) % 360
        return Spot(*self.city.degrees(self._east, self._north), heading, round(self._speed, 1))


class Driving(VendorBehaviour):
    """Follows streets from crossing to crossing: mostly straight on, some corners, many red lights."""

    def __init__(self, city: City, random: Random, index: int = 0) -> None:
        super().__init__(city, random, index)
        self._place = list(city.corner(random))  # east, north
        self._axis = random.randrange(2)
        self._sign = random.choice((-1, 1))
        self._left = city.block * random.random()
        self._place[self._axis] -= self._sign * self._left
        self._speed = random.uniform(*DRIVE)
        self._waiting = 0.0

    def on_tick(self, seconds: float) -> Spot:
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
        return Spot(*self.city.degrees(self._place[0], self._place[1]), heading, speed)

    def _cross(self) -> None:
        random = self.random
        self._left = self.city.block
        self._speed = random.uniform(*DRIVE)
        if random.random() < RED_LIGHT:
            self._waiting = random.uniform(0, LONGEST_RED)
        if random.random() < 0.3:
            self._axis = 1 - self._axis
            self._sign = random.choice((-1, 1))
        if abs(self._place[self._axis] + self._sign * self._left) > self.city.radius:
            self._sign = -self._sign


MOVEMENTS: dict[str, type[VendorBehaviour]] = {"parked": Parked, "walking": Walking, "driving": Driving}
