"""The shapes of the protocol that an app meets. Degrees (WGS 84), metres, m/s, epoch milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict


class Position(TypedDict):
    """A place."""

    lat: float
    long: float


class Circle(TypedDict):
    """All within `radius` metres."""

    center: Position
    radius: float


class Box(TypedDict):
    """From the south-west to the north-east corner, edges included."""

    ne: Position
    sw: Position


class Polygon(TypedDict):
    """Corners as (long, lat), closed or not."""

    polygon: Sequence[tuple[float, float]]


Area = Circle | Box | Polygon


class Card(TypedDict):
    """A vendor as customers see it. `online`: its app is connected, or was a minute ago."""

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
    """The server's greeting to a vendor app; `durable` is the `timestamp` of its newest stored ping."""

    vendorId: str
    time: int
    durable: int | None
    maxBatch: int


class Group(TypedDict):
    """Vendors near each other, as a watch of counts shows them; `lat`, `long` are the mean of their positions."""

    group: str
    lat: float
    long: float
    count: int
    open: int
    online: int
