"""How vendors move: built-in behaviours, and traces of vehicles, read from gzip CSV files."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import NamedTuple

from loadtest.behaviour import City, Spot, VendorBehaviour
from loadtest.errors import WrongUse

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


HEADER = "vehicle,timestamp,lat,long"
MAX_FIXES = 5_000_000
METRES_PER_DEGREE = 111_195.0
PARKED_GAP = 60_000
PARKED_SHARE = 100


class Fix(NamedTuple):
    """One row of a trace; `timestamp` is epoch ms."""

    vehicle: str
    timestamp: int
    lat: float
    long: float


def read_trace(path: Path) -> list[Fix]:
    """Returns the fixes of a (gzipped) CSV file with the header `vehicle,timestamp,lat,long` (ISO 8601)."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            return parse_trace(lines, str(path))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as failed:
        raise WrongUse(f"the trace {path} can't be read: {failed}") from None


def parse_trace(lines: Iterable[str], source: str) -> list[Fix]:
    """Returns the fixes of a trace's lines; raises WrongUse that names the first line that is none."""
    rows = iter(lines)
    header = next(rows, "").strip()
    if header != HEADER:
        raise WrongUse(f"{source} begins with {header[:80]!r}; a trace begins with {HEADER!r}")
    fixes: list[Fix] = []
    for count, line in enumerate(rows, 2):
        if not line.strip():
            continue
        try:
            vehicle, when, lat, long = line.split(",")
            moment = datetime.fromisoformat(when)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            fix = Fix(vehicle, round(moment.timestamp() * 1000), float(lat), float(long))
        except ValueError as bad:
            raise WrongUse(f"{source} line {count} is {line.strip()[:80]!r}: {bad}") from None
        if not (abs(fix.lat) <= 90 and abs(fix.long) <= 180):
            raise WrongUse(f"{source} line {count} has the position {fix.lat}, {fix.long}; degrees are needed")
        if len(fixes) == MAX_FIXES:
            raise WrongUse(f"{source} has over {MAX_FIXES} fixes; cut it into pieces")
        fixes.append(fix)
    if not fixes:
        raise WrongUse(f"{source} has no fixes")
    return fixes


def beginning(fixes: Sequence[Fix]) -> int:
    """Returns the index where a trace's traffic begins.

    A trace starts with what was last known of parked vehicles, hours or days old. A gap of over a minute in the first
    hundredth of its fixes is such a past: replaying it in real time would be waiting for nothing.
    """
    first = 0
    for index in range(1, len(fixes) // PARKED_SHARE + 1):
        if index < len(fixes) and fixes[index].timestamp - fixes[index - 1].timestamp > PARKED_GAP:
            first = index
    return first


def by_vehicle(fixes: Iterable[Fix]) -> list[list[Fix]]:
    """Returns a trace's fixes by vehicle, in the order in which the vehicles appear, each in the order of time."""
    found: dict[str, list[Fix]] = {}
    for fix in sorted(fixes, key=lambda fix: fix.timestamp):
        found.setdefault(fix.vehicle, []).append(fix)
    return list(found.values())


def surroundings(fixes: Sequence[Fix]) -> tuple[float, float, float]:
    """Returns a circle around most fixes: lat, long, and the radius in metres that nine of ten are within."""
    lats, longs = sorted(fix.lat for fix in fixes), sorted(fix.long for fix in fixes)
    lat, long = lats[len(lats) // 2], longs[len(longs) // 2]
    narrow = max(math.cos(math.radians(lat)), 0.01)
    away = sorted(math.hypot(fix.lat - lat, (fix.long - long) * narrow) for fix in fixes)
    return lat, long, max(100.0, min(50_000.0, away[len(away) * 9 // 10] * METRES_PER_DEGREE))
