"""Event counts since startup, kept where events happen and exported by `operations/metrics.py`. Pure.

Counted per batch, tick, connection or refusal, never per ping. Keys come from closed sets (codes, routes, kinds), so
the export stays small whatever clients send.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PINGS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0)

FEW = 16
"""Up to this many values are counted one by one."""


class Histogram:
    """Counts values by upper bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values above the previous bound and up to this one; the last count is for values above all bounds."""
        self.sum = 0.0

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: list[float]) -> None:
        """Counts many values and sorts `values` in place; a large batch costs little more than a small one."""
        if len(values) <= FEW:
            for value in values:
                self.observe(value)
            return
        # The waits of a batch are almost sorted, which makes sorting fast.
        values.sort()
        self.sum += sum(values)
        before = 0
        for number, bound in enumerate(self.bounds):
            upto = bisect_right(values, bound, before)
            self.counts[number] += upto - before
            before = upto
        self.counts[-1] += len(values) - before

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Yields each bound, the last one infinite, with the number of values up to it."""
        upto = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            upto += count
            yield bound, upto


class Counters:
    """One process's counts."""

    def __init__(self) -> None:
        self.rejected: Counter[str] = Counter()
        """Pings that will never be stored, by code."""
        self.refused: Counter[str] = Counter()
        """Client messages that were answered with an error, by code."""
        self.opened: Counter[str] = Counter()
        """WebSockets and event streams by kind: `vendor`, `watch` or `events`."""
        self.closed: Counter[tuple[str, int]] = Counter()
        """The same by kind and close code."""
        self.requests: Counter[tuple[str, str, int]] = Counter()
        """HTTP requests by method, route and status."""
        self.answered = defaultdict[str, Histogram](Histogram)
        """HTTP requests by route."""
        self.commits = Histogram()
        """Seconds from the start of a batch to its commit, outages included."""
        self.acks = Histogram()
        """Seconds that a message's pings waited for their commit."""
        self.batches = Histogram(PINGS)
        """Pings per batch."""
        self.postgresql = defaultdict[str, Histogram](Histogram)
        """PostgreSQL statements by purpose, including the wait for a connection."""
        self.redis = defaultdict[str, Histogram](Histogram)
        """Redis round trips by lane."""
        self.alert_events: Counter[str] = Counter()
        """Events of alerts that were stored, by kind."""
        self.alert_deliveries: Counter[str] = Counter()
        """Requests to receivers of webhooks: `delivered`, `failed` or `given_up`."""
        self.alert_seconds = Histogram()
        """How long these requests took."""
        self.alert_delay = Histogram()
        """Seconds from an event to its delivery."""
        self.alerts_disabled = 0
        """Alerts that were disabled because their webhooks failed for too long."""
        self.loop = Histogram()
        """Event-loop lag."""

    def reject(self, codes: Iterable[str]) -> None:
        """Counts rejected pings."""
        self.rejected.update(codes)
