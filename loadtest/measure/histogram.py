"""Durations in an HDR histogram: nothing is left out, and percentiles are in milliseconds."""

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
