"""Base classes for the behaviour of vendors and customers: subclass them to write your own in Python.

A scenario names a class with `vendors.behaviour = "my_town.py:IceCream"` or `customers.behaviour = "my_town.py:Hungry"`
(a file beside the scenario, or an importable module). The load test makes one object for each vendor or customer,
in its worker process. docs/load-testing.md shows an example, which a test runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Protocol

from loadtest.errors import WrongUse

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
        near = City(self.city.lat, self.city.long, self.city.radius * habits.spread, self.city.block)
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
