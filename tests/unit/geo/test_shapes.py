"""Positions and areas: an error here shows a customer a vendor who is not there, or hides one who is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamer.errors import ErrorCode, ProtocolError
from streamer.geo.shapes import EARTH_RADIUS, Area, Box, Circle, Polygon, distance
from tests.support.areas import DEGREE, areas, boxes, circles, polygons, positions, probes, thorough, valid, wrapped


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


@thorough
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


@thorough
@given(circles, st.integers(0, 2**32))
def test_circle_is_its_distance(circle: Circle, seed: int) -> None:
    """`distance <= radius` is the contract, to the last bit: also for a radius which is just a distance."""
    for lat, long in probes(circle, random.Random(seed)):
        metres = distance(circle.lat, circle.long, lat, long)
        assert circle.contains(lat, long) == (metres <= circle.radius)
        assert Circle(circle.lat, circle.long, metres).contains(lat, long)
        if metres > 0:
            assert not Circle(circle.lat, circle.long, math.nextafter(metres, 0)).contains(lat, long)


def test_a_plane_decides_only_what_the_sphere_confirms() -> None:
    """Most positions are compared on a plane, which is wrong by metres: near the edge that must not be seen."""
    chance = random.Random(1)
    for _ in range(5000):
        circle = Circle(
            chance.uniform(-85, 85), chance.uniform(-180, 180), chance.choice((0, 1, 30, 500, 2500, 70_000))
        )
        phi = math.radians(circle.lat)
        for _ in range(10):
            away = circle.radius * (1 + chance.choice((-1, 1)) * 10 ** chance.uniform(-9, 0)) / EARTH_RADIUS
            turn = chance.uniform(0, 2 * math.pi)
            north = math.asin(math.sin(phi) * math.cos(away) + math.cos(phi) * math.sin(away) * math.cos(turn))
            east = math.atan2(
                math.sin(turn) * math.sin(away) * math.cos(phi), math.cos(away) - math.sin(phi) * math.sin(north)
            )
            lat, long = math.degrees(north), (circle.long + math.degrees(east) + 180) % 360 - 180
            assert circle.contains(lat, long) == (distance(circle.lat, circle.long, lat, long) <= circle.radius)


def test_circle_of_the_whole_globe() -> None:
    """A radius setting of half the globe or more must not loop or lose the antipodes."""
    for radius in (math.pi * EARTH_RADIUS, 1e9):
        assert Circle(10, 20, radius).contains(-10, -160)
        assert Circle(10, 20, radius).contains(-10, -159)
    assert not Circle(10, 20, 2e7).contains(-10, -160)


@thorough
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


@thorough
@given(polygons(), st.integers(0, 2**32))
def test_polygon_is_even_odd(polygon: Polygon, seed: int) -> None:
    """Concave, self-crossing, thin, polar, over the antimeridian: exact arithmetic with the opposite ray agrees."""
    rnd = random.Random(seed)
    for lat, long in rnd.sample(probes(polygon, rnd), 20 if len(polygon.points) < 50 else 4):
        expected = even_odd(polygon.points, lat, long)
        assert expected is None or polygon.contains(lat, long) == expected, (lat, long)


@thorough
@given(polygons(), st.integers(0, 2**32))
def test_polygon_closed_or_not(polygon: Polygon, seed: int) -> None:
    """Closing the ring, turning it round or starting it elsewhere changes nothing, not even on an edge."""
    points = polygon.points
    same = [Polygon((*points, points[0])), Polygon(points[::-1])]
    for lat, long in probes(polygon, random.Random(seed)):
        expected = polygon.contains(lat, long)
        assert [other.contains(lat, long) for other in same] == [expected, expected]


def by_every_edge(polygon: Polygon, lat: float, long: float) -> bool:
    """What `contains` says without its bins: the rule as the docstring has it, each edge looked at."""
    bounds = polygon.bounds()
    if not bounds.south <= lat <= bounds.north:
        return False
    west = min(x for x, _, _, _ in polygon.edges if x >= -180)
    if long < west or (long == 180.0 and west == -180.0):
        long = west if long == 180.0 else long + 360.0
    inside = bounds.south == -90.0 and bounds.west == -180.0 and bounds.east == 180.0
    for x1, y1, x2, y2 in polygon.edges:
        if x1 <= long < x2 and lat >= y1 + (long - x1) / (x2 - x1) * (y2 - y1):
            inside = not inside
    return inside


@thorough
@given(polygons(), st.integers(0, 2**32))
def test_polygon_bins_change_nothing(polygon: Polygon, seed: int) -> None:
    """A position beside a corner or a bin's edge: only the edges near it are tested, and the answer is the same."""
    rnd = random.Random(seed)
    bounds = polygon.bounds()
    assume(abs(bounds.south) < 90 and abs(bounds.north) < 90 and bounds.width < 360)
    beside = [0.0, 1e-15, -1e-15, 1e-9, -1e-9]
    for lat, long in [*probes(polygon, rnd), *((lat, long) for long, lat in polygon.points)]:
        lat, long = valid(lat + rnd.choice(beside), long + rnd.choice(beside))
        assert polygon.contains(lat, long) == by_every_edge(polygon, lat, long), (lat, long)


@thorough
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


@pytest.mark.parametrize("turns", [2, 3, 66])
def test_polygon_more_than_once_round_a_pole(turns: int) -> None:
    """A ring of many turns is no area anyone draws, and to hold it costs a copy of all its edges for each turn."""
    ring = tuple((wrapped(120.0 * step), 89.5) for step in range(3 * turns))
    back = tuple((wrapped(-120.0 * step), 89.4) for step in range(3 * turns))
    for points in (ring, back, ring + back):
        with pytest.raises(ProtocolError, match="around a pole more than once") as caught:
            Polygon(points)
        assert caught.value.code is ErrorCode.INVALID_AREA


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
    """An invalid area must be refused with its value, not fail or loop later in a cover."""
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


@thorough
@given(areas, st.integers(0, 2**32))
def test_bounds_hold_the_area(area: Area, seed: int) -> None:
    """Whatever is inside is inside the bounds, or a size limit would be checked against too small a box."""
    bounds = area.bounds()
    for lat, long in probes(area, random.Random(seed)):
        if area.contains(lat, long) and abs(long) < 180:
            assert bounds.contains(lat, long)


@thorough
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
