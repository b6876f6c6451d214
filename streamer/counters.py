"""What happened since the start, counted where it happens and told by `metrics.py`. Pure.

Counted per batch, tick, connection or refusal, never per ping: the way of a ping pays nothing for being watched. Keys
are from closed tables (codes, routes, kinds), so that what is exported stays small whatever clients send.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PINGS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0)

FEW = 16
"""Values up to which each is sorted in by itself."""


class Histogram:
    """How many values were at most so large, for each of some bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values above the bound before and up to this one; the last is for those above all bounds."""
        self.sum = 0.0

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: list[float]) -> None:
        """Count many values, in any order; `values` is sorted. A large batch costs little more than a small one."""
        if len(values) <= FEW:
            for value in values:
                self.observe(value)
            return
        # Waits of a batch are almost in order, which sorting takes advantage of.
        values.sort()
        self.sum += sum(values)
        before = 0
        for number, bound in enumerate(self.bounds):
            upto = bisect_right(values, bound, before)
            self.counts[number] += upto - before
            before = upto
        self.counts[-1] += len(values) - before

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound and how many values were at most that; the last bound is infinite."""
        upto = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            upto += count
            yield bound, upto


class Timed(dict[str, Histogram]):
    """Seconds that something took, by what it was."""

    def __missing__(self, what: str) -> Histogram:
        histogram = self[what] = Histogram()
        return histogram


class Counters:
    """One process's counts."""

    def __init__(self) -> None:
        self.rejected: Counter[str] = Counter()
        """Pings that will never be stored, by code."""
        self.refused: Counter[str] = Counter()
        """Messages of clients that were answered with an error, by code."""
        self.opened: Counter[str] = Counter()
        """WebSockets, by kind: `vendor` or `watch`."""
        self.closed: Counter[tuple[str, int]] = Counter()
        """WebSockets by kind and close code."""
        self.requests: Counter[tuple[str, str, int]] = Counter()
        """HTTP requests by method, route and status."""
        self.answered = Timed()
        """HTTP requests, by route."""
        self.commits = Histogram()
        """Seconds from the start of a batch to its commit, outages included."""
        self.acks = Histogram()
        """Seconds that a message's pings waited for their commit."""
        self.batches = Histogram(PINGS)
        """Pings of a batch."""
        self.postgresql = Timed()
        """PostgreSQL at work, by what it was asked for; waiting for a free connection included."""
        self.redis = Timed()
        """A round trip to Redis, by lane."""
        self.loop = Histogram()
        """How late the event loop was for a timer."""

    def reject(self, codes: Iterable[str]) -> None:
        """Pings were rejected."""
        self.rejected.update(codes)
