"""The area of a watch: a circle, a box or a polygon within the limits. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from streamer.errors import ErrorCode, ProtocolError
from streamer.geo.shapes import Area, Box, Circle, Polygon
from streamer.protocol.bounds import Bounds
from streamer.protocol.fields import coordinates, position, shown


def decode_area(value: Any, bounds: Bounds, *, any_box: bool = False) -> Area:
    """Returns the area of a message; a longitude beyond ±180 is taken modulo 360.

    Args:
        any_box: Accept a box of any size, the world included.

    Raises:
        ProtocolError: It is no area, or larger than the bounds allow.
    """
    if type(value) is not dict:
        raise ProtocolError(ErrorCode.INVALID_AREA, f"an area must be an object, not {shown(value)}")
    kinds = [kind for kind in ("center", "ne", "polygon") if value.get(kind) is not None]
    if len(kinds) != 1 or (kinds == ["ne"]) != (value.get("sw") is not None):
        raise ProtocolError(
            ErrorCode.INVALID_AREA, f"an area is center and radius, ne and sw, or polygon, not {shown(value)}"
        )
    area: Area
    if kinds == ["center"]:
        area = _circle(value, bounds)
    elif kinds == ["ne"]:
        area = _box(value)
        if any_box:
            return area
    else:
        area = Polygon(_ring(value["polygon"], bounds))
    width, height = area.extent()
    if not isinstance(area, Circle) and max(width, height) > bounds.max_extent:
        raise ProtocolError(
            ErrorCode.AREA_TOO_LARGE,
            f"the area spans {width:.0f} m by {height:.0f} m; the limit is {bounds.max_extent:.0f} m either way",
        )
    return area


def area_source(area: Area) -> dict[str, Any]:
    """Returns an area as in a message; `decode_area` makes the same area of it."""
    if isinstance(area, Circle):
        return {"center": {"lat": area.lat, "long": area.long}, "radius": area.radius}
    if isinstance(area, Box):
        return {"ne": {"lat": area.north, "long": area.east}, "sw": {"lat": area.south, "long": area.west}}
    return {"polygon": [list(point) for point in area.points]}


def _circle(area: Mapping[str, Any], bounds: Bounds) -> Circle:
    lat, long = position(_corner(area, "center"), wrap=True)
    radius = area.get("radius")
    if radius is None:
        raise ProtocolError(ErrorCode.MISSING_FIELD, "radius is missing: a circle needs it, in metres")
    if type(radius) not in (int, float) or radius == inf:
        raise ProtocolError(ErrorCode.INVALID_AREA, f"radius must be a number of metres, not {shown(radius)}")
    if radius > bounds.max_radius:
        raise ProtocolError(
            ErrorCode.AREA_TOO_LARGE, f"radius is {shown(radius)} m; the limit is {bounds.max_radius:.0f} m"
        )
    return Circle(lat, long, float(radius))


def _box(area: Mapping[str, Any]) -> Box:
    ne, sw = _corner(area, "ne"), _corner(area, "sw")
    (north, east), (south, west) = position(ne, wrap=True), position(sw, wrap=True)
    if _longitude(ne) - _longitude(sw) >= 360:
        west, east = -180.0, 180.0
    return Box(south, west, north, east)


def _corner(area: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = area.get(name)
    if type(value) is not dict:
        raise ProtocolError(ErrorCode.INVALID_AREA, f"{name} must be an object with lat and long, not {shown(value)}")
    return value


def _longitude(corner: Mapping[str, Any]) -> float:
    """The longitude as it was sent."""
    return next(float(corner[name]) for name in ("long", "lng", "lon", "longitude") if corner.get(name) is not None)


def _ring(value: Any, bounds: Bounds) -> tuple[tuple[float, float], ...]:
    """The corners of a polygon as (long, lat), GeoJSON's order, without the closing one."""
    if type(value) is not list or len(value) < 3:
        raise ProtocolError(
            ErrorCode.INVALID_AREA, f"a polygon must be a list of 3 or more [long, lat], not {shown(value)}"
        )
    if len(value) <= bounds.max_vertices + 1:
        points = []
        for point in value:
            if type(point) is not list or len(point) < 2:
                raise ProtocolError(ErrorCode.INVALID_AREA, f"a vertex must be [long, lat], not {shown(point)}")
            lat, long = coordinates(point[1], point[0], wrap=True)
            points.append((long, lat))
        corners = points[:-1] if points[0] == points[-1] else points
        if len(corners) < 3:
            raise ProtocolError(
                ErrorCode.INVALID_AREA, f"a polygon needs 3 or more different vertices, not {shown(value)}"
            )
        if len(corners) <= bounds.max_vertices:
            return tuple(corners)
    raise ProtocolError(
        ErrorCode.AREA_TOO_LARGE, f"the polygon has {len(value)} vertices; the limit is {bounds.max_vertices}"
    )
