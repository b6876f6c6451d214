"""A view is a snapshot with all updates applied in order; the load test's verification relies on this."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from venta_client.errors import Violation
from venta_client.view import View

PositionWriter = dict[str, tuple[float, int]]


def card(vendor_id: str, lat: float, timestamp: int, **more: Any) -> dict[str, Any]:
    """A vendor's card."""
    return {
        "vendorId": vendor_id,
        "name": f"name of {vendor_id}",
        "open": True,
        "primaryImage": None,
        "lat": lat,
        "long": 21.0,
        "timestamp": timestamp,
        "online": True,
        **more,
    }


def fix(vendor_id: str, lat: float, timestamp: int, **more: Any) -> dict[str, Any]:
    """A vendor's fix."""
    return {"vendorId": vendor_id, "lat": lat, "long": 21.0, "timestamp": timestamp, **more}


@st.composite
def histories(draw: st.DrawFn) -> list[PositionWriter]:
    """States of an area over time; a vendor's timestamp never decreases."""
    clock = 0
    states: list[PositionWriter] = [{}]
    for _ in range(draw(st.integers(1, 10))):
        state = dict(states[-1])
        for vendor_id in draw(st.sets(st.sampled_from("abcdef"))):
            clock += 1
            if vendor_id in state and draw(st.booleans()):
                del state[vendor_id]
            else:
                state[vendor_id] = (draw(st.floats(-90, 90)), clock)
        states.append(state)
    return states


@given(histories(), st.lists(st.booleans(), min_size=11, max_size=11))
def test_a_view_equals_the_place_after_every_message(states: list[PositionWriter], again: list[bool]) -> None:
    """The view must equal the vendors in the area after every message."""
    view = View(strict=True)
    view.snapshot([])
    for (before, now), fresh in zip(itertools.pairwise(states), again, strict=False):
        if fresh:
            view.snapshot([card(vendor_id, *at) for vendor_id, at in now.items()])
        else:
            view.update(
                [card(vendor_id, *at) for vendor_id, at in now.items() if vendor_id not in before],
                [
                    fix(vendor_id, *at)
                    for vendor_id, at in now.items()
                    if vendor_id in before and before[vendor_id] != at
                ],
                [vendor_id for vendor_id in before if vendor_id not in now],
            )
        assert {item["vendorId"]: (item["lat"], item["timestamp"]) for item in view.vendors.values()} == now
        assert all(item["name"] == f"name of {vendor_id}" for vendor_id, item in view.vendors.items())


def test_a_fix_replaces_heading_and_speed_even_by_nothing() -> None:
    """Otherwise a vendor that stopped would be shown with its old speed."""
    view = View(strict=True)
    view.snapshot([card("a", 1.0, 1, heading=90.0, speed=4.2)])
    view.update([], [fix("a", 2.0, 2)], [])
    assert view.vendors["a"] == card("a", 2.0, 2)


@pytest.mark.parametrize(
    ("entered", "moved", "left", "complaint"),
    [
        ([], [fix("b", 1.0, 9)], [], "b moved, but it had not entered"),
        ([], [], ["b"], "b left, but it was not there"),
        ([], [fix("a", 1.0, 4)], [], "a went back in time from 5 to 4"),
        ([card("a", 1.0, 4)], [], [], "a went back in time from 5 to 4"),
        ([], [{"vendorId": "a", "lat": 1.0}], [], "long, timestamp missing"),
        ([fix("b", 1.0, 9)], [], [], "name, open, online missing"),
    ],
)
def test_what_does_not_follow_is_a_violation(
    entered: list[dict[str, Any]], moved: list[dict[str, Any]], left: list[str], complaint: str
) -> None:
    """A lenient view would hide a fault that a real app would show on its map."""
    view = View(strict=True)
    view.snapshot([card("a", 1.0, 5)])
    with pytest.raises(Violation, match=complaint):
        view.update(entered, moved, left)


def test_an_update_before_the_snapshot_and_a_doubled_vendor_are_violations() -> None:
    """A snapshot must be first, and contain each vendor once."""
    view = View(strict=True)
    with pytest.raises(Violation, match="before the first snapshot"):
        view.update([], [], [])
    with pytest.raises(Violation, match="twice"):
        view.snapshot([card("a", 1.0, 5), card("a", 1.0, 6)])
