"""Traces are read strictly, and no fix is lost."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import WrongUse
from loadtest.behaviour import Fix, beginning, by_vehicle, parse_trace, read_trace, surroundings
from tests.support.areas import thorough

HEADER = "vehicle,timestamp,lat,long\n"

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
    assert read_trace(path) == [
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
    """A row that is skipped silently would be missing in every figure."""
    with pytest.raises(WrongUse, match=complaint):
        parse_trace(text.splitlines(keepends=True), "trace.csv")


def test_a_file_that_is_no_gzip_is_refused_with_its_name(tmp_path: Path) -> None:
    """A truncated download is named as such."""
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(HEADER.encode() * 1000)[:30])
    with pytest.raises(WrongUse, match=r"trace.csv.gz can't be read"):
        read_trace(path)


def test_a_gap_in_the_middle_is_traffic_that_paused() -> None:
    """An outage in the recording must not turn everything before it into the past."""
    trace = [Fix("bus", step * 1000 + (600_000 if step > 100 else 0), 2.0, 1.0) for step in range(200)]
    assert beginning(trace) == 0


def test_the_past_of_parked_vehicles_is_not_waited_for() -> None:
    """A trace may begin with a week-old fix of a parked bus: the run must not last a week because of it."""
    week = 7 * 86_400_000
    trace = [Fix("parked", 0, 1.0, 1.0), *(Fix("bus", week + step * 1000, 2.0, 1.0) for step in range(200))]
    assert beginning(trace) == 1


@thorough
@given(fixes)
def test_every_fix_belongs_to_one_vehicle_in_the_order_of_time(trace: list[Fix]) -> None:
    """A fix that is lost here would never be sent, and no check would miss it."""
    found = by_vehicle(trace)
    assert sorted(fix for vehicle in found for fix in vehicle) == sorted(trace)
    for vehicle in found:
        assert len({fix.vehicle for fix in vehicle}) == 1
        assert [fix.timestamp for fix in vehicle] == sorted(fix.timestamp for fix in vehicle)


def test_the_city_of_a_trace_holds_most_of_it() -> None:
    """Customers look where the vehicles are, not where one lost its way to."""
    trace = [Fix(f"b{n}", n, 52.2 + n * 1e-4, 21.0) for n in range(100)] + [Fix("lost", 5, 10.0, 0.0)]
    lat, long, radius = surroundings(trace)
    assert (round(lat, 2), long) == (52.2, 21.0)
    assert 100 < radius < 1000
