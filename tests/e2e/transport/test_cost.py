"""What a client's messages and reads cost: without bounds one client's legal messages delay or stop everybody."""

from __future__ import annotations

from typing import Any

import aiohttp

from streamer.accounts.tokens import make_token
from streamer.storage.seed import SeededVendor
from tests.conftest import Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually, now_ms

LAT, LONG = 52.2297, 21.0122


def zigzag(move: int) -> dict[str, Any]:
    """A polygon of 199 corners that crosses 1.2° again and again, another one for each `move`."""
    corners = [[21 + number * 0.006, 52 + (number % 2) * 1.2 + move * 1e-6] for number in range(199)]
    return {"polygon": corners}


def turns(times: int) -> dict[str, Any]:
    """A polygon that goes round the pole again and again."""
    return {"polygon": [[(number * 120 + 180) % 360 - 180, 89.9] for number in range(3 * times)]}


async def test_a_flood_of_zigzags(serve: Serve, vendors: list[SeededVendor]) -> None:
    """Sockets of one user that send the most expensive polygons are paused and told; all others are served."""
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
            await attacker.cut()  # a Close frame would be read only behind what waits
            await attacker.close()


async def test_a_paused_message_is_handled_later(serve: Serve, vendors: list[SeededVendor]) -> None:
    """Who is paused loses nothing: the watch is open and true once the excess has drained."""
    server = await serve(connection_cost=1.0, user_cost=1000.0)
    async with CustomerApp(server.url, vendors[1].clerk_id) as customer:
        for move in range(6):
            await customer.send({"type": "watch", "id": "w", "area": zigzag(move)})
        await customer.expect("error", code="ERR_RATE_LIMITED")
        await eventually(
            lambda: sum(m["type"] == "snapshot" for m in customer.messages) == 6, "a snapshot for each", within=60.0
        )


async def test_turns_round_a_pole(serve: Serve) -> None:
    """A ring of 66 turns took the server ten seconds to hold; now it is refused before anything is made of it."""
    server = await serve(watch_auth="optional")
    async with CustomerApp(server.url) as customer:
        await customer.send({"type": "watch", "id": "w", "area": turns(66)})
        error = await customer.expect("error", id="w")
        assert error["code"] == "ERR_INVALID_AREA"


async def test_reads_over_http(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A user who reads without end is refused with the time to come back; another user is not."""
    server = await serve(user_cost=2.0)

    def headers(vendor: SeededVendor) -> dict[str, str]:
        return {"Authorization": f"Bearer {make_token(SECRET, vendor.clerk_id, 600)}"}

    url = f"{server.url}/v1/vendors/nearby?lat={LAT}&long={LONG}&radius=100000"
    async with aiohttp.ClientSession() as session:

        async def read(vendor: SeededVendor) -> tuple[int, dict[str, Any], str | None]:
            async with session.get(url, headers=headers(vendor)) as answer:
                return answer.status, await answer.json(content_type=None), answer.headers.get("Retry-After")

        for _ in range(1000):
            status, problem, retry_after = await read(vendors[1])
            if status != 200:
                break
        assert (status, problem["code"]) == (429, "ERR_RATE_LIMITED")
        assert retry_after is not None
        assert int(retry_after) >= 1
        assert problem["retryAfterMs"] > 0
        assert (await read(vendors[2]))[0] == 200
