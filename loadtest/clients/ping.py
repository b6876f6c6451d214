"""One position that a load test's vendor reports."""

from __future__ import annotations

from typing import NamedTuple


class Ping(NamedTuple):
    """As the client's own, and when it was due to be sent (`due`, epoch ms). `timestamp` ms, degrees, m/s, metres."""

    timestamp: int
    lat: float
    long: float
    due: int
    heading: float | None = None
    speed: float | None = None
    accuracy: float | None = None
