"""One whole process: what applies to every request and socket, whatever its path."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest
import structlog

from streamer.accounts.tokens import make_token
from streamer.ingest.copy_rows import location_id
from streamer.operations import logs
from streamer.storage.partitions import partition_bounds
from streamer.storage.seed import SeededVendor
from tests.conftest import Serve
from tests.support.apps import SECRET, App, circle, eventually, now_ms

LAT, LONG = 52.229711, 21.012233


@pytest.fixture(params=["json", "people"])
def logged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Logs everything, down to debug, in one of the two formats, on stderr."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    written = io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", written)
        repeats = logs.configure(form=request.param, level="debug")
    yield written
    repeats.flush()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


async def raw(url: str, data: bytes) -> bytes:
    """Sends raw bytes, and reads the answer until its end or a short pause."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(data)
        answer = b""
        try:
            async with asyncio.timeout(1):
                while got := await reader.read(65536):
                    answer += got
        except TimeoutError:
            pass
        return answer
    finally:
        writer.transport.abort()


async def test_no_token_and_no_position_ever_reaches_a_log(
    serve: Serve, vendor: SeededVendor, logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs are read by many and kept for long; with a token from a log, anyone could act as the vendor.

    Tests all ways to send a token, good and bad, with requests that succeed, are refused, are malformed or hit a bug.
    """
    server = await serve(watch_auth="required", auth_timeout=0.3)
    good, expired = make_token(SECRET, vendor.clerk_id, 600), make_token(SECRET, vendor.clerk_id, -600)
    ping = {"lat": LAT, "long": LONG, "timestamp": now_ms()}
    tokens = (good, expired, good[:-2] + "xx")
    async with aiohttp.ClientSession() as session:

        async def everything() -> set[int]:
            statuses = set()
            for token in tokens:
                bearer = {"Authorization": f"Bearer {token}"}
                basic = {"Authorization": aiohttp.encode_basic_auth("truck", token)}
                locations = f"/v1/vendors/{vendor.vendor_id}/locations"
                requests: list[tuple[str, str, dict[str, Any]]] = [
                    ("POST", f"{locations}?token={token}", {"json": ping}),
                    ("POST", locations, {"json": ping, "headers": bearer}),
                    ("GET", f"{locations}?token={token}&limit=1", {}),
                    ("GET", f"{locations}?token={token}&from=x", {}),
                    ("GET", f"/v1/vendors/nearby?token={token}&lat={LAT}&long={LONG}", {}),
                    ("GET", f"/v1/vendors/nearby?token={token}&lat=x", {}),
                    ("GET", f"/v1/osmand?id={token}&lat={LAT}&lon={LONG}", {}),
                    ("GET", f"/v1/osmand?token={token}&lat={LAT}&lon={LONG}", {}),
                    ("POST", "/v1/owntracks", {"data": b'{"_type":"location"', "headers": basic}),
                    ("GET", f"/nowhere?token={token}", {}),
                    ("DELETE", f"/v1/vendor?token={token}", {}),
                    ("GET", f"/v1/vendor?token={token}", {}),
                ]
                for method, path, options in requests:
                    async with session.request(method, server.url + path, **options) as response:
                        await response.read()
                        statuses.add(response.status)
                for path in ("/v1/vendor", "/v1/watch"):
                    for app in (App(server.url, path, None, token=token), App(server.url, path, None)):
                        app.protocols = ("streamer.v1", f"bearer.{token}") if not app._params else ()
                        async with app:
                            with suppress(ConnectionError):  # some have been evicted already
                                await app.send({"type": "watch", "id": "w", "area": circle(LAT, LONG, 500)})
                                await app.send({"type": "ping", **ping})
                                await app.send({"type": "auth", "token": token + "x"})
                            await app.closed()
                    async with App(server.url, path, None) as app:
                        with suppress(ConnectionError):
                            await app.send({"type": "auth", "token": token, "lat": LAT})
                            await app.send({"type": "auth", "token": expired})
                        await app.closed()
                for broken in (
                    f"GET /v1/vendor?token={token}\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
                    f"GET /v1/vendor?token={token} HTTP/9.9\r\nHost: x\r\n\r\n",
                    f"GET http://[/v1/vendor?token={token} HTTP/1.1\r\nHost: x\r\n\r\n",
                    f"GET /v1/watch?token={token} HTTP/1.1\r\nHost: x\r\nBad Header: {token}\r\n\r\n",
                    f"GET /v1/watch?token={token} HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n\r\n",
                    f"POST /v1/osmand?token={token} HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
                    f"POST /v1/osmand?token={token} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                    f"{token} {token} {token}\r\n\r\n",
                ):
                    assert not (await raw(server.url, broken.encode())).startswith(b"HTTP/1.1 500")
            return statuses

        assert {200, 400, 401, 404, 405} <= await everything()

        async def bug(*_: Any) -> Any:
            raise RuntimeError("a bug, on purpose")

        monkeypatch.setattr(server.server.store, "locations", bug)
        monkeypatch.setattr(server.server.watches, "members", bug)
        async with session.get(f"{server.url}/v1/vendors/{vendor.vendor_id}/locations?token={good}") as response:
            assert response.status == 500
            assert good not in await response.text()
        async with session.get(f"{server.url}/v1/vendors/nearby?token={good}&lat={LAT}&long={LONG}") as response:
            assert response.status == 500
    written = re.sub("\x1b\\[[0-9;]*m", "", logged.getvalue())
    assert "Logging error" not in written
    assert "a bug, on purpose" in written, "the log is looked at where it is written"
    assert "closing" in written
    for token in tokens:
        for part in token.split(".")[1:]:
            assert part not in written, written[written.index(part) - 2000 :][:3000]
    assert SECRET not in written
    for position in (str(LAT), str(LONG)):
        assert position not in written, written[written.index(position) - 2000 :][:3000]


async def test_a_dead_task_makes_the_server_unready(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose heartbeat fails is taken out of service instead of appearing healthy."""
    server = await serve()

    async def dies() -> None:
        raise RuntimeError("it can't go on")

    monkeypatch.setattr("streamer.supervisor.MAX_DEATHS", 2)
    server.server.supervisor.start({"heart": dies})
    async with aiohttp.ClientSession() as session:

        async def unready() -> bool:
            async with session.get(f"{server.url}/readyz") as response:
                causes = orjson.loads(await response.read()).get("causes", {})
                return response.status == 503 and "it can't go on" in causes.get("heart", "")

        await eventually(unready, "a 503 that names the cause")
        async with session.get(f"{server.url}/livez") as response:
            assert response.status == 200


async def test_positions_are_brought_up_to_date_at_the_start(serve: Serve, vendor: SeededVendor, direct: Any) -> None:
    """A truck that parked before a crash keeps its last stored position: also after a night without a server, and while
    another fault needs an operator.
    """
    parked = now_ms() - 12 * 3_600_000
    await direct.execute(
        """INSERT INTO "locations" VALUES ($1, $2, $3, $4, TIMESTAMP 'epoch' + $5 * INTERVAL '1 millisecond')""",
        *(location_id(vendor.vendor_id, parked), vendor.vendor_id, LAT, LONG, parked),
    )
    taken, _, _ = partition_bounds(datetime.now(UTC).date() + timedelta(days=3))
    await direct.execute(f'DROP TABLE "{taken}"; CREATE TABLE "{taken}" ()')
    await serve()

    async def there() -> bool:
        row = await direct.fetchrow('SELECT "lat", "long" FROM "vendors" WHERE "id" = $1', vendor.vendor_id)
        return tuple(row) == (LAT, LONG)

    await eventually(there, "the position in the vendor's row")
