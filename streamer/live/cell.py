"""One grid cell: the vendors in it, the views that touch it, and what moved in it since the last tick. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamer.live.vendor import Vendor

if TYPE_CHECKING:
    from streamer.live.view import View

EMPTY_DICT: Any = {}
"""Shared by all empty cells, which are the most; never modified."""
EMPTY_LIST: list[Any] = []
"""The same for lists."""


class Cell:
    """Vendors and views of one cell of one grid.

    An idle watcher may be the only one in eighty cells, so memory matters: views are in lists, a quarter of the size of
    a dict. A view that ended stays in the list until half of them have ended. Cells with only one view share its list.
    """

    __slots__ = ("_ended", "_joined", "_joined_open", "boundary", "id", "moved", "unmeasured", "vendors", "whole")

    def __init__(self, id: int) -> None:
        self.id = id
        self.vendors: dict[Vendor, None] = EMPTY_DICT
        self.whole: list[View] = EMPTY_LIST
        """Views whose area contains all of the cell, and some that ended."""
        self.boundary: list[View] = EMPTY_LIST
        """Views whose area contains only a part of the cell, and some that ended."""
        self._ended = 0
        self.unmeasured = 0
        """Vendors that moved in it since its boundary tests were last measured."""
        self.moved: list[Vendor] | None = None
        """In the current tick: vendors that moved within the cell. This and the joined fixes are None between ticks."""
        self._joined: tuple[bytes, int] | None = None
        self._joined_open: tuple[bytes, int] | None = None

    @property
    def watched(self) -> bool:
        """Whether a view touches it."""
        return bool(self.whole or self.boundary)

    @property
    def unused(self) -> bool:
        """Whether no vendor and no view is in it."""
        return not (self.vendors or self.whole or self.boundary)

    def add(self, vendor: Vendor) -> None:
        """Adds a vendor."""
        if self.vendors:
            self.vendors[vendor] = None
        else:
            self.vendors = {vendor: None}

    def discard(self, vendor: Vendor) -> None:
        """Removes a vendor."""
        self.vendors.pop(vendor, None)
        if not self.vendors:
            self.vendors = EMPTY_DICT

    def attach(self, alone: list[View], whole: bool) -> None:
        """Adds a view; `alone` is the list of just that view."""
        if whole:
            self.whole = _extended(self.whole, alone)
        else:
            self.boundary = _extended(self.boundary, alone)

    def view_ended(self) -> None:
        """Counts a view that ended, and removes such views once they are half of all."""
        self._ended += 1
        if 2 * self._ended > len(self.whole) + len(self.boundary):
            self._ended = 0
            self.whole = [view for view in self.whole if not view.ended] or EMPTY_LIST
            self.boundary = [view for view in self.boundary if not view.ended] or EMPTY_LIST

    def moved_fixes(self, only_open: bool) -> tuple[bytes, int]:
        """Returns the fixes of the vendors that moved, joined once a tick for all views, and their number."""
        if only_open:
            if self._joined_open is None:
                fixes = [vendor.fix_bytes() for vendor in self.moved or () if vendor.card.open]
                self._joined_open = b",".join(fixes), len(fixes)
            return self._joined_open
        if self._joined is None:
            fixes = [vendor.fix_bytes() for vendor in self.moved or ()]
            self._joined = b",".join(fixes), len(fixes)
        return self._joined

    def end_tick(self) -> None:
        """Forgets the tick."""
        self.moved = self._joined = self._joined_open = None


def _extended(views: list[View], alone: list[View]) -> list[View]:
    """Returns the views and one more; a list of one may be shared, a longer one is the cell's own and grows."""
    if len(views) > 1:
        views += alone
        return views
    return views + alone if views else alone
