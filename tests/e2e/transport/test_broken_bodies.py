"""Requests with an incomplete body: not an error of the server, so none in the log."""

from __future__ import annotations

import asyncio
import logging

import pytest
from structlog.testing import capture_logs

from streamer.accounts.tokens import make_token
from streamer.operations.logs import is_relevant
from streamer.storage import seed
from tests.conftest import Serve
from tests.support.apps import SECRET

BODIES = {
    "cut off": (b"Content-Length: 1000\r\n\r\n[{", False),
    "no chunk": (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n[]\r\n", True),
    "no gzip": (b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!", True),
    "half a gzip": (b"Content-Encoding: gzip\r\nContent-Length: 10\r\n\r\n\x1f\x8b\x08\0\0\0\0\0\0\x03", True),
}


@pytest.mark.parametrize("kind", BODIES)
async def test_a_body_that_breaks_off(
    kind: str, serve: Serve, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise a stranger could fill the log with tracebacks by small requests, and hide real errors."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    rest, answered = BODIES[kind]
    place = server.url.removeprefix("http://")
    host, port = place.split(":")
    token = make_token(SECRET, one.clerk_id, 600)
    caplog.set_level(logging.WARNING)
    with capture_logs() as logs:
        reader, writer = await asyncio.open_connection(host, int(port))
        path = f"/v1/vendors/{one.vendor_id}/locations"
        writer.write(f"POST {path} HTTP/1.1\r\nHost: {place}\r\nAuthorization: Bearer {token}\r\n".encode() + rest)
        if answered:
            head = await asyncio.wait_for(reader.readline(), 10)
            assert head.split()[1] == b"400", head
        else:
            await asyncio.sleep(0.2)
        writer.transport.abort()
        await asyncio.sleep(0.2)
    assert [line for line in logs if line["log_level"] in ("error", "critical")] == []
    told = [record for record in caplog.records if record.levelno >= logging.ERROR and is_relevant(record)]
    assert [record.getMessage() for record in told] == []
