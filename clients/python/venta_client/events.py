"""Events of a vendor: the difference between its last reported card and the current one. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

from venta_client.wire import Card

Kind = Literal["entered", "moved", "changed", "left"]


class Event(NamedTuple):
    """One vendor's event. `before` is the card of its last event; None when it has just entered.

    `changed`: its name, image, `open` or `online` changed, perhaps also its position. `left`: `card` is its last one.
    """

    kind: Kind
    card: Card
    before: Card | None


def difference(before: Card | None, now: Card | None) -> Event | None:
    """Returns the event between the last reported card and the current one; None if nothing changed."""
    if before is None:
        return None if now is None else Event("entered", now, None)
    if now is None:
        return Event("left", before, before)
    if before == now:
        return None
    same = (
        before["name"] == now["name"]
        and before["open"] == now["open"]
        and before["online"] == now["online"]
        and before.get("primaryImage") == now.get("primaryImage")
    )
    return Event("moved" if same else "changed", now, before)
