"""Truth all the time: an observation is judged by what could be the newest position at its moment."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.engine.auditor import CountsAuditor, Observation, Seen, ViewAuditor
from loadtest.measure.recorder import Recorder

NOW = 1_732_467_600_000


class North:
    """An area: everything north of 52 degrees."""

    def contains(self, lat: float, long: float) -> bool:
        return lat >= 52


def audited(pings: list[tuple[int, float]], seen: Seen | None, at: int = 10_000) -> tuple[list[str], list[int]]:
    """What is found when a vendor whose pings (ms, lat) are acked at once is seen so `at` ms; and freshness gaps."""
    recorder = Recorder()
    auditor = ViewAuditor(["v"], recorder)
    for timestamp, lat in pings:
        auditor.acked([(0, NOW + timestamp, lat, 21.0, True)], NOW + timestamp)
    auditor.observe(Observation("customer 1", NOW + at, North(), {"v": seen} if seen else {}, None))
    auditor.judge(NOW + at + 2999)
    assert auditor.observations == 0
    auditor.judge(NOW + at + 3000)
    assert auditor.observations == 1
    steps = recorder.take()["delays"].get("freshness", [[], []])[0]
    return auditor.found, steps


def at(timestamp: int, lat: float = 52.5) -> Seen:
    """How it is seen."""
    return Seen(NOW + timestamp, lat, 21.0)


@pytest.mark.parametrize(
    ("pings", "seen", "said"),
    [
        ([(1000, 52.5), (6000, 52.6)], at(1000), "expected 52.6, 21.0 as of"),
        ([(1000, 52.5), (6000, 51.0)], at(1000), "outside: it should have left"),
        ([(1000, 52.5), (6000, 52.6)], None, "is not shown; expected 52.6, 21.0 as of"),
        ([(1000, 52.5), (6000, 52.6)], at(6000, 52.7), "expected 52.6, 21.0"),
        ([(1000, 52.5), (6000, 52.6), (9900, 52.6)], at(7000, 52.7), "which was never sent"),
        ([(1000, 52.5), (6000, 51.0)], at(6000, 51.0), "outside of the watched area"),
    ],
)
def test_each_wrong_view_is_found(pings: list[tuple[int, float]], seen: Seen | None, said: str) -> None:
    """With the vendor, what is shown, and what was expected."""
    found, _ = audited(pings, seen)
    assert len(found) == 1
    assert "customer 1: vendor v " in found[0]
    assert said in found[0]


@given(
    st.lists(
        st.tuples(st.integers(0, 12_000), st.floats(51.5, 52.5)), min_size=1, max_size=12, unique_by=lambda p: p[0]
    ),
    st.integers(0, 2400),
)
def test_a_server_that_is_up_to_2400_ms_late_is_never_accused(pings: list[tuple[int, float]], late: int) -> None:
    """It shows what was the newest `late` ms ago: lateness is a figure, not a wrong view."""
    ordered = sorted(pings)
    known = [ping for ping in ordered if ping[0] <= 10_000 - late]
    seen = at(*known[-1]) if known and known[-1][1] >= 52 else None
    found, _ = audited(ordered, seen)
    assert found == []


def test_the_freshness_gap_is_the_age_of_the_oldest_position_that_is_not_shown() -> None:
    """A stall of the server shows in it, though no update that was merged or never sent is late by itself."""
    pings = [(1000, 52.5), (8000, 52.6), (9000, 52.7)]
    assert audited(pings, at(9000, 52.7))[1] == [0]
    assert audited(pings, at(8000, 52.6))[1] == [10_000]
    assert audited(pings, at(1000))[1] == [20_000]


def test_the_largest_freshness_gap_of_a_customer_is_named_with_vendor_and_times() -> None:
    """Only of the measured time: what a warm-up showed is in no figure."""
    auditor = ViewAuditor(["v"], Recorder())
    auditor.acked([(0, NOW + due, 52.5, 21.0, True) for due in (1000, 3000, 7000)], NOW + 7000)
    auditor.measured_from = NOW + 10_500
    for moment, shown in ((10_000, 1000), (11_000, 3000), (12_000, 7000)):
        auditor.observe(Observation("customer 1", NOW + moment, North(), {"v": at(shown)}, None))
    auditor.judge(NOW + 20_000)
    assert auditor.stalest["customer 1"] == ("customer 1", "v", 4000, NOW + 11_000, NOW + 3000, NOW + 7000)


def group(count: int) -> dict[str, Any]:
    """A group of counts."""
    return {"count": count, "open": count, "online": count}


def test_a_skipped_update_of_counts_is_found() -> None:
    """The held count stays as it is while a fresh snapshot says otherwise; one that is just late is not accused."""
    auditor = CountsAuditor()
    auditor.observe("customer 1", 0.0, {"g": group(2)}, {"g": group(3)})
    auditor.observe("customer 1", 4.0, {"g": group(2)}, {"g": group(3)})
    assert auditor.found == []
    auditor.observe("customer 1", 5.0, {"g": group(3)}, {"g": group(3)})
    auditor.observe("customer 1", 9.0, {"g": group(3)}, {"g": group(4)})
    auditor.observe("customer 1", 16.0, {"g": group(3)}, {"g": group(4)})
    (line,) = auditor.found
    assert "group g is held as (3, 3, 3) vendors, expected (4, 4, 4)" in line
