"""Delays in histograms: none is left out, and a percentile of too few samples is none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadtest.measure.histogram import LONGEST_US, Histogram, needed


@given(st.lists(st.floats(-1, 1000), min_size=1, max_size=50))
def test_a_histogram_leaves_nothing_out(seconds: list[float]) -> None:
    """The library silently skips what is out of range: the slowest would be missing from the percentiles."""
    histogram = Histogram()
    for duration in seconds:
        histogram.record(duration)
    summary = histogram.summary(strict=False)
    longest = min(max(0.0, *seconds), LONGEST_US / 1e6) * 1000 if len(seconds) > 1 else None
    assert summary["count"] == len(seconds)
    p50, p99, most = (summary[name] or 0.0 for name in ("p50_ms", "p99_ms", "max_ms"))
    assert p50 <= p99 <= most
    if longest is not None:
        assert abs(most - longest) <= max(longest * 0.001, 0.001)


def test_an_empty_histogram_has_no_percentiles() -> None:
    """No percentile of nothing."""
    assert Histogram().summary() == {"count": 0}


def test_a_percentile_of_too_few_samples_is_none() -> None:
    """The 99th percentile of 18 samples is the largest of them by another name."""
    histogram = Histogram()
    for number in range(18):
        histogram.record(number / 1000)
    assert histogram.summary()["p50_ms"] is not None
    assert histogram.summary()["p99_ms"] is None
    assert histogram.summary()["max_ms"] is not None
    assert histogram.summary(strict=False)["p99_ms"] is not None
    assert (needed(50), needed(90), needed(99), needed(99.9)) == (10, 50, 500, 5000)
