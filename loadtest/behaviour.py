"""How vendors move and what customers do: base classes to write your own in Python, the built-in ones, and traces.

A scenario names a class with `vendors.behaviour = "my_town.py:IceCream"` or `customers.behaviour = "my_town.py:Hungry"`
(a file beside the scenario, or an importable module). The load test makes one object for each vendor or customer,
in its worker process. docs/load-testing.md shows an example, which a test runs.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import math
import sys
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Protocol

from loadtest import WrongUse

METRES_PER_DEGREE = 111_195.0
GPS_ERROR = 2.5
WALK = (0.8, 1.7)
DRIVE = (3.0, 13.0)
RED_LIGHT = 0.25
LONGEST_RED = 25.0
HEADER = "vehicle,timestamp,lat,long"
MAX_FIXES = 5_000_000
PARKED_GAP = 60_000
PARKED_SHARE = 100


class City:
    """A disc around a centre, with streets `block` metres apart in both directions. Places are metres from it."""

    def __init__(self, lat: float, long: float, radius: float, block: float) -> None:
        self.lat, self.long, self.radius, self.block = lat, long, radius, block
        self._east = METRES_PER_DEGREE * max(math.cos(math.radians(lat)), 0.01)

    def degrees(self, east: float, north: float) -> tuple[float, float]:
        """Returns the lat and long of a place; six decimals, which is a tenth of a metre."""
        long = self.long + east / self._east
        return round(self.lat + north / METRES_PER_DEGREE, 6), round((long + 180) % 360 - 180, 6)

    def wider(self, factor: float) -> City:
        """Returns a city with `factor` times the radius."""
        return City(self.lat, self.long, self.radius * factor, self.block)

    def anywhere(self, random: Random) -> tuple[float, float]:
        """Returns a place, all equally likely."""
        distance, angle = self.radius * math.sqrt(random.random()), random.uniform(0, math.tau)
        return distance * math.cos(angle), distance * math.sin(angle)

    def corner(self, random: Random) -> tuple[float, float]:
        """Returns a crossing of two streets."""
        east, north = self.anywhere(random)
        return round(east / self.block) * self.block, round(north / self.block) * self.block


class Spot(NamedTuple):
    """A vendor's position in degrees; heading in degrees clockwise from north and speed in m/s where known."""

    lat: float
    long: float
    heading: float | None = None
    speed: float | None = None


class VendorBehaviour:
    """How one vendor moves. `every` is the mean number of seconds between two pings; change it whenever you like.

    `index` counts the scenario's vendors from 0; take all chance from `random`, so that a run can be repeated.
    """

    every = 5.0

    def __init__(self, city: City, random: Random, index: int) -> None:
        self.city, self.random, self.index = city, random, index

    def on_start(self) -> None:
        """Called once, before the first ping."""

    def on_tick(self, seconds: float) -> Spot:
        """Returns the position of the next ping, `seconds` after the one before."""
        raise NotImplementedError

    def on_ack(self, pings: Sequence[Any]) -> None:
        """Called with the pings that the server acknowledged; each has `timestamp`, `lat` and `long`."""


class Parked(VendorBehaviour):
    """Stands beside a street; its positions scatter like GPS positions."""

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


class CustomerApp(Protocol):
    """What a customer behaviour can do with its app."""

    ready: Any
    following: str | None
    circle: tuple[float, float, float]

    def look_at(self, lat: float, long: float, radius: float) -> None:
        """Moves the map to a circle: degrees and metres."""

    def follow(self, vendor_id: str | None) -> None:
        """Watches one vendor beside the map; None ends it."""

    def fall_asleep(self) -> None:
        """Puts the phone away: the connection is closed until the next tick."""


class CustomerBehaviour:
    """What one customer does. `app` is the customer's app; `vendor_ids` are the vendors of the run."""

    def __init__(self, app: CustomerApp, city: City, random: Random, vendor_ids: Sequence[str], habits: Any) -> None:
        self.app, self.city, self.random, self.vendor_ids, self.habits = app, city, random, vendor_ids, habits

    def on_start(self) -> float:
        """Called once, before the app connects, to choose the first area by `app.look_at`.

        Returns after how many seconds `on_tick` is called first.
        """
        return 0.0

    def on_tick(self) -> float:
        """Does the next thing and returns after how many seconds to be called again. The app is awake."""
        raise NotImplementedError

    def on_update(self, update: dict[str, Any]) -> None:
        """Called with every update that the server sent; defining it makes the worker decode all of them."""


class LookAround(CustomerBehaviour):
    """The default: looks for about `dwell` seconds, then pans, follows a vendor, or puts the phone away."""

    def on_start(self) -> float:
        self._elsewhere()
        return self.random.expovariate(1 / self.habits.dwell)

    def on_tick(self) -> float:
        habits, random, app = self.habits, self.random, self.app
        weights = (habits.pan, habits.follow, habits.sleep)
        if any(weights) and app.ready.is_set():
            what = random.choices(("pan", "follow", "sleep"), weights)[0]
            if what == "sleep":
                app.fall_asleep()
                return random.expovariate(1 / habits.asleep)
            if what == "follow":
                app.follow(None if app.following is not None else random.choice(self.vendor_ids))
            elif random.random() < 0.3:
                self._elsewhere()
            else:
                lat, long, radius = app.circle
                near = City(lat, long, radius, 1.0)
                app.look_at(*near.degrees(random.uniform(-radius, radius), random.uniform(-radius, radius)), radius)
        return random.expovariate(1 / habits.dwell)

    def _elsewhere(self) -> None:
        habits, random = self.habits, self.random
        near = self.city.wider(habits.spread)
        self.app.look_at(*near.degrees(*near.anywhere(random)), round(random.uniform(*habits.radius), 1))


def load(name: str, base: type) -> Any:
    """Returns the class that `module:Class` or `file.py:Class` names; raises WrongUse for no subclass of `base`."""
    where, _, kind = name.rpartition(":")
    try:
        if where.endswith(".py"):
            module_name = f"loadtest_behaviour_{Path(where).stem}"
            spec = importlib.util.spec_from_file_location(module_name, where)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        found = getattr(module, kind)
    except (ImportError, AttributeError, OSError, SyntaxError, ValueError, AssertionError) as failed:
        raise WrongUse(
            f"the behaviour {name!r} can't be loaded ({failed}); give file.py:Class or module:Class"
        ) from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise WrongUse(f"the behaviour {name!r} is no subclass of loadtest.behaviour.{base.__name__}")
    return found


# traces


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

    A trace starts with the last known positions of parked vehicles, hours or days old. A gap of over a minute in the
    first hundredth of its fixes marks their end; replaying it in real time would only waste time.
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
