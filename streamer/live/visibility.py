"""Which live vendors customers see, and how exactly. Pure."""

from __future__ import annotations

from typing import NamedTuple

from streamer.geo.grid import BUS_LEVEL, cell, cell_bounds, level_of, parent
from streamer.live.fix import Fix
from streamer.live.vendor import Card


class Visibility(NamedTuple):
    """Whether customers see vendors that are closed, and vendors that went offline but have not left the map yet."""

    closed: bool = True
    offline: bool = True
    closed_level: int | None = None
    """Closed vendors are shown in the middle of their cell of this level of the grid; None: at their position."""

    @classmethod
    def of(cls, closed: str, offline: str, metres: float) -> Visibility:
        """Returns the visibility of the settings; `metres` is the grid of closed vendors if `closed` is `coarse`."""
        return cls(closed != "no", offline == "yes", level_of(metres) if closed == "coarse" else None)

    def shown(self, fix: Fix, card: Card) -> Fix:
        """Returns the fix that customers see of a vendor."""
        return fix if self.closed_level is None or card.open else self.coarse(fix)

    def coarse(self, fix: Fix) -> Fix:
        """Returns a fix in the middle of its cell, without heading and speed."""
        lat, long = self.coarse_position(fix.lat, fix.long)
        return Fix(fix.timestamp, lat, long, None, None, fix.ahead, fix.stored)

    def coarse_position(self, lat: float, long: float) -> tuple[float, float]:
        """Returns the middle of the cell of a position; the position itself where closed vendors are shown exactly."""
        if self.closed_level is None:
            return lat, long
        # A cell of this level is within one that names a channel, so the same processes receive both positions.
        assert self.closed_level <= BUS_LEVEL
        south, west, north, east = cell_bounds(parent(cell(lat, long), self.closed_level), self.closed_level)
        return round((south + north) / 2, 6), round((west + east) / 2, 6)

    def allows(self, card: Card, online: bool) -> bool:
        """Returns whether customers may see a vendor. A hidden one stays off every map until it opens."""
        return (card.open or (self.closed and not card.hidden)) and (online or self.offline)
