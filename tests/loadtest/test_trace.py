"""Traces: read strictly, made up the same each time, and moved onto the present without losing a fix."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.engine.trace_file import Fix, beginning, centre, generate, move, parse, read
from loadtest.errors import WrongUse

HEADER = "vehicle,timestamp,lat,long\n"
START = 1_732_467_600_000

fixes = st.lists(
    st.builds(
        Fix, st.sampled_from("abc"), st.integers(0, 10_000).map(lambda s: s * 100), st.floats(52, 53), st.just(21.0)
    ),
    min_size=1,
    max_size=60,
)


def test_a_trace_is_read_with_its_times_in_utc(tmp_path: Path) -> None:
    """A time read in the wrong zone would make every fix hours old, and none would go live."""
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(
        gzip.compress(f"{HEADER}1058,2024-02-13T06:31:20Z,52.196903,20.919635\n1,2024-02-13T06:31:21,1,-2\n\n".encode())
    )
    assert read(path) == [
        Fix("1058", 1_707_805_880_000, 52.196903, 20.919635),
        Fix("1", 1_707_805_881_000, 1.0, -2.0),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "a trace begins with"),
        ("poll,vehicle\n", "begins with 'poll,vehicle'"),
        (HEADER, "has no fixes"),
        (HEADER + "a,2024-02-13T06:31:20Z,1\n", "line 2 is"),
        (HEADER + "a,yesterday,1,2\n", "line 2 is 'a,yesterday,1,2'"),
        (HEADER + "a,2024-02-13T06:31:20Z,91,2\n", "line 2 has the position 91.0, 2.0"),
        (HEADER + "a,2024-02-13T06:31:20Z,nan,2\n", "line 2 has the position nan"),
    ],
)
def test_what_is_no_trace_is_refused_by_line(text: str, complaint: str) -> None:
    """A row skipped in silence would be missing in the account."""
    with pytest.raises(WrongUse, match=complaint):
        parse(text.splitlines(keepends=True), "trace.csv")


def test_a_file_that_is_no_gzip_is_refused_with_its_name(tmp_path: Path) -> None:
    """A truncated download is told as such."""
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(HEADER.encode() * 1000)[:30])
    with pytest.raises(WrongUse, match=r"trace.csv.gz can't be read"):
        read(path)


@given(fixes, st.floats(0.1, 5000))
def test_moving_keeps_every_fix_its_order_and_its_proportions(trace: list[Fix], speedup: float) -> None:
    """Every fix becomes one distinct ping, each vehicle's in order, as little later as needed."""
    moved = move(trace, START, speedup)
    ordered = sorted(trace, key=lambda fix: fix.timestamp)
    assert sorted((vehicle, ping.lat) for vehicle, ping in moved.pings) == sorted(
        (fix.vehicle, fix.lat) for fix in trace
    )
    assert [ping.due for _, ping in moved.pings] == sorted(ping.due for _, ping in moved.pings)
    zero = ordered[beginning(ordered)].timestamp
    late = 0
    for vehicle in moved.vehicles:
        sent = [ping for name, ping in moved.pings if name == vehicle]
        given_fixes = [fix for fix in ordered if fix.vehicle == vehicle]
        assert [ping.lat for ping in sent] == [fix.lat for fix in given_fixes]
        assert all(one.timestamp < other.timestamp for one, other in pairwise(sent))
        assert all(ping.due == max(ping.timestamp, START) for ping in sent)
        before = None
        for ping, fix in zip(sent, given_fixes, strict=True):
            exact = START + round((fix.timestamp - zero) / speedup)
            assert ping.timestamp == (exact if before is None else max(exact, before + 1))
            late += ping.timestamp != exact
            before = ping.timestamp
    assert moved.nudged == late


def test_fixes_of_one_vehicle_at_one_time_are_counted_and_kept_apart() -> None:
    """A few vehicles of real traces report two positions at one time: both must be accounted for."""
    moved = move([Fix("a", 0, 1.0, 1.0), Fix("a", 0, 2.0, 1.0), Fix("b", 0, 3.0, 1.0)], START, 1)
    assert (moved.duplicates, moved.nudged) == (1, 1)
    assert [(vehicle, ping.timestamp - START) for vehicle, ping in moved.pings] == [("a", 0), ("b", 0), ("a", 1)]


def test_the_past_of_parked_vehicles_is_not_waited_for() -> None:
    """A trace begins with parked buses' fixes of last week: they are sent at once, with the age they have."""
    week = 7 * 86_400_000
    trace = [Fix("parked", 0, 1.0, 1.0), *(Fix("bus", week + step * 1000, 2.0, 1.0) for step in range(200))]
    moved = move(trace, START, 10)
    assert (moved.parked, moved.seconds) == (1, 19.9)
    (first_vehicle, first), (_, second) = moved.pings[:2]
    assert (first_vehicle, first.due, first.timestamp) == ("parked", START, START - week // 10)
    assert second.due == second.timestamp == START


def test_a_gap_in_the_middle_is_traffic_that_paused() -> None:
    """An outage in the recording must not turn everything before it into the past."""
    trace = [Fix("bus", step * 1000 + (600_000 if step > 100 else 0), 2.0, 1.0) for step in range(200)]
    assert beginning(trace) == 0


@pytest.mark.parametrize("speedup", [0, -1, float("inf"), float("nan")])
def test_an_impossible_speed_up_is_refused(speedup: float) -> None:
    """Zero would divide by zero, infinity would send everything at once in the name of realism."""
    with pytest.raises(WrongUse, match="speed-up"):
        move([Fix("a", 0, 1.0, 1.0)], START, speedup)


def test_a_made_up_trace_depends_on_its_seed_alone() -> None:
    """A failure must be repeatable."""
    trace = generate(5, 120, seed=7)
    assert trace == generate(5, 120, seed=7)
    assert trace != generate(5, 120, seed=8)
    assert len({fix.vehicle for fix in trace}) == 5
    assert trace == sorted(trace, key=lambda fix: (fix.timestamp, fix.vehicle))
    assert 5 * 120 / 15 <= len(trace) <= 5 * 120 / 5
    lat, long = centre(trace)
    assert abs(lat - 52.2297) < 0.1
    assert abs(long - 21.0122) < 0.15
