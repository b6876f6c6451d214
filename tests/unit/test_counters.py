"""Counters: a bucket that is off by one makes every percentile on the dashboard wrong."""

from __future__ import annotations

from bisect import bisect_right

from hypothesis import given
from hypothesis import strategies as st

from streamer.counters import SECONDS, Counters, Histogram

WAITS = st.lists(st.floats(0, 120, allow_nan=False) | st.sampled_from(SECONDS), max_size=200)


@given(WAITS, WAITS)
def test_many_at_once_are_counted_like_one_by_one(first: list[float], second: list[float]) -> None:
    """Batches of any size add up to the same; each bucket holds what is at most its bound."""
    single, many = Histogram(), Histogram()
    for value in first + second:
        single.observe(value)
    many.observe_all(list(first))
    many.observe_all(list(second))
    assert many.counts == single.counts
    assert abs(many.sum - single.sum) < 1e-6
    everything = sorted(first + second)
    assert [count for _, count in many.cumulative()] == [
        bisect_right(everything, bound) for bound in (*SECONDS, float("inf"))
    ]
    assert many.count == len(everything)


def test_what_is_timed_needs_no_registration() -> None:
    """Each kind of work has a histogram of its own from its first time on."""
    timed = Counters().postgresql
    timed["copy"].observe(0.002)
    timed["copy"].observe(0.2)
    timed["open"].observe(0.1)
    assert {what: each.count for what, each in timed.items()} == {"copy": 2, "open": 1}


def test_rejects_are_counted_by_code() -> None:
    """The codes of rejections distinguish a broken app from a deleted vendor."""
    counters = Counters()
    counters.reject(["ERR_INVALID_COORDINATES", "ERR_VENDOR_NOT_FOUND", "ERR_INVALID_COORDINATES"])
    assert counters.rejected == {"ERR_INVALID_COORDINATES": 2, "ERR_VENDOR_NOT_FOUND": 1}
