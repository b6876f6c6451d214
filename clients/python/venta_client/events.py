"""What is new about a vendor since an app was last told. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

from venta_client.wire import Card

Kind = Literal["entered", "moved", "changed", "left"]


class Event(NamedTuple):
    """One vendor's news. `before` is the card of the last event about it; None when it has just entered.

    `changed`: its name, image, `open` or `online` is new, and maybe its position too. `left`: `card` is its last one.
    """

    kind: Kind
    card: Card
    before: Card | None


def difference(before: Card | None, now: Card | None) -> Event | None:
    """The event that leads from what an app was told of a vendor to what is so; None when nothing does."""
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
