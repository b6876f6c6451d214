"""Erasure leaves no data behind, and an export is complete."""

from __future__ import annotations

import json
import resource
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from streamer.accounts.tokens import make_token
from streamer.errors import DatabaseError
from streamer.ingest.copy_rows import location_id
from streamer.operations import maintenance, privacy
from streamer.operations.backup import archive
from streamer.storage import partitions, seed
from streamer.storage.queries import ALL_TABLES
from tests.conftest import Serve, connected
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually
from tests.support.process import ServerProcess

LAT, LONG = 52.123456, 21.654321
FEED = "test:feed"


async def rows_with(url: str, *texts: str) -> list[str]:
    """Returns all rows of all tables that contain one of the texts."""
    found = []
    async with connected(url) as connection:
        for space, name in await connection.fetch(ALL_TABLES, None):
            for row in await connection.fetch(f'SELECT t::text FROM "{space}"."{name}" t'):
                found += [f"{name}: {row[0]}" for text in texts if text in row[0]]
    return found


async def redis_with(url: str, *texts: str) -> list[str]:
    """Returns all keys of Redis whose name or contents contain one of the texts."""
    client = redis.asyncio.Redis.from_url(url, decode_responses=True)
    found = []
    try:
        async for key in client.scan_iter():
            kind = str(await client.type(key))
            held: Any = {
                "hash": client.hgetall,
                "stream": client.xrange,
                "set": client.smembers,
                "string": client.get,
            }.get(kind, client.dump)
            contents = f"{key} {await held(key)}" if kind != "zset" else f"{key} {await client.zrange(key, 0, -1)}"
            found += [contents for text in texts if text in contents]
    finally:
        await client.aclose()
    return found


async def alerted(url: str, clerk_id: str, vendor_id: str) -> None:
    """Creates alerts of a user for a vendor, by its id and by its future position."""
    headers = {"Authorization": f"Bearer {make_token(SECRET, clerk_id, 600)}"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        for looked_at in ({"vendors": [vendor_id]}, {"area": circle(52.12, 21.65, 2000)}):
            asked = {**looked_at, "on": ["entered"], "url": "https://hooks.invalid.example/"}
            async with session.post("/v1/alerts", json=asked) as answer:
                id = (await answer.json())["id"]

            async def begun(id: str = id) -> bool:
                async with session.get(f"/v1/alerts/{id}") as answer:
                    return "startedAt" in await answer.json()

            await eventually(begun, "an alert that has begun")


@pytest.mark.parametrize("what", ["vendor", "user"])
async def test_nothing_is_left(serve: Serve, database_url: str, redis_url: str, what: str) -> None:
    """The right to erasure: no row, no key and no coordinate is left anywhere."""
    gone, stays = await seed.seed(database_url, 2)
    running = await serve(feed="on", feed_key=FEED, feed_interval=0.1, position_interval=0.1, alert_key="k" * 32)
    for user in (gone, stays):
        await alerted(running.url, user.clerk_id, gone.vendor_id)
    async with CustomerApp(running.url) as customer:
        await customer.watch("w", circle(52, 21, 100_000))
        async with VendorApp(running.url, gone.clerk_id) as app, VendorApp(running.url, stays.clerk_id) as other:
            await app.ping(LAT, LONG)
            await other.ping(52.3, 21.2)
            await app.acked(1)
            await other.acked(1)
            await app.send({"type": "status", "open": False})

            async def everywhere() -> bool:
                rows = await rows_with(database_url, gone.vendor_id)
                tables = {row.partition(":")[0] for row in rows}
                wanted = {"streamer_audit", "streamer_alerts", "streamer_alert_states", "streamer_alert_events"}
                return bool(await redis_with(redis_url, gone.vendor_id)) and wanted <= tables

            await eventually(everywhere, "the vendor in Redis and in the audit")
            done = await privacy.erase(
                database_url,
                redis_url,
                gone.vendor_id if what == "vendor" else gone.clerk_id,
                stream_key=FEED,
                noticed_within=4.0,
            )
    assert done.rows["locations"] == 1
    assert done.rows["vendors"] == 1
    texts = [gone.vendor_id, str(LAT), str(LONG)]
    if what == "user":
        texts += [gone.clerk_id, "seed_000001@example.com"]
    assert await rows_with(database_url, *texts) == []
    assert await redis_with(redis_url, *texts) == []
    assert await rows_with(database_url, stays.vendor_id) != []
    with pytest.raises(DatabaseError, match="no vendor and no user"):
        await privacy.erase(database_url, redis_url, gone.vendor_id, stream_key=FEED, noticed_within=0)


async def test_nothing_is_left_of_what_was_deleted_before(database_url: str) -> None:
    """A user closes a stall, and asks for erasure later: the audit would keep the stall's phone number for a year."""
    gone, stays = await seed.seed(database_url, 2)
    async with connected(database_url) as connection:
        user, other = [
            await connection.fetchval('SELECT "id" FROM "users" WHERE "clerkId" = $1', one.clerk_id)
            for one in (gone, stays)
        ]
        for id in ("closed-stall", "sold-stall", "passed-on-stall"):
            await connection.execute(
                """
                INSERT INTO "vendors" ("id", "name", "phone", "userId", "updatedAt")
                VALUES ($1, 'Stall', '555-' || $1, $2, now())
                """,
                id,
                user,
            )
        await connection.execute("""UPDATE "vendors" SET "phone" = '556-' || "id" WHERE "id" = 'closed-stall'""")
        await connection.execute(
            """
            INSERT INTO "subscriptions" ("id", "userId", "provider", "productId", "status", "startDate", "updatedAt")
            VALUES ('old-subscription', $1, 'stripe', 'p', 'active', now(), now())
            """,
            user,
        )
        await connection.execute(
            """
            INSERT INTO "integrations" ("id", "service", "externalId", "internalId", "updatedAt")
            VALUES ('old-integration', 'algolia', 'e', 'closed-stall', now())
            """
        )
        await connection.execute('DELETE FROM "integrations"')
        await connection.execute('DELETE FROM "subscriptions"')
        await connection.execute("""DELETE FROM "vendors" WHERE "id" IN ('closed-stall', 'passed-on-stall')""")
        # These belong to another user now.
        await connection.execute("""UPDATE "vendors" SET "userId" = $1 WHERE "id" = 'sold-stall'""", other)
        await connection.execute(
            """
            INSERT INTO "vendors" ("id", "name", "userId", "updatedAt") VALUES ('passed-on-stall', 'Stall', $1, now())
            """,
            other,
        )
    await privacy.erase(database_url, None, gone.clerk_id, stream_key=None, noticed_within=0)
    assert await rows_with(database_url, "closed-stall", "old-subscription", "old-integration") == []
    for id in ("sold-stall", "passed-on-stall"):
        assert [row for row in await rows_with(database_url, id) if row.startswith("vendors")] != []


def files_with(folder: Path, *texts: str) -> dict[str, set[str]]:
    """Returns the files of a folder whose name or contents contain the texts."""
    found: dict[str, set[str]] = {}
    for file in folder.rglob("*"):
        contents = file.read_bytes() if file.is_file() else b""
        if held := {text for text in texts if text in file.name or text.encode() in contents}:
            found[str(file.relative_to(folder))] = held
    return found


async def test_no_file_is_left(serving_url: str, database_url: str, redis_url: str, tmp_path: Path) -> None:
    """A server's log and folders have no data of an erased vendor, except its id in the log and the named backups."""
    (gone,) = await seed.seed(database_url, 1)
    backups, log = tmp_path / "backups", tmp_path / "server.log"
    backups.mkdir()
    settings = {"backup_dir": backups, "feed": "on", "feed_key": FEED, "position_interval": 0.1}
    async with ServerProcess(serving_url, redis_url, log=log, **settings) as server:
        async with CustomerApp(server.url) as customer, VendorApp(server.url, gone.clerk_id) as app:
            await customer.watch("w", circle(LAT, LONG, 1000))
            await app.ping(LAT, LONG)
            await app.acked(1)
            await app.send({"type": "status", "open": False})
            await app.send({"type": "ping", "lat": LAT, "long": 999})
            await app.expect("reject")
        headers = {"Authorization": f"Bearer {make_token(SECRET, gone.clerk_id, 600)}"}
        async with aiohttp.ClientSession(server.url, headers=headers) as session:
            async with session.get("/v1/osmand", params={"lat": LAT, "lon": LONG, "speed": "no number"}) as answer:
                await answer.read()
            async with session.get("/v1/vendors/nearby", params={"lat": LAT, "long": LONG, "radius": -1}) as answer:
                assert answer.status == 400
            url = f"/v1/vendors/{gone.vendor_id}/locations"
            async with session.post(url, json={"lat": LAT, "long": LONG, "timestamp": 1}) as answer:
                await answer.read()
        dump = await archive.backup(database_url, backups)
        done = await privacy.erase(
            database_url, redis_url, gone.clerk_id, stream_key=FEED, backup_dir=backups, noticed_within=4.0
        )
    assert [each.path for each in done.backups] == [dump]
    found = files_with(tmp_path, gone.vendor_id, gone.clerk_id, str(LAT), str(LONG), "seed_000001@example.com")
    assert found.pop("server.log", set()) <= {gone.vendor_id}
    assert found.keys() <= {f"backups/{dump.name}"}, found


async def add(url: str, vendor_id: str, start: datetime, count: int, step: timedelta) -> None:
    rows = []
    for n in range(count):
        at = start + n * step
        id = location_id(vendor_id, int(at.timestamp() * 1000))
        rows.append((id, vendor_id, LAT, LONG, at.replace(tzinfo=None)))
    async with connected(url) as connection:
        await connection.copy_records_to_table(
            "locations", records=rows, columns=["id", "vendorId", "lat", "long", "timestamp"]
        )


async def test_an_export_has_every_location(database_url: str, tmp_path: Path) -> None:
    """A vendor's export contains all data, in formats that other programs read."""
    (vendor,) = await seed.seed(database_url, 1)
    start = datetime.now(UTC) - timedelta(hours=30)
    await add(database_url, vendor.vendor_id, start, 12_000, timedelta(seconds=5))
    archive = tmp_path / "vendor.zip"
    assert await privacy.export(database_url, vendor.vendor_id, archive) == 12_000
    with zipfile.ZipFile(archive) as made:
        assert json.loads(made.read("vendor.json"))["id"] == vendor.vendor_id
        assert len(json.loads(made.read("locations.json"))["locations"]) == 12_000
        assert len(json.loads(made.read("locations.geojson"))["features"]) == 12_000
        assert made.read("locations.gpx").count(b"<trkpt") == 12_000
    with pytest.raises(DatabaseError, match="can't be written"):
        await privacy.export(database_url, vendor.vendor_id, archive)
    with pytest.raises(DatabaseError, match="no vendor"):
        await privacy.export(database_url, "nobody", tmp_path / "other.zip")


async def test_older_days_keep_one_location_a_minute(database_url: str) -> None:
    """Old days keep one position per minute; recent days are not changed."""
    first, second = await seed.seed(database_url, 2)
    today = datetime.now(UTC).date()
    async with connected(database_url) as connection:
        await partitions.ensure_partitions(connection, today - timedelta(days=10), 1)
    old = datetime.combine(today - timedelta(days=10), datetime.min.time(), UTC)
    recent = datetime.combine(today - timedelta(days=1), datetime.min.time(), UTC)
    for vendor in (first, second):
        await add(database_url, vendor.vendor_id, old, 1800, timedelta(seconds=2))
        await add(database_url, vendor.vendor_id, recent, 100, timedelta(seconds=2))
    thinned = await maintenance.thin(database_url, 7)
    assert sum(day.rows for day in thinned) == 2 * (1800 - 60)
    async with connected(database_url) as connection:
        assert await connection.fetchval('SELECT count(*) FROM "locations"') == 2 * (60 + 100)
    assert await maintenance.thin(database_url, 7) == []
    assert sum(day.rows for day in await maintenance.thin(database_url, 7, 600)) == 2 * (60 - 6)


async def test_an_export_that_fails_leaves_no_file(database_url: str, tmp_path: Path) -> None:
    """On a full disk: half an archive of personal data would stay, and refuse the next export as an existing file."""
    (vendor,) = await seed.seed(database_url, 1)
    target = tmp_path / "vendor.zip"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(DatabaseError, match="File too large"):
            await privacy.export(database_url, vendor.vendor_id, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not target.exists()
    await privacy.export(database_url, vendor.vendor_id, target)
    before = target.read_bytes()
    with pytest.raises(DatabaseError, match="File exists"):
        await privacy.export(database_url, vendor.vendor_id, target)
    assert target.read_bytes() == before
