"""The guides against a server as readers have it, and trackers' payloads with current timestamps."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import orjson

from streamer.accounts.tokens import make_token
from streamer.storage import seed
from streamer.transport.http_ingest import BOM
from tests.conftest import Serve, connected
from tests.project.test_docs import run, snippets
from tests.support.apps import SECRET, now_ms
from tests.support.commands import Command
from tests.unit.protocol.test_trackers import PAYLOADS, TAKEN

GUIDES = ("docs/vendor-app.md", "docs/customer-app.md", "docs/from-nestjs.md")


async def test_every_command_of_the_guides_works_beside_the_simulator(tmp_path: Path) -> None:
    """`make run`, then the steps of the page."""
    async with Command("dev", "--simulate", "20", "--port", "0", folder=tmp_path) as server:
        url = await server.url()
        services = orjson.loads((tmp_path / ".venta" / "services.json").read_bytes())
        token = (await _output("token", "clerk_test_user", folder=tmp_path)).strip()
        moving = asyncio.create_task(_drive(url, token))
        try:
            for page in GUIDES:
                for snippet in snippets(page):
                    await run(snippet, url, services, token, tmp_path)
        finally:
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)


async def _output(*arguments: str, folder: Path) -> str:
    async with Command(*arguments, folder=folder) as command:
        return (await command.ended()).out


async def _drive(url: str, token: str) -> None:
    """The test vendor's phone, which customers of the guides see moving."""
    where = f"{url}/v1/vendors/ctestvendor00000000000000/locations"
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
        for step in range(100_000):
            # An odd millisecond of the past: never that of a ping of the guides, which would count as stored already.
            ping = {"lat": 52.2297 + step % 100 / 1e5, "long": 21.0122, "timestamp": (now_ms() - 1000) | 1}
            async with session.post(where, json=ping) as answer:
                assert answer.status == 200
            await asyncio.sleep(0.2)


async def test_every_payload_is_stored(serve: Serve, database_url: str) -> None:
    """Each app's format at its URL is stored, and the answer empties the app's queue."""
    (vendor,) = await seed.seed(database_url, 1)
    running = await serve()
    token = make_token(SECRET, vendor.clerk_id, 600)
    start = int(time.time()) - len(PAYLOADS)
    async with aiohttp.ClientSession() as session:
        for number, payload in enumerate(PAYLOADS):
            path = "owntracks" if "_type" in payload else "osmand"
            async with session.post(
                f"{running.url}/v1/{path}?token={token}",
                data=(BOM if number % 2 and path == "osmand" else b"") + today(payload, start + number).encode(),
            ) as answer:
                assert answer.status == 200, payload
                said = await answer.read()
            assert said == (b"[]" if path == "owntracks" else b'{"result":"ok"}' if "Feature" in payload else b"")
    async with connected(database_url) as connection:
        rows = await connection.fetch(
            """SELECT EXTRACT(EPOCH FROM "timestamp")::bigint FROM "locations" WHERE "lat" = 52.2297 ORDER BY 1"""
        )
    timed = [number for number, payload in enumerate(PAYLOADS) if today(payload, 0) != payload]
    assert {start + number for number in timed} <= {row[0] for row in rows}
    assert len(rows) >= len(timed)


def today(payload: str, at: int) -> str:
    """Returns a payload of the page with another time, epoch seconds."""
    payload = payload.replace(str(TAKEN), str(at * 1000)).replace(str(TAKEN // 1000), str(at))
    moment = datetime.fromtimestamp(at, UTC).isoformat()[:19]
    return re.sub(r"2024-11-24T\d\d:59:00(\.000)?(Z|\+0000|\+01:?00)", f"{moment}Z", payload)
