"""Positions, areas and cells: what is wrong here shows a customer a vendor who is not there, or hides one who is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from streamer.errors import ErrorCode, ProtocolError
from streamer.geo.shapes import (
    BUS_LEVEL,
    EARTH_RADIUS,
    LEVELS,
    Area,
    Box,
    Circle,
    Polygon,
    bus_cell,
    bus_cover,
    cell,
    cell_bounds,
    cell_name,
    cover,
    cover_level,
    distance,
    named_cell,
    parent,
)

# A slow machine is no fault of a rule.
unhurried = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])

DEGREE = EARTH_RADIUS * math.pi / 180  # metres of one degree of latitude


def nearby_floats(value: float) -> st.SearchStrategy[float]:
    return st.sampled_from([value, math.nextafter(value, math.inf), math.nextafter(value, -math.inf)])


def clipped(limit: float) -> st.SearchStrategy[float]:
    """Degrees from -limit to limit: anywhere, at the limits, at 0, on the grid's lines, and one float beside each."""
    hundredths = st.integers(-int(limit * 100), int(limit * 100))
    special = st.sampled_from([0.0, limit, -limit, limit - 0.05, 0.05 - limit, limit / 2, 0.64])
    return st.one_of(
        st.floats(-limit, limit),
        hundredths.map(lambda n: n / 100).flatmap(nearby_floats),
        special.flatmap(nearby_floats),
        st.floats(limit - 1, limit),
        st.floats(-limit, 1 - limit),
    ).map(lambda value: min(max(value, -limit), limit))


lats = clipped(90.0)
longs = clipped(180.0)
positions = st.tuples(lats, longs)
levels = st.integers(0, LEVELS - 1)
sizes = st.floats(-2, 5).map(lambda power: 10.0**power)  # metres: a centimetre to 100 km


def wrapped(long: float) -> float:
    return (long + 180.0) % 360.0 - 180.0


circles = st.builds(Circle, lats, longs, st.one_of(sizes, st.just(100_000.0), st.just(0.0), st.floats(0, 100_000)))


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    lat, long = draw(positions)
    south, north = sorted((lat, min(90.0, max(-90.0, lat + draw(sizes) / DEGREE * draw(st.sampled_from([1, -1, 0]))))))
    width = draw(st.one_of(sizes.map(lambda metres: metres / DEGREE), st.floats(0, 5), st.just(0.0)))
    return draw(
        st.sampled_from(
            [
                Box(south, long, north, wrapped(long + width)),
                Box(south, wrapped(long - width), north, long),
                Box(south, -180.0, north, 180.0),
            ]
        )
        if north > 89 or south < -89
        else st.just(Box(south, long, north, wrapped(long + width)))
    )


@st.composite
def polygons(draw: st.DrawFn) -> Polygon:
    """Rings round a centre, self-crossing scribbles, slivers, rings round a pole; over any meridian, closed or not."""
    lat, long = draw(positions)
    rnd = random.Random(draw(st.integers(0, 2**32)))
    count = draw(st.sampled_from([3, 4, 5, 8, 30]))
    size = draw(sizes) / DEGREE
    kind = draw(st.sampled_from(["star", "scribble", "sliver", "polar", "lattice"]))
    points = []
    for index in range(count):
        angle = 2 * math.pi * index / count
        if kind == "star":
            reach = size * rnd.uniform(0.1, 1)
            x, y = long + reach * math.cos(angle), lat + reach * math.sin(angle)
        elif kind == "scribble":
            x, y = long + rnd.uniform(-size, size), lat + rnd.uniform(-size, size)
        elif kind == "sliver":
            x, y = long + rnd.uniform(-size, size), lat + rnd.choice([0, 1e-7, -1e-9])
        elif kind == "polar":
            x, y = long + 360 * index / count * rnd.choice([1, 1, 0.9]), math.copysign(90 - rnd.uniform(0, size), lat)
        else:
            x, y = round(long, 2) + rnd.randint(-3, 3) / 100, round(lat, 2) + rnd.randint(-3, 3) / 100
        points.append((wrapped(x), min(max(y, -90.0), 90.0)))
    if draw(st.booleans()):
        points.append(points[0])
    if draw(st.booleans()):
        points.reverse()
    return Polygon(tuple(points))


areas: st.SearchStrategy[Area] = st.one_of(circles, boxes(), polygons())


def probes(area: Area, rnd: random.Random) -> list[tuple[float, float]]:
    """Positions about an area: within its bounds, beside them, at its corners and rim, at the poles and ±180."""
    bounds = area.bounds()
    width = bounds.east - bounds.west if bounds.west <= bounds.east else bounds.east - bounds.west + 360
    found = []
    for _ in range(40):
        lat = bounds.south + (bounds.north - bounds.south) * rnd.choice([0, 1, rnd.random(), rnd.uniform(-0.2, 1.2)])
        long = bounds.west + width * rnd.choice([0, 1, rnd.random(), rnd.uniform(-0.2, 1.2)])
        found.append((lat, long))
    if isinstance(area, Circle):
        for _ in range(20):
            found.append(
                toward(area.lat, area.long, rnd.uniform(0, 2 * math.pi), area.radius * rnd.choice([1, 1 - 1e-9]))
            )
        found.append((area.lat, area.long))
    elif isinstance(area, Polygon):
        for (long1, lat1), (long2, lat2) in pairwise(area.points):
            along = rnd.random()
            found.append((lat1, long1))
            found.append((lat1 + (lat2 - lat1) * along, long1 + (long2 - long1) * along))
    found += [(lat, long) for lat in (90.0, -90.0, bounds.south) for long in (180.0, -180.0, bounds.east)]
    found += [(lat + rnd.uniform(-1e-8, 1e-8), long + rnd.uniform(-1e-8, 1e-8)) for lat, long in found]
    return [valid(lat, long) for lat, long in found]


def valid(lat: float, long: float) -> tuple[float, float]:
    return min(max(lat, -90.0), 90.0), long if -180.0 <= long <= 180.0 else wrapped(long)


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


def toward(lat: float, long: float, bearing: float, metres: float) -> tuple[float, float]:
    """The position so many metres from another in a direction."""
    angle = metres / EARTH_RADIUS
    phi = math.radians(lat)
    to = math.asin(
        max(-1, min(1, math.sin(phi) * math.cos(angle) + math.cos(phi) * math.sin(angle) * math.cos(bearing)))
    )
    turn = math.atan2(
        math.sin(bearing) * math.sin(angle) * math.cos(phi), math.cos(angle) - math.sin(phi) * math.sin(to)
    )
    return math.degrees(to), long + math.degrees(turn)


def unit(lat: float, long: float) -> tuple[float, float, float]:
    phi, lam = math.radians(lat), math.radians(long)
    return math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi)


# distance


def test_distance_of_known_places() -> None:
    """A radius in metres means metres: a degree, a quarter and a half of the globe, Warsaw to Cracow."""
    assert distance(0, 0, 1, 0) == pytest.approx(DEGREE, rel=1e-12)
    assert distance(0, 179.5, 0, -179.5) == pytest.approx(DEGREE, rel=1e-12)
    assert distance(0, 0, 90, 123) == pytest.approx(DEGREE * 90, rel=1e-12)
    assert distance(90, 0, -90, 55) == pytest.approx(DEGREE * 180, rel=1e-12)
    assert distance(52.2297, 21.0122, 50.0647, 19.945) == pytest.approx(251_990, abs=1000)


@unhurried
@given(positions, positions)
def test_distance_agrees_with_chords(a: tuple[float, float], b: tuple[float, float]) -> None:
    """The formula is haversine's; the chord between unit vectors must say the same, in both directions bit for bit."""
    metres = distance(*a, *b)
    assert metres == distance(*b, *a)
    assert 0 <= metres <= math.pi * EARTH_RADIUS
    half_chord = math.dist(unit(*a), unit(*b)) / 2
    assume(half_chord < 0.99)  # near the antipodes neither formula is sharp, and no area reaches them
    assert metres == pytest.approx(2 * EARTH_RADIUS * math.asin(half_chord), abs=1e-6)


# areas


@unhurried
@given(circles, st.integers(0, 2**32))
def test_circle_is_its_distance(circle: Circle, seed: int) -> None:
    """`distance <= radius` is the contract, to the last bit: also for a radius which is just a distance."""
    for lat, long in probes(circle, random.Random(seed)):
        metres = distance(circle.lat, circle.long, lat, long)
        assert circle.contains(lat, long) == (metres <= circle.radius)
        assert Circle(circle.lat, circle.long, metres).contains(lat, long)
        if metres > 0:
            assert not Circle(circle.lat, circle.long, math.nextafter(metres, 0)).contains(lat, long)


def test_circle_of_the_whole_globe() -> None:
    """A radius setting of half the globe or more must not loop or lose the antipodes."""
    for radius in (math.pi * EARTH_RADIUS, 1e9):
        assert Circle(10, 20, radius).contains(-10, -160)
        assert Circle(10, 20, radius).contains(-10, -159)
    assert not Circle(10, 20, 2e7).contains(-10, -160)


@unhurried
@given(boxes(), st.integers(0, 2**32))
def test_box_is_inclusive(box: Box, seed: int) -> None:
    """A box holds its edges, over the antimeridian too: compared with exact arithmetic modulo 360."""
    west, east = Fraction(box.west), Fraction(box.east)
    width = east - west if west <= east else east - west + 360
    for lat, long in [*probes(box, random.Random(seed)), (box.south, box.west), (box.north, box.east)]:
        inside = box.south <= lat <= box.north and (Fraction(long) - west) % 360 <= width
        # at ±180 both names of the meridian are the same place; elsewhere the remainder decides
        assert box.contains(lat, long) == inside


def even_odd(points: tuple[tuple[float, float], ...], lat: float, long: float) -> bool | None:
    """Inside by exact fractions, with the ray to the north pole; None within 1e-9° of an edge's end or an edge."""
    near = Fraction(1, 10**9)
    crossings = 0
    winding = Fraction(0)
    for (long1, lat1), (long2, lat2) in zip(points, (*points[1:], points[0]), strict=True):
        x1 = (Fraction(long1) - Fraction(long) + 180) % 360 - 180
        step = Fraction(long2) - Fraction(long1)
        step += -360 if step > 180 else 360 if step < -180 else 0
        winding += step
        y1, y2 = Fraction(lat1), Fraction(lat2)
        for meridian in (-360, 0, 360):
            start, end = x1 - meridian, x1 + step - meridian
            if min(start, end) - near <= 0 <= max(start, end) + near:
                if min(abs(start), abs(end)) <= near:
                    return None
                y = y1 + (y2 - y1) * -start / step
                if abs(y - Fraction(lat)) <= near:
                    return None
                crossings += y > lat
    assert winding % 360 == 0
    north_nearer = max(y for _, y in points) + min(y for _, y in points) >= 0
    return (crossings + (winding / 360 % 2 == 1 and north_nearer)) % 2 == 1


@unhurried
@given(polygons(), st.integers(0, 2**32))
def test_polygon_is_even_odd(polygon: Polygon, seed: int) -> None:
    """Concave, self-crossing, thin, polar, over the antimeridian: exact arithmetic with the opposite ray agrees."""
    rnd = random.Random(seed)
    for lat, long in rnd.sample(probes(polygon, rnd), 20):
        expected = even_odd(polygon.points, lat, long)
        assert expected is None or polygon.contains(lat, long) == expected, (lat, long)


@unhurried
@given(polygons(), st.integers(0, 2**32))
def test_polygon_closed_or_not(polygon: Polygon, seed: int) -> None:
    """Closing the ring, turning it round or starting it elsewhere changes nothing, not even on an edge."""
    points = polygon.points
    same = [Polygon((*points, points[0])), Polygon(points[::-1])]
    for lat, long in probes(polygon, random.Random(seed)):
        expected = polygon.contains(lat, long)
        assert [other.contains(lat, long) for other in same] == [expected, expected]


@unhurried
@given(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), st.lists(st.floats(0.001, 0.999), min_size=1, max_size=20))
def test_polygons_that_share_an_edge(middle: tuple[float, float], fractions: list[float]) -> None:
    """Districts with common borders: a vendor on a border is in one of them, never in two or in none."""
    square = [(-2.0, -2.0), (2.0, -2.0), (2.0, 2.0), (-2.0, 2.0), (-2.0, -2.0)]
    quarters = [Polygon((first, second, middle)) for first, second in pairwise(square)]
    x, y = middle
    on_borders = [
        (corner_y + (y - corner_y) * part, corner_x + (x - corner_x) * part)
        for corner_x, corner_y in square
        for part in fractions
    ]
    for lat, long in [(y, x), *on_borders]:
        assert sum(quarter.contains(lat, long) for quarter in quarters) == 1


def test_polygon_edges() -> None:
    """What the docstring says of edges, and ±180 as one meridian."""
    square = Polygon(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)))
    assert square.contains(0, 0.5)
    assert square.contains(0.5, 0)
    assert not square.contains(1, 0.5)
    assert not square.contains(0.5, 1)
    for west in (-180.0, 180.0):
        east = Polygon(((west, 0.0), (-179.0, 0.0), (-179.0, 1.0), (west, 1.0)))
        assert east.contains(0.5, -180)
        assert east.contains(0.5, 180)
        assert east.contains(0.5, -179.5)
        assert not east.contains(0.5, 179.5)
        across = Polygon(((179.0, 0.0), (west, 0.0), (-179.0, 0.0), (-179.0, 1.0), (179.0, 1.0)))
        assert [across.contains(0.5, long) for long in (178.9, 179.1, 180, -180, -179.1, -178.9)] == [
            False, True, True, True, True, False,
        ]  # fmt: skip


def test_polygon_without_width() -> None:
    """A line holds nothing, on the antimeridian too, and its cover does not fail on it."""
    for long in (0.0, -180.0, 180.0):
        line = Polygon(((long, 0.0), (long, 1.0), (long, 0.5)))
        assert not any(line.contains(0.5, where) for where in (long, -180.0, 180.0, 0.0, 5e-324))
        assert line.extent() == pytest.approx((0, DEGREE))
        assert not cover(line, 5).full


def test_polygon_round_a_pole() -> None:
    """A ring round a pole holds the pole, by whatever longitude it is named, and not the rest of the globe."""
    for sign in (1, -1):
        for start in (-180, -90, 0, 77):
            ring = Polygon(tuple((wrapped(start + 45.0 * step), sign * 89.5) for step in range(8)))
            for long in (
                -180.0,
                -0.0,
                -1e-20,
                5e-324,
                123.4,
                180.0,
                wrapped(start),
                math.nextafter(wrapped(start), -181),
            ):
                if long < -180:
                    continue
                assert ring.contains(sign * 89.6, long)
                assert ring.contains(sign * 90.0, long)
                assert not ring.contains(sign * 89.4, long)
                assert not ring.contains(sign * -90.0, long)
                assert not ring.contains(0, long)
            assert ring.extent() == pytest.approx((DEGREE, DEGREE / 2))


@pytest.mark.parametrize(
    ("make", "code", "value"),
    [
        (lambda: Circle(90.1, 0, 1), ErrorCode.INVALID_COORDINATES, "90.1"),
        (lambda: Circle(0, -180.5, 1), ErrorCode.INVALID_COORDINATES, "-180.5"),
        (lambda: Circle(math.nan, 0, 1), ErrorCode.INVALID_COORDINATES, "nan"),
        (lambda: Circle(0, 0, -1.5), ErrorCode.INVALID_AREA, "-1.5"),
        (lambda: Circle(0, 0, math.nan), ErrorCode.INVALID_AREA, "nan"),
        (lambda: Circle(0, 0, math.inf), ErrorCode.INVALID_AREA, "inf"),
        (lambda: Box(2.5, 0, 1.5, 1), ErrorCode.INVALID_AREA, "2.5"),
        (lambda: Box(0, 0, 1, 181), ErrorCode.INVALID_COORDINATES, "181"),
        (lambda: Polygon(((0, 0), (1, 1))), ErrorCode.INVALID_AREA, "2 point"),
        (lambda: Polygon(((0, 0), (1, 1), (0, 91))), ErrorCode.INVALID_COORDINATES, "Point 2"),
    ],
)
def test_impossible_areas(make: Callable[[], Area], code: ErrorCode, value: str) -> None:
    """An area that can't be must be told to its sender by value, not fail or loop later inside a cover."""
    with pytest.raises(ProtocolError, match=value) as caught:
        make()
    assert caught.value.code is code


def test_areas_are_keys() -> None:
    """Watchers of the same area share its cover: equal areas must be one key."""
    ring = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    assert (
        len({Circle(1, 2, 3), Circle(1.0, 2.0, 3.0), Box(1, 2, 3, 4), Box(1, 2, 3, 4), Polygon(ring), Polygon(ring)})
        == 3
    )


@unhurried
@given(areas, st.integers(0, 2**32))
def test_bounds_hold_the_area(area: Area, seed: int) -> None:
    """Whatever is inside is inside the bounds, or a size limit would be checked against too small a box."""
    bounds = area.bounds()
    for lat, long in probes(area, random.Random(seed)):
        if area.contains(lat, long) and abs(long) < 180:
            assert bounds.contains(lat, long)


@unhurried
@given(circles)
def test_bounds_are_tight(circle: Circle) -> None:
    """Bounds much larger than the circle would choose too coarse a level."""
    assert circle.extent() == (2 * circle.radius, 2 * circle.radius)
    bounds = circle.bounds()
    width, height = bounds.extent()
    assert height <= 2 * circle.radius + 0.01
    if abs(circle.lat) < 80:
        assert width <= 2.2 * circle.radius + 0.01


def test_extent() -> None:
    """`ERR_AREA_TOO_LARGE` goes by these metres: where the box is widest, over the antimeridian, round a pole."""
    assert Box(-1, 0, 1, 1).extent() == pytest.approx((DEGREE, 2 * DEGREE))
    assert Box(60, 179.5, 61, -179.5).extent() == pytest.approx((DEGREE / 2, DEGREE), rel=1e-4)
    assert Box(-61, 179.5, -60, -179.5).extent() == pytest.approx((DEGREE / 2, DEGREE), rel=1e-4)
    assert Box(89.5, -180, 90, 180).extent() == pytest.approx((DEGREE, DEGREE / 2))
    assert Box(-10, -180, 10, 180).extent() == pytest.approx((180 * DEGREE, 20 * DEGREE))
    across = Polygon(((179.5, 0.0), (-179.5, 0.0), (-179.5, 1.0)))
    assert across.extent() == pytest.approx((DEGREE, DEGREE))


# cells


@unhurried
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


@unhurried
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


@unhurried
@given(lats)
def test_cells_are_about_square(lat: float) -> None:
    """Cells of like size everywhere, so one level suits one radius: no wider than high, and not under half as wide."""
    south, west, north, east = cell_bounds(parent(cell(lat, 0.0), LEVELS - 1), LEVELS - 1)
    nearest_equator = 0.0 if south <= 0 <= north else min(abs(south), abs(north))
    width = (east - west) * math.cos(math.radians(nearest_equator))
    assert width <= 0.64 + 1e-9
    if abs(lat) < 85:
        assert width > 0.85 * 0.64


@unhurried
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


@unhurried
@given(areas, levels, st.integers(0, 2**32))
def test_cover_is_sound(area: Area, level: int, seed: int) -> None:
    """What is inside is in a covered cell, what is in a full cell is inside: or watches miss or invent vendors."""
    rnd = random.Random(seed)
    level = max(level, cover_level(area) - 2)
    full, rim = cover(area, level)
    assert not full & rim
    for lat, long in probes(area, rnd) + corners(full, level, rnd) + corners(rim, level, rnd):
        inside = area.contains(lat, long)
        where = parent(cell(lat, long), level)
        assert not inside or where in full or where in rim, (lat, long)
        assert inside or where not in full, (lat, long)


@unhurried
@given(circles, levels)
def test_cover_is_tight(circle: Circle, level: int) -> None:
    """Rim cells lie on the rim: loose covers cost a test for each position, and empty cells a subscription."""
    level = max(level, cover_level(circle))
    full, rim = cover(circle, level)
    for one in full | rim:
        south, west, north, east = cell_bounds(one, level)
        middle = (south + north) / 2, (west + east) / 2
        reach = max(distance(*middle, lat, long) for lat in (south, north) for long in (west, east))
        assume(east - west < 90)  # beside a pole a cell is no rectangle, and its corners not its farthest points
        off = distance(circle.lat, circle.long, *middle) - circle.radius
        assert off <= reach + 0.01
        if one in rim:
            assert off >= -reach - 0.01


@unhurried
@given(boxes(), st.integers(0, 3))
def test_cover_of_boxes_is_tight(box: Box, level: int) -> None:
    """A box is covered by the cells it touches and no more, all those within it full."""
    assume(max(box.extent()) < 200_000)
    level = max(level, cover_level(box))
    full, rim = cover(box, level)
    for one in rim:
        south, west, north, east = cell_bounds(one, level)
        assert south <= box.north + 1e-8
        assert north >= box.south - 1e-8
        within = south > box.south + 1e-8 and north < box.north - 1e-8
        if within and box.west < box.east:
            assert not (west > box.west + 1e-8 and east < box.east - 1e-8)
    assert full or rim


def test_cover_over_poles_and_antimeridian() -> None:
    """Ordinary places: the cells round a pole and on both sides of ±180 are found, and full where they can be."""
    polar = Circle(89.9, 0, 50_000)
    full, rim = cover(polar, 2)
    assert full
    for long in range(-180, 181, 5):
        assert parent(cell(90.0, long), 2) in full
        assert parent(cell(89.99, long), 2) in full
    across = Circle(0, 180, 50_000)
    full, rim = cover(across, 3)
    assert parent(cell(0.01, 179.99), 3) in full | rim
    assert {parent(cell(0.1, long), 3) for long in (179.9, -179.9)} <= full | rim
    cap = Box(89.0, -180, 90, 180)
    full, rim = cover(cap, 4)
    assert parent(cell(90.0, 12.0), 4) in full
    assert len(rim) == len({parent(cell(89.0, long / 10), 4) for long in range(-1800, 1800)})


def test_cover_of_a_hole() -> None:
    """A radius beyond a quarter of the globe, should a setting allow it, is all rim: slow, but right."""
    full, rim = cover(Circle(10, 20, 11_000_000), LEVELS - 1)
    assert not full
    assert parent(cell(-10, -60), LEVELS - 1) in rim


def test_cover_level() -> None:
    """A watch is held once for each of these cells: few enough to hold, fine enough to spare tests on the rim."""
    radii = (50.0, 5_000, 10_000, 20_000, 50_000, 100_000)
    assert [cover_level(Circle(52.2, 21, radius)) for radius in radii] == [0, 0, 1, 2, 4, 5]
    for lat in (0.0, 52.2, -70.0, 89.0):
        for radius in (50.0, 1_000, 5_000, 20_000, 100_000):
            circle = Circle(lat, 179.9, radius)
            full, rim = cover(circle, cover_level(circle))
            assert 1 <= len(full) + len(rim) <= 120


@unhurried
@given(areas, st.integers(0, 2**32))
def test_bus_cover(area: Area, seed: int) -> None:
    """A process subscribes to these channels and no others: a vendor inside must publish on one of them."""
    channels = bus_cover(area)
    for lat, long in probes(area, random.Random(seed)):
        assert not area.contains(lat, long) or bus_cell(lat, long) in channels
    if isinstance(area, Circle):
        assert len(channels) <= 300
