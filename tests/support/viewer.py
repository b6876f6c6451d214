"""A customer app without a socket: applies frames exactly as the protocol says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson


def plain(payload: bytes) -> bytes:
    return bytes(payload)


def wrapped(payload: bytes) -> bytes:
    return b"<" + payload + b">"


class Client:
    """A customer app: applies frames exactly by the protocol, and fails on errors that would confuse a real one."""

    def __init__(self, framing: Callable[[bytes], bytes] = plain, room: int | None = None) -> None:
        self.framing = framing
        self.room = room
        """The number of frames it accepts before it stalls; None: any number."""
        self.frames: list[bytes] = []
        self.views: dict[str, dict[str, dict[str, Any]]] = {}
        self.kinds: list[tuple[str, str]] = []
        """The frames since the last call of `seen`, as (watch id, type)."""
        self.left: list[str] = []
        """Vendors that left by an update."""
        self.vanished: list[str] = []
        """Vendors shown before a snapshot of the same watch, and not after it."""
        self.offline: list[dict[str, Any]] = []
        """Cards in which a vendor is offline."""

    def ready(self) -> bool:
        return self.room is None or self.room > 0

    def write(self, frame: bytes) -> None:
        assert self.ready(), "a frame for a client that has not taken what it was sent"
        if self.room is not None:
            self.room -= 1
        self.frames.append(frame)
        payload = frame[1:-1] if self.framing is wrapped else frame
        self.apply(orjson.loads(payload))

    def apply(self, message: dict[str, Any]) -> None:
        id = message["id"]
        self.kinds.append((id, message["type"]))
        if message["type"] == "snapshot":
            cards = message["vendors"]
            assert len({card["vendorId"] for card in cards}) == len(cards), "twice in one snapshot"
            new = {card["vendorId"]: card for card in cards}
            self.vanished += self.views.get(id, {}).keys() - new.keys()
            self.views[id] = new
            self.offline += [card for card in cards if card.get("online") is False]
            return
        assert message["type"] == "update"
        view = self.views[id]
        lists = {name: message[name] for name in ("entered", "moved", "left") if name in message}
        assert lists, "an update that says nothing"
        assert all(lists.values()), "an empty list is left out"
        named = [entry if type(entry) is str else entry["vendorId"] for entries in lists.values() for entry in entries]
        assert len(set(named)) == len(named), f"a vendor twice in one update: {message}"
        for card in lists.get("entered", ()):
            view[card["vendorId"]] = card
            if card.get("online") is False:
                self.offline.append(card)
        for fix in lists.get("moved", ()):
            assert fix["vendorId"] in view, f"moved, but never entered: {fix}"
            held = view[fix["vendorId"]]
            view[fix["vendorId"]] = {
                **{name: held[name] for name in ("name", "open", "primaryImage", "online")},
                **fix,
            }
        for vendor_id in lists.get("left", ()):
            assert vendor_id in view, f"left, but never entered: {vendor_id}"
            del view[vendor_id]
            self.left.append(vendor_id)

    def seen(self) -> list[tuple[str, str]]:
        """What came since the last look."""
        kinds, self.kinds = self.kinds, []
        return kinds
