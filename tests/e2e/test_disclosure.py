"""Error messages to clients after a failure contain no hosts, tables or messages of PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import asyncpg

from streamer.accounts.tokens import make_token
from streamer.storage import seed
from tests.conftest import SERVING_ROLE, Serve
from tests.support.apps import SECRET, VendorApp

INSIDE = ("PostgreSQL", "SQLSTATE", "127.0.0.1", "relation", "permission", SERVING_ROLE, "asyncpg", "Errno")
"""Words that must not reach a client."""


async def test_an_outage_is_reported_without_internals(serve: Serve, database_url: str) -> None:
    """Host names, tables and messages of drivers help attackers; operators have them in /health."""
    one, two = await seed.seed(database_url, 2)
    server = await serve(statement_timeout=1.0, pool_timeout=1.0)
    told: list[str] = []
    direct = await asyncpg.connect(database_url)
    headers = {"Authorization": f"Bearer {make_token(SECRET, one.clerk_id, 600)}"}
    locations = f"{server.url}/v1/vendors/{one.vendor_id}/locations"
    try:
        async with aiohttp.ClientSession(headers=headers) as session, VendorApp(server.url, one.clerk_id) as app:
            await app.expect("hello")
            for broken in ('ALTER TABLE "vendors" RENAME TO "away"', f'REVOKE ALL ON "away" FROM {SERVING_ROLE}'):
                await direct.execute(broken)
                async with session.get(locations) as answer:
                    assert answer.status == 503
                    told.append(await answer.text())
                async with session.post(locations, json={"lat": 1, "long": 2}) as answer:
                    assert answer.status == 503
                    told.append(await answer.text())
                async with VendorApp(server.url, two.clerk_id) as other:
                    assert await other.closed() == 1011
                    told += [str(message) for message in other.messages]
                    assert other.messages
                await app.send({"type": "status", "open": False})
                told.append(str(await app.expect("error")))
                app.messages.clear()
                await direct.execute('ALTER TABLE IF EXISTS "away" RENAME TO "vendors"')
                await direct.execute('ALTER TABLE "vendors" RENAME TO "away"')
    finally:
        await direct.close()
    assert [(word, text) for text in told for word in INSIDE if word in text] == []


async def test_opening_and_closing_has_an_end(serve: Serve, database_url: str) -> None:
    """An app in a loop would otherwise fill the audit, and notify all customers nearby, thousands of times a second."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    direct = await asyncpg.connect(database_url)
    count = """SELECT count(*) FROM "streamer_audit" WHERE "table" = 'vendors' AND "action" = 'update'"""
    try:
        async with VendorApp(server.url, one.clerk_id) as app:
            for number in range(200):
                await app.send({"type": "status", "open": number % 2 == 1})
            await app.ping(52.0, 21.0)
            await app.acked(1)
            refused: list[dict[str, Any]] = [m for m in app.messages if m["type"] == "error"]
            assert {m["code"] for m in refused} == {"ERR_RATE_LIMITED"}
            assert all(m["retryAfterMs"] >= 1000 for m in refused)
            changes = await direct.fetchval(count)
            assert changes + len(refused) == 200
            assert changes < 60, "ten, and one each two seconds that this took"
            # a client that waits for Retry-After gets through
            await asyncio.sleep(refused[-1]["retryAfterMs"] / 1000)
            app.messages.clear()
            await app.send({"type": "status", "open": changes % 2 == 1})
            await app.ping(52.0, 21.0)
            await app.acked(2)
            assert not [m for m in app.messages if m["type"] == "error"]
            assert await direct.fetchval(count) >= changes
    finally:
        await direct.close()
