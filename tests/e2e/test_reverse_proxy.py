"""Reverse proxies with the example files in `ops/`: TLS, WebSockets, no token in a log."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import shutil
import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
import trustme

from streamer.accounts.tokens import make_token
from streamer.storage import seed
from tests.conftest import Serve
from tests.support.apps import SECRET, eventually, now_ms
from tests.support.paths import ROOT
from tests.support.process import free_port

OPS = ROOT / "ops"
SBIN = "/usr/sbin:/sbin:"
"""Debian's folder of nginx, which may be missing in a user's PATH."""


class Front(NamedTuple):
    """A running proxy: its URL, its certificate authority, its folder with all files that it wrote."""

    url: str
    trust: ssl.SSLContext
    folder: Path


def changed(text: str, **replacements: str) -> str:
    """Returns the file with the test's paths and ports; each must be found, or the test would use another file."""
    for old, new in replacements.items():
        pattern = {
            "http": r"(?s)    server \{\n        listen 80;.*?\n    \}\n",
            "listen": r"listen 443 ssl http2;",
            "upstream": r"127\.0\.0\.1:8080",
            "logs": r"/var/log/nginx",
            "chain": r"/etc/letsencrypt/live/live\.example\.com/fullchain\.pem",
            "key": r"/etc/letsencrypt/live/live\.example\.com/privkey\.pem",
            "site": r"(?m)^live\.example\.com \{",
            "output": r"(?m)^\tlog \{(?=\n\t\timport no_tokens\n\t\}\n\}\n\Z)",
            "options": r"(?m)^\{\n",
        }[old]
        text, count = re.subn(pattern, new.replace("\\", r"\\"), text)
        assert count == 1, (old, count)
    return text


def nginx(folder: Path, port: int, upstream: str) -> list[str]:
    program = found("nginx")
    text = changed(
        (OPS / "nginx.conf").read_text(encoding="utf-8"),
        http="",
        listen=f"listen 127.0.0.1:{port} ssl http2;",
        upstream=upstream,
        chain=str(folder / "chain.pem"),
        key=str(folder / "key.pem"),
    ).replace("/var/log/nginx", str(folder))
    user = "user root;\n" if os.geteuid() == 0 else ""
    places = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = f"{user}daemon off;\npid {folder}/pid;\n" + text.replace("http {\n", "http {\n" + places, 1)
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    return [program, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "error.log")]


def caddy(folder: Path, port: int, upstream: str) -> list[str]:
    program = found("caddy")
    text = changed(
        (OPS / "Caddyfile").read_text(encoding="utf-8"),
        site=f"https://localhost:{port} {{\n\ttls {folder}/chain.pem {folder}/key.pem",
        upstream=upstream,
        output=f"\tlog {{\n\t\toutput file {folder}/access.log",
        options=f"{{\n\tadmin off\n\tauto_https disable_redirects\n\tstorage file_system {folder}/data\n",
    )
    (folder / "Caddyfile").write_text(text, encoding="utf-8")
    return [program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def found(name: str) -> str:
    path = shutil.which(name, path=SBIN + os.environ.get("PATH", ""))
    if path is None:
        pytest.skip(f"{name} is not installed: its file in ops/ is not tested (Debian's package: {name})")
    return path


@contextlib.asynccontextmanager
async def running(kind: str, upstream: str, folder: Path) -> AsyncIterator[Front]:
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "chain.pem"))
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    command = {"nginx": nginx, "caddy": caddy}[kind](folder, port, upstream.removeprefix("http://"))
    with (folder / "said").open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env={**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
            stdout=said,
            stderr=said,
        )
    try:
        async with aiohttp.ClientSession() as session:

            async def up() -> bool:
                assert process.returncode is None, (folder / "said").read_text()
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with session.get(f"https://localhost:{port}/livez", ssl=trust):
                        return True
                return False

            await eventually(up, f"{kind} that answers", within=30)
        yield Front(f"https://localhost:{port}", trust, folder)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 30)


def written(folder: Path) -> dict[str, bytes]:
    """Returns all files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
async def test_a_vendor_and_a_customer_through_the_front(
    kind: str, serve: Serve, database_url: str, tmp_path: Path
) -> None:
    """A copy of the example proxies WebSockets over TLS, hides operators' paths, and writes no token to any file."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    token = make_token(SECRET, one.clerk_id, 600)
    async with running(kind, server.url, tmp_path) as front, aiohttp.ClientSession() as session:
        connect = partial(session.ws_connect, ssl=front.trust)
        async with connect(f"{front.url}/v1/watch") as customer:
            area = {"center": {"lat": 52.0, "long": 21.0}, "radius": 1000}
            await customer.send_json({"type": "watch", "id": "w", "area": area})
            assert (await customer.receive_json(timeout=10))["type"] == "snapshot"
            url = f"{front.url}/v1/vendor"
            for opening in (
                connect(f"{url}?token={token}"),
                connect(url, protocols=("streamer.v1", f"bearer.{token}")),
                connect(url, headers={"Authorization": f"Bearer {token}"}),
            ):
                async with opening as vendor:
                    assert (await vendor.receive_json(timeout=10))["type"] == "hello"
                    await vendor.send_json({"type": "ping", "lat": 52.0, "long": 21.0, "timestamp": now_ms()})
                    assert (await vendor.receive_json(timeout=10)) == {"type": "ack", "seq": 1}
            assert (await customer.receive_json(timeout=10))["type"] == "update"
        for path, status in (("/metrics", 404), ("/health", 404), ("/readyz", 404), ("/v1/vendors/nobody", 404)):
            async with session.get(front.url + path, ssl=front.trust, params={"token": token}) as response:
                assert response.status == status
                assert (response.content_type == "application/problem+json") == path.startswith("/v1")
                assert "max-age" in response.headers["Strict-Transport-Security"]
        large, headers = io.BytesIO(b"[" * (3 << 20)), {"Authorization": f"Bearer {token}"}
        report = f"{front.url}/v1/vendors/{one.vendor_id}/locations"
        async with session.post(report, ssl=front.trust, data=large, headers=headers) as response:
            assert response.status == 413
    files, signature = written(tmp_path), token.rpartition(".")[2].encode()
    assert b"/v1/vendor" in files["access.log"]
    assert [name for name, text in files.items() if signature in text] == []


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
async def test_a_server_that_is_away(kind: str, unused_tcp_port: int, tmp_path: Path) -> None:
    """Clients get 502 and retry; the proxy's error log, which quotes requests, must have no token."""
    token = make_token(SECRET, "somebody", 600)
    async with (
        running(kind, f"http://127.0.0.1:{unused_tcp_port}", tmp_path) as front,
        aiohttp.ClientSession() as session,
    ):
        for headers in ({}, {"Authorization": f"Bearer {token}"}):
            async with session.get(
                f"{front.url}/v1/watch/events", ssl=front.trust, params={"token": token}, headers=headers
            ) as response:
                assert response.status == 502
    signature = token.rpartition(".")[2].encode()
    assert [name for name, text in written(tmp_path).items() if signature in text] == []
