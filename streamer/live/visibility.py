"""Which live vendors customers may see at all. Pure."""

from __future__ import annotations

from typing import NamedTuple

from streamer.live.vendor import Card


class Visibility(NamedTuple):
    """Whether customers see vendors that are closed, and vendors that went offline but have not left the map yet."""

    closed: bool = True
    offline: bool = True

    def allows(self, card: Card, online: bool) -> bool:
        """Returns whether customers may see a vendor. A hidden one stays off every map until it opens."""
        return (card.open or (self.closed and not card.hidden)) and (online or self.offline)
