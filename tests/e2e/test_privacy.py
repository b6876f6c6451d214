"""What strangers, customers and vendors can see of a vendor: each row of docs/privacy.md."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from streamer.accounts.tokens import make_token
from streamer.geo.shapes import distance
from streamer.storage.seed import SeededVendor
from tests.conftest import Running, Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually

LAT, LONG = 52.2297, 21.0122
HERE = circle(LAT, LONG, 1000)
SHOWN = (LAT, LONG)


def bearer(vendor: SeededVendor) -> dict[str, str]:
    return {"Authorization": f"Bearer {make_token(SECRET, vendor.clerk_id, 600)}"}


async def asked(session: aiohttp.ClientSession, url: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    async with session.get(url, headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def sees_nothing(session: aiohttp.ClientSession, running: Running, vendor: SeededVendor) -> None:
    """Checks that no endpoint shows the vendor to a customer."""
    nearby = f"{running.url}/v1/vendors/nearby?lat={LAT}&long={LONG}&radius=1000"

    async def gone() -> bool:
        status, _ = await asked(session, f"{running.url}/v1/vendors/{vendor.vendor_id}")
        return status == 404 and (await asked(session, nearby))[1]["vendors"] == []

    await eventually(gone, "a vendor that no endpoint shows")


async def test_a_vendor_hides_itself(serve: Serve, vendors: list[SeededVendor], session: aiohttp.ClientSession) -> None:
    """A vendor that closes with `hidden` leaves all maps of all processes immediately, and stays off them through
    pings, reconnects and restarts, until it opens; its pings are always stored."""
    (vendor, *_), near, far = vendors, await serve(), await serve()
    async with CustomerApp(near.url) as one, CustomerApp(far.url) as two:
        async with VendorApp(near.url, vendor.clerk_id) as app:
            await app.ping(LAT, LONG)
            await app.acked(1)
            for customer in (one, two):
                await customer.watch("area", HERE)
                await customer.watch("list", vendors=[vendor.vendor_id])
                await customer.sees("area", {vendor.vendor_id: SHOWN})
            await app.send({"type": "status", "open": False, "hidden": True})
            for customer in (one, two):
                await customer.sees("area", {})
                await customer.sees("list", {})
            await app.ping(LAT, LONG + 0.001)
            await app.acked(2)
        for running in (near, far):
            await sees_nothing(session, running, vendor)
        later = await serve()
        async with VendorApp(later.url, vendor.clerk_id) as app:
            await app.ping(LAT, LONG)
            await app.acked(1)
            for running in (near, far, later):
                await sees_nothing(session, running, vendor)
            for customer in (one, two):
                assert customer.views == {"area": {}, "list": {}}
            own = await asked(session, f"{near.url}/v1/vendors/{vendor.vendor_id}", bearer(vendor))
            assert (own[0], own[1]["lat"], own[1]["open"]) == (200, LAT, False), "its owner sees its card"
            url = f"{near.url}/v1/vendors/{vendor.vendor_id}/locations"
            _, history = await asked(session, url, bearer(vendor))
            assert len(history["locations"]) == 3
            await app.send({"type": "status", "open": True})
            for customer in (one, two):
                await customer.sees("area", {vendor.vendor_id: SHOWN})
                await customer.sees("list", {vendor.vendor_id: SHOWN})


async def test_closed_vendors_can_be_left_out(
    serve: Serve, vendors: list[SeededVendor], session: aiohttp.ClientSession
) -> None:
    """With STREAMER_SHOW_CLOSED=no a closed vendor is on no map."""
    (vendor, *_), running = vendors, await serve(show_closed="no")
    async with CustomerApp(running.url) as customer, VendorApp(running.url, vendor.clerk_id) as app:
        await customer.watch("w", HERE)
        await app.ping(LAT, LONG)
        await customer.sees("w", {vendor.vendor_id: SHOWN})
        await app.send({"type": "status", "open": False})
        await customer.sees("w", {})
        await app.ping(LAT, LONG + 0.001)
        await app.acked(2)
        await sees_nothing(session, running, vendor)
        await app.send({"type": "status", "open": True})
        await customer.sees("w", {vendor.vendor_id: (LAT, LONG + 0.001)})


async def test_closed_vendors_can_be_shown_coarsely(
    serve: Serve, vendors: list[SeededVendor], session: aiohttp.ClientSession
) -> None:
    """With STREAMER_SHOW_CLOSED=coarse a closed vendor's position is rounded to a square on all maps of all processes,
    in all answers and in public history; only its owner sees the exact one, and customers see it when it opens."""
    coarse = {"show_closed": "coarse", "closed_grid": 1000.0, "history_access": "public", "watch_auth": "optional"}
    (vendor, other, *_), near, far = vendors, await serve(**coarse), await serve(**coarse)
    home = LAT + 0.0007, LONG + 0.0007
    shown = near.server.index.visibility.coarse_position(*home)
    assert shown != home
    card_path, id = f"/v1/vendors/{vendor.vendor_id}", vendor.vendor_id
    around_home = circle(*home, 0.9 * distance(*home, *shown))
    async with (
        CustomerApp(near.url) as one,
        CustomerApp(far.url, other.clerk_id) as two,
        VendorApp(near.url, vendor.clerk_id) as app,
    ):
        await app.ping(LAT, LONG, heading=90, speed=3)
        for customer in (one, two):
            await customer.watch("area", HERE)
            await customer.watch("home", around_home)
            await customer.watch("list", vendors=[id])
            await customer.sees("area", {id: SHOWN})
        await app.send({"type": "status", "open": False})
        await app.ping(*home, heading=90, speed=3)
        await app.acked(2)
        for running, customer in ((near, one), (far, two)):
            await customer.sees("area", {id: shown})
            await customer.sees("list", {id: shown})
            await customer.sees("home", {})
            await customer.watch("later", HERE)
            card = customer.views["later"][id]
            assert (card["lat"], card["long"]) == shown
            assert "heading" not in card
            assert "speed" not in card
            nearby = f"{running.url}/v1/vendors/nearby?lat={shown[0]}&long={shown[1]}&radius=1000"
            (found,) = (await asked(session, nearby))[1]["vendors"]
            assert (found["lat"], found["long"], found["distance"]) == (*shown, 0)
            _, card = await asked(session, running.url + card_path, bearer(other))
            assert (card["lat"], card["long"]) == shown
            _, card = await asked(session, running.url + card_path, bearer(vendor))
            assert (card["lat"], card["long"]) == home
            _, past = await asked(session, f"{running.url}{card_path}/locations", bearer(other))
            assert home not in [(at["lat"], at["long"]) for at in past["locations"]]
            assert past["locations"][-1]["lat"] == shown[0]
            _, past = await asked(session, f"{running.url}{card_path}/locations", bearer(vendor))
            assert home in [(at["lat"], at["long"]) for at in past["locations"]]
            groups = f'{running.url}/v1/vendors/counts?area={{"ne":{{"lat":53,"long":22}},"sw":{{"lat":52,"long":21}}}}'

            async def counted(url: str = groups) -> bool:
                _, answer = await asked(session, url)
                return [(g["lat"], g["long"]) for g in answer["groups"]] == [tuple(round(x, 5) for x in shown)]

            await eventually(counted, "counts of where it is shown")
        for text in (m for customer in (one, two) for m in map(str, customer.messages)):
            assert str(home[0]) not in text
        await app.send({"type": "status", "open": True})
        for customer in (one, two):
            await customer.sees("home", {id: home})
            await customer.sees("area", {id: home})


async def test_offline_vendors_can_be_left_out(
    serve: Serve, vendors: list[SeededVendor], session: aiohttp.ClientSession
) -> None:
    """With STREAMER_SHOW_OFFLINE=no a vendor leaves when it is offline, and returns when it reconnects."""
    (vendor, *_), running = vendors, await serve(show_offline="no", offline_after=0.5)
    async with CustomerApp(running.url) as customer:
        await customer.watch("w", HERE)
        async with VendorApp(running.url, vendor.clerk_id) as app:
            await app.ping(LAT, LONG)
            await customer.sees("w", {vendor.vendor_id: SHOWN})
        await customer.sees("w", {})
        await sees_nothing(session, running, vendor)
        async with VendorApp(running.url, vendor.clerk_id):
            await customer.sees("w", {vendor.vendor_id: SHOWN})


async def test_by_default_closed_and_offline_vendors_are_shown(serve: Serve, vendors: list[SeededVendor]) -> None:
    """By default `open` and `online` are false on the card, and the vendor stays on the map."""
    (vendor, *_), running = vendors, await serve(offline_after=0.5)
    async with CustomerApp(running.url) as customer:

        def card() -> dict[str, Any]:
            return customer.views["w"].get(vendor.vendor_id, {})

        await customer.watch("w", HERE)
        async with VendorApp(running.url, vendor.clerk_id) as app:
            await app.ping(LAT, LONG)
            await app.send({"type": "status", "open": False})
            await eventually(lambda: card().get("open") is False, "a card of a closed vendor")
        await eventually(lambda: card().get("online") is False, "a card of a vendor that is offline")
        assert card()["open"] is False


async def test_one_vendor_needs_what_an_area_needs(
    serve: Serve, vendors: list[SeededVendor], session: aiohttp.ClientSession
) -> None:
    """A client without access to an area must not watch a vendor by its id either, nor see whether it exists."""
    (vendor, other, *_), running = vendors, await serve(watch_auth="required")
    area = f"lat={LAT}&long={LONG}&radius=1000"
    async with VendorApp(running.url, vendor.clerk_id) as app:
        await app.ping(LAT, LONG)
        await app.acked(1)
        for path in (f"vendors/nearby?{area}", f"vendors/{vendor.vendor_id}", "vendors/nobody", "vendors?query=truck"):
            assert (await asked(session, f"{running.url}/v1/{path}"))[0] == 401
        for query in (area, f"vendors={vendor.vendor_id}"):
            assert (await asked(session, f"{running.url}/v1/watch/events?{query}"))[0] == 401
        for wanted in ({"area": HERE}, {"vendors": [vendor.vendor_id]}):
            async with CustomerApp(running.url) as stranger:
                await stranger.send({"type": "watch", "id": "w", **wanted})
                assert await stranger.closed() == 4401
                assert [m["type"] for m in stranger.messages] == ["error"]
        async with CustomerApp(running.url, other.clerk_id) as customer:
            await customer.watch("area", HERE)
            await customer.watch("list", vendors=[vendor.vendor_id])
            await asyncio.gather(*(customer.sees(id, {vendor.vendor_id: SHOWN}) for id in ("area", "list")))


async def test_history_is_the_owners(serve: Serve, vendors: list[SeededVendor], session: aiohttp.ClientSession) -> None:
    """Only the vendor can read its history; customers and other vendors can't, unless the operator allows it."""
    (vendor, other, *_), running = vendors, await serve()
    path = f"/v1/vendors/{vendor.vendor_id}/locations"
    assert (await asked(session, running.url + path, bearer(vendor)))[0] == 200
    assert (await asked(session, running.url + path, bearer(other)))[0] == 403
    assert (await asked(session, running.url + path))[0] == 401
    public = await serve(history_access="public")
    assert (await asked(session, public.url + path))[0] == 200


async def test_a_card_has_nothing_of_the_owner(
    serve: Serve, vendors: list[SeededVendor], session: aiohttp.ClientSession
) -> None:
    """Customers get the card's fields: no user, phone, e-mail or accuracy."""
    (vendor, *_), running = vendors, await serve()
    async with VendorApp(running.url, vendor.clerk_id) as app:
        await app.ping(LAT, LONG, accuracy=3)
        await app.acked(1)
        _, card = await asked(session, f"{running.url}/v1/vendors/{vendor.vendor_id}")
    assert set(card) == {"vendorId", "name", "open", "primaryImage", "lat", "long", "timestamp", "online"}
