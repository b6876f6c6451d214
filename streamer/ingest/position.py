"""A stored position of a vendor, and the order of positions. Pure."""

from __future__ import annotations

from typing import NamedTuple, Self

from streamer.clocks import CLOCK_TOLERANCE


class Position(NamedTuple):
    """A vendor's position: epoch ms and degrees. The order is that of fixes (`live/fix.py`)."""

    timestamp: int
    lat: float
    long: float
    ahead: int = 0
    """Milliseconds by which the timestamp was beyond the tolerance of clocks when the ping arrived, 0 if it was not."""

    @property
    def version(self) -> int:
        """The order of positions: the timestamp, or the time of arrival if the timestamp was ahead."""
        return self.timestamp - self.ahead

    def after(self, held: Position) -> Self | None:
        """Returns the position that replaces the held one; None when the held one stays."""
        if self.version > held.version:
            return self
        if self.ahead and held.version - self.version <= CLOCK_TOLERANCE and self.timestamp > held.timestamp:
            # The held position was just within the tolerance, so its version is its timestamp.
            return self._replace(ahead=self.timestamp - held.version)
        return None


def arrived(timestamp: int, lat: float, long: float, now: int) -> Position:
    """Returns the position of a ping that arrived at `now`, epoch ms."""
    return Position(timestamp, lat, long, timestamp - now if timestamp > now + CLOCK_TOLERANCE else 0)
