"""Areas that customers watch: a wrong one would show the wrong vendors, or cost the server without limit."""

from __future__ import annotations

import math
from typing import Any

import pytest

from streamer.errors import ErrorCode, ProtocolError
from streamer.geo.shapes import Box, Circle, Polygon
from streamer.protocol.areas import decode_area
from streamer.protocol.bounds import Bounds

CENTER = {"lat": 0, "long": 0}


def area(value: Any, bounds: Bounds = Bounds(), *, any_box: bool = False) -> Any:  # noqa: B008  # immutable
    return decode_area(value, bounds, any_box=any_box)


def test_areas() -> None:
    """Circles, boxes and polygons, also across the antimeridian; a polygon is closed or not."""
    assert area({"ne": {"lat": 1, "lng": -179.9}, "sw": {"lat": 0, "lng": 179.9}}) == Box(0.0, 179.9, 1.0, -179.9)
    ring = [[0, 0], [1, 0, 55], [0, 1]]
    assert (
        area({"polygon": ring}) == area({"polygon": [*ring, [0, 0]]}) == Polygon(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    )
    assert area({"center": {"lat": 90, "long": 0}, "radius": 0}) == Circle(90.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("long", "expected"), [(180.1, -179.9), (-180.5, 179.5), (381, 21), (-339, 21), (540.5, -179.5), (3621, 21)]
)
def test_wrapped_longitudes(long: float, expected: float) -> None:
    """Map libraries with wrapped worlds give longitudes beyond ±180 after a pan round the globe."""
    assert area({"center": {"lat": 1, "lng": long}, "radius": 5}).long == pytest.approx(expected)
    corners = [[long, 1], [long + 0.5, 1], [long, 1.5]]
    assert area({"polygon": corners}).contains(1.1, (expected + 180.1) % 360 - 180)
    box = area({"sw": {"lat": 0, "long": long}, "ne": {"lat": 1, "long": long + 1}})
    assert (box.west, box.contains(0.5, (expected + 180.5) % 360 - 180)) == (pytest.approx(expected), True)


@pytest.mark.parametrize(("west", "east"), [(-180, 180), (-190, 190), (-540.5, 540), (0, 360), (170, 530)])
def test_a_box_wider_than_the_world(west: float, east: float) -> None:
    """A map zoomed out shows the world more than once: its box holds every longitude, not what is left modulo 360."""
    world = {"sw": {"lat": -85, "long": west}, "ne": {"lat": 85, "long": east}}
    assert area(world, any_box=True) == Box(-85.0, -180.0, 85.0, 180.0)
    with pytest.raises(ProtocolError) as wrong:
        area(world)
    assert wrong.value.code is ErrorCode.AREA_TOO_LARGE


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (7, ErrorCode.INVALID_AREA),
        ([], ErrorCode.INVALID_AREA),
        (True, ErrorCode.INVALID_AREA),
        ({}, ErrorCode.INVALID_AREA),
        ({"center": None, "radius": 5}, ErrorCode.INVALID_AREA),
        ({"radius": 5}, ErrorCode.INVALID_AREA),
        ({"center": CENTER, "ne": CENTER, "sw": CENTER}, ErrorCode.INVALID_AREA),
        ({"center": CENTER, "radius": 5, "sw": CENTER}, ErrorCode.INVALID_AREA),
        ({"ne": CENTER}, ErrorCode.INVALID_AREA),
        ({"sw": CENTER}, ErrorCode.INVALID_AREA),
        ({"center": [0, 0], "radius": 5}, ErrorCode.INVALID_AREA),
        ({"center": CENTER}, ErrorCode.MISSING_FIELD),
        ({"center": {"lat": 0}, "radius": 5}, ErrorCode.MISSING_FIELD),
        ({"center": {"lat": 91, "long": 0}, "radius": 5}, ErrorCode.INVALID_COORDINATES),
        ({"center": {"lat": True, "long": 0}, "radius": 5}, ErrorCode.INVALID_COORDINATES),
        ({"center": CENTER, "radius": -1}, ErrorCode.INVALID_AREA),
        ({"center": CENTER, "radius": True}, ErrorCode.INVALID_AREA),
        ({"center": CENTER, "radius": "5"}, ErrorCode.INVALID_AREA),
        ({"center": CENTER, "radius": 100_000.1}, ErrorCode.AREA_TOO_LARGE),
        ({"center": CENTER, "radius": 1e308}, ErrorCode.AREA_TOO_LARGE),
        ({"ne": {"lat": 0, "long": 1}, "sw": {"lat": 1, "long": 0}}, ErrorCode.INVALID_AREA),
        ({"ne": {"lat": 2, "long": 0}, "sw": CENTER}, ErrorCode.AREA_TOO_LARGE),
        ({"ne": {"lat": 0, "long": 2}, "sw": CENTER}, ErrorCode.AREA_TOO_LARGE),
        ({"ne": CENTER, "sw": {"lat": 0, "long": 1}}, ErrorCode.AREA_TOO_LARGE),  # all the way round
        ({"polygon": {}}, ErrorCode.INVALID_AREA),
        ({"polygon": []}, ErrorCode.INVALID_AREA),
        ({"polygon": [[0, 0], [1, 1]]}, ErrorCode.INVALID_AREA),
        ({"polygon": [[0, 0], [1, 1], [0, 0]]}, ErrorCode.INVALID_AREA),
        ({"polygon": [[0, 0], [1, 1], 7]}, ErrorCode.INVALID_AREA),
        ({"polygon": [[0, 0], [1, 1], [2]]}, ErrorCode.INVALID_AREA),
        ({"polygon": [[0, 0], [1, 1], CENTER]}, ErrorCode.INVALID_AREA),
        ({"polygon": [[0, 0], [1, 1], [0, 91]]}, ErrorCode.INVALID_COORDINATES),
        ({"polygon": [[0, 0], [1, 1], [0, None]]}, ErrorCode.INVALID_COORDINATES),
        ({"polygon": [[0, 0], [0, 3], [1, 1]]}, ErrorCode.AREA_TOO_LARGE),
        ({"polygon": [[0, 0], [0, 1], [1, 1]] * 67}, ErrorCode.AREA_TOO_LARGE),
        ({"polygon": [[0, 0], [0, 1], [1, 1]] * 100}, ErrorCode.AREA_TOO_LARGE),
        ({"polygon": [[-120, 89.9], [0, 89.9], [120, 89.9]]}, None),
    ],
)
def test_invalid_area(value: Any, code: ErrorCode | None) -> None:
    """An area that is none, or too large, is refused with what is wrong about it."""
    if code is None:
        assert area(value).contains(90.0, 0.0)
        return
    with pytest.raises(ProtocolError) as wrong:
        area(value)
    assert wrong.value.code is code


def test_as_many_vertices_as_allowed() -> None:
    """The bound counts corners, whether or not the ring is closed."""
    ring = [[math.cos(n / 100 * math.pi), math.sin(n / 100 * math.pi)] for n in range(200)]
    wide = Bounds(max_extent=1e6)
    assert area({"polygon": ring}, wide) == area({"polygon": [*ring, ring[0]]}, wide)
    with pytest.raises(ProtocolError, match="201 vertices"):
        area({"polygon": [*ring, [0, 0]]}, wide)
