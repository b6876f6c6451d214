"""Reports: the same facts for people and for programs."""

from __future__ import annotations

import io
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from loadtest.measure.histogram import LONGEST_US, Histogram
from loadtest.reports.table import rows, write

REPORT: dict[str, Any] = {
    "run": "replay",
    "sent": 112_935,
    "rejected": {"ERR_TIMESTAMP_IN_FUTURE": 2},
    "stored": None,
    "checks": {"watcher": {"ok": False, "shown": ["v1 is at [52, 21]", "v2"]}},
    "ratio": 0.25,
}


def printed(json: bool) -> str:
    """What comes out."""
    out = io.StringIO()
    write(REPORT, json, Console(file=out, width=120))
    return out.getvalue()


def test_json_is_one_line_with_everything() -> None:
    """A script reads it line by line."""
    (line,) = printed(json=True).splitlines()
    assert orjson.loads(line) == REPORT


def test_a_table_shows_nested_facts_and_keeps_brackets() -> None:
    """A difference with brackets in it must not be eaten as markup."""
    text = printed(json=False)
    for shown in (
        "112,935",
        "rejected.ERR_TIMESTAMP_IN_FUTURE",
        "checks.watcher.shown",
        "v1 is at [52, 21]",
        "0.25",
        "no",
    ):
        assert shown in text
    assert len(rows(REPORT)) == 8


@given(st.lists(st.floats(-1, 1000), min_size=1, max_size=50))
def test_a_histogram_leaves_nothing_out(seconds: list[float]) -> None:
    """The library skips what is out of range without a word: the slowest would be missing from the percentiles."""
    histogram = Histogram()
    for duration in seconds:
        histogram.record(duration)
    summary = histogram.summary()
    longest = min(max(0.0, *seconds), LONGEST_US / 1e6) * 1000 if len(seconds) > 1 else None
    assert summary["count"] == len(seconds)
    assert summary["p50_ms"] <= summary["p99_ms"] <= summary["max_ms"]
    if longest is not None:
        assert abs(summary["max_ms"] - longest) <= max(longest * 0.001, 0.001)


def test_an_empty_histogram_says_so() -> None:
    """No percentile of nothing."""
    assert Histogram().summary() == {"count": 0}
