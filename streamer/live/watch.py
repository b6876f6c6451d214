"""One watch of one connection, and what it has not been sent yet. Pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, Protocol

from streamer.live.cell import EMPTY_DICT
from streamer.live.vendor import Vendor
from streamer.live.view import View, left_ids
from streamer.protocol.messages import update_body, update_head

ENTERED, UPSERTED, LEFT = 1, 2, 3


class Writer(Protocol):
    """Where a watch's frames go."""

    @property
    def framing(self) -> Callable[[bytes], bytes]:
        """Makes a frame of a message; the same function for all writers of a kind, so that they can share frames."""
        ...

    def ready(self) -> bool:
        """Returns whether the client has taken all it was sent."""
        ...

    def write(self, frame: bytes) -> None:
        """Sends a frame without waiting."""
        ...


class Payer(Protocol):
    """The client that a watch is served for: what its watches may cost. Seconds of CPU time and of waiting."""

    def charge(self, seconds: float) -> float:
        """Charges what a watch cost; returns for how long it must rest, 0 if it may go on."""
        ...

    def excess(self) -> float:
        """Returns for how much longer a watch that rests must do so."""
        ...

    def slowed(self, watch_id: str, seconds: float) -> None:
        """Tells the client that a watch rests."""
        ...


class FrameKind(NamedTuple):
    """What two watches of one view must have in common for their frames to be the same bytes."""

    head: bytes
    framing: Callable[[bytes], bytes]

    def frame(self, body: bytes) -> bytes:
        """Returns an update as a frame."""
        return self.framing(self.head + body)


@lru_cache(1024)
def frame_kind(id: str, framing: Callable[[bytes], bytes]) -> FrameKind:
    """Returns the same object for the same kind: most apps name their watch alike."""
    return FrameKind(update_head(id), framing)


class Watch:
    """One watch. While it is behind its view, it keeps merged what it has not been sent."""

    __slots__ = (
        "behind",
        "due",
        "events",
        "fresh",
        "id",
        "interval",
        "kind",
        "moved",
        "payer",
        "rest",
        "snapshot_due",
        "view",
        "writer",
    )

    def __init__(self, id: str, writer: Writer, interval: int = 0, payer: Payer | None = None) -> None:
        self.id = id
        self.writer = writer
        self.payer = payer
        """Who is charged for what it costs; None: nobody."""
        self.interval = interval
        """Milliseconds between two updates at least."""
        self.kind = frame_kind(id, writer.framing)
        self.view: View | None = None
        self.due = 0
        """When the interval has passed, epoch ms; further ahead than that if the clock was set back."""
        self.behind = False
        self.snapshot_due = False
        self.fresh: tuple[frozenset[Vendor], frozenset[Vendor]] | None = None
        """After a snapshot between two ticks: vendors whose change the snapshot knew, and those of them it held."""
        self.events: dict[Vendor, int] = EMPTY_DICT
        self.moved: dict[Vendor, None] = EMPTY_DICT
        self.rest: dict[Vendor, None] = EMPTY_DICT
        """Vendors of a large snapshot that were not looked at yet; those of its view come as entered."""

    def held(self, now: int) -> bool:
        """Returns whether the interval since the last update has not passed yet."""
        return now < self.due <= now + self.interval

    def begin_merge(self) -> None:
        """Prepares for changes to be merged."""
        if self.events is EMPTY_DICT:
            self.events, self.moved = {}, {}

    def enter(self, vendor: Vendor) -> None:
        """Merges: the vendor came into the view."""
        self.rest.pop(vendor, None)
        self.events[vendor] = UPSERTED if self.events.get(vendor) == LEFT else ENTERED

    def upsert(self, vendor: Vendor) -> None:
        """Merges: the vendor's card changed."""
        if vendor not in self.rest:
            self.events.setdefault(vendor, UPSERTED)

    def leave(self, vendor: Vendor) -> None:
        """Merges: the vendor left; not reported if the client never had it."""
        self.moved.pop(vendor, None)
        if vendor in self.rest:
            del self.rest[vendor]
        elif self.events.get(vendor) == ENTERED:
            del self.events[vendor]
        else:
            self.events[vendor] = LEFT

    def merge(self, view: View) -> None:
        """Merges all that the current tick changes for the view."""
        self.begin_merge()
        for cell in view.moved_cells:
            moved = cell.moved or ()
            self.moved.update(dict.fromkeys([v for v in moved if v.card.open] if view.only_open else moved))
        self.moved.update(dict.fromkeys(view.moved))
        for vendor in view.entered:
            self.enter(vendor)
        for vendor in view.card_changed:
            self.upsert(vendor)
        for vendor in view.left:
            self.leave(vendor)

    def drop_pending(self) -> None:
        """Forgets what was not sent: a snapshot will contain it."""
        self.events = self.moved = self.rest = EMPTY_DICT
        self.fresh = None

    def take_pending(self, limit: int) -> tuple[bytes, int] | None:
        """Returns the merged update after its id and the positions in it, and forgets it; None when there is none.

        Args:
            limit: How many vendors of `rest` are looked at; the others stay.
        """
        events, rest = self.events, self.rest
        entered = [vendor for vendor, kind in events.items() if kind != LEFT]
        left = left_ids((vendor for vendor, kind in events.items() if kind == LEFT), entered)
        moved = [vendor.fix_bytes() for vendor in self.moved if vendor not in events and vendor not in rest]
        if rest:
            assert self.view is not None
            holds = self.view.key.holds
            entered += [v for v in [rest.popitem()[0] for _ in range(min(limit, len(rest)))] if holds(v)]
            self.rest = rest or EMPTY_DICT
        self.events = self.moved = EMPTY_DICT
        if not (entered or left or moved):
            return None
        return update_body([vendor.card_bytes() for vendor in entered], moved, left), len(entered) + len(moved)
