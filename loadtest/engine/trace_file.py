"""Traces of vehicles, read from gzip CSV files. Pure but for reading the file."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

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


def read(path: Path) -> list[Fix]:
    """Returns the fixes of a (gzipped) CSV file with the header `vehicle,timestamp,lat,long` (ISO 8601)."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            return parse(lines, str(path))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as failed:
        raise WrongUse(f"the trace {path} can't be read: {failed}") from None


def parse(lines: Iterable[str], source: str) -> list[Fix]:
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
