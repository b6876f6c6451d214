"""How fast clients come in and are sent away, so that a herd costs those who are in nothing. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import NamedTuple

SOONEST_MS = 100
"""No client is asked to be back earlier: it has to close its connection first."""
BURST = 0.2
"""Seconds' worth of clients that get in at once after a quiet time."""
LATE = 0.05
SLOWEST = 10.0
"""Seconds that the loop may be late with no clients being held back for it; beyond that they get in so much slower."""
LATEST = 60.0
"""Seconds beyond which nobody is told to stay away."""


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


class Admission:
    """Lets `rate` a second in, in the order of arrival. Nobody waits longer than `most_wait` seconds.

    While the event loop is late it lets in less, down to a tenth: those who are in come first.
    """

    def __init__(self, rate: float, most_wait: float) -> None:
        self.rate = rate
        self.most_wait = most_wait
        self.admitted = 0
        self.refused = 0
        self._early = max(1.0, rate * BURST) / rate
        self._next = self._later = -inf

    def turn(self, now: float, late: float = 0.0) -> float | None:
        """Seconds until one who comes now may go in; None when too many wait already: then `later`.

        `late`: how many seconds the event loop is behind.
        """
        turn = max(self._next, now - self._early)
        if turn - now > self.most_wait:
            self.refused += 1
            return None
        self._next = turn + min(max(1.0, late / LATE), SLOWEST) / self.rate
        self.admitted += 1
        return max(0.0, turn - now)

    def later(self, now: float) -> float:
        """Seconds after which one who was refused should come again: a turn of its own behind those who wait."""
        self._later = min(max(self._later, self._next) + 1 / self.rate, now + LATEST)
        return self._later - now
