"""Counts and durations: counted cheaply in each worker, merged into time series and HDR histograms. Pure."""

from __future__ import annotations

import binascii
import math
import time
import zlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from hdrh.codec import HdrCookieException, HdrHistogramSettingsException, HdrLengthException
from hdrh.histogram import HdrHistogram

STEPS_PER_S = 10_000
"""Delays are counted in steps of 0.1 ms: incrementing a dictionary costs a tenth of what an HDR histogram does."""
LONGEST_US = 600_000_000
STEP_US = 1_000_000 // STEPS_PER_S
DIGITS = 3
BROKEN = (
    *(HdrCookieException, HdrHistogramSettingsException, HdrLengthException, binascii.Error, zlib.error),
    *(TypeError, IndexError, ArithmeticError),
)
POINTS = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}
BEYOND = 5
MOST_BUCKETS = 300
IN_SERIES = ("watch", "ack", "freshness")


class Recorder:
    """Counters by name, and delays by name as {step: count}; `take` returns both and starts over."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._delays: defaultdict[str, Counter[int]] = defaultdict(Counter)

    def delay(self, name: str, seconds: float) -> None:
        """Counts one delay; a negative one, caused by clock skew, counts as zero and as `skewed`."""
        step = int(seconds * STEPS_PER_S)
        if step < 0:
            step = 0
            self.counts["skewed"] += 1
        steps = self._delays[name]
        steps[step] = steps.get(step, 0) + 1  # half the time of `+= 1`

    def delays(self, name: str, steps: list[int]) -> None:
        """Counts many delays in steps of 0.1 ms, at a fifth of the cost of single calls."""
        if not steps:
            return
        if min(steps) < 0:
            self.counts["skewed"] += sum(step < 0 for step in steps)
            steps = [max(step, 0) for step in steps]
        self._delays[name].update(steps)

    def stall(self, name: str, seconds: float, every: float) -> None:
        """Counts a stall weighted by its length: the waits until its end of events every `every` s within it."""
        left = seconds
        while left > 0:
            self.delay(name, left)
            left -= every

    def take(self) -> dict[str, Any]:
        """Returns the counts since the last call, JSON-serializable."""
        taken = {
            "counts": dict(self.counts),
            "delays": {name: [list(steps), list(steps.values())] for name, steps in self._delays.items()},
        }
        self.counts = Counter()
        self._delays = defaultdict(Counter)
        return taken


def time_of_day(milliseconds: float) -> str:
    """Returns an epoch ms as the time of day in UTC."""
    return f"{time.strftime('%H:%M:%S', time.gmtime(milliseconds / 1000))}.{int(milliseconds) % 1000:03d}"


def percentile(steps: Mapping[int, int], percent: float) -> int | None:
    """Returns the step of a percentile in {step: count}; None if it is empty."""
    total = sum(steps.values())
    at = 0
    for step in sorted(steps):
        at += steps[step]
        if at >= total * percent / 100:
            return step
    return None


class Histogram:
    """Records seconds, in steps of 1 µs up to 10 minutes; values outside count as the nearest limit."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, LONGEST_US, DIGITS)

    @classmethod
    def of(cls, steps: Mapping[int, int]) -> Histogram:
        """Returns a histogram of durations counted in steps of 0.1 ms, as in a Recorder."""
        made = cls()
        for step, count in steps.items():
            made._histogram.record_value(min(step * STEP_US, LONGEST_US), count)
        return made

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def record(self, seconds: float) -> None:
        """Counts one duration, limited to the range, as the library silently skips others."""
        self._histogram.record_value(min(max(round(seconds * 1e6), 0), LONGEST_US))

    def encode(self) -> str:
        """Returns the whole histogram in the compressed V2 format of HdrHistogram, base64; values are µs."""
        return bytes(self._histogram.encode()).decode() if len(self) else ""

    def add(self, encoded: str) -> None:
        """Adds an encoded histogram, perhaps of another machine; raises ValueError if it is invalid."""
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
        """Returns the count and the percentiles in ms; with `strict`, None for those with too few samples."""
        count = len(self)
        if not count:
            return {"count": 0}
        named = {
            f"{name}_ms": value if count >= needed(percent) or not strict else None
            for (name, percent), value in zip(POINTS.items(), self.curve(POINTS.values()), strict=True)
        }
        return {"count": count, **named, "max_ms": self._histogram.get_max_value() / 1000}


def needed(percent: float) -> int:
    """Returns the number of samples that a percentile needs: at least 5 of them must lie beyond it."""
    return round(BEYOND / (1 - percent / 100))


class Bucket:
    """Some seconds of a run: counts, delays as {step: count}, CPU seconds of the load generator by kind of worker."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.delays: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self.active: dict[tuple[str, int], int] = {}
        self.own: Counter[str] = Counter()

    def add(self, kind: str, number: int, report: Mapping[str, Any]) -> None:
        """Adds one worker's second."""
        self.counts.update(report["counts"])
        self.active[kind, number] = report["active"]
        self.own[kind] += report["cpu"]
        for name, (steps, counts) in report["delays"].items():
            self.delays[name].update(dict(zip(steps, counts, strict=True)))

    def working(self, kind: str) -> int:
        """Returns how many vendors or customers took part."""
        return sum(count for (of, _), count in self.active.items() if of == kind)


class Usage(NamedTuple):
    """The server's usage up to some time: CPU seconds and resident bytes by kind of process."""

    at: float
    cpu: Mapping[str, float]
    resident: Mapping[str, float]

    def since(self, first: Usage) -> dict[str, float]:
        """Returns the CPU seconds since an earlier moment, by kind."""
        return {name: cpu - first.cpu.get(name, 0.0) for name, cpu in self.cpu.items()}


class Timeline:
    """A run's seconds in at most 300 buckets of `interval` s; figures exclude those before `warmup`."""

    def __init__(self, total: float, warmup: float) -> None:
        self.total = total
        self.interval = max(1, math.ceil(total / MOST_BUCKETS))
        # a bucket is either warm-up or measured
        self.warmup = math.ceil(warmup / self.interval) * self.interval
        self.buckets = [Bucket() for _ in range(math.ceil(total / self.interval))]
        self.usages: list[Usage] = []
        self.latest = Bucket()
        self.reached = 0.0
        self._coming = Bucket()
        self._coming_at = -1

    def second(self, kind: str, number: int, report: Mapping[str, Any]) -> None:
        """Adds a worker's report of one second."""
        second = report["second"]
        place = min(second // self.interval, len(self.buckets) - 1)
        self.buckets[place].add(kind, number, report)
        self.reached = max(self.reached, min(second + 1.0, self.total))
        if second > self._coming_at:
            # the second before is complete by now; this one lacks the other workers' reports
            self.latest, self._coming, self._coming_at = self._coming, Bucket(), second
        if second == self._coming_at:
            self._coming.add(kind, number, report)

    def end(self, reports: Iterable[Mapping[str, Any]]) -> None:
        """Adds the freshness gaps of the last seconds, which are known only once all acks have arrived."""
        last = self.buckets[max(0, math.ceil(self.reached / self.interval) - 1)]
        for report in reports:
            if found := report["delays"].get("freshness"):
                last.delays["freshness"].update(dict(zip(*found, strict=True)))

    def usage(self, at: float, cpu: Mapping[str, float], resident: Mapping[str, float]) -> None:
        """Adds the server's usage `at` seconds after the start."""
        self.usages.append(Usage(at, cpu, resident))

    @property
    def seconds(self) -> float:
        """The measured seconds."""
        return max(0.0, min(self.reached, self.total) - self.warmup)

    def measured(self) -> list[Bucket]:
        """Returns the buckets after the warm-up."""
        return self.buckets[self.warmup // self.interval :]

    def counts(self) -> Counter[str]:
        """Returns the counts after the warm-up."""
        return sum((bucket.counts for bucket in self.measured()), Counter())

    def own(self) -> Counter[str]:
        """Returns the CPU seconds of the workers after the warm-up, by kind."""
        return sum((bucket.own for bucket in self.measured()), Counter())

    def delays(self) -> dict[str, Histogram]:
        """Returns all delays after the warm-up, by name."""
        found = defaultdict[str, Counter[int]](Counter)
        for bucket in self.measured():
            for name, steps in bucket.delays.items():
                found[name].update(steps)
        return {name: Histogram.of(steps) for name, steps in sorted(found.items())}

    def server(self) -> dict[str, Any] | None:
        """Returns the server's CPU seconds and memory in the measured time; None if unknown."""
        inside = [usage for usage in self.usages if self.warmup - 0.5 <= usage.at <= self.total + 1.5]
        if len(inside) < 2:
            return None
        first, last = inside[0], inside[-1]
        highest = {name: max(one.resident.get(name, 0.0) for one in inside) for name in sorted(last.resident)}
        kind = "server" if "server" in highest else "all"
        grown = highest.get(kind, 0.0) - self.usages[0].resident.get(kind, 0.0)
        connections = max(bucket.working("vendors") + bucket.working("customers") for bucket in self.buckets)
        return {
            "seconds": round(last.at - first.at, 3),
            "cpu": {name: round(value, 3) for name, value in sorted(last.since(first).items())},
            "resident_mb": {name: round(size / 1e6, 1) for name, size in highest.items()},
            "kb_per_connection": round(grown / 1000 / connections, 2) if connections else None,
        }

    def series(self) -> list[dict[str, Any]]:
        """Returns one entry per bucket, for plots and merging."""
        found = []
        for place, bucket in enumerate(self.buckets):
            begin = place * self.interval
            if begin >= self.reached:
                break
            seconds = min(self.interval, self.reached - begin)
            entry: dict[str, Any] = {
                "t": begin,
                "seconds": seconds,
                "measured": begin >= self.warmup,
                "vendors": bucket.working("vendors"),
                "customers": bucket.working("customers"),
                "counts": dict(sorted(bucket.counts.items())),
                "own_cpu": round(sum(bucket.own.values()), 3),
                "delays": {},
            }
            for name in IN_SERIES:
                if steps := bucket.delays.get(name):
                    entry["delays"][name] = shown(Histogram.of(steps), strict=False)
            if (used := self._between(begin, begin + self.interval)) is not None:
                entry["server"] = used
            found.append(entry)
        return found

    def _between(self, begin: float, end: float) -> dict[str, Any] | None:
        """Returns cores and resident MB of the server between two times, from the samples nearest to them."""
        if len(self.usages) < 2:
            return None
        first, last = self._nearest(begin), self._nearest(end)
        seconds = last.at - first.at
        if seconds < 0.5:
            return None
        return {
            "cores": {name: round(max(0.0, cpu) / seconds, 3) for name, cpu in last.since(first).items()},
            "resident_mb": {name: round(size / 1e6, 1) for name, size in last.resident.items()},
        }

    def _nearest(self, at: float) -> Usage:
        place = bisect_left(self.usages, at, key=lambda usage: usage.at)
        return min(self.usages[max(0, place - 1) : place + 1], key=lambda usage: abs(usage.at - at))


def shown(delays: Histogram, strict: bool = True) -> dict[str, Any]:
    """Returns a histogram's entry in a report: its percentiles and its encoded form.

    `strict` leaves out percentiles of too few samples; a plot over time shows them anyway.
    """
    return {**delays.summary(strict), "hdr": delays.encode()}
