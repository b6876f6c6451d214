"""Serving the JavaScript client: pages must get this server's complete and current version."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from streamer.web.static import CLIENT, client_folder, installed_folder
from tests.conftest import Serve
from tests.support.paths import ROOT


async def test_a_page_of_any_origin_may_import_the_client(serve: Serve) -> None:
    """A web app on another host loads it, and gets a new version when there is one."""
    server = await serve()
    async with aiohttp.ClientSession(server.url) as session:
        async with session.get("/client/venta.js", headers={"Origin": "https://app.example"}) as answer:
            assert answer.status == 200
            assert answer.content_type == "text/javascript"
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert answer.headers["Cache-Control"] == "no-cache"
            assert await answer.read() == (client_folder() / "venta.js").read_bytes()
            etag = answer.headers["ETag"]
        async with session.get("/client/venta.js", headers={"If-None-Match": etag}) as again:
            assert again.status == 304
        async with session.get("/client/venta.d.ts") as types:
            assert "export declare class VendorClient" in await types.text()


@pytest.mark.parametrize("name", ["package.json", "..%2Fpyproject.toml", "%2e%2e", "venta.js.map"])
async def test_nothing_else_is_handed_out(serve: Serve, name: str) -> None:
    """A name from a URL must not open another file."""
    server = await serve()
    # The raw path, as a client would resolve the two dots.
    url = URL(f"{server.url}/client/{name}", encoded=True)
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 404
        assert (await answer.json(content_type=None))["code"] == "ERR_NOT_FOUND"


def test_what_is_in_the_package_goes_before_what_lies_beside_it(tmp_path: Path) -> None:
    """An installed server must serve the files of its package rather than those of a checkout next to it."""
    assert installed_folder("client", "clients", "js") == ROOT / "clients" / "js"
    assert installed_folder("no-such-folder", "x") == ROOT / "x"


def test_the_wheel_has_it(tmp_path: Path) -> None:
    """The image is built from the wheel: without the client its map would be empty."""
    pytest.importorskip("hatchling", reason="builds a wheel as CI's environment does")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True, timeout=60
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in CLIENT:
        assert f"streamer/client/{name}" in names
    assert not any(name.startswith("clients/") for name in names)
