"""How fast clients come in and are sent away, so that a herd costs those who are in nothing. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

SOONEST_MS = 100
"""No client is asked to be back earlier: it has to close its connection first."""


class Farewell(NamedTuple):
    """When a client is told to go, seconds from now, and how many ms after that it is to come back."""

    after: float
    back_ms: int


def farewells(count: int, rate: float, within: float) -> Iterator[Farewell]:
    """How `count` clients leave so that `rate` a second arrive elsewhere, the last one told after `within` seconds.

    Each is served up to its own turn, so its map is wrong for a moment only. Where the time is too short for all, the
    rest is told at its end and comes back in its turn.
    """
    for number in range(count):
        turn = number / rate
        after = min(turn, within)
        yield Farewell(after, SOONEST_MS + round((turn - after) * 1000))
