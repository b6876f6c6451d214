"""The vendors this process serves: their open sockets, and the changes to publish to other processes. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from streamer.clocks import CLOCK_TOLERANCE
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.vendor import Card, Presence, Vendor


class Part:
    """The parts of a vendor that must be written to Redis: bits of an int, as an enum is ten times slower."""

    FIX: Final = 1
    CARD: Final = 2
    PRESENCE: Final = 4
    HTTP: Final = 8
    CLAIM: Final = 16
    """This process begins to serve the vendor: its previous cell must be looked up."""
    ALL: Final = 31


class LocalVendors:
    """Puts this process's vendors into the live index.

    Args:
        mark: Called with a vendor's id and the parts to publish to other processes.
        changed: Called when the index changed.
    """

    def __init__(self, index: LiveIndex, mark: Callable[[str, int], None], changed: Callable[[], None]) -> None:
        self.index = index
        self.sockets: dict[str, int] = {}
        """Open sockets per vendor served; 0 for one that was served and has not left the map yet."""
        self.shows: Callable[[str, Fix], bool] | None = None
        """Returns whether a fix is shown at once; None: each is."""
        self._reported: dict[str, int] = {}
        self._mark = mark
        self._changed = changed

    def __contains__(self, vendor_id: object) -> bool:
        return vendor_id in self.sockets

    def connect(self, vendor_id: str, card: Card, now: int) -> None:
        """Counts a vendor's socket that opened."""
        self.sockets[vendor_id] = self.sockets.get(vendor_id, 0) + 1
        self.index.put_card(vendor_id, card, now)
        self.claim(vendor_id, now)
        self._mark(vendor_id, Part.ALL)
        self._changed()

    def disconnect(self, vendor_id: str, now: int) -> None:
        """Counts a vendor's socket that ended; the last one starts the time after which the vendor is offline."""
        count = self.sockets.get(vendor_id, 0)
        if count == 0:
            return  # deleted meanwhile
        self.sockets[vendor_id] = count - 1
        if count > 1:
            return
        vendor = self.index.vendors.get(vendor_id)
        if vendor is None:
            self.release(vendor_id)  # not on the map any more, so it will not expire
            return
        if vendor.presence.owner != self.index.me:
            return
        self.index.put_presence(vendor_id, Presence(vendor.presence.since, self.index.me, now), now)
        self._mark(vendor_id, Part.PRESENCE)
        self._changed()

    def take_over(self, vendor_id: str, now: int) -> None:
        """Claims a vendor again that has a socket open here while its newest connection, on another process, ended."""
        if self.sockets.get(vendor_id, 0) > 0:
            self.claim(vendor_id, now)
            self._mark(vendor_id, Part.ALL)

    def adopt(self, vendor: Vendor, now: int) -> None:
        """Serves a vendor without a connection until it leaves the map: its process ended, and Redis lost it."""
        # Of several processes that do so, all choose the same one; a newer connection to any process wins.
        presence = Presence(vendor.presence.since + 1, self.index.me, self.index.last_seen(vendor))
        self.sockets[vendor.vendor_id] = 0
        self.index.put_presence(vendor.vendor_id, presence, now)
        self._mark(vendor.vendor_id, Part.ALL)
        self._changed()

    def superseded(self, vendor_id: str) -> bool:
        """Returns whether no socket is open here and the newest connection or HTTP ping is another process's."""
        vendor = self.index.vendors.get(vendor_id)
        return (
            self.sockets.get(vendor_id) == 0
            and vendor is not None
            and vendor.presence.owner != self.index.me
            and not 0 < vendor.http <= self._reported.get(vendor_id, 0)
        )

    def release(self, vendor_id: str) -> None:
        """Stops serving a vendor."""
        self.sockets.pop(vendor_id, None)
        self._reported.pop(vendor_id, None)
        if (vendor := self.index.vendors.get(vendor_id)) is not None:
            self.index.note_count(vendor)

    def serves(self, vendor: Vendor) -> bool:
        """Returns whether this process counts the vendor, as it has the newest connection or HTTP ping of all."""
        presence = vendor.presence
        if presence.owner and not presence.ended:
            return presence.owner == self.index.me
        if vendor.http > presence.ended:
            return vendor.http <= self._reported.get(vendor.vendor_id, 0)
        return presence.owner == self.index.me

    def claim(self, vendor_id: str, now: int) -> None:
        """Makes this process the vendor's newest owner, even if its clock is behind that of the owner before."""
        vendor = self.index.vendors.get(vendor_id)
        since = now if vendor is None else max(now, vendor.presence.since + 1)
        self.index.put_presence(vendor_id, Presence(since, self.index.me, 0), now)

    def fix(self, vendor_id: str, fix: Fix, now: int) -> None:
        """Shows the newest fix of a vendor served here, if its plan allows it."""
        if fix.timestamp > now + CLOCK_TOLERANCE:  # a smaller difference may be due to servers' clocks
            fix = fix._replace(ahead=fix.timestamp - self._version(vendor_id, fix.timestamp, now))
        if self.shows is None or self.shows(vendor_id, fix):
            self.show(vendor_id, fix, now)

    def _version(self, vendor_id: str, timestamp: int, now: int) -> int:
        """Returns the version of a fix that is ahead: its arrival, and not before that of an older fix held."""
        vendor = self.index.vendors.get(vendor_id)
        if vendor is None or vendor.fix.timestamp >= timestamp:
            return now
        # An older fix that was just within the tolerance has its timestamp as its version.
        held = vendor.fix.version
        return held if now < held <= now + CLOCK_TOLERANCE else now

    def show(self, vendor_id: str, fix: Fix, now: int) -> None:
        """Shows a fix of a vendor served here; of two with the same timestamp, the first to arrive."""
        vendor = self.index.vendors.get(vendor_id)
        if vendor is None or vendor.fix.timestamp != fix.timestamp:
            self._put(vendor_id, fix, now)

    def correct(self, vendor_id: str, timestamp: int, lat: float, long: float, now: int) -> None:
        """Shows the position that PostgreSQL stored for a timestamp, if another one is shown."""
        vendor = self.index.vendors.get(vendor_id)
        if vendor is None or vendor.fix.timestamp != timestamp:
            return
        shown = vendor.fix
        same = (shown.lat, shown.long) == (lat, long)
        heading, speed = (shown.heading, shown.speed) if same else (None, None)
        self._put(vendor_id, Fix(timestamp, lat, long, heading, speed, shown.ahead, stored=True), now)

    def _put(self, vendor_id: str, fix: Fix, now: int) -> None:
        if vendor_id in self.sockets and self.index.put_fix(vendor_id, fix, now):
            self._mark(vendor_id, Part.FIX)
            self._changed()

    def http(self, vendor_id: str, card: Card, now: int) -> None:
        """Records a report over HTTP: the vendor is online for a while, without a socket."""
        first = vendor_id not in self.sockets
        self.sockets.setdefault(vendor_id, 0)
        self.index.put_card(vendor_id, card, now)
        self.index.put_http(vendor_id, now, now)
        self._reported[vendor_id] = now
        if first:
            self.index.note_count(self.index.vendors[vendor_id])
        self._mark(vendor_id, Part.ALL if first else Part.HTTP)
        self._changed()

    def card(self, vendor_id: str, card: Card, now: int) -> None:
        """Shows a vendor's card, which may have changed; of two from the same millisecond, the later one."""
        held = self.index.vendors.get(vendor_id)
        if held is not None and held.card.version == card.version and held.card != card:
            card = card._replace(version=card.version + 1)
        if vendor_id in self.sockets and self.index.put_card(vendor_id, card, now):
            self._mark(vendor_id, Part.CARD)
            self._changed()

    def release_expired(self, vendor_id: str) -> bool:
        """Releases a vendor that expired; returns whether this process served it."""
        if self.sockets.get(vendor_id) == 0:
            self.release(vendor_id)
            return True
        return False

    def delete(self, vendor_id: str) -> None:
        """Removes a vendor that was deleted."""
        self.release(vendor_id)
        self.index.remove(vendor_id)
        self._changed()
