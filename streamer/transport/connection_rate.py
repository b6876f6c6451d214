"""Decides how fast clients are admitted and sent away, so that a reconnect storm does not slow connected ones. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import NamedTuple

MIN_RECONNECT_MS = 100
"""No client is asked to be back earlier: it has to close its connection first."""
BURST = 0.2
"""Seconds' worth of clients that are admitted at once after a quiet time."""
LATE = 0.05
"""Seconds of event-loop lag up to which clients are admitted at the full rate."""
MAX_SLOWDOWN = 10.0
"""Maximum factor by which admission slows down while the event loop is late."""
MAX_RETRY = 60.0
"""Longest time, in seconds, that a refused client is asked to stay away."""


class Departure(NamedTuple):
    """When a client is asked to leave, seconds from now, and after how many milliseconds it should come back."""

    after: float
    reconnect_ms: int


def departures(count: int, rate: float, within: float) -> Iterator[Departure]:
    """Spread the departure of `count` clients so that `rate` a second arrive elsewhere.

    Each client is served until its turn. Clients whose turn comes after `within` seconds are asked to leave
    then, and to come back in their turn.
    """
    for number in range(count):
        turn = number / rate
        after = min(turn, within)
        yield Departure(after, MIN_RECONNECT_MS + round((turn - after) * 1000))


class ConnectionRate:
    """Admits `rate` clients per second in the order of arrival; none waits longer than `max_wait` seconds.

    While the event loop lags it admits fewer, down to a tenth: connected clients come first.
    """

    def __init__(self, rate: float, max_wait: float) -> None:
        self.rate = rate
        self.max_wait = max_wait
        self.refused = 0
        self._early = max(1.0, rate * BURST) / rate
        self._next = self._retry = -inf

    def wait(self, now: float, lag: float = 0.0) -> float | None:
        """Return the seconds after which a client that arrives now is admitted; None when too many wait already.

        Args:
            now: seconds of a steady clock.
            lag: seconds that the event loop is late.
        """
        turn = max(self._next, now - self._early)
        if turn - now > self.max_wait:
            self.refused += 1
            return None
        self._next = turn + min(max(1.0, lag / LATE), MAX_SLOWDOWN) / self.rate
        return max(0.0, turn - now)

    def retry_after(self, now: float) -> float:
        """Return the seconds after which a refused client should retry: after those that wait already."""
        self._retry = min(max(self._retry, self._next) + 1 / self.rate, now + MAX_RETRY)
        return self._retry - now
