"""One watch of one connection, and the changes that were not sent to it yet. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple, Protocol

from streamer.live.cell import EMPTY_DICT, Cell
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
    """The client that pays for a watch. Arguments are seconds of CPU time, results seconds to wait."""

    def charge(self, seconds: float) -> float:
        """Charges a watch's CPU time; returns for how long it must rest, 0 if it need not."""
        ...

    def excess(self) -> float:
        """Returns after how long a watch that rests may get a snapshot."""
        ...

    def charge_rest(self, seconds: float) -> None:
        """Charges a snapshot of a watch that rests."""
        ...

    def calm(self) -> bool:
        """Returns whether watches that rest may get updates again."""
        ...

    def slowed(self, watch_id: str, seconds: float) -> None:
        """Tells the client that a watch rests."""
        ...


class FrameKind(NamedTuple):
    """Watches of one view with the same kind get the same frames, byte for byte."""

    head: bytes
    framing: Callable[[bytes], bytes]

    def frame(self, body: bytes) -> bytes:
        """Returns an update as a frame."""
        return self.framing(self.head + body)


@lru_cache(1024)
def frame_kind(id: str, framing: Callable[[bytes], bytes]) -> FrameKind:
    """Returns the same object for the same kind, as most apps use the same id."""
    return FrameKind(update_head(id), framing)


class Rest:
    """The unsent part of a large snapshot: vendors that were not tested yet, and cells with more of them."""

    __slots__ = ("cells", "held", "vendors")

    def __init__(self, vendors: list[Vendor], cells: list[Cell]) -> None:
        self.vendors = vendors
        self.cells = cells
        self.held: set[Vendor] = set()
        """The vendors that the client holds, or will hold once it has read what was written."""

    def take(self, count: int) -> list[Vendor]:
        """Returns the next `count` vendors to be tested."""
        while self.cells and len(self.vendors) < count:
            self.vendors.extend(self.cells.pop().vendors)
        some = self.vendors[-count:]
        del self.vendors[-count:]
        return some


class Watch:
    """One watch. While it is behind its view, it keeps the unsent changes, merged."""

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
        """The client that is charged for it; None: nobody."""
        self.interval = interval
        """Minimum milliseconds between two updates."""
        self.kind = frame_kind(id, writer.framing)
        self.view: View | None = None
        self.due = 0
        """When the interval ends, epoch ms; further ahead than the interval if the clock was set back."""
        self.behind = False
        self.snapshot_due = False
        self.fresh: tuple[frozenset[Vendor], frozenset[Vendor]] | None = None
        """After a snapshot between two ticks: changed vendors that it took into account, and those it contained."""
        self.events: dict[Vendor, int] = EMPTY_DICT
        self.moved: dict[Vendor, None] = EMPTY_DICT
        self.rest: Rest | None = None
        """The unsent part of a large snapshot; its vendors are sent as entered."""

    def held(self, now: int) -> bool:
        """Returns whether the interval since the last update has not passed yet."""
        return now < self.due <= now + self.interval

    def begin_merge(self) -> None:
        """Prepares for changes to be merged."""
        if self.events is EMPTY_DICT:
            self.events, self.moved = {}, {}

    def enter(self, vendor: Vendor) -> None:
        """Merges: the vendor came into the view."""
        if self.rest is not None:
            self.rest.held.add(vendor)
        self.events[vendor] = UPSERTED if self.events.get(vendor) == LEFT else ENTERED

    def move(self, vendor: Vendor) -> None:
        """Merges: the vendor moved within the view."""
        if self.rest is None or vendor in self.rest.held:
            self.moved[vendor] = None
        else:
            self.enter(vendor)

    def upsert(self, vendor: Vendor) -> None:
        """Merges: the vendor's card changed."""
        if self.rest is None or vendor in self.rest.held:
            self.events.setdefault(vendor, UPSERTED)
        else:
            self.enter(vendor)

    def leave(self, vendor: Vendor) -> None:
        """Merges: the vendor left; not reported if the client never had it."""
        if self.rest is not None:
            if vendor not in self.rest.held:
                return
            self.rest.held.remove(vendor)
        self.moved.pop(vendor, None)
        if self.events.get(vendor) == ENTERED:
            del self.events[vendor]
        else:
            self.events[vendor] = LEFT

    def merge(self, view: View) -> None:
        """Merges all changes of the current tick for the view."""
        self.begin_merge()
        for cell in view.moved_cells:
            moved = cell.moved or ()
            self._move_all([v for v in moved if v.card.open] if view.only_open else moved)
        self._move_all(view.moved)
        for vendor in view.entered:
            self.enter(vendor)
        for vendor in view.card_changed:
            self.upsert(vendor)
        for vendor in view.left:
            self.leave(vendor)

    def _move_all(self, vendors: Iterable[Vendor]) -> None:
        if self.rest is None:
            self.moved.update(dict.fromkeys(vendors))
        else:
            for vendor in vendors:
                self.move(vendor)

    def drop_pending(self) -> None:
        """Discards the unsent changes: a snapshot will contain them."""
        self.events = self.moved = EMPTY_DICT
        self.rest = self.fresh = None

    def take_pending(self, limit: int) -> tuple[bytes, int] | None:
        """Returns the merged update after its id and the positions in it, and forgets it; None when there is none.

        Args:
            limit: How many vendors of `rest` are tested; the others stay.
        """
        events, rest = self.events, self.rest
        entered = [vendor for vendor, kind in events.items() if kind != LEFT]
        left = left_ids((vendor for vendor, kind in events.items() if kind == LEFT), entered)
        moved = [vendor.fix_bytes() for vendor in self.moved if vendor not in events]
        if rest is not None:
            assert self.view is not None
            holds = self.view.key.holds
            found = [vendor for vendor in rest.take(limit) if vendor not in rest.held and holds(vendor)]
            rest.held.update(found)
            entered += found
            if not (rest.vendors or rest.cells):
                self.rest = None
        self.events = self.moved = EMPTY_DICT
        if not (entered or left or moved):
            return None
        return update_body([vendor.card_bytes() for vendor in entered], moved, left), len(entered) + len(moved)
