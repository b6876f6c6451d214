"""A border is crossed where the exact rule says so, anywhere on the globe and at every size."""

from __future__ import annotations

import random
from math import asin, atan2, cos, degrees, pi, radians, sin

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.alerts.circles import ERROR, Border, Circles, CircleTable, crossed, vectors
from streamer.alerts.edges import holds, margin_of
from streamer.geo.shapes import EARTH_RADIUS, Circle, distance

METRES = 111_195.0
PLACES = [
    (52.2297, 21.0122),
    (0.01, 0.0),
    (-17.0, 179.999),
    (-17.0, -179.999),
    (45.0, 90.0),
    (88.9, 1.0),
    (-90.0, 0.0),
]
NEAR = 4 * ERROR * EARTH_RADIUS**2
"""Square metres: where squared distances differ by less, a border may say what it likes; it is looked at exactly."""


def near(chance: random.Random, lat: float, long: float, metres: float) -> tuple[float, float]:
    """A position some metres away."""
    north = lat + chance.uniform(-metres, metres) / METRES
    east = long + chance.uniform(-metres, metres) / (METRES * max(0.01, cos(lat * pi / 180)))
    return max(-90.0, min(90.0, north)), (east + 180.0) % 360.0 - 180.0


def circles_of(areas: list[Circle]) -> Circles[Circle]:
    table = CircleTable()
    return Circles(areas, table.take([table.put(area, margin_of(area)) for area in areas]))


@pytest.mark.parametrize("place", PLACES)
def test_a_border_is_crossed_where_the_exact_rule_says_so(place: tuple[float, float]) -> None:
    """A crossing that is not found is a lost event; a false one only costs an exact test."""
    chance = random.Random(4)
    areas = []
    for _ in range(300):
        radius = chance.choice((1.0, 5.0, 100.0, 500.0, 5_000.0, 3_000_000.0))
        areas.append(Circle(*near(chance, *place, min(1.5 * radius, 5_000.0)), radius))
    circles = circles_of(areas)
    crossings = 0
    for _ in range(20):
        inside = {area for area in areas if chance.random() < 0.5}
        here = near(chance, *place, 600)
        found = {areas[column] for _, column in crossed([circles.border(inside)], [here])}
        for area in areas:
            was, margin = area in inside, margin_of(area)
            away = distance(*here, area.lat, area.long)
            if all(abs(away**2 - edge**2) > NEAR for edge in (area.radius, area.radius + margin)):
                assert (area in found) is (holds(area, margin, was, *here) is not was), (area, here)
                crossings += area in found
    assert crossings > 500


@settings(max_examples=1000, deadline=None)
@given(
    lat=st.floats(-90, 90),
    long=st.floats(-180, 180),
    metres=st.floats(0, 7.3).map(lambda power: 10**power),
    bearing=st.floats(-pi, pi),
    step=st.integers(-40, 40),
    was=st.booleans(),
)
def test_no_crossing_is_missed_at_the_very_edge(
    lat: float, long: float, metres: float, bearing: float, step: int, was: bool
) -> None:
    """Positions within a few roundings of the edge, from a metre to the far side of the globe: a fifth of ERROR is
    the most that a border may err by, as other processors round otherwise.
    """
    area = Circle(lat, long, metres)
    angle = (metres + was * margin_of(area)) / EARTH_RADIUS
    north = asin(max(-1.0, min(1.0, sin(radians(lat)) * cos(angle) + cos(radians(lat)) * sin(angle) * cos(bearing))))
    east = atan2(sin(bearing) * sin(angle) * cos(radians(lat)), cos(angle) - sin(radians(lat)) * sin(north))
    here = max(-90.0, min(90.0, degrees(north) + step * 5e-15)), (long + degrees(east) + 540.0) % 360.0 - 180.0
    if holds(area, margin_of(area), was, *here) is not was:
        border = circles_of([area]).border([area] if was else [])
        product = sum(a * b for a, b in zip(border[:3, 0], vectors(*map(np.float64, here)), strict=True))
        assert border[3, 0] + ERROR - product <= ERROR / 5
        assert crossed([border], [here]) == [(0, 0)]


def test_a_border_is_turned_where_it_was_crossed() -> None:
    """A vendor that came in would otherwise be tested at every ping, and its leaving never be found."""
    areas = [Circle(52.0, 21.0, 500.0), Circle(52.1, 21.0, 500.0)]
    circles = circles_of(areas)
    border = circles.border(())
    inside, outside = (52.0, 21.0), (52.05, 21.0)
    assert crossed([border], [inside]) == [(0, 0)]
    circles.turn(border, 0, is_inside=True)
    assert crossed([border], [inside]) == []
    assert crossed([border], [outside]) == [(0, 0)]
    circles.turn(border, 0, is_inside=False)
    assert crossed([border], [outside]) == []
    assert crossed([border], [inside]) == [(0, 0)]


def test_many_positions_have_each_its_own_border() -> None:
    """Vendors that are compared in one call must not be mixed up."""
    areas = [Circle(52.0 + n / 100, 21.0, 500.0) for n in range(10)]
    borders: list[Border] = [circles_of(areas[: n + 1]).border(()) for n in range(10)]
    positions = [(area.lat, area.long) for area in areas]
    assert crossed(borders, positions) == [(n, n) for n in range(10)]
    assert crossed([circles_of([]).border(()), borders[0]], [positions[0], positions[0]]) == [(1, 0)]


def test_a_table_grows_and_uses_again_what_was_removed() -> None:
    """Alerts come and go for months: without reuse of their slots the memory would fill."""
    table = CircleTable()
    numbers = [table.put(Circle(0.0, n / 10, 100.0), 10.0) for n in range(1000)]
    assert sorted(numbers) == list(range(1000))
    before = table.take(numbers[500:])
    for number in numbers[:500]:
        table.remove(number)
    assert {table.put(Circle(1.0, n / 10, 100.0), 10.0) for n in range(500)} == set(numbers[:500])
    assert (table.take(numbers[500:]) == before).all()
