"""The types of the protocol. Degrees (WGS 84), metres, m/s, epoch milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict


class Position(TypedDict):
    """A point."""

    lat: float
    long: float


class Circle(TypedDict):
    """A circle; `radius` in metres."""

    center: Position
    radius: float


class Box(TypedDict):
    """A box from the south-west to the north-east corner, edges included."""

    ne: Position
    sw: Position


class Polygon(TypedDict):
    """A polygon of (long, lat) corners, closed or not."""

    polygon: Sequence[tuple[float, float]]


Area = Circle | Box | Polygon


class Card(TypedDict):
    """A vendor as customers see it. `online`: its app is connected, or was within the last minute."""

    vendorId: str
    name: str
    open: bool
    primaryImage: str | None
    lat: float
    long: float
    timestamp: int
    online: bool
    heading: NotRequired[float]
    speed: NotRequired[float]


class Hello(TypedDict):
    """The server's first message to a vendor app; `durable` is the `timestamp` of its newest stored ping."""

    vendorId: str
    time: int
    durable: int | None
    maxBatch: int


class Group(TypedDict):
    """Vendors near each other, in a watch of counts; `lat` and `long` are their mean position."""

    group: str
    lat: float
    long: float
    count: int
    open: int
    online: int
