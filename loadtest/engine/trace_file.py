"""Traces of vehicles: read, made up, and moved onto the present. Pure but for reading the file."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import NamedTuple

from loadtest.clients.ping import Ping
from loadtest.errors import WrongUse

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


@dataclass(frozen=True, slots=True)
class Moved:
    """A trace on the present: (vehicle, ping) by due time, and what was met on the way.

    `parked` fixes were old news when the trace began: they are due at its start. `duplicates` are fixes of one vehicle
    at one original timestamp, `nudged` all that were put 1 ms later so that no two pings of a vehicle are the same.
    """

    pings: list[tuple[str, Ping]]
    vehicles: list[str]
    parked: int
    duplicates: int
    nudged: int
    seconds: float


def read(path: Path) -> list[Fix]:
    """The fixes of a (gzipped) CSV file with the header `vehicle,timestamp,lat,long`, ISO 8601 times, in its order."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            return parse(lines, str(path))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as failed:
        raise WrongUse(f"the trace {path} can't be read: {failed}") from None


def parse(lines: Iterable[str], source: str) -> list[Fix]:
    """The fixes of a trace's lines; WrongUse names the first line that is none."""
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


def generate(
    vehicles: int, seconds: int, seed: int, *, lat: float = 52.2297, long: float = 21.0122, spread: float = 5000.0
) -> list[Fix]:
    """A small made-up trace: vehicles that wander within `spread` metres, a fix every 5 to 15 s; deterministic."""
    random = Random(seed)
    wide = spread / METRES_PER_DEGREE
    narrow = max(math.cos(math.radians(lat)), 0.01)
    fixes = []
    for number in range(vehicles):
        when = random.uniform(0, 10)
        north, east, course = random.uniform(-wide, wide), random.uniform(-wide, wide), random.uniform(0, math.tau)
        while when < seconds:
            fixes.append(
                Fix(
                    f"g{number}",
                    1_700_000_000_000 + round(when) * 1000,
                    round(lat + north, 6),
                    round(long + east / narrow, 6),
                )
            )
            step = random.uniform(5, 15)
            course += random.uniform(-0.5, 0.5)
            if math.hypot(north, east) > wide:  # homeward
                course = math.atan2(-east, -north)
            north += 8 * step * math.cos(course) / METRES_PER_DEGREE
            east += 8 * step * math.sin(course) / METRES_PER_DEGREE
            when += step
    return sorted(fixes, key=lambda fix: (fix.timestamp, fix.vehicle))


def beginning(fixes: Sequence[Fix]) -> int:
    """The index where a trace's traffic begins.

    A trace starts with what was last known of parked vehicles, hours or days old. A gap of over a minute in the first
    hundredth of its fixes is such a past: replaying it in real time would be waiting for nothing.
    """
    first = 0
    for index in range(1, len(fixes) // PARKED_SHARE + 1):
        if index < len(fixes) and fixes[index].timestamp - fixes[index - 1].timestamp > PARKED_GAP:
            first = index
    return first


def move(fixes: Sequence[Fix], start: int, speedup: float) -> Moved:
    """Put a trace onto the present: the traffic's first fix is at `start` (epoch ms), gaps are divided by `speedup`.

    What comes before the traffic keeps its (divided) age and is due at the start. Every ping of a vehicle gets its own
    millisecond, later ones never get an earlier one.
    """
    if not speedup > 0 or not math.isfinite(speedup):
        raise WrongUse(f"the speed-up is {speedup}; it must be a positive number")
    ordered = sorted(fixes, key=lambda fix: fix.timestamp)
    first = beginning(ordered)
    zero = ordered[first].timestamp
    pings: list[tuple[str, Ping]] = []
    newest: dict[str, tuple[int, int]] = {}
    duplicates = nudged = 0
    for fix in ordered:
        timestamp = start + round((fix.timestamp - zero) / speedup)
        before = newest.get(fix.vehicle)
        if before is not None:
            duplicates += before[0] == fix.timestamp
            if timestamp <= before[1]:
                nudged += 1
                timestamp = before[1] + 1
        newest[fix.vehicle] = (fix.timestamp, timestamp)
        pings.append((fix.vehicle, Ping(timestamp, fix.lat, fix.long, max(timestamp, start))))
    pings.sort(key=lambda item: item[1].due)
    return Moved(pings, list(newest), first, duplicates, nudged, (pings[-1][1].due - start) / 1000)


def centre(fixes: Sequence[Fix]) -> tuple[float, float]:
    """The middle of the box round all fixes: lat, long."""
    lats, longs = [fix.lat for fix in fixes], [fix.long for fix in fixes]
    return (min(lats) + max(lats)) / 2, (min(longs) + max(longs)) / 2


def surroundings(fixes: Sequence[Fix]) -> tuple[float, float, float]:
    """A circle round most fixes: lat, long, and the radius in metres that nine of ten are within."""
    lats, longs = sorted(fix.lat for fix in fixes), sorted(fix.long for fix in fixes)
    lat, long = lats[len(lats) // 2], longs[len(longs) // 2]
    narrow = max(math.cos(math.radians(lat)), 0.01)
    away = sorted(math.hypot(fix.lat - lat, (fix.long - long) * narrow) for fix in fixes)
    return lat, long, max(100.0, min(50_000.0, away[len(away) * 9 // 10] * METRES_PER_DEGREE))
