"""What is stored, shown and counted is compared with what was sent: at the end, and all the time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.clients.vendor import Ping
from loadtest.engine.database import Stored
from loadtest.engine.verification import (
    CountsAuditor,
    Live,
    Observation,
    Position,
    ViewAuditor,
    add_checks,
    check,
    count_differences,
    position_differences,
    stored_differences,
    view_differences,
)
from loadtest.measure.recording import Recorder

NOW = 1_732_467_600_000
MINUTE = 60_000


def ping(age: int, lat: float = 52.0) -> Ping:
    """A ping of this age when it was sent."""
    return Ping(NOW - age, lat, 21.0, NOW)


def card(lat: float, timestamp: int) -> dict[str, Any]:
    """What a view holds of a vendor."""
    return {"lat": lat, "long": 21.0, "timestamp": timestamp}


def north(lat: float, long: float) -> bool:
    """An area."""
    return lat >= 52


def live(sent: dict[str, list[Ping]], unsure: set[str]) -> Live:
    """The truth: each vendor's newest ping, except for vendors whose newest ping is unknown."""
    return Live({name: max(pings) for name, pings in sent.items() if name not in unsure}, unsure)


def test_a_right_view_has_no_differences() -> None:
    """What is outside, never live, unsure or not ours is not missed and not minded."""
    sent = {
        "in": [ping(5, 53.0), ping(2, 52.5)],
        "out": [ping(1, 51.0)],
        "close": [ping(10 * MINUTE)],
    }
    view = {"in": card(52.5, NOW - 2), "close": card(52.0, NOW), "stranger": card(52.0, NOW)}
    assert view_differences(view, live(sent, {"close"}), sent, north) == []


def test_every_kind_of_wrong_view_is_found() -> None:
    """One line each: shown though outside, not shown, an older position, the wrong place, shown though never live."""
    sent = {
        "outside": [ping(1, 51.0)],
        "missing": [ping(1, 52.0)],
        "older": [ping(2, 52.0), ping(1, 52.0)],
        "elsewhere": [ping(1, 52.0)],
    }
    view = {
        "outside": card(52.0, NOW - 1),
        "older": card(52.0, NOW - 2),
        "elsewhere": card(52.000001, NOW - 1),
        "never live": card(52.0, NOW - 60 * MINUTE),
    }
    found = view_differences(view, live(sent, set()), [*sent, "never live"], north)
    assert [line.removeprefix("vendor ").partition(" is ")[0] for line in found] == [*sent, "never live"]


def test_stored_rows_are_compared_one_by_one() -> None:
    """Lost, doubled, altered and wrongly accepted pings are distinguished; rows of others are ignored."""
    acked = {"a": [ping(1), ping(2), ping(3), ping(4)]}
    rejected = {"a": [ping(5)]}
    rows = [
        Stored("a", NOW - 1, 52.0, 21.0),
        Stored("a", NOW - 2, 52.0, 21.0),
        Stored("a", NOW - 2, 52.0, 21.0),
        Stored("a", NOW - 3, 52.1, 21.0),
        Stored("a", NOW - 5, 52.0, 21.0),
        Stored("a", NOW - 99, 52.0, 21.0),
    ]
    found = stored_differences(rows, acked, rejected)
    assert len(found) == 4
    assert sum("stored 2 times" in line for line in found) == 1
    assert sum("is stored at 52.1" in line and "was sent as 52.0" in line for line in found) == 1
    assert sum("though it was rejected" in line for line in found) == 1
    assert sum("was acked, but is not stored; it was sent as" in line for line in found) == 1
    assert stored_differences(rows[:2], {"a": [ping(1), ping(2)]}, rejected) == []


def test_a_vendor_is_where_its_newest_fix_is() -> None:
    """An old ping that arrives late must not move a vendor back; one that others moved on is not ours to judge."""
    acked = {"right": [ping(2, 52.0), ping(1, 52.1)], "back": [ping(2, 52.0), ping(1, 52.1)], "moved on": [ping(1)]}
    positions = {"right": (52.1, 21.0), "back": (52.0, 21.0), "moved on": (1.0, 1.0)}
    newest = {"right": NOW - 1, "back": NOW - 1, "moved on": NOW + 5}
    (line,) = position_differences(positions, newest, {**acked, "nothing": []})
    assert line.startswith("vendor back is at 52.0, 21.0")
    assert len(position_differences({"right": (None, None)}, newest, {"right": acked["right"]})) == 1


def test_counts_are_compared_with_a_fresh_snapshot() -> None:
    """A group that is missing counts as zero, on both sides."""
    held = {"a": {"count": 2}, "b": {"count": 1}}
    assert count_differences("customer 1", held, {"a": {"count": 2}, "b": {"count": 1}}) == []
    found = count_differences("customer 1", held, {"a": {"count": 3}, "c": {"count": 1}})
    assert [line.split("group ")[1][:1] for line in found] == ["a", "b", "c"]
    assert "held as 2 vendors, expected 3" in found[0]
    assert count_differences("customer 1", None, held) == ["customer 1: no snapshot of counts came"]


def test_a_check_shows_some_and_counts_all() -> None:
    """Ten thousand lines are of no use, but their number is."""
    result = check([str(number) for number in range(100)], compared=100)
    assert (result["ok"], result["differences"], len(result["shown"])) == (False, 100, 15)
    assert check([], compared=1)["ok"]


def test_a_check_that_compared_nothing_fails() -> None:
    """An empty comparison has no differences, and proves nothing."""
    assert check([], compared=0) == {
        **{"ok": False, "differences": 1, "shown": ["nothing was compared"], "compared": 0},
    }


def test_a_worker_without_vendors_fails_no_run() -> None:
    """More --workers than vendors: one worker compares nothing, and the others' comparison still counts."""
    idle, busy, wrong = check([], compared=0), check([], compared=7), check(["a", "b"], compared=3)
    for workers, ok, differences, shown in (
        ([idle, busy], True, 0, []),
        ([busy, idle], True, 0, []),
        ([idle, wrong], False, 2, ["a", "b"]),
        ([idle, idle], False, 1, ["nothing was compared"]),
    ):
        checks: dict[str, Any] = {}
        for one in workers:
            add_checks(checks, {"stored": one | {"rows": 1}})
        found = checks["stored"]
        assert (found["ok"], found["differences"], found["shown"], found["rows"]) == (ok, differences, shown, 2)


def audited(pings: list[tuple[int, float]], seen: Position | None, at: int = 10_000) -> tuple[list[str], list[int]]:
    """What is found when a vendor whose pings (ms, lat) are acked at once is seen so `at` ms; and freshness gaps."""
    recorder = Recorder()
    auditor = ViewAuditor(["v"], recorder)
    for timestamp, lat in pings:
        auditor.acked([(0, NOW + timestamp, lat, 21.0, True)], NOW + timestamp)
    auditor.observe(Observation("customer 1", NOW + at, north, {"v": seen} if seen else {}, None))
    auditor.judge(NOW + at + 2999)
    assert auditor.observations == 0
    auditor.judge(NOW + at + 3000)
    assert auditor.observations == 1
    steps = recorder.take()["delays"].get("freshness", [[], []])[0]
    return auditor.found, steps


def at(timestamp: int, lat: float = 52.5) -> Position:
    """How it is seen."""
    return Position(NOW + timestamp, lat, 21.0)


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
def test_each_wrong_view_is_found(pings: list[tuple[int, float]], seen: Position | None, said: str) -> None:
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
        auditor.observe(Observation("customer 1", NOW + moment, north, {"v": at(shown)}, None))
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
