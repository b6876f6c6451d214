"""Cells and covers: an error here hides a vendor from a customer, or has a process subscribe to the wrong channels."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from streamer.geo.grid import (
    BUS_LEVEL,
    LEVELS,
    bus_cell,
    bus_cover,
    cell,
    cell_bounds,
    cell_name,
    cover,
    cover_level,
    named_cell,
    parent,
)
from streamer.geo.shapes import Area, Box, Circle, Polygon, distance
from tests.support.areas import areas, boxes, circles, lats, positions, probes, thorough, valid

levels = st.integers(0, LEVELS - 1)


def corners(cells: frozenset[int], level: int, rnd: random.Random) -> list[tuple[float, float]]:
    """Positions a float or two from the corners of some cells: where rounding would put one into a wrong cell."""
    found = []
    for one in rnd.sample(sorted(cells), min(len(cells), 12)):
        south, west, north, east = cell_bounds(one, level)
        for lat in (south, north):
            for long in (west, east):
                for _ in range(rnd.randint(0, 2)):
                    lat = math.nextafter(lat, rnd.choice([-91.0, 91.0]))
                    long = math.nextafter(long, rnd.choice([-181.0, 181.0]))
                found.append(valid(lat, long))
    return found


# cells


@thorough
@given(positions)
@example((90.0, 180.0))
@example((90.0, -180.0))
@example((-90.0, 180.0))
@example((0.0, math.nextafter(180.0, 0.0)))
@example((math.nextafter(90.0, 0.0), math.nextafter(-180.0, 0.0)))
def test_cell_bounds_hold_the_position(position: tuple[float, float]) -> None:
    """Every position of the globe has one cell on each level, within whose bounds it lies; ±180 are one meridian."""
    lat, long = position
    finest = cell(lat, long)
    if abs(long) == 180.0:
        assert finest == cell(lat, 180.0) == cell(lat, -180.0)
        long = -180.0
    for level in range(LEVELS):
        south, west, north, east = cell_bounds(parent(finest, level), level)
        assert south - 1e-12 <= lat <= north + 1e-12
        assert west - 1e-12 <= long <= east + 1e-12
        assert -90 <= south < north <= 90
        assert -180 <= west < east <= 180


@thorough
@given(positions, st.integers(1, LEVELS - 1))
def test_cells_nest(position: tuple[float, float], level: int) -> None:
    """A cell is exactly four of the next finer level, or a cover could not be looked up from a finest cell."""
    child = parent(cell(*position), level - 1)
    south, west, north, east = cell_bounds(parent(cell(*position), level), level)
    inner = cell_bounds(child, level - 1)
    # exactly on a line of the coarser cell, or exactly in its middle (the northernmost cells are cut short by the pole)
    assert inner[0] in (south, pytest.approx(south + 0.01 * 2 ** (level - 1), abs=1e-12))
    assert inner[1] in (west, pytest.approx((west + east) / 2, abs=1e-12))
    assert inner[2] in (north, pytest.approx(south + 0.01 * 2 ** (level - 1), abs=1e-12))
    assert inner[3] in (east, pytest.approx((west + east) / 2, abs=1e-12))


@thorough
@given(lats)
def test_cells_are_about_square(lat: float) -> None:
    """Cells of like size everywhere, so one level suits one radius: no wider than high, and not under half as wide."""
    south, west, north, east = cell_bounds(parent(cell(lat, 0.0), LEVELS - 1), LEVELS - 1)
    nearest_equator = 0.0 if south <= 0 <= north else min(abs(south), abs(north))
    width = (east - west) * math.cos(math.radians(nearest_equator))
    assert width <= 0.64 + 1e-9
    if abs(lat) < 85:
        assert width > 0.85 * 0.64


@thorough
@given(positions)
def test_names(position: tuple[float, float]) -> None:
    """A cell's name is what processes agree on through Redis."""
    one = bus_cell(*position)
    assert one == parent(cell(*position), BUS_LEVEL)
    assert named_cell(cell_name(one)) == one


@pytest.mark.parametrize("name", ["", "812", "812.", ".403", "812.-4", "a.b", "1.2.3", "1.1048576", " 1.2"])
def test_bad_names(name: str) -> None:
    """A foreign channel that looks like ours must not become a cell."""
    with pytest.raises(ValueError, match="no name of a cell"):
        named_cell(name)


def test_names_never_change() -> None:
    """Processes of two versions share Redis during an upgrade: the same place must keep its name, on every platform."""
    places = [(52.2297, 21.0122), (-33.8688, 151.2093), (0.0, 0.0), (90.0, 0.0), (-90.0, -180.0), (64.1466, -21.9426)]
    assert [cell_name(bus_cell(*place)) for place in places] == [
        "888.772",
        "350.1725",
        "562.1125",
        "1124.3",
        "0.0",
        "963.440",
    ]
    columns = 0
    for band in range(282):
        south = band * 0.64 - 90
        widest = 0.0 if south <= 0 <= south + 0.64 else min(abs(south), abs(south + 0.64))
        exact = 360 * math.cos(math.radians(widest)) / 0.64
        # no count hinges on the last bits of this machine's cosine
        assert widest == 0 or abs(exact - round(exact)) > 1e-6
        _, west, _, east = cell_bounds(band << 20, LEVELS - 1)
        columns += round(360 / (east - west))
    assert columns == 101_415


# covers


@thorough
@given(areas, levels, st.integers(0, 2**32))
def test_cover_is_sound(area: Area, level: int, seed: int) -> None:
    """What is inside is in a covered cell, what is in a full cell is inside: or watches miss or invent vendors."""
    rnd = random.Random(seed)
    level = max(level, cover_level(area) - 2)
    full, boundary = cover(area, level)
    assert not full & boundary
    for lat, long in probes(area, rnd) + corners(full, level, rnd) + corners(boundary, level, rnd):
        inside = area.contains(lat, long)
        where = parent(cell(lat, long), level)
        assert not inside or where in full or where in boundary, (lat, long)
        assert inside or where not in full, (lat, long)


@thorough
@given(circles, levels)
def test_cover_is_tight(circle: Circle, level: int) -> None:
    """Boundary cells touch the boundary: a loose cover costs a test for each position and needless subscriptions."""
    level = max(level, cover_level(circle))
    full, boundary = cover(circle, level)
    for one in full | boundary:
        south, west, north, east = cell_bounds(one, level)
        middle = (south + north) / 2, (west + east) / 2
        reach = max(distance(*middle, lat, long) for lat in (south, north) for long in (west, east))
        assume(east - west < 90)  # beside a pole a cell is no rectangle, and its corners not its farthest points
        off = distance(circle.lat, circle.long, *middle) - circle.radius
        assert off <= reach + 0.01
        if one in boundary:
            assert off >= -reach - 0.01


@thorough
@given(boxes(), st.integers(0, 3))
def test_cover_of_boxes_is_tight(box: Box, level: int) -> None:
    """A box is covered by the cells it touches and no more, all those within it full."""
    assume(max(box.extent()) < 200_000)
    level = max(level, cover_level(box))
    full, boundary = cover(box, level)
    for one in boundary:
        south, west, north, east = cell_bounds(one, level)
        assert south <= box.north + 1e-8
        assert north >= box.south - 1e-8
        within = south > box.south + 1e-8 and north < box.north - 1e-8
        if within and box.west < box.east:
            assert not (west > box.west + 1e-8 and east < box.east - 1e-8)
    assert full or boundary


def test_cover_over_poles_and_antimeridian() -> None:
    """Ordinary places: the cells round a pole and on both sides of ±180 are found, and full where they can be."""
    polar = Circle(89.9, 0, 50_000)
    full, boundary = cover(polar, 2)
    assert full
    for long in range(-180, 181, 5):
        assert parent(cell(90.0, long), 2) in full
        assert parent(cell(89.99, long), 2) in full
    across = Circle(0, 180, 50_000)
    full, boundary = cover(across, 3)
    assert parent(cell(0.01, 179.99), 3) in full | boundary
    assert {parent(cell(0.1, long), 3) for long in (179.9, -179.9)} <= full | boundary
    cap = Box(89.0, -180, 90, 180)
    full, boundary = cover(cap, 4)
    assert parent(cell(90.0, 12.0), 4) in full
    assert len(boundary) == len({parent(cell(89.0, long / 10), 4) for long in range(-1800, 1800)})


def test_cover_of_a_line() -> None:
    """An area without width, on the antimeridian too, has cells to hear but none that is full."""
    for long in (0.0, -180.0, 180.0):
        full, boundary = cover(Polygon(((long, 0.0), (long, 1.0), (long, 0.5))), 5)
        assert boundary
        assert not full


def test_cover_of_a_hole() -> None:
    """A radius beyond a quarter of the globe, should a setting allow it, is all boundary: slow, but right."""
    full, boundary = cover(Circle(10, 20, 11_000_000), LEVELS - 1)
    assert not full
    assert parent(cell(-10, -60), LEVELS - 1) in boundary


def test_cover_level() -> None:
    """A watch is held once for each of these cells: few enough to hold, fine enough to spare tests on the boundary."""
    radii = (50.0, 5_000, 10_000, 20_000, 50_000, 100_000)
    assert [cover_level(Circle(52.2, 21, radius)) for radius in radii] == [0, 0, 1, 2, 4, 5]
    for lat in (0.0, 52.2, -70.0, 89.0):
        for radius in (50.0, 1_000, 5_000, 20_000, 100_000):
            circle = Circle(lat, 179.9, radius)
            full, boundary = cover(circle, cover_level(circle))
            assert 1 <= len(full) + len(boundary) <= 120


@thorough
@given(areas, st.integers(0, 2**32))
def test_bus_cover(area: Area, seed: int) -> None:
    """A process subscribes to these channels and no others: a vendor inside must publish on one of them."""
    channels = bus_cover(area)
    for lat, long in probes(area, random.Random(seed)):
        assert not area.contains(lat, long) or bus_cell(lat, long) in channels
    if isinstance(area, Circle):
        assert len(channels) <= 300
