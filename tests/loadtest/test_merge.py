"""Reports of several machines, added to one."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.errors import WrongUse
from loadtest.reports.merge import merge
from tests.loadtest.conftest import report


def test_two_machines_are_one_run() -> None:
    """Counts add, and percentiles are those of all delays together, not an average of percentiles."""
    fast, slow = report(0.01, part=1, parts=2, watch_p99_ms=150), report(0.1, part=2, parts=2, watch_p99_ms=150)
    both = merge([fast, slow])
    assert both["machines"] == 2
    assert both["totals"]["sent"] == 1200
    assert both["totals"]["closes"] == {"1012": 2}
    assert both["delays"]["watch"]["count"] == 2 * fast["delays"]["watch"]["count"]
    assert both["delays"]["watch"]["p50_ms"] < 30
    assert both["delays"]["watch"]["p99_ms"] == pytest.approx(slow["delays"]["watch"]["p99_ms"], rel=0.02)
    assert both["series"][5]["counts"]["sent"] == 100
    assert both["series"][5]["vendors"] == 14
    assert both["figures"]["pings_per_s"] == 2 * fast["figures"]["pings_per_s"]
    assert fast["ok"]
    assert not both["ok"]
    assert any("watch_p99_ms" in reason for reason in both["reasons"])


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], "at least two"),
        ([report(part=1, parts=2)], "each may be there once"),
        ([report(part=2, parts=3)], "its parts is 3"),
        ([report(part=2, parts=2) | {"started": "2026-01-01T12:00:09.000+00:00"}], "--start-at"),
        ([report(part=2, parts=2, lost=3)], "its settings is"),
        ([report(part=2, parts=2) | {"kind": "find-max"}], "only runs can be merged"),
    ],
)
def test_what_is_no_part_of_the_run_is_not_added(others: list[dict[str, Any]], said: str) -> None:
    """A sum of two different runs is a lie with decimals."""
    with pytest.raises(WrongUse) as raised:
        merge([report(part=1, parts=2), *others])
    assert said in str(raised.value)


def test_a_missing_part_is_reported() -> None:
    """Two of three machines are not the whole load."""
    both = merge([report(part=1, parts=3), report(part=3, parts=3)])
    assert not both["ok"]
    assert "the parts [2] of 3 are missing" in both["reasons"]


def test_rates_are_of_the_time_in_which_all_machines_took_part() -> None:
    """One that was stopped after 8 of 12 seconds would halve the rate of the rest, and be taken for the server."""
    whole, stopped = report(part=1, parts=2), report(part=2, parts=2)
    stopped["series"] = stopped["series"][:8]
    both = merge([whole, stopped])
    assert both["seconds"] == 6
    assert both["measured"]["sent"] == 600
    assert both["figures"]["pings_per_s"] == 100
