"""Counts and durations: counted cheaply in each worker, put together in HDR histograms. Pure."""

from __future__ import annotations

import binascii
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from hdrh.codec import HdrCookieException, HdrHistogramSettingsException, HdrLengthException
from hdrh.histogram import HdrHistogram

STEPS_PER_S = 10_000
"""Delays are counted in steps of 0.1 ms: incrementing a dictionary costs a tenth of what an HDR histogram does."""


class Recorder:
    """Counters by name, and delays by name as {step: count}; `take` returns both and starts over."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._delays: dict[str, Counter[int]] = {}

    def delay(self, name: str, seconds: float) -> None:
        """Counts one delay; a negative one, which only a skewed clock can make, counts as zero and as `skewed`."""
        step = int(seconds * STEPS_PER_S)
        if step < 0:
            step = 0
            self.counts["skewed"] += 1
        steps = self._delays.get(name)
        if steps is None:
            steps = self._delays[name] = Counter()
        steps[step] = steps.get(step, 0) + 1

    def delays(self, name: str, steps: list[int]) -> None:
        """Counts many delays at once, in steps of 0.1 ms: a fifth of the cost of one by one."""
        if not steps:
            return
        if min(steps) < 0:
            self.counts["skewed"] += sum(step < 0 for step in steps)
            steps = [max(step, 0) for step in steps]
        self._delays.setdefault(name, Counter()).update(steps)

    def stall(self, name: str, seconds: float, every: float) -> None:
        """Counts a stall weighted by its length: as what events every `every` s within it had to wait for its end."""
        left = seconds
        while left > 0:
            self.delay(name, left)
            left -= every

    def take(self) -> dict[str, Any]:
        """Returns what was counted since the last call, as JSON can hold it."""
        taken = {
            "counts": dict(self.counts),
            "delays": {name: [list(steps), list(steps.values())] for name, steps in self._delays.items()},
        }
        self.counts = Counter()
        self._delays = {}
        return taken


def time_of_day(milliseconds: float) -> str:
    """Returns an epoch ms as the time of day in UTC."""
    return f"{time.strftime('%H:%M:%S', time.gmtime(milliseconds / 1000))}.{int(milliseconds) % 1000:03d}"


def percentile(steps: Mapping[int, int], percent: float) -> int | None:
    """Returns the step of a percentile in {step: count}; None of none."""
    total = sum(steps.values())
    at = 0
    for step in sorted(steps):
        at += steps[step]
        if at >= total * percent / 100:
            return step
    return None


LONGEST_US = 600_000_000
DIGITS = 3
BROKEN = (
    *(HdrCookieException, HdrHistogramSettingsException, HdrLengthException, binascii.Error, zlib.error),
    *(TypeError, IndexError, ArithmeticError),
)


class Histogram:
    """Records seconds, in steps of 1 µs up to 10 minutes; what is below or above counts as the nearest end."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, LONGEST_US, DIGITS)

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def record(self, seconds: float) -> None:
        """Counts one duration. The library would silently skip one that is out of range."""
        self._histogram.record_value(min(max(round(seconds * 1e6), 0), LONGEST_US))

    def record_steps(self, steps: Iterable[int], counts: Iterable[int], per_second: int) -> None:
        """Counts durations that were counted in steps of 1/`per_second` s, as a Recorder counts them."""
        size = 1_000_000 // per_second
        for step, count in zip(steps, counts, strict=True):
            self._histogram.record_value(min(step * size, LONGEST_US), count)

    def encode(self) -> str:
        """Returns the whole histogram in the compressed V2 format of HdrHistogram, base64; values are µs."""
        return bytes(self._histogram.encode()).decode() if len(self) else ""

    def add(self, encoded: str) -> None:
        """Adds what `encode` returned, here or on another machine; raises ValueError for anything else."""
        if not encoded:
            return
        try:
            self._histogram.decode_and_add(encoded.encode())
        except BROKEN as bad:
            raise ValueError(f"{encoded[:40]!r} is no histogram: {bad!r}") from None

    def curve(self, points: Iterable[float]) -> list[float]:
        """Returns the durations in ms at these percentiles."""
        wanted = list(points)
        if not len(self):
            return []
        found = self._histogram.get_percentile_to_value_dict(wanted)
        return [found[point] / 1000 for point in wanted]

    def summary(self, strict: bool = True) -> dict[str, float | None]:
        """Returns the count and the percentiles in ms; with `strict`, None for one of too few samples."""
        count = len(self)
        if not count:
            return {"count": 0}
        found = self._histogram.get_percentile_to_value_dict(list(POINTS.values()))
        named = {
            f"{name}_ms": found[point] / 1000 if count >= needed(point) or not strict else None
            for name, point in POINTS.items()
        }
        return {"count": count, **named, "max_ms": self._histogram.get_max_value() / 1000}


POINTS = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}
BEYOND = 5


def needed(percent: float) -> int:
    """Returns how many samples a percentile needs: at least 5 of them must lie beyond it."""
    return round(BEYOND / (1 - percent / 100))
