"""Two reports are compared: a regression is found, noise is not one. Those of several machines are added to one."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest import WrongUse
from loadtest.reports.several import compare, merge
from tests.loadtest.conftest import report


def verdicts(before: dict[str, Any], after: dict[str, Any], tolerance: float = 0.05) -> dict[str, str]:
    """What `compare` says of each figure."""
    return {one["name"]: one["verdict"] for one in compare(before, after, tolerance)["changes"]}


def repeated(*delays: float) -> dict[str, Any]:
    """A report of several runs."""
    return report(delays[0]) | {"repeats": [report(delay)["figures"] for delay in delays]}


def test_a_regression_is_distinguished_from_noise() -> None:
    """A CI run fails for a change that repeated runs do not explain, and for no other."""
    quiet, noisy = repeated(0.050, 0.051, 0.049), repeated(0.040, 0.075, 0.060)
    assert verdicts(quiet, repeated(0.080, 0.081, 0.079))["watch_p99_ms"] == "worse"
    assert verdicts(repeated(0.080, 0.081, 0.079), quiet)["watch_p99_ms"] == "better"
    assert verdicts(quiet, repeated(0.0502, 0.0512, 0.0492))["watch_p99_ms"] == "same"
    assert verdicts(noisy, repeated(0.090, 0.050, 0.070))["watch_p99_ms"] == "noise"
    assert verdicts(quiet, repeated(0.054, 0.055, 0.053), 0.2)["watch_p99_ms"] == "same"
    found = compare(quiet, repeated(0.080, 0.081, 0.079), 0.05)
    assert not found["ok"]
    assert found["runs"] == [3, 3]
    assert found["changes"][0]["noise"] > 0


def test_a_lost_ping_is_never_noise() -> None:
    """One is too many, whatever the tolerance."""
    after = report()
    after["figures"] |= {"lost": 1}
    assert verdicts(report(), after, 1.0)["lost"] == "worse"


def test_a_single_run_is_compared_by_its_own_noise() -> None:
    """Its parts show how steady a figure was; of what they do not show nothing is claimed."""
    assert verdicts(report(0.05), report(0.08))["watch_p99_ms"] == "worse"
    before, after = report(), report()
    before["figures"] |= {"pan_p99_ms": 20.0}
    after["figures"] |= {"pan_p99_ms": 13.0}
    assert verdicts(before, after)["pan_p99_ms"] == "unknown"
    found = compare(before, after, 0.05)
    assert any("pan_p99_ms" in line and "--repeat 3" in line for line in found["advice"])
    after["figures"] |= {"pan_p99_ms": 20.4}
    assert verdicts(before, after)["pan_p99_ms"] == "small"


def test_different_things_are_not_compared() -> None:
    """And where the scenarios differ it is said."""
    with pytest.raises(WrongUse, match="say nothing"):
        compare(report(), report() | {"scenario": "festival"}, 0.05)
    with pytest.raises(WrongUse, match="find-max"):
        compare(report(), report() | {"kind": "find-max"}, 0.05)
    assert compare(report(), report(lost=1), 0.05)["different"] == ["thresholds.lost: None, then 1.0"]


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
    """The sum of two different runs would look exact and mean nothing."""
    with pytest.raises(WrongUse) as raised:
        merge([report(part=1, parts=2), *others])
    assert said in str(raised.value)


def test_a_missing_part_is_reported() -> None:
    """Two of three machines are not the whole load."""
    both = merge([report(part=1, parts=3), report(part=3, parts=3)])
    assert not both["ok"]
    assert "the parts [2] of 3 are missing" in both["reasons"]


def test_rates_are_of_the_time_in_which_all_machines_took_part() -> None:
    """A machine that stopped after 8 of 12 seconds would halve the rate, and the server would be blamed for it."""
    whole, stopped = report(part=1, parts=2), report(part=2, parts=2)
    stopped["series"] = stopped["series"][:8]
    both = merge([whole, stopped])
    assert both["seconds"] == 6
    assert both["measured"]["sent"] == 600
    assert both["figures"]["pings_per_s"] == 100
