"""Areas and positions for property tests: everywhere on the globe, on edges, beside poles and the antimeridian."""

from __future__ import annotations

import math
import random
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st

from streamer.geo.shapes import EARTH_RADIUS, Area, Box, Circle, Polygon

# A slow machine is no fault of a rule.
thorough = settings(max_examples=200)

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
    count = draw(st.sampled_from([3, 4, 5, 8, 30, 120]))
    size = draw(sizes) / DEGREE
    kind = draw(st.sampled_from(["star", "scribble", "sliver", "zigzag", "polar", "lattice"]))
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
        elif kind == "zigzag":
            side = index % 2 * 2 - 1
            x, y = long + size * (side + index / count), lat + size * (side - index / count)
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
    """Positions about an area: within its bounds and beside them, at its corners and edge, at the poles and ±180."""
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


def toward(lat: float, long: float, bearing: float, metres: float) -> tuple[float, float]:
    """The position at this distance in metres from another, in a direction."""
    angle = metres / EARTH_RADIUS
    phi = math.radians(lat)
    to = math.asin(
        max(-1, min(1, math.sin(phi) * math.cos(angle) + math.cos(phi) * math.sin(angle) * math.cos(bearing)))
    )
    turn = math.atan2(
        math.sin(bearing) * math.sin(angle) * math.cos(phi), math.cos(angle) - math.sin(phi) * math.sin(to)
    )
    return math.degrees(to), long + math.degrees(turn)
