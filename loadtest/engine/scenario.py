"""A scenario: a city, moving vendors, watching customers, stages and thresholds. TOML, overridden by flags."""

from __future__ import annotations

import math
import operator
import re
import tomllib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtest import WrongUse
from loadtest.behaviour import City

FOLDER = Path(__file__).parents[1] / "scenarios"
MAX_SECONDS = 6 * 3600
MAX_APPS = 25_000
MAX_PINGS_PER_S = 200_000

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Level = Annotated[float, Field(ge=0, le=100)]
Metres = Annotated[float, Field(gt=0, le=50_000)]
AlertMetres = Annotated[float, Field(ge=100, le=10_000)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Spread = Annotated[float, Field(ge=0, le=10)]
Limit = bool | float | str
COMPARED = re.compile(r"^\s*(<=|>=|<|>)?\s*(-?\d+(?:\.\d+)?)\s*$")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
DEFAULT_THRESHOLDS: dict[str, Limit] = {
    "lost": 0,
    "unacked": 0,
    "rejected": 0,
    "errors": 0,
    "refused": 0,
    "freshness_max_ms": 1500,
}
"""What every scenario demands unless it sets a threshold otherwise, or to false."""


class Threshold(NamedTuple):
    """A figure, how it is compared, and with what."""

    name: str
    comparison: str
    limit: float

    def keeps(self, value: float) -> bool:
        """Returns whether a value keeps the threshold."""
        return COMPARISONS[self.comparison](value, self.limit)

    def __str__(self) -> str:
        return f"{self.name} {self.comparison} {self.limit:g}"


def threshold(name: str, limit: Limit) -> Threshold:
    """Returns the threshold of one member of `thresholds`; raises ValueError for one that can't be read."""
    found = COMPARED.match(str(limit))
    if found is None or isinstance(limit, bool):
        raise ValueError(f"the threshold {name} is {limit!r}; it must be a number, text like '>= 1000', or false")
    return Threshold(name, found[1] or "<=", float(found[2]))


def limits(own: dict[str, Limit]) -> list[Threshold]:
    """Returns the thresholds of a scenario that sets these, those of every scenario included."""
    return [threshold(name, limit) for name, limit in (DEFAULT_THRESHOLDS | own).items() if limit is not False]


class Part(BaseModel):
    """A piece of a scenario. Unknown members are refused, so that a misspelt one is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Place(Part):
    """The city: a disc of streets `block` metres apart. Its size follows from the density unless `radius` is given."""

    lat: Annotated[float, Field(ge=-80, le=80)] = 52.2297
    long: Annotated[float, Field(ge=-180, le=180)] = 21.0122
    density: Annotated[float, Field(gt=0, le=100_000)] = 40.0
    radius: Metres | None = None
    block: Annotated[float, Field(ge=10, le=2000)] = 120.0

    def size(self, vendors: int) -> float:
        """Returns the city's radius in metres for a number of vendors at `density` per km²; at least two blocks."""
        if self.radius is not None:
            return self.radius
        return min(50_000.0, max(2 * self.block, 1000 * math.sqrt(vendors / (math.pi * self.density))))


class Movement(Part):
    """How a share of the vendors moves, and the seconds between its pings."""

    kind: Literal["parked", "walking", "driving"]
    share: Positive = 1.0
    every: Annotated[float, Field(ge=0.05, le=3600)] = 5.0


class Phones(Part):
    """A share of the phones loses its network now and then: `up` and `down` are mean seconds."""

    lossy: Share = 0.0
    up: Seconds = 60.0
    down: Seconds = 20.0


class Bulk(Part):
    """Vendors that send as fast as acks allow: `window` messages of `batch` pings un-acked at most (closed loop)."""

    batch: Annotated[int, Field(ge=1, le=500)] = 500
    window: Annotated[int, Field(ge=1, le=10_000)] = 4


class Vendors(Part):
    """The vendors at level 1, in the given proportions of movements, or with a behaviour of your own in Python."""

    count: Annotated[int, Field(ge=1, le=MAX_APPS)] = 100
    movements: Annotated[tuple[Movement, ...], Field(min_length=1)] = (Movement(kind="driving", every=2.0),)
    phones: Phones = Phones()
    bulk: Bulk | None = None
    behaviour: str | None = None


class Customers(Part):
    """The customers at level 1, and what they do.

    Each looks at a circle of its own of `radius` metres (from, to), its centre within `spread` times the city's
    radius, for about `dwell` seconds; then it pans, follows one vendor, or puts the phone away for about `asleep`
    seconds, in these proportions. With `shared` all look at one circle. A share `zoomed` watches counts in a box, a
    share `slow` reads `slow_bytes` a second, a share `stalled` reads nothing after its snapshot. With `deflate`
    they offer compression, as browsers do.
    """

    count: Annotated[int, Field(ge=0, le=MAX_APPS)] = 200
    radius: tuple[Metres, Metres] = (500.0, 2000.0)
    spread: Spread = 1.0
    shared: bool = False
    offset: tuple[float, float] = (0.0, 0.0)
    """Degrees of latitude and longitude by which their part of the world is away from the city."""
    dwell: Annotated[float, Field(ge=0.1, le=MAX_SECONDS)] = 15.0
    pan: NotNegative = 6.0
    follow: NotNegative = 2.0
    sleep: NotNegative = 2.0
    asleep: Seconds = 20.0
    zoomed: Share = 0.0
    slow: Share = 0.0
    slow_bytes: Annotated[int, Field(ge=200)] = 4000
    stalled: Share = 0.0
    deflate: bool = False
    phones: Phones = Phones()
    behaviour: str | None = None

    @model_validator(mode="after")
    def _radius_rises(self) -> Customers:
        if self.radius[0] > self.radius[1]:
            raise ValueError(f"radius is {list(self.radius)}: the first must not be larger than the second")
        return self


class Alerts(Part):
    """Alerts on circles of `radius` metres (from, to), their centres within `spread` times the city's radius.

    Their webhooks come to `listen` on this machine: the server needs STREAMER_ALERT_KEY, and its host in
    STREAMER_ALERT_DEVELOPMENT_HOSTS. A vendor that is on one side of an edge for `stay_ms` must cause a webhook, and
    none may come later than `late_ms` after its ping was due.
    """

    count: Annotated[int, Field(ge=0, le=10_000)] = 0
    radius: tuple[AlertMetres, AlertMetres] = (150.0, 500.0)
    spread: Spread = 1.0
    listen: Annotated[str, Field(pattern=r"^.+:\d+$")] = "127.0.0.1:0"
    stay_ms: Positive = 2500.0
    late_ms: Positive = 10_000.0


class Stage(Part):
    """A period of time. Levels are multiples of the counts.

    `ramp`: evenly to a level. `hold`: stay there. `spike`: at once to a level, and back afterwards.
    `storm`: a `share` of the connections is cut at its beginning, and all reconnect.
    """

    kind: Literal["ramp", "hold", "spike", "storm"]
    seconds: Seconds
    to: Level | None = None
    vendors: Level | None = None
    customers: Level | None = None
    share: Share = 1.0
    who: Literal["all", "vendors", "customers"] = "all"

    def level(self, name: str) -> float | None:
        """Returns the level of vendors or of customers that it goes to; None for that before."""
        own: float | None = getattr(self, name)
        return self.to if own is None else own

    @model_validator(mode="after")
    def _somewhere(self) -> Stage:
        if self.kind in ("ramp", "spike") and self.to is None and self.vendors is None and self.customers is None:
            raise ValueError(f"a {self.kind} needs a level: give `to`, `vendors` or `customers`")
        if self.kind == "storm" and (self.to, self.vendors, self.customers) != (None, None, None):
            raise ValueError("a storm keeps the level: leave out `to`, `vendors` and `customers`")
        return self


class Scenario(Part):
    """One whole scenario. The first `warmup` seconds are run but left out of all figures.

    Acks are awaited for `settle` seconds at the end, and customers that reconnect, these for at most 30. A generator
    that is itself later than `late_ms` at the 99th percentile fails the run: it would measure itself. A connection that
    is silent for `heartbeat` seconds gets a WebSocket ping and counts as half-open after twice that; 0 turns this off.
    `thresholds` maps a figure to its highest value, to text like ">= 1000", or to false for none.
    """

    title: str
    about: str = ""
    warmup: Annotated[float, Field(ge=0, le=3600)] = 5.0
    settle: Annotated[float, Field(gt=0, le=600)] = 60.0
    late_ms: Positive = 100.0
    city: Place = Place()
    vendors: Vendors = Vendors()
    customers: Customers = Customers()
    alerts: Alerts = Alerts()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=100)]
    heartbeat: Annotated[float, Field(ge=0, le=60)] = 4.0
    thresholds: dict[str, Limit] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _bounded(self) -> Scenario:
        self.limits()
        if self.seconds > MAX_SECONDS:
            raise ValueError(f"the stages take {self.seconds:g} s together; at most {MAX_SECONDS} s are allowed")
        if self.warmup >= self.seconds:
            raise ValueError(
                f"warmup is {self.warmup:g} s and the stages take {self.seconds:g} s: nothing would be measured"
            )
        for name, count in (("vendors", self.vendors.count), ("customers", self.customers.count)):
            highest = max(self._levels(name))
            if count * highest > MAX_APPS:
                raise ValueError(f"{count} {name} at level {highest:g} are more than {MAX_APPS}, which a run may have")
        if (rate := self.pings_per_second()) > MAX_PINGS_PER_S:
            raise ValueError(f"{rate:,.0f} pings a second are more than {MAX_PINGS_PER_S:,}, which a run may send")
        return self

    def _levels(self, name: str) -> list[float]:
        found = [stage.level(name) for stage in self.stages]
        return [level for level in found if level is not None] or [1.0]

    def changed(self, changes: dict[str, Any]) -> Scenario:
        """Returns the same scenario with other members."""
        return build(self.model_dump() | changes, self.title)

    def scaled(self, factor: float) -> Scenario:
        """Returns the same with `factor` times the vendors and customers; the density stays, so the city grows."""
        if factor == 1:
            return self
        vendors, customers = max(1, round(self.vendors.count * factor)), round(self.customers.count * factor)
        return self.changed(
            {
                "vendors": self.vendors.model_dump() | {"count": vendors},
                "customers": self.customers.model_dump() | {"count": customers},
            }
        )

    @property
    def seconds(self) -> float:
        """The length of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def token_lifetime(self) -> int:
        """The lifetime of tokens in seconds: no connection may end for its token within the run."""
        return int(self.seconds) + 3600

    @property
    def disc(self) -> City:
        """The city with its size."""
        return City(self.city.lat, self.city.long, self.city.size(self.vendors.count), self.city.block)

    def limits(self) -> list[Threshold]:
        """Returns the thresholds of this scenario, those of every scenario included."""
        return limits(self.thresholds)

    def pings_per_second(self) -> float:
        """Returns how many pings a second all vendors send at the highest level; 0 in a closed loop."""
        if self.vendors.bulk is not None:
            return 0.0
        shares = sum(movement.share for movement in self.vendors.movements)
        each = sum(movement.share / shares / movement.every for movement in self.vendors.movements)
        return self.vendors.count * each * max(self._levels("vendors"))


def names() -> list[str]:
    """Returns the names of the built-in scenarios."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str, changes: Sequence[tuple[str, Any]] = ()) -> Scenario:
    """Returns the scenario of this name, or in this file, with members changed by their dotted names."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as failed:
        known = ", ".join(names())
        raise WrongUse(f"there is no scenario {name!r} ({failed}); give a .toml file or one of: {known}") from None
    except tomllib.TOMLDecodeError as bad:
        raise WrongUse(f"{path} is not TOML: {bad}") from None
    for dotted, value in changes:
        put(found, dotted, value)
    for kind in ("vendors", "customers"):
        behaviour = str(found.get(kind, {}).get("behaviour", ""))
        if ".py:" in behaviour and (beside := path.parent / behaviour.partition(":")[0]).exists():
            found[kind]["behaviour"] = f"{beside.resolve()}:{behaviour.rpartition(':')[2]}"
    return build(found, str(path))


def build(found: dict[str, Any], source: str) -> Scenario:
    """Returns a scenario made of plain data; raises WrongUse that names each member that can't be used."""
    try:
        return Scenario.model_validate(found)
    except ValidationError as bad:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in error['loc']) or 'it'}: {error['msg'].removeprefix('Value error, ')}"
            + (f" (it is {error['input']!r})" if not isinstance(error["input"], dict) else "")
            for error in bad.errors(include_url=False, include_context=False)
        )
        raise WrongUse(f"the scenario {source} can't be used: {problems}") from None


def put(found: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets a member by its dotted name; numbers are places in lists."""
    *path, last = dotted.split(".")
    place: Any = found
    try:
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = value
    except (ValueError, IndexError, TypeError, AttributeError) as bad:
        raise WrongUse(f"--set {dotted}: there is no such place in the scenario ({bad})") from None


class Levels(NamedTuple):
    """Multiples of a scenario's counts."""

    vendors: float
    customers: float


class Leg(NamedTuple):
    """One stage in time: levels change evenly from `first` to `last`."""

    begin: float
    stage: Stage
    first: Levels
    last: Levels


class Course:
    """The stages in time: `total` seconds, the levels at each time, and when connections are cut."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.legs: list[Leg] = []
        at, now = 0.0, Levels(0.0, 0.0)
        for number, stage in enumerate(stages):
            to = goal(stage, now if number or stage.kind == "ramp" else Levels(1.0, 1.0))
            self.legs.append(Leg(at, stage, now if stage.kind == "ramp" else to, to))
            at += stage.seconds
            now = now if stage.kind == "spike" else to
        self.total = at
        self._begins = [leg.begin for leg in self.legs]

    def leg(self, at: float) -> Leg:
        """Returns the stage at a time; the last one after the end."""
        return self.legs[max(0, bisect_right(self._begins, at) - 1)]

    def levels(self, at: float) -> Levels:
        """Returns the levels of vendors and customers at a time."""
        leg = self.leg(at)
        done = min(1.0, max(0.0, (at - leg.begin) / leg.stage.seconds))
        return Levels(*(first + (last - first) * done for first, last in zip(leg.first, leg.last, strict=True)))

    def peak(self) -> Levels:
        """Returns the highest levels."""
        ends = [levels for leg in self.legs for levels in (leg.first, leg.last)]
        return Levels(max(levels.vendors for levels in ends), max(levels.customers for levels in ends))

    def storms(self) -> list[tuple[float, Stage]]:
        """Returns when connections are cut, in order."""
        return [(leg.begin, leg.stage) for leg in self.legs if leg.stage.kind == "storm"]


def goal(stage: Stage, now: Levels) -> Levels:
    """Returns the levels at the end of a stage that begins at `now`."""
    levels = (stage.level(name) for name in Levels._fields)
    return Levels(*(before if level is None else level for level, before in zip(levels, now, strict=True)))
