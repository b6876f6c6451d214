"""What the workers report, put together: over time, and in all. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from loadtest.measure.histogram import STEPS_PER_S, Histogram

MOST_BUCKETS = 300
IN_SERIES = ("watch", "ack", "freshness")

Steps = dict[int, int]


class Bucket:
    """Some seconds of a run: counts, delays as {step: how many}, CPU seconds of the generator, by kind of worker."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.delays: dict[str, Steps] = {}
        self.active: dict[tuple[str, int], int] = {}
        self.own: Counter[str] = Counter()

    def add(self, kind: str, number: int, report: Mapping[str, Any]) -> None:
        """Adds one worker's second."""
        self.counts.update(report["counts"])
        self.active[kind, number] = report["active"]
        self.own[kind] += report["cpu"]
        for name, (steps, counts) in report["delays"].items():
            add(self.delays.setdefault(name, {}), zip(steps, counts, strict=True))

    def working(self, kind: str) -> int:
        """Returns how many vendors or customers took part."""
        return sum(count for (of, _), count in self.active.items() if of == kind)


class Usage:
    """What the server has used up to a moment: CPU seconds and resident bytes by kind of process."""

    def __init__(self, at: float, cpu: Mapping[str, float], resident: Mapping[str, float]) -> None:
        self.at, self.cpu, self.resident = at, cpu, resident


class Timeline:
    """A run's seconds in at most 300 buckets of `interval` s; those before `warmup` are in no figure."""

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
        """Adds what a worker reported of one second."""
        second = report["second"]
        place = min(second // self.interval, len(self.buckets) - 1)
        self.buckets[place].add(kind, number, report)
        self.reached = max(self.reached, min(second + 1.0, self.total))
        if second > self._coming_at:
            # the second before is whole by now; of this one the other workers' reports are missing
            self.latest, self._coming, self._coming_at = self._coming, Bucket(), second
        if second == self._coming_at:
            self._coming.add(kind, number, report)

    def end(self, reports: Iterable[Mapping[str, Any]]) -> None:
        """Adds the freshness gaps of the last seconds, which could be judged only when all acks had come."""
        last = self.buckets[max(0, math.ceil(self.reached / self.interval) - 1)]
        for report in reports:
            if found := report["delays"].get("freshness"):
                add(last.delays.setdefault("freshness", {}), zip(*found, strict=True))

    def usage(self, at: float, cpu: Mapping[str, float], resident: Mapping[str, float]) -> None:
        """Adds what the server had used `at` seconds after the start."""
        self.usages.append(Usage(at, dict(cpu), dict(resident)))

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
        found: dict[str, Steps] = {}
        for bucket in self.measured():
            for name, steps in bucket.delays.items():
                add(found.setdefault(name, {}), steps.items())
        return {name: histogram(steps) for name, steps in sorted(found.items())}

    def used(self) -> tuple[float, dict[str, float]] | None:
        """Returns seconds and the server's CPU seconds in them, after the warm-up and up to the end of the stages."""
        inside = [usage for usage in self.usages if self.warmup - 0.5 <= usage.at <= self.total + 1.5]
        if len(inside) < 2:
            return None
        first, last = inside[0], inside[-1]
        return last.at - first.at, {name: last.cpu[name] - first.cpu.get(name, 0.0) for name in last.cpu}

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
                    entry["delays"][name] = shown(histogram(steps), strict=False)
            if (used := self._between(begin, begin + self.interval)) is not None:
                entry["server"] = used
            found.append(entry)
        return found

    def _between(self, begin: float, end: float) -> dict[str, Any] | None:
        """Returns cores and resident MB of the server between two times, from the samples nearest to them."""
        if len(self.usages) < 2:
            return None
        first, last = self._nearest(begin), self._nearest(end)
        if last.at - first.at < 0.5:
            return None
        return {
            "cores": {
                name: round(max(0.0, last.cpu[name] - first.cpu.get(name, 0.0)) / (last.at - first.at), 3)
                for name in last.cpu
            },
            "resident_mb": {name: round(size / 1e6, 1) for name, size in last.resident.items()},
        }

    def _nearest(self, at: float) -> Usage:
        place = bisect_left(self.usages, at, key=lambda usage: usage.at)
        return min(self.usages[max(0, place - 1) : place + 1], key=lambda usage: abs(usage.at - at))


def add(steps: Steps, more: Iterable[tuple[int, int]]) -> None:
    """Adds delays."""
    for step, count in more:
        steps[step] = steps.get(step, 0) + count


def histogram(steps: Steps) -> Histogram:
    """Returns the same delays as a histogram."""
    made = Histogram()
    made.record_steps(steps, steps.values(), STEPS_PER_S)
    return made


def shown(delays: Histogram, strict: bool = True) -> dict[str, Any]:
    """Returns a histogram as it stands in a report: its percentiles and the whole of it.

    `strict` leaves out percentiles of too few samples; a plot over time shows them all the same.
    """
    return {**delays.summary(strict), "hdr": delays.encode()}
