"""All watches of one area (or list) and filter, and what the current tick changes for them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from streamer.geo.shapes import Area
from streamer.live.cell import EMPTY_LIST, Cell
from streamer.live.vendor import Before, Vendor
from streamer.protocol.messages import update_body

if TYPE_CHECKING:
    from streamer.live.watch import Watch


class ViewKey(NamedTuple):
    """The key of a view: an area or a set of vendor ids, and the filter."""

    area: Area | None
    vendors: frozenset[str] | None
    open: bool

    def holds(self, vendor: Vendor) -> bool:
        """Returns whether a vendor is seen now."""
        return vendor.live and self._shows(vendor, vendor.card.open, vendor.shown.lat, vendor.shown.long)

    def held(self, vendor: Vendor, before: Before) -> bool:
        """Returns whether a vendor was seen at the last tick."""
        live, fix, _, was_open = before
        return live and self._shows(vendor, was_open, fix.lat, fix.long)

    def _shows(self, vendor: Vendor, is_open: bool, lat: float, long: float) -> bool:
        if self.open and not is_open:
            return False
        if self.area is None:
            assert self.vendors is not None
            return vendor.vendor_id in self.vendors
        return self.area.contains(lat, long)


class View:
    """Watches with the same key; the update of a tick is encoded once for all of them."""

    __slots__ = (
        "card_changed",
        "cells",
        "changed",
        "cost",
        "ended",
        "entered",
        "key",
        "left",
        "level",
        "moved",
        "moved_cells",
        "only_open",
        "watches",
        "whole",
    )

    def __init__(self, key: ViewKey, level: int, cells: tuple[Cell, ...], whole: int) -> None:
        self.key = key
        self.level = level
        """The level of the grid that its cells belong to."""
        self.only_open = key.open
        self.cells = cells
        """The cells that its area touches; none for a list."""
        self.whole = whole
        """The number of cells, from the first, that are wholly inside."""
        self.ended = False
        """No watch is left."""
        self.cost = 0.0
        """CPU seconds of its boundary tests that are not charged to its watches yet."""
        self.watches: dict[Watch, None] = {}
        self.end_tick()

    def end_tick(self) -> None:
        """Forgets the tick."""
        self.changed = False
        self.moved_cells: list[Cell] = EMPTY_LIST
        self.moved: list[Vendor] = EMPTY_LIST
        self.entered: list[Vendor] = EMPTY_LIST
        self.card_changed: list[Vendor] = EMPTY_LIST
        self.left: list[Vendor] = EMPTY_LIST

    def begin_tick(self) -> None:
        """Prepares for changes of the tick."""
        self.changed = True
        self.moved_cells, self.moved = [], []

    def note(self, vendor: Vendor, *, was: bool, now: bool) -> None:
        """Notes a change of a vendor that belonged to the view before, belongs to it now, or both."""
        # Rarely used lists are created on demand, as a tick serves thousands of views.
        if was and now and not vendor.card_changed:
            self.moved.append(vendor)
        elif not now:
            if self.left is EMPTY_LIST:
                self.left = []
            self.left.append(vendor)
        elif not was:
            if self.entered is EMPTY_LIST:
                self.entered = []
            self.entered.append(vendor)
        else:
            if self.card_changed is EMPTY_LIST:
                self.card_changed = []
            self.card_changed.append(vendor)

    def update(self) -> tuple[bytes, int] | None:
        """Returns the update of the tick after its id, and how many positions are in it; None when nothing changed."""
        entered = [vendor.card_bytes() for vendor in self.entered]
        if self.card_changed:
            entered += [vendor.card_bytes() for vendor in self.card_changed]
        positions = len(entered) + len(self.moved)
        moved = []
        for cell in self.moved_cells:
            fixes, count = cell.moved_fixes(self.only_open)
            if count:
                moved.append(fixes)
                positions += count
        if self.moved:
            moved += [vendor.fix_bytes() for vendor in self.moved]
        if not (positions or self.left):
            return None
        return update_body(entered, moved, left_ids(self.left, self.entered)), positions


def left_ids(left: Iterable[Vendor], entered: Iterable[Vendor]) -> list[str]:
    """Returns the vendors that left, except those deleted and back again: their new cards replace the old ones."""
    ids = [vendor.vendor_id for vendor in left]
    if ids:
        back = {vendor.vendor_id for vendor in entered}
        ids = [id for id in ids if id not in back]
    return ids
