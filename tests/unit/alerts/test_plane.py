"""Distances on a plane err by no more than they say, and no circle that matters is left out."""

from __future__ import annotations

import random
from math import cos, pi

import pytest

from streamer.alerts.edges import NEAR_POLE, margin_of
from streamer.alerts.plane import BAND, BEYOND, FLAT, METRES, Circles, plane_of
from streamer.geo.shapes import Area, Box, Circle, distance

PLACES = [(52.2297, 21.0122), (0.01, 0.0), (-17.0, 179.999), (-17.0, -179.999), (45.0, 90.0), (88.9, 10.0)]


class Item:
    """Something with an area."""

    placed = True

    def __init__(self, area: Area) -> None:
        self.area: Area | None = area
        self.margin = margin_of(area)


def near(chance: random.Random, lat: float, long: float, metres: float) -> tuple[float, float]:
    """A position some metres away."""
    north = lat + chance.uniform(-metres, metres) / METRES
    east = long + chance.uniform(-metres, metres) / (METRES * cos(lat * pi / 180))
    return max(-NEAR_POLE, min(NEAR_POLE, north)), (east + 180.0) % 360.0 - 180.0


@pytest.mark.parametrize("place", PLACES)
def test_a_distance_errs_by_no_more_than_it_says(place: tuple[float, float]) -> None:
    """An error that is larger is a crossing that nobody looks at."""
    chance = random.Random(3)
    for _ in range(5000):
        here = near(chance, *place, 4000)
        plane = plane_of(round(here[0] / BAND), abs(here[1]) > 90.0)
        there = near(chance, *here, FLAT)
        away = distance(*here, *there)
        flat = abs(plane.point(*here) - plane.point(*there))
        assert abs(flat - away) <= plane.error(max(0.0, away - BEYOND)), (here, there)


@pytest.mark.parametrize("place", PLACES)
def test_every_circle_whose_edge_is_near_is_found(place: tuple[float, float]) -> None:
    """From outside the edge itself, from inside the outer side of the margin."""
    chance = random.Random(4)
    plane = plane_of(round(place[0] / BAND), abs(place[1]) > 90.0)
    items = []
    for _ in range(400):
        radius = chance.choice((5.0, 100.0, 500.0, FLAT))
        items.append(Item(Circle(*near(chance, *place, 1.2 * radius), radius)))
    circles = Circles(items, plane, *place)
    found_some = 0
    for _ in range(200):
        here = near(chance, *place, 150)
        found = {id(item): off for item, _, _, off in circles.within(plane.point(*here), 25.0)}
        for item in items:
            assert isinstance(item.area, Circle)
            off = distance(*here, item.area.lat, item.area.long) - item.area.radius
            if abs(off) < 25.0 if off > 0 else item.margin - off < 25.0:
                assert id(item) in found
                assert abs(found[id(item)] - off) <= plane.error(item.area.radius)
                found_some += 1
        assert len(found) < len(items)
    assert found_some > 100


def test_what_is_no_circle_is_kept_apart() -> None:
    """A plane would be wrong for a box that is twenty kilometres wide, and for a large circle."""
    areas: list[Area] = [Box(52.0, 21.0, 52.1, 21.1), Circle(52.0, 21.0, 3000.0), Circle(52.0, 21.0, 500.0)]
    circles = Circles([Item(area) for area in areas], plane_of(1040, False), 52.0, 21.0)
    assert [item.area for item in circles.other] == areas[:2]
    point = plane_of(1040, False).point(52.0, 21.0)
    assert [item.area for item, _, _, _ in circles.within(point, 600.0)] == areas[2:]
