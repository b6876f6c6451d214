"""What is made of the workers' seconds: nothing of the warm-up, nothing is lost, no percentile of too few samples."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.measure.recording import LONGEST_US, Histogram, Recorder, Timeline, needed, percentile
from tests.support.areas import thorough


def second(number: int, **counts: int) -> dict[str, Any]:
    """One worker's second with acks of 20 ms."""
    recorder = Recorder()
    recorder.counts.update(counts)
    for _ in range(counts.get("acked", 0)):
        recorder.delay("ack", 0.02)
    return {"second": number, "active": 5, "cpu": 0.1, **recorder.take()}


def test_the_warm_up_is_in_no_figure() -> None:
    """Connecting thousands is not what a steady service is like."""
    timeline = Timeline(10, 4)
    for number in range(10):
        timeline.second("vendors", 0, second(number, acked=1000 if number < 4 else 10))
        timeline.usage(number, {"all": 2.0 * number}, {"all": 5e6})
    assert timeline.seconds == 6
    assert timeline.counts()["acked"] == 60
    assert len(timeline.delays()["ack"]) == 60
    assert timeline.own()["vendors"] == pytest.approx(0.6)
    server = timeline.server()
    assert server is not None
    assert server["cpu"]["all"] / server["seconds"] == pytest.approx(2.0)
    series = timeline.series()
    assert [entry["measured"] for entry in series] == [False] * 4 + [True] * 6
    assert series[5]["delays"]["ack"]["p50_ms"] == pytest.approx(20, rel=0.01)
    assert series[5]["server"]["cores"]["all"] == pytest.approx(2.0)


def test_a_long_run_has_a_bounded_series() -> None:
    """A report of six hours can be sent by mail."""
    timeline = Timeline(21_600, 100)
    for number in range(0, 21_600, 7):
        timeline.second("vendors", 0, second(number, acked=1))
    series = timeline.series()
    assert len(series) == 300
    assert sum(entry["counts"]["acked"] for entry in series) == len(range(0, 21_600, 7))
    assert timeline.warmup % timeline.interval == 0


def test_what_comes_after_the_end_is_counted_in_the_end() -> None:
    """A worker that is late with its last second loses nothing."""
    timeline = Timeline(3, 0)
    for number in (0, 1, 2, 3):
        timeline.second("vendors", 0, second(number, acked=1))
    assert timeline.counts()["acked"] == 4
    assert timeline.seconds == 3


def test_delays_keep_their_size_through_all_stages() -> None:
    """Steps, HDR histogram, base64 and back: percentiles stay within the 3 digits promised."""
    recorder, whole = Recorder(), Histogram()
    for number in range(1, 2001):
        recorder.delay("watch", number / 1000)
    recorder.delay("watch", -0.5)
    assert recorder.counts["skewed"] == 1
    steps, counts = recorder.take()["delays"]["watch"]
    assert percentile(dict(zip(steps, counts, strict=True)), 50) == pytest.approx(10_000, rel=0.001)
    half = Histogram.of(dict(zip(steps, counts, strict=True)))
    whole.add(half.encode())
    whole.add(half.encode())
    whole.add("")
    assert len(whole) == 4002
    assert whole.summary()["p99_ms"] == pytest.approx(1980, rel=0.002)
    assert whole.curve([50, 100]) == pytest.approx([1000, 2000], rel=0.002)
    with pytest.raises(ValueError, match="no histogram"):
        whole.add("nonsense")


def test_a_stall_weighs_as_long_as_it_lasted() -> None:
    """A block of 500 ms every 10 s holds up a twentieth of all frames: one sample in hundreds would hide it."""
    recorder = Recorder()
    for _ in range(475):
        recorder.stall("lag", 0.001, 0.02)
    recorder.stall("lag", 0.5, 0.02)
    steps = dict(zip(*recorder.take()["delays"]["lag"], strict=True))
    assert (percentile(steps, 99) or 0) > 3000
    assert (percentile(steps, 90) or 0) < 50


@thorough
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
