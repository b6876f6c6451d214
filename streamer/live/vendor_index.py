"""The vendors that a process knows: where each is, whether it is online, and in which cells it is seen. Pure.

Of several processes' states of a vendor the newest counts, in whatever order they arrive. A changed vendor is kept
until the next tick, with its previous state.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from streamer.geo.grid import BUS_LEVEL, LEVELS, parent
from streamer.geo.grid import cell as cell_at
from streamer.live.cell import Cell
from streamer.live.fix import Fix, order
from streamer.live.vendor import NO_FIX, Before, Card, Owner, Presence, Vendor
from streamer.live.visibility import Visibility

AT_ONCE = 500
"""Vendors that go offline or leave before the event loop gets a turn: about 3 ms."""


class VendorIndex:
    """Vendors by id and by cell; `me` is this process's name among the owners. Times are epoch milliseconds."""

    def __init__(self, me: str, *, offline_after: int, leave_after: int, visibility: Visibility | None) -> None:
        self.me = me
        self.visibility = visibility or Visibility()
        self.offline_after = offline_after
        self.leave_after = leave_after
        self.vendors: dict[str, Vendor] = {}
        self.owners: dict[str, Owner] = {}
        self.recount: dict[int, dict[int, int]] = {}
        """For each level whose cells are counted, the cells whose counts may have changed, and the change's number."""
        self.recounted = 0
        """The number of the last such change."""
        self.frozen = False
        """While Redis is away no process can be heard, so none of them counts as lost."""
        # All levels are kept from the start: filling one when a view first needs it would block the loop for long, and
        # vendors seldom change their cell on coarse levels.
        self._grids: list[dict[int, Cell]] = [{} for _ in range(LEVELS)]
        self._changed: dict[Vendor, Before] = {}
        self._deadlines: list[tuple[int, int, Vendor]] = []
        self._order = 0
        self._lost: list[Vendor] = []
        """Vendors of processes that were found lost, to be updated."""

    def put_fix(self, vendor_id: str, fix: Fix, now: int) -> bool:
        """Takes a fix if it replaces the one held; returns whether it was taken."""
        vendor = self.vendors.get(vendor_id)
        if vendor is None:
            vendor = self.vendors[vendor_id] = Vendor(vendor_id, now)
        elif (
            # The usual case needs no full comparison: neither timestamp is ahead, and this one is newer.
            (fix.timestamp <= vendor.fix.timestamp or fix.timestamp > now or fix.ahead or vendor.fix.ahead)
            and vendor.fix is not NO_FIX
            and not fix.replaces(vendor.fix, now)
        ):
            return False
        self._remember(vendor)
        vendor.fix = fix
        vendor.forget_encoded()
        self._show(vendor)
        if not vendor.live:
            self._settle(vendor, now)
        return True

    def put_card(self, vendor_id: str, card: Card, now: int) -> bool:
        """Takes a card if it replaces the one held; returns whether anything that customers see changed.

        As with fixes, a version from a process with a wrong clock is replaced by every other.
        """
        vendor = self._vendor(vendor_id, now)
        newer = order(card.version, vendor.card.version, now)
        if newer < 0 or (newer == 0 and card.register(vendor_id) <= vendor.card.register(vendor_id)):
            return False
        if card[1:] == vendor.card[1:] and vendor.card.version >= 0:
            vendor.card = card
            return False
        self._touch(vendor)
        vendor.card = card
        vendor.card_changed = True
        vendor.forget_encoded()
        if vendor.fix is not NO_FIX and self.visibility.closed_level is not None:
            self._show(vendor)
        self._settle(vendor, now)
        return True

    def put_presence(self, vendor_id: str, presence: Presence, now: int) -> bool:
        """Takes a presence unless a newer connection is known; returns whether it was taken."""
        vendor = self._vendor(vendor_id, now)
        held = vendor.presence
        newer = order(presence.since, held.since, now)
        if newer < 0 or (newer == 0 and presence <= held):
            return False
        if held.owner in self.owners:
            self.owners[held.owner].vendors.discard(vendor)
        vendor.presence = presence
        self.note_count(vendor)
        if presence.ended == 0:
            self._owner(presence.owner).vendors.add(vendor)
        self._settle(vendor, now)
        return True

    def put_http(self, vendor_id: str, at: int, now: int) -> bool:
        """Takes the time of a vendor's last ping over HTTP, which keeps it online for a while."""
        vendor = self._vendor(vendor_id, now)
        if order(at, vendor.http, now) <= 0:
            return False
        if vendor.http <= vendor.presence.ended < at:
            self.note_count(vendor)  # from now on the process counts it that it reports to
        vendor.http = at
        self._settle(vendor, now)
        return True

    def last_seen(self, vendor: Vendor) -> int:
        """Returns when a vendor was last connected, or its process last heard, or when it last pinged over HTTP."""
        presence = vendor.presence
        if presence.ended or not presence.owner:
            return max(vendor.http, presence.ended)
        return max(vendor.http, presence.since, self._owner(presence.owner).heard)

    def remove(self, vendor_id: str) -> None:
        """Removes a vendor that was deleted, or that this process does not need any more."""
        vendor = self.vendors.pop(vendor_id, None)
        if vendor is not None:
            self._leave(vendor)
            owner = self.owners.get(vendor.presence.owner)
            if owner is not None:
                owner.vendors.discard(vendor)

    def owner_heard(self, owner: str, at: int, now: int) -> None:
        """Takes a heartbeat of a process."""
        known = self._owner(owner)
        known.heard = max(min(known.heard, now), at)  # a time ahead of now is from before the clock was set back
        if known.lost and known.heard + self.offline_after > now:
            known.lost = False
            for vendor in tuple(known.vendors):
                self._settle(vendor, now)

    def reset_heartbeats(self, now: int) -> None:
        """Assumes a heartbeat of every process that is not lost yet, as none could arrive for a while."""
        for name, owner in tuple(self.owners.items()):
            if not owner.lost:
                self.owner_heard(name, now, now)

    def expire(self, now: int) -> list[str]:
        """Makes up to AT_ONCE due vendors go offline or leave; returns the ids of those that left."""
        if not self.frozen:
            for name, owner in tuple(self.owners.items()):
                if name != self.me and owner.heard + self.offline_after <= now:
                    if not owner.lost:
                        owner.lost = True
                        self._lost.extend(owner.vendors)
                    if not owner.vendors:
                        del self.owners[name]
        expired: list[str] = []
        for _ in range(AT_ONCE):
            if not self.due(now):
                break
            if self._lost:
                vendor = self._lost.pop()
            else:
                deadline, _, vendor = heapq.heappop(self._deadlines)
                if deadline != vendor.deadline:
                    continue
            if self.vendors.get(vendor.vendor_id) is vendor:
                vendor.deadline = 0
                deadline = self._update(vendor, now)
                if 0 < deadline <= now:
                    self.remove(vendor.vendor_id)
                    expired.append(vendor.vendor_id)
                else:
                    self._schedule(vendor, deadline)
        return expired

    def due(self, now: int) -> bool:
        """Returns whether `expire` has more vendors to update."""
        return bool(self._lost or (self._deadlines and self._deadlines[0][0] <= now))

    def cells(self, level: int) -> Mapping[int, Cell]:
        """Returns the cells of a level in which vendors are, or which are watched."""
        return self._grids[level]

    def note_count(self, vendor: Vendor) -> None:
        """Marks the cell of a vendor to be counted again."""
        if self.recount and vendor.cell >= 0:
            self.recounted += 1
            for level, cells in self.recount.items():
                cells[parent(vendor.cell, level)] = self.recounted

    def in_bus_cell(self, id: int) -> tuple[Vendor, ...]:
        """Returns the live vendors in a cell of the grid that names Redis channels."""
        cell = self._grids[BUS_LEVEL].get(id)
        return tuple(cell.vendors) if cell is not None else ()

    @property
    def has_changes(self) -> bool:
        """Whether a tick would have anything new to send."""
        return bool(self._changed)

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
        self.note_count(vendor)
        self._remember(vendor)

    def _remember(self, vendor: Vendor) -> None:
        """Keeps a vendor's state of the last tick."""
        if vendor not in self._changed:
            self._changed[vendor] = (vendor.live, vendor.shown, vendor.cell, vendor.card.open)

    def _settle(self, vendor: Vendor, now: int) -> None:
        """Updates live, online and the next deadline from the vendor's registers and the time."""
        # Only `expire` removes vendors: a register that arrives too late may be followed by a newer one.
        self._schedule(vendor, self._update(vendor, now))

    def _schedule(self, vendor: Vendor, deadline: int) -> None:
        # One deadline per vendor: one that was postponed, as by every ping over HTTP, is detected when the old one
        # passes.
        if deadline and (not vendor.deadline or deadline < vendor.deadline):
            vendor.deadline = deadline
            self._order += 1
            heapq.heappush(self._deadlines, (deadline, self._order, vendor))

    def _update(self, vendor: Vendor, now: int) -> int:
        """Updates live and online; returns when they may next change by time, or 0.

        A time that has passed means that the vendor has left.
        """
        presence = vendor.presence
        connected = False
        if presence.owner or vendor.http:
            connected = bool(presence.owner) and not presence.ended and not self._owner(presence.owner).lost
            offline_at = self.last_seen(vendor) + self.offline_after
            leave_at = offline_at + self.leave_after
        else:
            # Its presence arrives with the next register; it is waited for only until then.
            offline_at, leave_at = 0, vendor.born + self.offline_after
        online = connected or now < offline_at
        known = vendor.fix.timestamp >= 0 and vendor.card.version >= 0 and offline_at > 0
        live = known and (online or now < leave_at) and self.visibility.allows(vendor.card, online)
        if live != vendor.live or online != vendor.online:
            self._touch(vendor)
            if online != vendor.online:
                vendor.online = online
                vendor.card_changed = True
                vendor.forget_encoded()
            if live and not vendor.live:
                vendor.live = True
                self._place(vendor)
            elif vendor.live and not live:
                self._leave(vendor)
        if connected:
            return 0
        return offline_at if online else leave_at

    def _leave(self, vendor: Vendor) -> None:
        if vendor.live:
            self._touch(vendor)
            vendor.live = False
            for level in range(LEVELS):
                self._take_out(vendor, level, parent(vendor.cell, level))

    def _place(self, vendor: Vendor) -> None:
        for level in range(LEVELS):
            self._cell(level, parent(vendor.cell, level)).add(vendor)

    def _show(self, vendor: Vendor) -> None:
        """Updates a vendor's shown position and cell from its fix and card."""
        fix = vendor.fix
        if self.visibility.closed_level is not None:
            fix = self.visibility.shown(fix, vendor.card)
        vendor.shown = fix
        to = cell_at(fix.lat, fix.long)
        if to == vendor.cell:
            return
        if vendor.live:
            self._move(vendor, to)
        else:
            vendor.cell = to

    def _move(self, vendor: Vendor, to: int) -> None:
        for level in range(LEVELS):
            old, new = parent(vendor.cell, level), parent(to, level)
            if old == new:
                break  # so are all coarser ones
            self._take_out(vendor, level, old)
            self._cell(level, new).add(vendor)
            if level in self.recount:
                self.recounted += 1
                self.recount[level][old] = self.recount[level][new] = self.recounted
        vendor.cell = to

    def _take_out(self, vendor: Vendor, level: int, id: int) -> None:
        cells = self._grids[level]
        cell = cells[id]
        cell.discard(vendor)
        if cell.unused:
            del cells[id]

    def _cell(self, level: int, id: int) -> Cell:
        cells = self._grids[level]
        cell = cells.get(id)
        if cell is None:
            cell = cells[id] = Cell(id)
        return cell
