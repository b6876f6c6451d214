"""The cost of a client's messages and reads: without limits one client's legal messages could block all others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from streamer.accounts.tokens import make_token
from streamer.geo.shapes import Polygon
from streamer.ingest.cost import LOOK_AGAIN
from streamer.live import index
from streamer.storage.seed import SeededVendor
from tests.conftest import Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually, now_ms

LAT, LONG = 52.2297, 21.0122


def zigzag(move: int) -> dict[str, Any]:
    """Returns a polygon of 199 corners that crosses 1.2° many times, a different one for each `move`."""
    corners = [[21 + number * 0.006, 52 + (number % 2) * 1.2 + move * 1e-6] for number in range(199)]
    return {"polygon": corners}


def turns(times: int) -> dict[str, Any]:
    """Returns a polygon that goes around the pole many times."""
    return {"polygon": [[(number * 120 + 180) % 360 - 180, 89.9] for number in range(3 * times)]}


async def test_a_flood_of_zigzags(serve: Serve, vendors: list[SeededVendor]) -> None:
    """Sockets of one user that send the most expensive polygons are paused and warned; all others are served."""
    server = await serve(watch_auth="optional", connection_cost=1.0)
    attackers = [CustomerApp(server.url, vendors[1].clerk_id) for _ in range(8)]
    try:
        for attacker in attackers:
            await attacker.__aenter__()
        async with VendorApp(server.url, vendors[0].clerk_id) as vendor, CustomerApp(server.url) as customer:
            await customer.watch("w", circle(LAT, LONG, 1000))
            for move in range(40):
                for attacker in attackers:
                    await attacker.send({"type": "watch", "id": str(move % 32), "area": zigzag(move)})
            for seq in range(1, 20):
                await vendor.ping(LAT + seq * 1e-5, LONG, seq=seq, timestamp=now_ms())
                await customer.sees("w", {vendors[0].vendor_id: (LAT + seq * 1e-5, LONG)})
            await vendor.acked(19)

            def refused() -> bool:
                return all(any(m["type"] == "error" for m in attacker.messages) for attacker in attackers)

            await eventually(refused, "every attacker told")
            assert not [m for m in customer.messages if m["type"] == "error"]
        for attacker in attackers:
            errors = [m for m in attacker.messages if m["type"] == "error"]
            assert {m["code"] for m in errors} == {"ERR_RATE_LIMITED"}
            assert all(m["retryAfterMs"] > 0 for m in errors)
            assert "CPU time" in errors[0]["message"]
            assert attacker.close_code is None
    finally:
        for attacker in attackers:
            await attacker.cut()  # a Close frame would be read only after the pending messages
            await attacker.close()


async def test_a_paused_message_is_handled_later(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A paused client loses nothing: its watch is open and correct once the excess has drained."""
    server = await serve(connection_cost=1.0, user_cost=1000.0)
    async with CustomerApp(server.url, vendors[1].clerk_id) as customer:
        for move in range(6):
            await customer.send({"type": "watch", "id": "w", "area": zigzag(move)})
        await customer.expect("error", code="ERR_RATE_LIMITED")
        await eventually(
            lambda: sum(m["type"] == "snapshot" for m in customer.messages) == 6, "a snapshot for each", within=60.0
        )


async def test_a_standing_watch_pays(
    serve: Serve, vendors: list[SeededVendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose watches cost too much is warned once.

    It gets snapshots instead of updates, ends with the right view, and can still end its watch; another customer of the
    same vendor gets all updates.
    """
    monkeypatch.setattr(index, "MEASURE_EVERY", 4)
    server = await serve(connection_cost=0.5)
    (one, two, *_), seq, began = vendors, 0, now_ms()
    async with (
        VendorApp(server.url, one.clerk_id) as vendor,
        CustomerApp(server.url) as customer,
        CustomerApp(server.url, two.clerk_id) as heavy,
    ):
        await vendor.ping(LAT, LONG, timestamp=began)
        await customer.watch("w", circle(LAT, LONG, 1000))
        await heavy.send({"type": "watch", "id": "w", "area": zigzag(0)})

        def slowed() -> list[dict[str, Any]]:
            return [m for m in heavy.messages if m["type"] == "error" and "occasional snapshots" in m["message"]]

        while not slowed():
            seq += 1
            place = LAT + seq % 100 * 1e-5, LONG
            await vendor.ping(*place, timestamp=began + seq)
            await customer.sees("w", {one.vendor_id: place})
        assert slowed()[0]["code"] == "ERR_RATE_LIMITED"
        assert slowed()[0]["retryAfterMs"] > 0
        assert not [m for m in customer.messages if m["type"] == "error"]
        area = Polygon(tuple((long, lat) for long, lat in zigzag(0)["polygon"]))
        await heavy.sees("w", {one.vendor_id: place} if area.contains(*place) else {}, within=60.0)
        await heavy.send({"type": "unwatch", "id": "w"})
        await heavy.expect("unwatched", id="w", within=60.0)
        assert len(slowed()) == 1
        assert heavy.close_code is None


async def test_many_watches_of_a_connection(serve: Serve, vendors: list[SeededVendor]) -> None:
    """Thirty watches would each get a frame per move: beyond a few they get fewer, and end with the right view."""
    server, (one, two, *_), seq = await serve(), vendors, 0
    began = now_ms()
    async with VendorApp(server.url, one.clerk_id) as vendor, CustomerApp(server.url, two.clerk_id) as customer:
        await vendor.ping(LAT, LONG, timestamp=began)
        for number in range(30):
            await customer.watch(f"w{number}", circle(LAT, LONG, 1000))

        def updates(id: str) -> int:
            return sum(m["type"] == "update" and m["id"] == id for m in customer.messages)

        async with asyncio.timeout(60):
            while updates("w0") < 20 or updates("w29") > updates("w0") / 2:
                seq += 1
                place = LAT + seq % 100 * 1e-5, LONG
                await vendor.ping(*place, timestamp=began + seq)
                await customer.sees("w0", {one.vendor_id: place})
        for number in range(30):
            await customer.sees(f"w{number}", {one.vendor_id: place})


async def test_turns_round_a_pole(serve: Serve) -> None:
    """A ring of 66 turns blocked the server for ten seconds; it must be rejected before any computation."""
    server = await serve(watch_auth="optional")
    async with CustomerApp(server.url) as customer:
        await customer.send({"type": "watch", "id": "w", "area": turns(66)})
        error = await customer.expect("error", id="w")
        assert error["code"] == "ERR_INVALID_AREA"


READERS = 40
"""The number of simultaneous reads: each waits a while for the budget, which is too small for all of them."""


async def until_refused(read: Callable[[], Awaitable[int]]) -> set[int]:
    """Reads until a request is refused; returns all statuses."""
    statuses = set[int]()
    async with asyncio.timeout(60):
        while 429 not in statuses:
            statuses |= set(await asyncio.gather(*(read() for _ in range(READERS))))
    return statuses


async def test_reads_over_http(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A user who reads continuously is slowed down, then refused with Retry-After; another user is not."""
    server = await serve(user_cost=2.0)

    def headers(vendor: SeededVendor) -> dict[str, str]:
        return {"Authorization": f"Bearer {make_token(SECRET, vendor.clerk_id, 600)}"}

    url = f"{server.url}/v1/vendors/nearby?lat={LAT}&long={LONG}&radius=100000"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def read(vendor: SeededVendor) -> tuple[int, dict[str, Any], str | None]:
            async with session.get(url, headers=headers(vendor)) as answer:
                return answer.status, await answer.json(content_type=None), answer.headers.get("Retry-After")

        refused: list[tuple[int, dict[str, Any], str | None]] = []
        async with asyncio.timeout(60):
            while not refused:
                answers = await asyncio.gather(*(read(vendors[1]) for _ in range(READERS)))
                refused = [answer for answer in answers if answer[0] != 200]
        for status, problem, retry_after in refused:
            assert (status, problem["code"]) == (429, "ERR_RATE_LIMITED")
            assert retry_after is not None
            assert int(retry_after) >= 1
            assert problem["retryAfterMs"] > 0
        assert (await read(vendors[2]))[0] == 200


@pytest.mark.parametrize("path", ["/v1/alerts", "/v1/alerts/none", "/v1/alerts/none/deliveries"])
async def test_reads_of_alerts(
    serve: Serve, vendors: list[SeededVendor], session: aiohttp.ClientSession, path: str
) -> None:
    """Each request reads rows from PostgreSQL, so a client that reads continuously is refused here, too."""
    server = await serve(user_cost=2.0, alert_key="a-key-for-alerts-a-key-for-alerts")
    headers = {"Authorization": f"Bearer {make_token(SECRET, vendors[1].clerk_id, 600)}"}

    async def read() -> int:
        async with session.get(server.url + path, headers=headers) as answer:
            return answer.status

    assert await until_refused(read) <= {200, 404, 429}


async def test_a_head_costs_what_a_get_costs(serve: Serve, session: aiohttp.ClientSession) -> None:
    """HEAD costs as much as GET, so it must be limited, too; for counts it caused an internal error."""
    server = await serve(trusted_hops=1, address_cost=2.0)
    headers = {"X-Forwarded-For": "203.0.113.9"}
    area = f"lat={LAT}&long={LONG}&radius=1000"
    async with session.head(f"{server.url}/v1/vendors/counts?{area}", headers=headers) as answer:
        assert answer.status == 200

    async def read() -> int:
        async with session.head(f"{server.url}/v1/vendors/nearby?{area}", headers=headers) as answer:
            return answer.status

    assert await until_refused(read) <= {200, 429}


async def test_reads_beyond_a_budget_are_slowed(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A client that sends one read after the other gets all answers, only later, and uses no more than its share."""
    # Large enough that one read on a busy machine uses less than a second of it.
    server = await serve(user_cost=20.0)
    headers = {"Authorization": f"Bearer {make_token(SECRET, vendors[0].clerk_id, 600)}"}
    url = f"{server.url}/v1/vendors/nearby?lat={LAT}&long={LONG}&radius=100000"
    counters = server.server.counters.requests
    async with aiohttp.ClientSession() as session:
        slowed = 0
        async with asyncio.timeout(60):
            while slowed < 3:
                began = time.monotonic()
                async with session.get(url, headers=headers) as answer:
                    assert answer.status == 200, await answer.text()
                slowed += time.monotonic() - began > LOOK_AGAIN
    assert {status for _, _, status in counters} == {200}


async def test_reads_of_this_machine_without_a_token(serve: Serve, vendors: list[SeededVendor]) -> None:
    """Behind a proxy that forwards no addresses, reads without a token share a budget; others are served."""
    server = await serve(watch_auth="optional", address_cost=2.0)
    url = f"{server.url}/v1/vendors/nearby?lat={LAT}&long={LONG}&radius=100000"
    headers = {"Authorization": f"Bearer {make_token(SECRET, vendors[0].clerk_id, 600)}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def read() -> int:
            async with session.get(url) as answer:
                return answer.status

        assert await until_refused(read) <= {200, 429}
        async with session.get(url, headers=headers) as answer:
            assert answer.status == 200
