"""A server whose host has a wrong clock, by faketime: it must be unready, and no map may stay wrong."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import asyncpg
import psutil
import pytest

from streamer.accounts.tokens import make_token
from streamer.storage.seed import seed
from tests.conftest import MEMORY, Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually, now_ms
from tests.support.process import ServerProcess

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
HERE = (52.2300, 21.0100)
AWAY = (52.2400, 21.0200)

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="libfaketime is not installed (Debian: faketime)")


@pytest.fixture(autouse=True)
def shared_memory() -> Iterator[None]:
    """Removes the library's shared memory of killed processes."""
    yield
    for path in MEMORY.glob("*faketime_s*m_*"):
        if not psutil.pid_exists(int(path.name.rsplit("_", 1)[1])):
            path.unlink(missing_ok=True)


async def test_both_references_are_asked(serve: Serve) -> None:
    """With only one reference clock, a server with a right clock would be unready if that clock were wrong."""
    running = await serve()
    await eventually(lambda: running.server.clock_check.offsets.keys() == {"postgresql", "redis"}, "both offsets")


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("shift", "way"), [("+3600s", "ahead of"), ("-3600s", "behind")])
async def test_an_hour_off(
    serve: Serve, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, shift: str, way: str
) -> None:
    """`/readyz` names the clock; positions an hour ahead are replaced by correct pings on the other servers."""
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


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("before", "after"), [("+3600s", "+0s"), ("-3600s", "+0s"), ("+0s", "+3s"), ("+0s", "-3s")])
async def test_a_step_while_it_runs(
    serve: Serve,
    database_url: str,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    after: str,
) -> None:
    """Time synchronization sets the clock in one step: no restart is needed, and every ping after it is stored and
    shown on all servers.
    """
    (vendor,) = await seed(database_url, 1)
    offset = tmp_path / "offset"
    offset.write_text(before)
    other = await serve()
    monkeypatch.setenv("LD_PRELOAD", str(LIBRARY))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(offset))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    stepped = ServerProcess(database_url, redis_url)
    await stepped.spawn()
    try:
        monkeypatch.undo()

        async def is_ready(expected: bool) -> bool:
            try:
                async with aiohttp.ClientSession() as session, session.get(f"{stepped.url}/readyz") as answer:
                    return (answer.status == 200) is expected
            except aiohttp.ClientError:
                return False

        await eventually(lambda: is_ready(before == "+0s"), "its clock judged", 60)
        phone = VendorApp(stepped.url, vendor.clerk_id)
        phone.headers = {"Authorization": f"Bearer {make_token(SECRET, vendor.clerk_id, 14_400, time.time() - 3_700)}"}
        async with CustomerApp(stepped.url) as customer, CustomerApp(other.url) as distant, phone as app:
            for each in (customer, distant):
                await each.watch("w", circle(*HERE, 5_000))
            await app.ping(*AWAY)  # at the time of its arrival, by the server's clock
            await app.acked(1)
            offset.write_text(after)
            await eventually(lambda: is_ready(True), "the right clock found", 60)
            for number in range(2, 12):
                place = (HERE[0] + number * 1e-4, HERE[1])
                await app.ping(*place, timestamp=now_ms())
                await app.acked(number)
                for each in (customer, distant):
                    await each.sees("w", {vendor.vendor_id: place})
        connection = await asyncpg.connect(database_url)
        try:
            assert await connection.fetchval('SELECT count(*) FROM "locations"') == 11

            async def newest() -> bool:
                return bool(await connection.fetchval('SELECT "lat" FROM "vendors"') == place[0])

            await eventually(newest, "vendors.lat at the newest true ping")
        finally:
            await connection.close()
    finally:
        await stepped.end(signal.SIGKILL)
