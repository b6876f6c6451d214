"""A watch's view: the snapshot and updates, applied in order. Pure."""

from __future__ import annotations

from typing import Any

from venta_client.errors import Violation

FIX = ("vendorId", "lat", "long", "timestamp")
FIX_OPTIONAL = ("heading", "speed")
CARD = ("vendorId", "name", "open", "lat", "long", "timestamp", "online")


class View:
    """The vendors of one watch by id, each as the server's card with its newest fix.

    Raises Violation for an update that contradicts the earlier messages. `strict`: also for a timestamp that goes back,
    which is legal only if a phone's clock was ahead.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self.vendors: dict[str, dict[str, Any]] = {}
        self.snapshots = 0

    def snapshot(self, cards: list[dict[str, Any]]) -> None:
        """Replaces the view."""
        vendors: dict[str, dict[str, Any]] = {}
        for card in cards:
            demand(card, CARD)
            if card["vendorId"] in vendors:
                raise Violation(f"vendor {card['vendorId']} stands twice in one snapshot")
            vendors[card["vendorId"]] = card
        self.vendors = vendors
        self.snapshots += 1

    def update(self, entered: list[dict[str, Any]], moved: list[dict[str, Any]], left: list[str]) -> None:
        """Applies one update; raises Violation if it contradicts the earlier messages."""
        if not self.snapshots:
            raise Violation("an update came before the first snapshot")
        for card in entered:
            demand(card, CARD)
            self._held(card)
            self.vendors[card["vendorId"]] = card
        for fix in moved:
            demand(fix, FIX)
            held = self._held(fix)
            if held is None:
                raise Violation(f"vendor {fix['vendorId']} moved, but it had not entered")
            kept = {name: value for name, value in held.items() if name not in FIX_OPTIONAL}
            self.vendors[fix["vendorId"]] = {**kept, **fix}
        for vendor_id in left:
            if self.vendors.pop(vendor_id, None) is None:
                raise Violation(f"vendor {vendor_id} left, but it was not there")

    def _held(self, fix: dict[str, Any]) -> dict[str, Any] | None:
        held = self.vendors.get(fix["vendorId"])
        if self._strict and held is not None and fix["timestamp"] < held["timestamp"]:
            raise Violation(
                f"vendor {fix['vendorId']} went back in time from {held['timestamp']} to {fix['timestamp']}"
            )
        return held


def demand(item: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raises Violation if a card or fix lacks a required member."""
    missing = [name for name in names if name not in item]
    if missing:
        raise Violation(f"{', '.join(missing)} missing in {item!r}")
