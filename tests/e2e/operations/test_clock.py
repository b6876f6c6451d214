"""A server whose host has a wrong clock, under faketime: it must not be sent clients, and must harm no map for good."""

from __future__ import annotations

import signal
from pathlib import Path

import aiohttp
import pytest

from streamer.accounts.tokens import make_token
from streamer.storage.seed import seed
from tests.conftest import Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually, now_ms
from tests.support.process import ServerProcess

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
HERE = (52.2300, 21.0100)
AWAY = (52.2400, 21.0200)

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="libfaketime is not installed (Debian: faketime)")


async def test_both_references_are_asked(serve: Serve) -> None:
    """With one of them only, a server whose clock is right would be unready because of a wrong clock elsewhere."""
    running = await serve()
    await eventually(lambda: running.server.clock_check.offsets.keys() == {"postgresql", "redis"}, "both offsets")


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("shift", "way"), [("+3600s", "ahead of"), ("-3600s", "behind")])
async def test_an_hour_off(
    serve: Serve, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, shift: str, way: str
) -> None:
    """Unready with the cause; what it took with a stamp an hour ahead yields to true pings on the other servers."""
    (vendor,) = await seed(database_url, 1)
    right = await serve()
    monkeypatch.setenv("LD_PRELOAD", str(LIBRARY))
    monkeypatch.setenv("FAKETIME", shift)
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    wrong = ServerProcess(database_url, redis_url)
    await wrong.spawn()
    try:
        monkeypatch.undo()

        async def named() -> bool:
            try:
                async with aiohttp.ClientSession() as session, session.get(f"{wrong.url}/readyz") as answer:
                    return answer.status == 503 and way in (await answer.json())["causes"].get("clock", "")
            except aiohttp.ClientError:
                return False

        await eventually(named, "the wrong clock named", 30)
        if way == "ahead of":
            phone = VendorApp(wrong.url, vendor.clerk_id)
            phone.headers = {"Authorization": f"Bearer {make_token(SECRET, vendor.clerk_id, 7200)}"}
            async with CustomerApp(right.url) as customer, phone as app:
                await customer.watch("w", circle(*HERE, 5_000))
                await app.ping(*AWAY, timestamp=now_ms() + 3_600_000)
                await app.acked(1)
                async with VendorApp(right.url, vendor.clerk_id) as again:
                    hello = await again.expect("hello")
                    assert hello["time"] < now_ms() + 60_000
                    await again.ping(*HERE)
                    await customer.sees("w", {vendor.vendor_id: HERE})
    finally:
        await wrong.end(signal.SIGKILL)
