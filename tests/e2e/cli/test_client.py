"""`streamer watch` and `streamer ping`: a developer sees an app's messages in a terminal."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from streamer.accounts.tokens import make_token
from streamer.cli.client import lines, parsed_position, target_of
from streamer.errors import SettingsError
from streamer.storage import seed
from tests.conftest import Serve
from tests.support.apps import SECRET, VendorApp, eventually
from tests.support.commands import Command, run
from tests.support.process import free_port

LAT, LONG = 52.2297, 21.0122


async def test_a_ping_is_seen_by_a_watch(serve: Serve, database_url: str, tmp_path: Path) -> None:
    """One terminal watches, the other reports; both name the vendor, and Ctrl-C is not an error."""
    (vendor,) = await seed.seed(database_url, 1)
    running = await serve()
    area = f"{LAT},{LONG},1000"
    async with Command("watch", area, "--url", running.url, folder=tmp_path) as watch:
        await eventually(lambda: "snapshot  no vendors" in watch.out, "an empty snapshot")
        token = make_token(SECRET, vendor.clerk_id, 60)
        sent = await run("ping", f"{LAT},{LONG}", "--url", running.url, "--token", token, folder=tmp_path)
        assert sent.status == 0, sent
        assert sent.out.startswith(f"stored: vendor {vendor.vendor_id} at {LAT},{LONG}")
        await eventually(lambda: f"entered  {vendor.vendor_id}" in watch.out, f"the vendor, only {watch.out}")
    assert watch.out.count("snapshot") == 1


async def test_json_for_scripts(serve: Serve, database_url: str, tmp_path: Path) -> None:
    """Each line is a message of the protocol."""
    (vendor,) = await seed.seed(database_url, 1)
    running = await serve(watch_auth="required")
    async with VendorApp(running.url, vendor.clerk_id) as app:
        await app.ping(LAT, LONG)
        await app.acked(1)
        words = ("watch", vendor.vendor_id, "--json", "--url", running.url, "--user", vendor.clerk_id)
        async with Command(*words, folder=tmp_path, STREAMER_JWT_SECRET=SECRET) as watch:
            await eventually(lambda: "\n" in watch.out, "a line")
    first = json.loads(watch.out.splitlines()[0])
    assert (first["type"], [card["vendorId"] for card in first["vendors"]]) == ("snapshot", [vendor.vendor_id])


async def test_what_is_wrong_is_said_and_ends_it(serve: Serve, database_url: str, tmp_path: Path) -> None:
    """A bad token, too large an area, another user's vendor, no server: each ends with its cause and status 1."""
    one, other = await seed.seed(database_url, 2)
    running = await serve(watch_auth="required")
    at, url = f"{LAT},{LONG}", ("--url", running.url)
    token = ("--token", make_token(SECRET, one.clerk_id, 60))
    for words, reason in (
        (("watch", f"{at},100", *url), "4401"),
        (("watch", f"{at},1e9", *url, *token), "ERR_AREA_TOO_LARGE"),
        (("ping", at, *url, *token, "--vendor", other.vendor_id), "ERR_FORBIDDEN"),
        (("watch", f"{at},100", "--url", f"http://127.0.0.1:{free_port()}"), "cannot connect"),
        (("ping", at, "--url", f"http://127.0.0.1:{free_port()}", *token), "cannot connect"),
    ):
        done = await run(*words, folder=tmp_path, STREAMER_AUTH_TIMEOUT="1")
        assert done.status == 1, (words, done)
        assert reason in done.out + done.err


async def test_a_watch_outlives_a_restart(serve: Serve, tmp_path: Path) -> None:
    """A developer who restarts the server need not restart the watch."""
    running = await serve()
    async with Command("watch", f"{LAT},{LONG},100", "--url", running.url, folder=tmp_path) as watch:
        await eventually(lambda: "snapshot" in watch.out, "a snapshot")
        for connection in running.server.connections:
            connection.end(1012, "restarting")  # type: ignore[arg-type]  # any code
        await eventually(lambda: watch.out.count("snapshot") == 2, f"a second snapshot, only {watch.err}")
        await asyncio.sleep(0)
    assert "reconnecting" in watch.err


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["1.5,2,300"], {"area": {"center": {"lat": 1.5, "long": 2.0}, "radius": 300.0}}),
        (["1,2,3,4"], {"area": {"sw": {"lat": 1.0, "long": 2.0}, "ne": {"lat": 3.0, "long": 4.0}}}),
        (["cvendor1", "cvendor2"], {"vendors": ["cvendor1", "cvendor2"]}),
    ],
)
def test_targets(targets: list[str], expected: object) -> None:
    """An area and a vendor's id must not be confused: only an area has commas."""
    assert target_of(targets) == expected


def test_mistakes() -> None:
    """A mistyped area or position is reported before anything is sent."""
    for targets in (["1,2"], ["1,2,x"], ["1,2,3,4,5"]):
        with pytest.raises(SettingsError, match="an area is"):
            target_of(targets)
    for position in ("here", "1", "95,0"):
        with pytest.raises(SettingsError, match="the position must be"):
            parsed_position(position)


def test_lines() -> None:
    """Each line about a vendor has its name, and there is one line when it leaves."""
    names: dict[str, str] = {}
    card = {"vendorId": "v", "name": "Tacos", "lat": 1, "long": 2, "timestamp": 0, "open": True, "online": True}
    fix = {"vendorId": "v", "lat": 1.5, "long": 2, "timestamp": 0}
    (entered,) = lines({"type": "update", "entered": [card]}, names)
    assert entered.startswith("entered  v  Tacos  1.000000,2.000000  ")
    assert entered.endswith("open  online")
    assert next(lines({"type": "update", "moved": [fix]}, names)).startswith("moved  v  Tacos  1.500000,2.000000")
    assert list(lines({"type": "update", "left": ["v"]}, names)) == ["left  v  Tacos"]
    assert list(lines({"type": "bye", "reconnectAfterMs": 5}, names)) == ["bye"]
