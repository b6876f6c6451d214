"""Who is shown, and how exactly: an error here reveals where a vendor lives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.geo.grid import bus_cell
from streamer.geo.shapes import distance
from streamer.live.fix import Fix
from streamer.live.vendor import Card
from streamer.live.visibility import Visibility

OPEN, CLOSED = (Card(1, "name", is_open, None) for is_open in (True, False))
LATS, LONGS = st.floats(-90, 90), st.floats(-180, 180)


@given(LATS, LONGS, st.sampled_from([500.0, 1000.0, 1500.0, 17_800.0]))
def test_a_closed_vendor_is_shown_on_the_grid(lat: float, long: float, metres: float) -> None:
    """It is near where it is, and in the cell that names its channel: else processes would not hear of it."""
    visibility = Visibility.of("coarse", "yes", metres)
    fix = Fix(1, lat, long, 90.0, 4.0, 7, True)
    assert visibility.shown(fix, OPEN) is fix
    shown = visibility.shown(fix, CLOSED)
    assert shown == Fix(1, shown.lat, shown.long, None, None, 7, True)
    assert distance(lat, long, shown.lat, shown.long) < 2 * max(metres, 1200)
    assert bus_cell(shown.lat, shown.long) == bus_cell(lat, long)
    assert visibility.shown(shown, CLOSED) == shown, "what is shown says no more when it is shown again"


@given(LATS, LONGS, st.floats(-1, 1), st.floats(-1, 1))
def test_positions_of_a_cell_look_alike(lat: float, long: float, north: float, east: float) -> None:
    """The shown position does not reveal where in its square a vendor is."""
    visibility = Visibility.of("coarse", "yes", 1000.0)
    middle = visibility.coarse_position(lat, long)
    near = middle[0] + north * 0.0049, middle[1] + east * 0.0049
    if abs(near[0]) <= 90 and abs(near[1]) <= 180:
        assert visibility.coarse_position(*near) == pytest.approx(middle)


@pytest.mark.parametrize("closed", ["yes", "no"])
def test_otherwise_nothing_is_rounded(closed: str) -> None:
    """By the contract a closed vendor is where it is."""
    visibility = Visibility.of(closed, "no", 1000.0)
    fix = Fix(1, 52.0, 21.0)
    assert visibility.shown(fix, CLOSED) is fix
    assert visibility.coarse_position(1.5, 2.5) == (1.5, 2.5)
    assert visibility.allows(CLOSED, online=True) == (closed == "yes")
    assert visibility.allows(OPEN, online=True)
    assert not visibility.allows(OPEN, online=False)


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("online", [True, False])
def test_every_case(is_open: bool, hidden: bool, online: bool) -> None:
    """By default all are shown but those that hide; each setting leaves out one kind."""
    card = Card(1, "Truck", is_open, None, hidden)
    concealed = hidden and not is_open
    assert Visibility().allows(card, online) == (not concealed)
    assert Visibility(closed=False).allows(card, online) == is_open
    assert Visibility(offline=False).allows(card, online) == (online and not concealed)
