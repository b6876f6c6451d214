"""Durations in an HDR histogram: nothing is left out, and percentiles come in milliseconds."""

from __future__ import annotations

import binascii
import zlib
from collections.abc import Iterable

from hdrh.codec import HdrCookieException, HdrHistogramSettingsException, HdrLengthException
from hdrh.histogram import HdrHistogram

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
        """Count one duration. The library would silently skip what is out of range."""
        self._histogram.record_value(min(max(round(seconds * 1e6), 0), LONGEST_US))

    def record_steps(self, steps: Iterable[int], counts: Iterable[int], per_second: int) -> None:
        """Count durations that were counted in steps of 1/`per_second` s, as `loadtest.measure.recorder` does."""
        size = 1_000_000 // per_second
        for step, count in zip(steps, counts, strict=True):
            self._histogram.record_value(min(step * size, LONGEST_US), count)

    def encode(self) -> str:
        """The whole histogram in the compressed V2 format of HdrHistogram, base64; values are µs."""
        return bytes(self._histogram.encode()).decode() if len(self) else ""

    def add(self, encoded: str) -> None:
        """Add what `encode` gave, here or on another machine; ValueError when it is no such thing."""
        if not encoded:
            return
        try:
            self._histogram.decode_and_add(encoded.encode())
        except BROKEN as bad:
            raise ValueError(f"{encoded[:40]!r} is no histogram: {bad!r}") from None

    def curve(self, points: Iterable[float]) -> list[float]:
        """The durations in ms at these percentiles."""
        wanted = list(points)
        if not len(self):
            return []
        found = self._histogram.get_percentile_to_value_dict(wanted)
        return [found[point] / 1000 for point in wanted]

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
