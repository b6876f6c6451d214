"""The live index: which vendors are on the map, who watches them, and what entered, moved or left. Pure.

Changes go in (`put_fix`, `put_card`, `put_presence`, `put_http`, `remove`, `expire`); `tick` turns all changes since
the last tick into one frame per watcher. What a watcher holds is the truth of its last frame, a function of the
vendors' states then, so nothing is remembered per watcher and vendor:

- Watches of the same area share one `View`; its update is encoded once.
- A cell wholly inside an area needs no test: its moved vendors are joined once and shared by all views.
- A watch that can't be written to (or is paced by its interval) goes behind: then, and only then, it keeps the ids of
  what changed, merged, bounded by the vendors in its area.

A vendor's state is three registers, each the newest wins, so states merge in any order from any process: the fix (by
its timestamp), the card (by its version) and the presence (by the start of the newest connection). Times are epoch ms.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeAlias

from streamer.geo.grid import BUS_LEVEL, LEVELS, cell, cover, cover_level, parent
from streamer.geo.shapes import Area
from streamer.live.fix import Fix
from streamer.protocol.messages import encode_card, encode_fix, encode_snapshot, update_body, update_head


class Card(NamedTuple):
    """What a vendor's card shows besides where it is; `version` is the epoch ms at which this was read."""

    version: int
    name: str
    open: bool
    primary_image: str | None


class Presence(NamedTuple):
    """The newest connection of a vendor: which process serves it, since when, and when it ended (0: it is open)."""

    since: int
    owner: str
    ended: int


NEVER_CARD = Card(-1, "", True, None)
NEVER_PRESENT = Presence(0, "", 0)

Before: TypeAlias = tuple[bool, float, float, int, bool]
"""A vendor as of the last tick: live, lat, long, cell, open."""


class Vendor:
    """One vendor's state as this process knows it."""

    __slots__ = (
        "_card_bytes",
        "_fix_bytes",
        "ahead",
        "born",
        "card",
        "cell",
        "deadline",
        "heading",
        "http",
        "lat",
        "live",
        "long",
        "online",
        "presence",
        "recarded",
        "speed",
        "stored",
        "timestamp",
        "vendor_id",
    )

    def __init__(self, vendor_id: str, now: int) -> None:
        self.vendor_id = vendor_id
        self.born = now
        self.lat = self.long = 0.0
        self.timestamp = -1
        self.ahead = 0
        self.stored = False
        self.heading: float | None = None
        self.speed: float | None = None
        self.card = NEVER_CARD
        self.presence = NEVER_PRESENT
        self.http = 0
        self.live = self.online = self.recarded = False
        self.cell = -1
        # when `expire` will look at it next; 0: not by itself
        self.deadline = 0
        self._fix_bytes: bytes | None = None
        self._card_bytes: bytes | None = None

    @property
    def fix(self) -> Fix:
        """The newest fix."""
        return Fix(self.timestamp, self.lat, self.long, self.heading, self.speed, self.ahead, self.stored)

    def fix_bytes(self) -> bytes:
        """The fix as JSON, made once for all watchers."""
        if self._fix_bytes is None:
            self._fix_bytes = encode_fix(self.vendor_id, self.lat, self.long, self.timestamp, self.heading, self.speed)
        return self._fix_bytes

    def card_bytes(self) -> bytes:
        """The card as JSON, made once for all watchers."""
        if self._card_bytes is None:
            self._card_bytes = encode_card(self.card_fields())
        return self._card_bytes

    def card_fields(self) -> dict[str, Any]:
        """The card of the wire contract."""
        fields: dict[str, Any] = {
            "vendorId": self.vendor_id,
            "name": self.card.name,
            "open": self.card.open,
            "primaryImage": self.card.primary_image,
            "lat": self.lat,
            "long": self.long,
            "timestamp": self.timestamp,
        }
        if self.heading is not None:
            fields["heading"] = self.heading
        if self.speed is not None:
            fields["speed"] = self.speed
        fields["online"] = self.online
        return fields

    def stale(self) -> None:
        """Forget the encoded forms: the state changed."""
        self._fix_bytes = self._card_bytes = None


class Owner:
    """A server process that serves vendors, as far as this process hears of it."""

    __slots__ = ("heard", "lost", "vendors")

    def __init__(self, heard: int) -> None:
        self.heard = heard
        self.lost = False
        self.vendors: set[Vendor] = set()


class Outbox(Protocol):
    """Where a watcher's frames go; `ready` is false while the client has not taken what it was sent."""

    @property
    def framing(self) -> Callable[[bytes], bytes]: ...
    def ready(self) -> bool: ...
    def write(self, frame: bytes) -> None: ...


class ViewKey(NamedTuple):
    """What makes two watches see the same."""

    area: Area | None
    vendors: frozenset[str] | None
    open: bool


NOTHING: Any = {}
"""What is in an empty cell, and waits for most watches; never added to."""

NOBODY: list[Any] = []
"""What no vendor does in most ticks, and who watches most cells; never appended to."""


class Cell:
    """One grid cell: the vendors in it, and the views that touch it: those that hold all of it, and the others."""

    # There are eighty of these for an idle watcher, who may have them to himself. So views are in lists, a quarter of a
    # dict, in which one that ended stays until half of them have; and the empty list is shared, as is that of one view.
    __slots__ = ("_ended", "at", "joined", "joined_open", "rim", "stay", "vendors", "whole")

    def __init__(self, at: int) -> None:
        self.at = at
        self.vendors: dict[Vendor, None] = NOTHING
        self.whole: list[View] = NOBODY
        """Views that hold all of it, and some that ended."""
        self.rim: list[View] = NOBODY
        """Views that hold a part of it, and some that ended."""
        self._ended = 0
        # of the tick at hand: vendors that moved and stayed, and their fixes joined
        self.stay: list[Vendor] | None = None
        self.joined: bytes | None = None
        self.joined_open: bytes | None = None

    def put(self, vendor: Vendor) -> None:
        """The vendor is here."""
        if self.vendors:
            self.vendors[vendor] = None
        else:
            self.vendors = {vendor: None}

    def drop(self, vendor: Vendor) -> bool:
        """The vendor is not here any more; tells whether nothing is left."""
        self.vendors.pop(vendor, None)
        if not self.vendors:
            self.vendors = NOTHING
        return not (self.vendors or self.watched)

    @property
    def watched(self) -> bool:
        """Whether a view touches it."""
        return bool(self.whole or self.rim)

    def show(self, alone: list[View], whole: bool) -> None:
        """A view touches it; `alone` is the list of just that view, which its cells may share."""
        if whole:
            self.whole = with_one(self.whole, alone)
        else:
            self.rim = with_one(self.rim, alone)

    def hide(self) -> bool:
        """A view that touched it ended; tells whether nothing is left."""
        self._ended += 1
        if 2 * self._ended > len(self.whole) + len(self.rim):
            self._ended = 0
            self.whole = [view for view in self.whole if not view.ended] or NOBODY
            self.rim = [view for view in self.rim if not view.ended] or NOBODY
        return not (self.vendors or self.watched)

    def clear(self) -> None:
        """Forget the tick at hand."""
        self.stay = self.joined = self.joined_open = None

    def moved(self, only_open: bool) -> bytes:
        """The fixes of the vendors that moved within the cell, joined once a tick."""
        if only_open:
            if self.joined_open is None:
                self.joined_open = b",".join([v.fix_bytes() for v in self.stay or () if v.card.open])
            return self.joined_open
        if self.joined is None:
            self.joined = b",".join([v.fix_bytes() for v in self.stay or ()])
        return self.joined


def with_one(views: list[View], alone: list[View]) -> list[View]:
    """A cell's views and one more; a list of one may be shared, longer ones are the cell's own and grow."""
    if len(views) > 1:
        views += alone
        return views
    return views + alone if views else alone


SMALL = 1024
"""Bytes of an update up to which its positions are counted."""
COUNT_EVERY = 32


class View:
    """All watches of one area (or list) and filter, and what the tick at hand changes for them."""

    __slots__ = (
        "cards",
        "ended",
        "entered",
        "full",
        "key",
        "left",
        "level",
        "moved",
        "only_open",
        "stirred",
        "touched",
        "watches",
    )

    def __init__(self, key: ViewKey, level: int, touched: tuple[Cell, ...], full: int) -> None:
        self.key = key
        self.level = level
        """Of its grid."""
        self.only_open = key.open
        self.touched = touched
        """The cells that its area touches; none for a list."""
        self.full = full
        """So many of them, the first, are wholly inside."""
        self.ended = False
        """Nobody watches it any more."""
        self.watches: dict[Watch, None] = {}
        self.clear()

    def clear(self) -> None:
        """Forget the tick at hand."""
        self.stirred: list[Cell] | None = None
        self.moved = self.entered = self.cards = self.left = NOBODY

    def begin(self) -> None:
        """Something may have changed for it in the tick at hand."""
        if self.stirred is None:
            self.stirred = []
            self.moved, self.entered, self.cards, self.left = [], [], [], []

    def holds(self, vendor: Vendor) -> bool:
        """Whether the vendor is on this view's map now."""
        return vendor.live and self._shows(vendor, vendor.card.open, vendor.lat, vendor.long)

    def held(self, vendor: Vendor, before: Before) -> bool:
        """Whether the vendor was on this view's map at the last tick."""
        live, lat, long, _, was_open = before
        return live and self._shows(vendor, was_open, lat, long)

    def _shows(self, vendor: Vendor, is_open: bool, lat: float, long: float) -> bool:
        if self.only_open and not is_open:
            return False
        area, listed = self.key.area, self.key.vendors
        if area is None:
            assert listed is not None
            return vendor.vendor_id in listed
        return area.contains(lat, long)

    def body(self) -> bytes | None:
        """The update after its id, or None when nothing changed."""
        entered = [v.card_bytes() for v in self.entered]
        entered += [v.card_bytes() for v in self.cards]
        moved = [joined for at in self.stirred or () if (joined := at.moved(self.only_open))]
        moved += [v.fix_bytes() for v in self.moved]
        if not (entered or moved or self.left):
            return None
        return update_body(entered, moved, left_ids(self.left, self.entered))


def left_ids(left: Iterable[Vendor], entered: Iterable[Vendor]) -> list[str]:
    """Who left; not one who was deleted and came back meanwhile, whose new card replaces the old."""
    ids = [v.vendor_id for v in left]
    if ids:
        back = {v.vendor_id for v in entered}
        ids = [id for id in ids if id not in back]
    return ids


ENTERED, UPSERTED, LEFT = 1, 2, 3


class Kind(NamedTuple):
    """What two watches of one view must share for their frames to be the same bytes."""

    head: bytes
    framing: Callable[[bytes], bytes]

    def frame(self, body: bytes) -> bytes:
        """An update."""
        return self.framing(self.head + body)


@lru_cache(1024)
def kind_of(id: str, framing: Callable[[bytes], bytes]) -> Kind:
    """The same object for the same kind: most apps name their watch alike."""
    return Kind(update_head(id), framing)


class Watch:
    """One watch of one connection. Behind its view, it keeps merged what it has not been sent."""

    __slots__ = (
        "behind",
        "due",
        "events",
        "fresh",
        "id",
        "interval",
        "kind",
        "moved",
        "outbox",
        "snapshot_due",
        "view",
    )

    def __init__(self, id: str, outbox: Outbox, interval: int = 0) -> None:
        self.id = id
        self.outbox = outbox
        self.interval = interval
        self.kind = kind_of(id, outbox.framing)
        self.view: View | None = None
        self.due = 0
        self.behind = False
        self.snapshot_due = False
        # vendors whose change was already in a snapshot taken between two ticks, and those of them that it held
        self.fresh: tuple[frozenset[Vendor], frozenset[Vendor]] | None = None
        self.events: dict[Vendor, int] = NOTHING
        self.moved: dict[Vendor, None] = NOTHING
        """Nothing for most: what is merged is kept from `begin` on."""

    def begin(self) -> None:
        """Something is to be merged."""
        if self.events is NOTHING:
            self.events, self.moved = {}, {}

    def enter(self, vendor: Vendor) -> None:
        """Merge: the vendor came into the view."""
        self.events[vendor] = UPSERTED if self.events.get(vendor) == LEFT else ENTERED

    def upsert(self, vendor: Vendor) -> None:
        """Merge: the vendor's card changed."""
        self.events.setdefault(vendor, UPSERTED)

    def leave(self, vendor: Vendor) -> None:
        """Merge: the vendor left; the client is not told of one it never had."""
        self.moved.pop(vendor, None)
        if self.events.get(vendor) == ENTERED:
            del self.events[vendor]
        else:
            self.events[vendor] = LEFT

    def merge(self, view: View) -> None:
        """Take over what the tick at hand changes for the view."""
        self.begin()
        only_open = view.only_open
        for at in view.stirred or ():
            stay = at.stay or ()
            self.moved.update(dict.fromkeys([v for v in stay if v.card.open] if only_open else stay))
        self.moved.update(dict.fromkeys(view.moved))
        for vendor in view.entered:
            self.enter(vendor)
        for vendor in view.cards:
            self.upsert(vendor)
        for vendor in view.left:
            self.leave(vendor)

    def drop_pending(self) -> None:
        """Forget what was not sent: a snapshot will say it all."""
        self.events = self.moved = NOTHING
        self.fresh = None

    def pending(self) -> bytes | None:
        """The merged update after its id, or None when there is nothing; forgets it."""
        events = self.events
        entered = [v for v, kind in events.items() if kind != LEFT]
        left = left_ids((v for v, kind in events.items() if kind == LEFT), entered)
        moved = [v.fix_bytes() for v in self.moved if v not in events]
        self.events = self.moved = NOTHING
        if not (entered or left or moved):
            return None
        return update_body([v.card_bytes() for v in entered], moved, left)


class Ticked(NamedTuple):
    """What a tick did: frames written, and watches that still wait for their client or interval."""

    frames: int
    waiting: int


class LiveIndex:
    """Vendors and views of one process; `me` names the process among the owners."""

    def __init__(self, me: str, *, offline_after: int = 60_000, leave_after: int = 600_000) -> None:
        self.me = me
        self.offline_after = offline_after
        self.leave_after = leave_after
        self.vendors: dict[str, Vendor] = {}
        self.views: dict[ViewKey, View] = {}
        self.owners: dict[str, Owner] = {}
        self.changes = 0
        """Vendors that changed, merged by tick."""
        self.held_back = 0
        """Updates that a watch could not be sent yet, and that were merged into a later one."""
        self.sent = 0
        """Bytes of updates and snapshots written."""
        self.delivered = 0
        """Positions in them; of large updates one in COUNT_EVERY is counted, the rest reckoned from their bytes."""
        self._position_bytes = 100.0
        self._uncounted = COUNT_EVERY
        self.frozen = False
        """While the bus is away nothing is heard of other processes, so none of them is given up."""
        # All are kept from the start: to fill one when a view first needs it would stop the loop for as long as there
        # are vendors, and a vendor changes its cell on the coarse ones seldom.
        self._grids: list[dict[int, Cell]] = [{} for _ in range(LEVELS)]
        self._viewed: dict[int, int] = {}
        """How many views are on each level's grid."""
        self._listed: dict[str, dict[View, None]] = {}
        self._changed: dict[Vendor, Before] = {}
        self._waiting: dict[Watch, None] = {}
        self._fresh: dict[Watch, None] = {}
        self._deadlines: list[tuple[int, int, Vendor]] = []
        self._order = 0
        self._departed: list[str] = []
        self._stirred: list[Cell] = []

    # states in

    def put_fix(self, vendor_id: str, fix: Fix, now: int) -> bool:
        """Takes a fix if it replaces the one held; returns whether it was taken (and its vendor is not gone)."""
        vendor = self.vendors.get(vendor_id)
        if vendor is None:
            vendor = self.vendors[vendor_id] = Vendor(vendor_id, now)
        elif (
            # The usual case is decided without looking closely: both of clocks that are right, and this one newer.
            (fix.timestamp <= vendor.timestamp or fix.timestamp > now or fix.ahead or vendor.ahead)
            and vendor.timestamp >= 0
            and not fix.replaces(vendor.fix, now)
        ):
            return False
        if vendor not in self._changed:
            self._changed[vendor] = (vendor.live, vendor.lat, vendor.long, vendor.cell, vendor.card.open)
        vendor.timestamp, vendor.lat, vendor.long, vendor.heading, vendor.speed, vendor.ahead, vendor.stored = fix
        vendor.stale()
        at = cell(vendor.lat, vendor.long)
        if vendor.live:
            if at != vendor.cell:
                self._move(vendor, at)
        else:
            vendor.cell = at
            self._settle(vendor, now)
            return self.vendors.get(vendor_id) is vendor
        return True

    def put_card(self, vendor_id: str, card: Card, now: int) -> bool:
        """Take a card unless it is older than the one held; tells whether anything a customer sees changed."""
        vendor = self._vendor(vendor_id, now)
        if card.version < vendor.card.version:
            return False
        if card[1:] == vendor.card[1:] and vendor.card.version >= 0:
            vendor.card = card
            return False
        self._touch(vendor)
        vendor.card = card
        vendor.recarded = True
        vendor.stale()
        self._settle(vendor, now)
        return True

    def put_presence(self, vendor_id: str, presence: Presence, now: int) -> bool:
        """Take a presence unless a newer connection is known; tells whether it was taken."""
        vendor = self._vendor(vendor_id, now)
        held = vendor.presence
        if (presence.since, presence.owner, presence.ended) <= (held.since, held.owner, held.ended):
            return False
        if held.owner in self.owners:
            self.owners[held.owner].vendors.discard(vendor)
        vendor.presence = presence
        if presence.ended == 0:
            self._owner(presence.owner).vendors.add(vendor)
        self._settle(vendor, now)
        return True

    def put_http(self, vendor_id: str, at: int, now: int) -> bool:
        """A vendor's last ping over HTTP keeps it online for a while."""
        vendor = self._vendor(vendor_id, now)
        if at <= vendor.http:
            return False
        vendor.http = at
        self._settle(vendor, now)
        return True

    def remove(self, vendor_id: str) -> None:
        """The vendor is gone for good (deleted), or is no longer this process's business."""
        vendor = self.vendors.pop(vendor_id, None)
        if vendor is not None:
            self._leave(vendor)
            owner = self.owners.get(vendor.presence.owner)
            if owner is not None:
                owner.vendors.discard(vendor)

    def owner_heard(self, owner: str, at: int, now: int) -> None:
        """A process gave a sign of life."""
        known = self._owner(owner)
        known.heard = max(known.heard, at)
        if known.lost and known.heard + self.offline_after > now:
            known.lost = False
            for vendor in tuple(known.vendors):
                self._settle(vendor, now)

    def pardon(self, now: int) -> None:
        """Take every process that was not given up yet for heard just now: for a while nobody could be heard."""
        for name, owner in tuple(self.owners.items()):
            if not owner.lost:
                self.owner_heard(name, now, now)

    def expire(self, now: int) -> list[str]:
        """Let vendors go offline and leave by time, looking only at those whose time has come; tells who left."""
        if not self.frozen:
            for name, owner in tuple(self.owners.items()):
                if name != self.me and owner.heard + self.offline_after <= now:
                    if not owner.lost:
                        owner.lost = True
                        for vendor in tuple(owner.vendors):
                            self._settle(vendor, now)
                    if not owner.vendors:
                        del self.owners[name]
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, _, vendor = heapq.heappop(self._deadlines)
            if vendor.deadline == deadline and self.vendors.get(vendor.vendor_id) is vendor:
                vendor.deadline = 0
                self._settle(vendor, now)
        departed, self._departed = self._departed, []
        return departed

    def next_deadline(self) -> int | None:
        """When `expire` may next have something to do for a vendor of known end."""
        return self._deadlines[0][0] if self._deadlines else None

    # watches

    def watch(self, watch: Watch, key: ViewKey, now: int) -> None:
        """Start a watch, or move it: a snapshot replaces what the client holds for it."""
        self.unwatch(watch)
        view = self.views.get(key) or self._attach(key)
        view.watches[watch] = None
        watch.view = view
        watch.snapshot_due = True
        self._snapshot(watch, now)

    def unwatch(self, watch: Watch) -> None:
        """End a watch; nothing more is sent for it."""
        view, watch.view = watch.view, None
        self._waiting.pop(watch, None)
        self._fresh.pop(watch, None)
        watch.drop_pending()
        watch.behind = watch.snapshot_due = False
        watch.due = 0
        if view is not None:
            del view.watches[watch]
            if not view.watches:
                self._detach(view)

    def resnapshot(self, watches: Iterable[Watch], now: int) -> None:
        """Something may have been missed: each of these gets a snapshot that makes it true again."""
        for watch in watches:
            if watch.view is not None:
                self._fresh.pop(watch, None)
                watch.drop_pending()
                watch.snapshot_due = True
                self._snapshot(watch, now)

    def members(self, key: ViewKey) -> list[Vendor]:
        """The vendors on the map of an area or list now."""
        view = self.views.get(key)
        if view is not None:
            return self._members(view)
        view = self._attach(key)
        try:
            return self._members(view)
        finally:
            self._detach(view)

    def tick(self, now: int) -> Ticked:
        """Turn all changes since the last tick into at most one frame per watch, and write those that can be."""
        try:
            return self._tick(now)
        except BaseException:
            self._start_over()
            raise

    def _tick(self, now: int) -> Ticked:
        frames = 0
        changed, self._changed = self._changed, {}
        self.changes += len(changed)
        if changed and self.views:
            touched = self._sort_out(changed)
            for view in touched:
                frames += self._deliver(view, now)
            for watch in self._fresh:
                self._catch_up(watch, changed)
            for view in touched:
                view.clear()
            for spot in self._stirred:
                spot.clear()
            self._stirred.clear()
        for vendor in changed:
            vendor.recarded = False
        for watch in self._fresh:
            watch.fresh = None
            self._waiting[watch] = None
        self._fresh.clear()
        for watch in tuple(self._waiting):
            if watch.due <= now and watch.outbox.ready():
                frames += self._flush(watch, now)
        return Ticked(frames, len(self._waiting))

    def _start_over(self) -> None:
        """A tick broke off in the middle: forget it, and make every watch true again by a snapshot."""
        for cells in self._grids:
            for spot in cells.values():
                spot.clear()
        self._stirred.clear()
        self._fresh.clear()
        for vendor in self.vendors.values():
            vendor.recarded = False
        for view in self.views.values():
            view.clear()
            for watch in view.watches:
                watch.drop_pending()
                watch.snapshot_due = True
                self._waiting[watch] = None

    def in_bus_cell(self, at: int) -> tuple[Vendor, ...]:
        """The live vendors in a cell of the bus's grid."""
        spot = self._grids[BUS_LEVEL].get(at)
        return tuple(spot.vendors) if spot is not None else ()

    @property
    def has_changes(self) -> bool:
        """Whether a tick would have anything new to tell."""
        return bool(self._changed)

    # inside

    def _vendor(self, vendor_id: str, now: int) -> Vendor:
        vendor = self.vendors.get(vendor_id)
        if vendor is None:
            vendor = self.vendors[vendor_id] = Vendor(vendor_id, now)
        return vendor

    def _owner(self, name: str) -> Owner:
        owner = self.owners.get(name)
        if owner is None:
            owner = self.owners[name] = Owner(0)
            owner.lost = name != self.me
        return owner

    def _touch(self, vendor: Vendor) -> None:
        if vendor not in self._changed:
            self._changed[vendor] = (vendor.live, vendor.lat, vendor.long, vendor.cell, vendor.card.open)

    def _settle(self, vendor: Vendor, now: int) -> None:
        """Bring live, online and the next deadline in line with the vendor's registers and the time."""
        presence = vendor.presence
        connected = False
        if presence.owner or vendor.http:
            last = vendor.http
            if presence.ended:
                last = max(last, presence.ended)
            elif presence.owner:
                owner = self._owner(presence.owner)
                connected = not owner.lost
                last = max(last, owner.heard, presence.since)
            offline_at = last + self.offline_after
            leave_at = offline_at + self.leave_after
        else:
            # Its presence comes with the next register; one that never does is waited for only so long.
            offline_at, leave_at = 0, vendor.born + self.offline_after
        online = connected or now < offline_at
        known = vendor.timestamp >= 0 and vendor.card.version >= 0 and offline_at > 0
        live = known and (online or now < leave_at)
        if live != vendor.live or online != vendor.online:
            self._touch(vendor)
            if online != vendor.online:
                vendor.online = online
                vendor.recarded = True
                vendor.stale()
            if live and not vendor.live:
                vendor.live = True
                self._place(vendor)
            elif vendor.live and not live:
                self._leave(vendor)
        if connected:
            return
        if not online and now >= leave_at:
            self.remove(vendor.vendor_id)
            self._departed.append(vendor.vendor_id)
            return
        # One look at a time: a deadline put off, as by every ping over HTTP, is found out when the old one comes.
        deadline = offline_at if online else leave_at
        if not vendor.deadline or deadline < vendor.deadline:
            vendor.deadline = deadline
            self._order += 1
            heapq.heappush(self._deadlines, (deadline, self._order, vendor))

    def _leave(self, vendor: Vendor) -> None:
        if vendor.live:
            self._touch(vendor)
            vendor.live = False
            for level, cells in enumerate(self._grids):
                at = parent(vendor.cell, level)
                spot = cells[at]
                if spot.drop(vendor):
                    del cells[at]

    def _place(self, vendor: Vendor) -> None:
        for level, cells in enumerate(self._grids):
            at = parent(vendor.cell, level)
            spot_in(cells, at).put(vendor)

    def _move(self, vendor: Vendor, to: int) -> None:
        for level, cells in enumerate(self._grids):
            old, new = parent(vendor.cell, level), parent(to, level)
            if old != new:
                spot = cells[old]
                if spot.drop(vendor):
                    del cells[old]
                spot_in(cells, new).put(vendor)
        vendor.cell = to

    def _attach(self, key: ViewKey) -> View:
        if key.area is None:
            view = self.views[key] = View(key, -1, (), 0)
            for vendor_id in key.vendors or ():
                self._listed.setdefault(vendor_id, {})[view] = None
            return view
        level = cover_level(key.area)
        self._viewed[level] = self._viewed.get(level, 0) + 1
        cells, covered = self._grids[level], cover(key.area, level)
        whole = [spot_in(cells, at) for at in covered.full]
        rim = [spot_in(cells, at) for at in covered.boundary]
        view = self.views[key] = View(key, level, (*whole, *rim), len(whole))
        alone = [view]
        for number, spot in enumerate(view.touched):
            spot.show(alone, number < view.full)
        return view

    def _detach(self, view: View) -> None:
        del self.views[view.key]
        for vendor_id in view.key.vendors or ():
            views = self._listed[vendor_id]
            del views[view]
            if not views:
                del self._listed[vendor_id]
        if view.touched:
            self._viewed[view.level] -= 1
        view.ended = True
        touched, view.touched = view.touched, ()
        for spot in touched:
            if spot.hide():
                del self._grids[view.level][spot.at]

    def _members(self, view: View) -> list[Vendor]:
        area = view.key.area
        if area is None:
            listed = view.key.vendors or ()
            found = [vendor for id in listed if (vendor := self.vendors.get(id)) is not None and vendor.live]
        else:
            found = []
            for number, spot in enumerate(view.touched):
                if not spot.vendors:
                    continue
                if number < view.full:
                    found.extend(spot.vendors)
                else:
                    found.extend([v for v in spot.vendors if area.contains(v.lat, v.long)])
        return [v for v in found if v.card.open] if view.only_open else found

    def _snapshot(self, watch: Watch, now: int) -> bool:
        """Write the snapshot that is due, if the client can take it; otherwise it waits."""
        assert watch.view is not None
        if not watch.outbox.ready():
            self._waiting[watch] = None
            return False
        members = self._members(watch.view)
        frame = watch.outbox.framing(encode_snapshot(watch.id, [v.card_bytes() for v in members]))
        watch.outbox.write(frame)
        self.sent += len(frame)
        self.delivered += len(members)
        watch.snapshot_due = watch.behind = False
        watch.due = now + watch.interval
        self._waiting.pop(watch, None)
        if self._changed:
            # The others get these changes with the next tick; this watch has some of them already.
            known = frozenset(self._changed)
            watch.fresh = (known, known.intersection(members))
            watch.behind = True
            self._fresh[watch] = None
        return True

    def _sort_out(self, changed: dict[Vendor, Before]) -> dict[View, None]:
        """Tell each view what changed for it; returns the views for which anything may have."""
        touched: dict[View, None] = {}
        for level, views_there in self._viewed.items():
            if not views_there:
                continue
            cells = self._grids[level]
            moved_in: list[Cell] = []
            for vendor, before in changed.items():
                new = parent(vendor.cell, level) if vendor.live else -1
                old = parent(before[3], level) if before[0] else -1
                if old == new:
                    spot = cells.get(new)
                    if spot is None:
                        continue
                    if not vendor.recarded:
                        if spot.watched:
                            if spot.stay is None:
                                spot.stay = []
                                moved_in.append(spot)
                            spot.stay.append(vendor)
                        continue
                    spots = [spot]
                else:
                    spots = [spot for at in (old, new) if at >= 0 and (spot := cells.get(at)) is not None]
                views: dict[View, None] = {}
                for spot in spots:
                    views.update(dict.fromkeys(spot.whole))
                    views.update(dict.fromkeys(spot.rim))
                for view in views:
                    if not view.ended:
                        self._event(view, vendor, before, touched)
            for spot in moved_in:
                for view in spot.whole:
                    if not view.ended:
                        view.begin()
                        assert view.stirred is not None
                        view.stirred.append(spot)
                        touched[view] = None
                for view in spot.rim:
                    if not view.ended:
                        for vendor in spot.stay or ():
                            self._event(view, vendor, changed[vendor], touched)
            self._stirred += moved_in
        if self._listed:
            for vendor, before in changed.items():
                for view in self._listed.get(vendor.vendor_id, ()):
                    self._event(view, vendor, before, touched)
        return touched

    def _event(self, view: View, vendor: Vendor, before: Before, touched: dict[View, None]) -> None:
        was, now = view.held(vendor, before), view.holds(vendor)
        if was or now:
            view.begin()
            touched[view] = None
        if now:
            if not was:
                view.entered.append(vendor)
            elif vendor.recarded:
                view.cards.append(vendor)
            else:
                view.moved.append(vendor)
        elif was:
            view.left.append(vendor)

    def _deliver(self, view: View, now: int) -> int:
        """Write the view's update to each watch that can take it; the others fall behind."""
        body: bytes | None = None
        shared: dict[Kind, bytes] = {}
        frames = 0
        for watch in view.watches:
            if watch.fresh is not None or watch.snapshot_due:
                continue
            outbox = watch.outbox
            if watch.behind or watch.due > now or not outbox.ready():
                watch.behind = True
                watch.merge(view)
                self.held_back += 1
                self._waiting[watch] = None
                continue
            if body is None:
                body = view.body()
                if body is None:
                    return frames
            frame = shared.get(watch.kind)
            if frame is None:
                frame = shared[watch.kind] = watch.kind.frame(body)
            outbox.write(frame)
            self.sent += len(frame)
            if watch.interval:
                watch.due = now + watch.interval
            frames += 1
        if body is not None:
            self.delivered += frames * self._positions_in(body)
        return frames

    def _positions_in(self, body: bytes) -> int:
        """How many positions an update has: looking for them costs a tenth of writing it, so few large ones are."""
        size = len(body)
        # Cards are longer than fixes and come seldom: nothing is reckoned from these.
        reckoned = size > SMALL and body.startswith(b'"moved"')
        if reckoned and self._uncounted < COUNT_EVERY:
            self._uncounted += 1
            return round(size / self._position_bytes)
        positions = body.count(b'"vendorId":')
        if reckoned:
            self._uncounted, self._position_bytes = 0, size / max(1, positions)
        return positions

    def _catch_up(self, watch: Watch, changed: dict[Vendor, Before]) -> None:
        """What changed for a watch since its snapshot, which was taken between two ticks."""
        view, fresh = watch.view, watch.fresh
        assert view is not None
        assert fresh is not None
        known, included = fresh
        watch.begin()
        for vendor, before in changed.items():
            was = vendor in included if vendor in known else view.held(vendor, before)
            if view.holds(vendor):
                if not was:
                    watch.enter(vendor)
                elif vendor.recarded:
                    watch.upsert(vendor)
                else:
                    watch.moved[vendor] = None
            elif was:
                watch.leave(vendor)

    def _flush(self, watch: Watch, now: int) -> int:
        if watch.snapshot_due:
            return int(self._snapshot(watch, now))
        body = watch.pending()
        watch.behind = False
        del self._waiting[watch]
        if body is None:
            return 0
        frame = watch.kind.frame(body)
        watch.outbox.write(frame)
        self.sent += len(frame)
        self.delivered += self._positions_in(body)
        watch.due = now + watch.interval
        return 1


FEW = 5
"""Frames of a tick after which the next one waits for nothing."""


def frame_gap(frames: int, cost: float, most: float) -> float:
    """How long to gather changes after a tick that wrote so many frames, in ms.

    A frame costs about the same whatever is in it, so the more watchers a tick served, the longer the next one waits:
    a quiet street is told at once, a crowd a few times a second.
    """
    return min(most, max(0, frames - FEW) * cost)


def spot_in(cells: dict[int, Cell], at: int) -> Cell:
    """The cell of a grid, made when it is the first time that something is there."""
    spot = cells.get(at)
    if spot is None:
        spot = cells[at] = Cell(at)
    return spot
