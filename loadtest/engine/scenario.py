"""What a run does: a city, vendors that move, customers who look, and stages. Read from TOML, overridden by flags."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtest.errors import WrongUse

FOLDER = Path(__file__).parents[1] / "scenarios"
MAX_SECONDS = 6 * 3600
MAX_APPS = 25_000
MAX_PINGS_PER_S = 200_000

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Level = Annotated[float, Field(ge=0, le=100)]


class Part(BaseModel):
    """A piece of a scenario: unknown members are refused, so that a misspelt one is not silently left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Place(Part):
    """The city: a disc of streets `block` metres apart. Its size follows from the density unless `radius` is given."""

    lat: Annotated[float, Field(ge=-80, le=80)] = 52.2297
    long: Annotated[float, Field(ge=-180, le=180)] = 21.0122
    density: Annotated[float, Field(gt=0, le=100_000)] = 40.0
    radius: Annotated[float, Field(gt=0, le=50_000)] | None = None
    block: Annotated[float, Field(ge=10, le=2000)] = 120.0

    def size(self, vendors: int) -> float:
        """The city's radius in metres for so many vendors at `density` vendors per km²; at least two blocks."""
        if self.radius is not None:
            return self.radius
        return min(50_000.0, max(2 * self.block, 1000 * math.sqrt(vendors / (math.pi * self.density))))


class Movement(Part):
    """How a share of the vendors moves, and how many seconds apart its pings are."""

    kind: Literal["parked", "walking", "driving"]
    share: Annotated[float, Field(gt=0)] = 1.0
    every: Annotated[float, Field(ge=0.05, le=3600)] = 5.0


class Phones(Part):
    """The network of a share of the phones goes away: `up` and `down` are mean seconds."""

    lossy: Share = 0.0
    up: Seconds = 60.0
    down: Seconds = 20.0


class Vendors(Part):
    """So many vendors at level 1, in the given proportions of movements."""

    count: Annotated[int, Field(ge=1, le=MAX_APPS)] = 100
    movements: Annotated[tuple[Movement, ...], Field(min_length=1)] = (Movement(kind="driving", every=2.0),)
    phones: Phones = Phones()


class Customers(Part):
    """So many customers at level 1, and what they do.

    Each looks at a circle of `radius` metres (from, to) for about `dwell` seconds, then pans, follows one vendor, or
    puts the phone away for about `asleep` seconds, in these proportions. A share of them reads `slow_bytes` a second.
    """

    count: Annotated[int, Field(ge=0, le=MAX_APPS)] = 200
    radius: tuple[Annotated[float, Field(gt=0, le=50_000)], Annotated[float, Field(gt=0, le=50_000)]] = (500.0, 2000.0)
    dwell: Annotated[float, Field(ge=0.1, le=MAX_SECONDS)] = 15.0
    pan: Annotated[float, Field(ge=0)] = 6.0
    follow: Annotated[float, Field(ge=0)] = 2.0
    sleep: Annotated[float, Field(ge=0)] = 2.0
    asleep: Seconds = 20.0
    slow: Share = 0.0
    slow_bytes: Annotated[int, Field(ge=200)] = 4000
    phones: Phones = Phones()

    @model_validator(mode="after")
    def _radius_rises(self) -> Customers:
        if self.radius[0] > self.radius[1]:
            raise ValueError(f"radius is {list(self.radius)}: the first must not be larger than the second")
        return self


class Stage(Part):
    """A piece of time. Levels are multiples of the counts.

    `ramp`: evenly to a level. `hold`: stay there. `spike`: at once to a level, and back after it.
    `storm`: at its beginning a `share` of the connections is cut at once, and all come back.
    """

    kind: Literal["ramp", "hold", "spike", "storm"]
    seconds: Seconds
    to: Level | None = None
    vendors: Level | None = None
    customers: Level | None = None
    share: Share = 1.0
    who: Literal["all", "vendors", "customers"] = "all"

    @model_validator(mode="after")
    def _somewhere(self) -> Stage:
        if self.kind in ("ramp", "spike") and self.to is None and self.vendors is None and self.customers is None:
            raise ValueError(f"a {self.kind} needs a level: give `to`, `vendors` or `customers`")
        if self.kind == "storm" and (self.to, self.vendors, self.customers) != (None, None, None):
            raise ValueError("a storm keeps the level: leave out `to`, `vendors` and `customers`")
        return self


class Promises(Part):
    """What a run must keep; None is not asked for. Delays in ms at the 99th percentile.

    `lost`: pings that were not acked, or acked and not stored. `errors`: errors, refusals and closes that the load
    generator did not cause.
    """

    p99_ms: Annotated[float, Field(gt=0)] | None = None
    ack_p99_ms: Annotated[float, Field(gt=0)] | None = None
    snapshot_p99_ms: Annotated[float, Field(gt=0)] | None = None
    lost: Annotated[int, Field(ge=0)] | None = None
    errors: Annotated[int, Field(ge=0)] | None = None


class Scenario(Part):
    """One whole scenario. The first `warmup` seconds are run but left out of all figures.

    Acks are awaited for `settle` seconds at the end. A generator that is itself later than `late_ms` at the 99th
    percentile fails the run: it would measure itself.
    """

    title: str
    about: str = ""
    warmup: Annotated[float, Field(ge=0, le=3600)] = 5.0
    settle: Annotated[float, Field(gt=0, le=600)] = 60.0
    late_ms: Annotated[float, Field(gt=0)] = 100.0
    city: Place = Place()
    vendors: Vendors = Vendors()
    customers: Customers = Customers()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=100)]
    promises: Promises = Promises()

    @model_validator(mode="after")
    def _bounded(self) -> Scenario:
        seconds = sum(stage.seconds for stage in self.stages)
        if seconds > MAX_SECONDS:
            raise ValueError(f"the stages take {seconds:g} s together; at most {MAX_SECONDS} s are allowed")
        if self.warmup >= seconds:
            raise ValueError(
                f"warmup is {self.warmup:g} s and the stages take {seconds:g} s: nothing would be measured"
            )
        for name, count in (("vendors", self.vendors.count), ("customers", self.customers.count)):
            highest = max(level for level in self._levels(name))
            if count * highest > MAX_APPS:
                raise ValueError(f"{count} {name} at level {highest:g} are more than {MAX_APPS}, which a run may have")
        if (rate := self.pings_per_second()) > MAX_PINGS_PER_S:
            raise ValueError(f"{rate:,.0f} pings a second are more than {MAX_PINGS_PER_S:,}, which a run may send")
        return self

    def _levels(self, name: str) -> list[float]:
        found = [getattr(stage, name) if getattr(stage, name) is not None else stage.to for stage in self.stages]
        return [level for level in found if level is not None] or [1.0]

    def changed(self, changes: dict[str, Any]) -> Scenario:
        """The same with other members."""
        return build(self.model_dump() | changes, self.title)

    def scaled(self, factor: float) -> Scenario:
        """The same with `factor` times the vendors and customers; the density stays, so the city grows."""
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
        """How long all stages take."""
        return sum(stage.seconds for stage in self.stages)

    def pings_per_second(self) -> float:
        """How many pings a second all vendors send at the highest level."""
        shares = sum(movement.share for movement in self.vendors.movements)
        each = sum(movement.share / shares / movement.every for movement in self.vendors.movements)
        return self.vendors.count * each * max(self._levels("vendors"))


def names() -> list[str]:
    """The scenarios that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str, changes: Sequence[tuple[str, Any]] = ()) -> Scenario:
    """The scenario of this name, or in this file, with members changed by their dotted names."""
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
    return build(found, str(path))


def build(found: dict[str, Any], source: str) -> Scenario:
    """A scenario out of plain data; WrongUse names each member that can't be used."""
    try:
        return Scenario.model_validate(found)
    except ValidationError as bad:
        told = "; ".join(
            f"{'.'.join(str(part) for part in error['loc']) or 'it'}: {error['msg'].removeprefix('Value error, ')}"
            + (f" (it is {error['input']!r})" if not isinstance(error["input"], dict) else "")
            for error in bad.errors(include_url=False, include_context=False)
        )
        raise WrongUse(f"the scenario {source} can't be used: {told}") from None


def put(found: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a member by its dotted name; numbers go into lists."""
    *path, last = dotted.split(".")
    place: Any = found
    try:
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value
    except (ValueError, IndexError, TypeError, AttributeError) as bad:
        raise WrongUse(f"--set {dotted}: there is no such place in the scenario ({bad})") from None


def assignments(texts: Iterable[str]) -> list[tuple[str, Any]]:
    """`NAME=VALUE` pairs of --set, the value as in TOML, or text when it isn't any."""
    found = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise WrongUse(f"--set is {text!r}; it must be NAME=VALUE like city.density=80")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        found.append((name.strip(), parsed))
    return found


def stages(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Stages as --stage gives them: `ramp:30:1`, `hold:60`, `spike:10:3`, `storm:20:0.5` (a share)."""
    found = []
    for text in texts:
        kind, _, rest = text.partition(":")
        seconds, colon, number = rest.partition(":")
        try:
            stage: dict[str, Any] = {"kind": kind, "seconds": float(seconds)}
            if colon:
                stage["share" if kind == "storm" else "to"] = float(number)
        except ValueError:
            raise WrongUse(
                f"--stage is {text!r}; it must be KIND:SECONDS or KIND:SECONDS:LEVEL like ramp:30:1, hold:60, "
                "spike:10:3 or storm:20:0.5"
            ) from None
        found.append(stage)
    return found
