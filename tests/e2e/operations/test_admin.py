"""The operators' endpoints: closed to strangers, and available to operators."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
import structlog

from streamer.operations import logs
from tests.conftest import Serve
from tests.support.apps import eventually
from tests.support.process import ServerProcess

ELSEWHERE = {"X-Forwarded-For": "203.0.113.9"}
TOKEN = "an operator's own token"


async def status(session: aiohttp.ClientSession, url: str, headers: dict[str, str] | None = None) -> int:
    async with session.get(url, headers=headers) as response:
        assert "Server" not in response.headers
        return response.status


@pytest.mark.parametrize("path", ["/health", "/metrics"])
async def test_the_main_port_serves_this_machine_and_the_token(
    serve: Serve, session: aiohttp.ClientSession, path: str
) -> None:
    """Requests through a proxy or from another machine get no metrics without the operators' token."""
    running = await serve(admin_token=TOKEN)
    url = running.url + path
    assert await status(session, url) == 200
    assert await status(session, url, ELSEWHERE) == 403
    assert await status(session, url, {"Forwarded": "for=203.0.113.9"}) == 403
    assert await status(session, url, {**ELSEWHERE, "Authorization": "Bearer wrong"}) == 403
    assert await status(session, url, {**ELSEWHERE, "Authorization": f"Bearer {TOKEN}"}) == 200
    assert await status(session, f"{running.url}/livez", ELSEWHERE) == 200
    assert await status(session, f"{running.url}/readyz", ELSEWHERE) == 200


async def test_without_a_token_only_this_machine_is_admitted(serve: Serve, session: aiohttp.ClientSession) -> None:
    """An unset token is not an empty one."""
    running = await serve()
    for bearer in ("", "Bearer ", "Bearer None"):
        assert await status(session, f"{running.url}/metrics", {**ELSEWHERE, "Authorization": bearer}) == 403


async def test_a_port_of_their_own(serve: Serve, session: aiohttp.ClientSession) -> None:
    """With STREAMER_ADMIN_PORT the main port has no metrics, but still the probes of load balancers."""
    running = await serve(admin_port=0)
    admin = running.server.admin_url
    assert admin is not None
    for path in ("/livez", "/readyz", "/health", "/metrics"):
        assert await status(session, admin + path, ELSEWHERE) == 200
    for path, expected in (("/livez", 200), ("/readyz", 200), ("/health", 404), ("/metrics", 404)):
        assert await status(session, running.url + path) == expected
    assert await status(session, f"{admin}/v1/vendors/nearby?lat=1&long=1") == 404


async def test_no_answer_names_the_software(serve: Serve, session: aiohttp.ClientSession) -> None:
    """Names and versions of libraries in an answer or error page would help attackers to find vulnerabilities."""
    running = await serve()
    for path in ("/", "/nothing", "/v1/vendors/nearby", "/v1/vendor", "/livez"):
        await status(session, running.url + path)
    async with session.ws_connect(f"{running.url}/v1/watch") as socket:
        assert "Server" not in socket._response.headers


async def test_a_proxy_that_is_not_configured_is_warned_of_once(
    serve: Serve, session: aiohttp.ClientSession, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind a proxy without STREAMER_TRUSTED_HOPS all clients share an address without limits: a warning is logged."""
    repeats = logs.configure(form="json")
    try:
        running = await serve()
        for _ in range(3):
            async with session.ws_connect(f"{running.url}/v1/watch", headers=ELSEWHERE):
                pass
        await eventually(lambda: len(running.server.connections) == 0, "all closed")
    finally:
        repeats.flush()
        structlog.reset_defaults()
    assert capsys.readouterr().err.count("STREAMER_TRUSTED_HOPS is 0") == 1
    trusted = await serve(trusted_hops=1)
    async with session.ws_connect(f"{trusted.url}/v1/watch", headers=ELSEWHERE):
        pass
    assert "STREAMER_TRUSTED_HOPS" not in capsys.readouterr().err


@pytest.mark.parametrize("request_line", [b"nonsense", b"GET / HTTP/9.9", b"GET /no-such-page HTTP/1.1"])
async def test_no_answer_names_the_versions(serve: Serve, request_line: bytes) -> None:
    """No answer may contain versions, also not the answer to invalid HTTP."""
    server = await serve()
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request_line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert b"server:" not in answer.lower()
    assert b"aiohttp" not in answer.lower()


@pytest.mark.parametrize("origins", ["", "https://app.example"])
async def test_serve_warns_of_unset_origins(
    serving_url: str, serving_redis_url: str, tmp_path: Path, origins: str
) -> None:
    """Otherwise it would be unnoticed that any web page may open sockets for its visitors."""
    log = tmp_path / "log"
    async with ServerProcess(serving_url, serving_redis_url, log=log, origins=origins):
        pass
    assert log.read_text().count("STREAMER_ORIGINS is not set") == (0 if origins else 1)


async def test_serve_names_the_retention(serving_url: str, serving_redis_url: str, tmp_path: Path) -> None:
    """The start logs for how long positions are kept: 90 days, if pruning is scheduled."""
    log = tmp_path / "log"
    async with ServerProcess(serving_url, serving_redis_url, log=log):
        pass
    (line,) = [line for line in log.read_text().splitlines() if "locations are kept until" in line]
    assert '"retention_days": 90' in line or "retention_days=90" in line
