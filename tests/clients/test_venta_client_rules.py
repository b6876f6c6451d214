"""Unit tests of the Python client's rules: events, reconnecting, replacing tokens."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from venta_client import Card, Event
from venta_client.customer import CustomerClient, Watch
from venta_client.events import difference


def card(vendor_id: str, lat: float, timestamp: int, **more: Any) -> Card:
    """Returns a vendor's card."""
    found: dict[str, Any] = {"vendorId": vendor_id, "name": "n", "open": True, "primaryImage": None, "online": True}
    return cast(Card, {**found, "lat": lat, "long": 21.0, "timestamp": timestamp, **more})


def test_what_is_new_about_a_vendor() -> None:
    """An app gets an event exactly when it must redraw, move or remove a marker."""
    here, there = card("v", 1.0, 1), card("v", 2.0, 2)
    assert difference(None, here) == Event("entered", here, None)
    assert difference(here, there) == Event("moved", there, here)
    assert difference(here, card("v", 2.0, 2, online=False)) == Event("changed", card("v", 2.0, 2, online=False), here)
    assert difference(here, None) == Event("left", here, here)
    assert difference(here, card("v", 1.0, 1)) is None
    assert difference(None, None) is None


Steps = list[tuple[str, str, int]]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "move", "leave", "snapshot", "reconnect", "read"]),
            st.sampled_from("abcd"),
            st.integers(0, 3),
        ),
        max_size=60,
    )
)
def test_events_lead_from_what_an_app_knows_to_the_current_view(steps: Steps) -> None:
    """An app that reads slowly must end with the current view, without accumulating events."""

    async def history() -> None:
        watch = Watch(cast(CustomerClient, Unconnected()), "w", {})
        place: dict[str, Card] = {}
        told: dict[str, Card] = {}
        events = aiter(watch)

        async def read(most: int) -> None:
            for _ in range(most):
                if not watch._dirty:
                    return
                reading = asyncio.ensure_future(cast(Any, anext(events)))
                await asyncio.sleep(0)
                if not reading.done():
                    pending.append(reading)
                    return
                apply(reading.result())

        def apply(event: Event) -> None:
            vendor_id = event.card["vendorId"]
            assert told.get(vendor_id) == event.before
            if event.kind == "left":
                del told[vendor_id]
            else:
                told[vendor_id] = event.card

        pending: list[asyncio.Future[Event]] = []

        async def settle() -> None:
            await asyncio.sleep(0)
            if pending and pending[0].done():
                apply(pending.pop().result())

        watch._took({"type": "snapshot", "vendors": []})
        for clock, (kind, vendor_id, number) in enumerate(steps, 1):
            if kind == "enter":
                place[vendor_id] = card(vendor_id, float(number), clock)
                watch._took({"type": "update", "entered": [dict(place[vendor_id])]})
            elif kind == "move" and vendor_id in place:
                place[vendor_id] = card(vendor_id, float(number), clock)
                fix = {name: place[vendor_id][name] for name in ("vendorId", "lat", "long", "timestamp")}
                watch._took({"type": "update", "moved": [fix]})
            elif kind == "leave" and vendor_id in place:
                del place[vendor_id]
                watch._took({"type": "update", "left": [vendor_id]})
            elif kind in ("snapshot", "reconnect"):
                if kind == "reconnect":
                    watch._opened()
                    place.pop(vendor_id, None)
                watch._took({"type": "snapshot", "vendors": [dict(one) for one in place.values()]})
            await settle()
            if kind == "read" and not pending:
                await read(number)
        assert watch.vendors == place
        assert set(watch._dirty) <= told.keys() | place.keys() | set(watch._reported)
        while watch._dirty or pending:
            await settle()
            if not pending:
                await read(100)
            else:
                break
        await settle()
        if not pending:
            assert told == place
        for one in pending:
            one.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    asyncio.run(history())


class Unconnected:
    """A client without a connection."""

    failure = None
