"""One vendor's state: its fix, card and presence, and their encoded forms. Pure.

The three are registers in which the newest wins, so states merge in any order from any process: the fix by its
timestamp, the card by its version, the presence by the start of the newest connection. Times are epoch milliseconds.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from streamer.live.fix import Fix
from streamer.protocol.messages import dumps, encode_card, encode_fix


class Card(NamedTuple):
    """What customers see of a vendor besides its fix; `version` is the epoch ms at which this was read."""

    version: int
    name: str
    open: bool
    primary_image: str | None
    hidden: bool = False
    """Off every map while it is closed, at its own request."""

    def register(self, vendor_id: str) -> bytes:
        """The JSON of Redis messages and hashes; of two with the same version the greater bytes win."""
        return dumps((vendor_id, *self))


class Presence(NamedTuple):
    """The newest connection of a vendor: which process serves it, since when, and when it ended (0: it is open)."""

    since: int
    owner: str
    ended: int


NO_FIX = Fix(-1, 0.0, 0.0)
NO_CARD = Card(-1, "", True, None)
NO_PRESENCE = Presence(0, "", 0)


class Vendor:
    """One vendor's state as this process knows it."""

    __slots__ = (
        "_card_bytes",
        "_fix_bytes",
        "born",
        "card",
        "card_changed",
        "cell",
        "deadline",
        "fix",
        "http",
        "live",
        "online",
        "presence",
        "shown",
        "vendor_id",
    )

    def __init__(self, vendor_id: str, now: int) -> None:
        self.vendor_id = vendor_id
        self.born = now
        self.fix = NO_FIX
        self.shown = NO_FIX
        """The position that customers see: the fix, or a coarse one while it is closed."""
        self.card = NO_CARD
        self.presence = NO_PRESENCE
        self.http = 0
        """When it last reported over HTTP; 0: never."""
        self.live = False
        self.online = False
        self.card_changed = False
        """What the card shows, online included, changed since the last tick."""
        self.cell = -1
        """Of the finest grid."""
        self.deadline = 0
        """When `LiveIndex.expire` checks it next; 0: not scheduled."""
        self._fix_bytes: bytes | None = None
        self._card_bytes: bytes | None = None

    @property
    def known(self) -> bool:
        """Whether its fix and card are known."""
        return self.fix.timestamp >= 0 and self.card.version >= 0

    @property
    def timestamp(self) -> int:
        """The timestamp of its fix; -1: not known."""
        return self.fix.timestamp

    def fix_bytes(self) -> bytes:
        """Returns the fix as JSON, encoded once for all watchers."""
        if self._fix_bytes is None:
            fix = self.shown
            self._fix_bytes = encode_fix(self.vendor_id, fix.lat, fix.long, fix.timestamp, fix.heading, fix.speed)
        return self._fix_bytes

    def card_bytes(self) -> bytes:
        """Returns the card as JSON, encoded once for all watchers."""
        if self._card_bytes is None:
            self._card_bytes = encode_card(self.card_fields())
        return self._card_bytes

    def card_fields(self, *, exact: bool = False) -> dict[str, Any]:
        """Returns the card of the wire contract, as customers see it, or `exact` for its owner."""
        fix = self.fix if exact else self.shown
        fields: dict[str, Any] = {
            "vendorId": self.vendor_id,
            "name": self.card.name,
            "open": self.card.open,
            "primaryImage": self.card.primary_image,
            "lat": fix.lat,
            "long": fix.long,
            "timestamp": fix.timestamp,
        }
        if fix.heading is not None:
            fields["heading"] = fix.heading
        if fix.speed is not None:
            fields["speed"] = fix.speed
        fields["online"] = self.online
        return fields

    def forget_encoded(self) -> None:
        """Drops the encoded forms after the state changed."""
        self._fix_bytes = self._card_bytes = None


Before: TypeAlias = tuple[bool, Fix, int, bool]
"""A vendor as of the last tick: live, fix, cell, open."""


class Owner:
    """A server process that serves vendors, as known to this process."""

    __slots__ = ("heard", "lost", "vendors")

    def __init__(self, heard: int) -> None:
        self.heard = heard
        self.lost = False
        """Whether it has been silent for so long that its vendors count as offline."""
        self.vendors: set[Vendor] = set()
