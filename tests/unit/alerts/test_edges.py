"""Distances to edges, which may be too small and never too large; and the grid, which finds all or more."""

from __future__ import annotations

import random
from math import cos, pi, sin

import pytest

from streamer.alerts.edges import MARGIN, STAY, EdgeCell, EdgeGrid, edge_distance, holds, margin_of
from streamer.geo.shapes import Area, Box, Circle, Polygon

METRES = 111_195.0

AREAS: list[Area] = [
    Circle(52.2297, 21.0122, 500.0),
    Circle(52.2297, 21.0122, 8_000.0),
    Circle(-17.0, 179.999, 700.0),
    Circle(89.95, 40.0, 6_000.0),
    Circle(0.0, 0.0, 0.0),
    Box(52.20, 21.00, 52.25, 21.05),
    Box(-17.05, 179.98, -17.0, -179.98),
    Box(10.0, 20.0, 10.0001, 20.0001),
    Polygon(((21.0, 52.2), (21.05, 52.21), (21.04, 52.24), (21.02, 52.215), (21.0, 52.25))),
    Polygon(((179.99, -17.0), (-179.98, -17.01), (-179.99, -17.04), (179.98, -17.03))),
]


class Item:
    """Something in the grid."""

    def __init__(self, area: Area | None) -> None:
        self.area = area
        self.cells: list[EdgeCell[Item]] = []
        self.circle = 0
        self.margin = 0.0 if area is None else margin_of(area)


def grid_of(area: Area) -> tuple[EdgeGrid[Item], Item]:
    """A grid with one area."""
    grid: EdgeGrid[Item] = EdgeGrid()
    item = Item(area)
    grid.add(item, area)
    return grid, item


def around(chance: random.Random, area: Area) -> tuple[float, float]:
    """A position in the neighbourhood of an area."""
    bounds = area.bounds()
    spread = 0.3 * (bounds.north - bounds.south) + 0.0005
    lat = chance.uniform(bounds.south - spread, bounds.north + spread)
    lat = max(-90.0, min(90.0, lat))
    wide = bounds.width * 0.3 + 0.001
    long = bounds.west + chance.uniform(-wide, bounds.width + wide)
    return lat, (long + 180.0) % 360.0 - 180.0


def moved(chance: random.Random, lat: float, long: float, metres: float) -> tuple[float, float]:
    """A position at this distance in metres, in any direction."""
    angle = chance.uniform(0, 2 * pi)
    lat_after = lat + metres * sin(angle) / METRES
    long_after = long + metres * cos(angle) / (METRES * max(1e-9, cos(lat * pi / 180)))
    return lat_after, (long_after + 180.0) % 360.0 - 180.0


@pytest.mark.parametrize("area", AREAS)
def test_no_move_that_is_shorter_crosses_the_edge(area: Area) -> None:
    """If a distance to an edge were too large, a vendor could cross it untested, and the event would be missed."""
    chance = random.Random(7)
    for _ in range(3000):
        lat, long = around(chance, area)
        far = edge_distance(area, lat, long)
        if far < 0.01 or abs(lat) > 89.0:
            continue
        to = moved(chance, lat, long, far * chance.uniform(0.5, 0.998))
        if abs(to[0]) < 89.0:
            assert area.contains(*to) == area.contains(lat, long), (lat, long, to, far)


@pytest.mark.parametrize("area", AREAS)
def test_the_grid_finds_every_area_whose_edge_is_near(area: Area) -> None:
    """An area that the grid does not find is an alert that never fires."""
    chance = random.Random(8)
    grid, item = grid_of(area)
    near = 0
    for _ in range(3000):
        lat, long = around(chance, area)
        cells, _ = grid.at(lat, long)
        edges = [each for cell in cells for each in cell.edges]
        whole = [each for cell in cells for each in cell.whole]
        assert len(edges) + len(whole) <= 1
        if item in whole:
            assert area.contains(lat, long)
        if area.contains(lat, long):
            assert item in edges or item in whole
        if edge_distance(area, lat, long) <= margin_of(area):
            assert item in edges
            near += 1
        for cell in cells:
            assert cell.circles().items == [each for each in cell.edges if isinstance(each.area, Circle)]
    assert near or area.extent()[0] > 5000 or isinstance(area, Circle)
    grid.remove(item)
    assert not any(grid.at(*around(chance, area))[0] for _ in range(100))


@pytest.mark.parametrize("area", AREAS)
def test_a_cell_is_good_a_little_beyond_itself(area: Area) -> None:
    """Vendors keep their cells while within the bounds, so all areas near those bounds must be in the cells."""
    chance = random.Random(9)
    grid, item = grid_of(area)
    beyond = 0
    for _ in range(3000):
        lat, long = around(chance, area)
        cells, (south, north, west, east) = grid.at(lat, long)
        assert south < lat < north
        assert west < long < east
        for _ in range(3):
            there = moved(chance, lat, long, chance.uniform(0.0, 1.4 * STAY))
            if not (south < there[0] < north and west < there[1] < east) or abs(there[0]) > 89.0:
                continue
            beyond += grid.at(*there)[0] != cells
            edges = [each for cell in cells for each in cell.edges]
            if edge_distance(area, *there) <= margin_of(area):
                assert item in edges
            if item not in edges:
                assert area.contains(*there) == any(cell.whole for cell in cells)
    assert beyond or area.bounds().north > 89.0


def test_a_vendor_leaves_only_beyond_the_margin() -> None:
    """Positions scatter: a vendor that stands at the edge would come and go every second."""
    area = Circle(52.0, 21.0, 500.0)
    margin = margin_of(area)
    assert margin == MARGIN
    edge = 52.0 + 500.0 / METRES
    outside, beyond = edge + 15.0 / METRES, edge + 25.0 / METRES
    assert not holds(area, margin, False, outside, 21.0)
    assert holds(area, margin, True, outside, 21.0)
    assert not holds(area, margin, True, beyond, 21.0)


def test_the_margin_of_a_small_area_is_small() -> None:
    """A vendor could never leave an area of ten metres whose margin is twenty."""
    assert margin_of(Circle(52.0, 21.0, 5.0)) == 1.0
    assert margin_of(Circle(52.0, 21.0, 0.0)) == 0.0
