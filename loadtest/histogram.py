"""Durations in an HDR histogram: nothing is left out, and percentiles come in milliseconds."""

from __future__ import annotations

from hdrh.histogram import HdrHistogram

LONGEST_US = 600_000_000
DIGITS = 3


class Histogram:
    """Records seconds, in steps of 1 µs up to 10 minutes; what is below or above counts as the nearest end."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, LONGEST_US, DIGITS)

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def record(self, seconds: float) -> None:
        """Count one duration. The library would silently skip what is out of range."""
        self._histogram.record_value(min(max(round(seconds * 1e6), 0), LONGEST_US))

    def summary(self) -> dict[str, float]:
        """How many, and the percentiles in ms."""
        if not len(self):
            return {"count": 0}
        found = self._histogram.get_percentile_to_value_dict([50, 90, 99, 99.9])
        return {
            "count": len(self),
            "p50_ms": found[50] / 1000,
            "p90_ms": found[90] / 1000,
            "p99_ms": found[99] / 1000,
            "p999_ms": found[99.9] / 1000,
            "max_ms": self._histogram.get_max_value() / 1000,
        }
