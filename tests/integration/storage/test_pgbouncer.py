"""A real PgBouncer in transaction mode before PostgreSQL, configured by default."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streamer.errors import DatabaseError, Unavailable
from streamer.ingest.batcher import Chunk
from streamer.ingest.copy_rows import RowEncoder
from streamer.ingest.position import Position
from streamer.storage import migrate, revisions, roles, seed
from streamer.storage.alerts import AlertStore, Change, NewAlert, new_id
from streamer.storage.database import Database, _session_settings
from streamer.storage.drift import drift
from streamer.storage.dsn import parse_url
from streamer.storage.store import Store
from tests.conftest import connected
from tests.support.apps import now_ms
from tests.support.pgbouncer import PROGRAM, pgbouncer

PASSED = ("search_path", "extra_float_digits", *_session_settings(1.0))

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")


@pytest.fixture
async def bouncer(empty_database_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """Yields the URL of an empty database through PgBouncer."""
    async with pgbouncer(empty_database_url, tmp_path) as url:
        yield url


def ping(vendor_id: str, timestamp: int) -> Chunk:
    position = Position(timestamp, 52.0, 21.0)
    rows = RowEncoder(vendor_id).encode([position[:3]])
    return Chunk(vendor_id, range(1, 2), rows, True, position, lambda *_: None)


@pytest.mark.parametrize("query", ["?pgbouncer=true", "?schema=public&pgbouncer=true"])
async def test_everything_goes_through_pgbouncer(bouncer: str, query: str) -> None:
    """Prisma's documentation of PgBouncer recommends such a URL; migrations and the server must both accept it."""
    url = bouncer + query
    await migrate.upgrade(url)
    assert await revisions.revision(url) == revisions.head()
    assert await drift(url) == []
    (vendor,) = await seed.seed(url)
    await roles.require_rights(url)
    store = Store(await Database.open(url))
    try:
        start = now_ms()
        for retry in (False, True, True):
            for n in range(20):
                assert await store.pings.store([ping(vendor.vendor_id, start + n)], retry) == {}
        await store.update_positions([(vendor.vendor_id, Position(start, 52.0, 21.0))])
        (row,) = await store.cards([vendor.vendor_id])
        assert row.located_at == start
        assert len(await store.locations(vendor.vendor_id, start, start + 100, 100)) == 20
    finally:
        await store.database.close()


async def test_what_is_saved_is_on_disk_behind_pgbouncer(empty_database_url: str, tmp_path: Path) -> None:
    """With asynchronous commits, a session that PgBouncer opens later could lose acked pings in a crash."""
    await migrate.upgrade(empty_database_url)
    (vendor,) = await seed.seed(empty_database_url)
    written = ("locations", "vendors", "streamer_alerts", "streamer_alert_events")
    async with connected(empty_database_url) as owner:
        await owner.execute(
            f"""
            ALTER DATABASE "{parse_url(empty_database_url).database}" SET synchronous_commit = off;
            CREATE TABLE "seen" ("table" TEXT, "setting" TEXT);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
                $$BEGIN
                    INSERT INTO "seen" VALUES (TG_ARGV[0], current_setting('synchronous_commit')); RETURN NULL;
                END$$
            """
        )
        for table in written:
            await owner.execute(
                f'CREATE TRIGGER "note" AFTER INSERT OR UPDATE ON "{table}" FOR EACH ROW EXECUTE FUNCTION note({table})'
            )
        async with pgbouncer(empty_database_url, tmp_path) as url:
            store = Store(await Database.open(f"{url}?pgbouncer=true", pool_size=1))
            alerts = AlertStore(store.database)
            async with connected(f"{url}?pgbouncer=true") as other, other.transaction():
                await other.execute("SELECT 1")  # occupies the session with which the store was opened
                for retry in (False, False, True):
                    assert await store.pings.store([ping(vendor.vendor_id, 1)], retry) == {}
                for open in (True, False):
                    await store.set_open(vendor.vendor_id, open, False, vendor.clerk_id)
                new = NewAlert({}, 0, "https://a.example/", "a.example", b"x", None, None, None, None)
                alert, _ = await alerts.create(vendor.clerk_id, new, 1, now_ms())
                await alerts.add_event(alert.id, "ping", "{}", now_ms())
                key = {"alertId": alert.id, "vendorId": vendor.vendor_id}
                state = {"version": 1, "inside": True, "open": True, "online": True, "told": {}, "card": {}}
                event = {"id": new_id(now_ms()), "type": "enter", "body": "{}", "at": now_ms()}
                given = {**key, **state, "revision": 1, "eventAt": now_ms(), "quietUntil": 0}
                assert await alerts.commit([given], [{**key, **event}]) == {(alert.id, vendor.vendor_id): 1}
                await alerts.change(vendor.clerk_id, alert.id, lambda _: Change(new, same=True, revive=True))
                await alerts.delete(vendor.clerk_id, alert.id)
            await store.database.close()
        assert {tuple(row) for row in await owner.fetch('SELECT * FROM "seen"')} == {(table, "on") for table in written}
        assert await owner.fetchval('SELECT count(*) FROM "locations"') == 1


@pytest.mark.parametrize("query", ["", "?schema=public", "?schema=other&pgbouncer=true"])
async def test_a_url_that_pgbouncer_refuses_names_the_remedy(bouncer: str, query: str) -> None:
    """If only a change of the URL helps, the error must say so rather than suggest a retry."""
    for call in (migrate.upgrade, Database.open):
        with pytest.raises(DatabaseError, match=r"pgbouncer=true|ALTER ROLE") as refused:
            await call(bouncer + query)
        assert "try again" not in str(refused.value)


@pytest.mark.parametrize(
    ("part", "instead", "says"),
    [
        ("/{database}", "/nowhere", r"CREATE DATABASE and list it in PgBouncer's \[databases\]"),
        (":{password}@", ":wrong@", "check user and password in DATABASE_URL and in PgBouncer's auth_file"),
        ("//{user}:", "//nobody:", "check user and password in DATABASE_URL and in PgBouncer's auth_file"),
    ],
)
async def test_what_pgbouncer_refuses_for_ever(bouncer: str, part: str, instead: str, says: str) -> None:
    """PgBouncer has one code for all errors: a wrong password must not look like a server that is down."""
    parsed = parse_url(bouncer)
    known = part.format(database=parsed.database, password=parsed.password, user=parsed.user)
    assert known in bouncer
    with pytest.raises(DatabaseError, match=says) as refused:
        Store(await Database.open(bouncer.replace(known, instead) + "?pgbouncer=true"))
    assert "try again" not in str(refused.value)


async def test_a_login_that_postgresql_refuses_behind_pgbouncer(empty_database_url: str, tmp_path: Path) -> None:
    """The password in PgBouncer's file may be out of date: the message must say so."""
    parsed = parse_url(empty_database_url)
    async with pgbouncer(empty_database_url.replace(f":{parsed.password}@", ":outdated@"), tmp_path) as url:
        with pytest.raises(DatabaseError, match="check user and password") as refused:
            Store(await Database.open(f"{url}?pgbouncer=true"))
    assert "try again" not in str(refused.value)


async def test_prepared_statements_in_transaction_mode_name_the_remedy(empty_database_url: str, tmp_path: Path) -> None:
    """A pooler that accepts all settings still loses prepared statements."""
    await migrate.upgrade(empty_database_url)
    ignored = ", ".join(PASSED)
    async with pgbouncer(empty_database_url, tmp_path, ignore_startup_parameters=ignored) as url:
        store = Store(await Database.open(url, pool_size=1))
        try:
            assert await store.deleted_users() == []
            async with connected(f"{url}?pgbouncer=true") as other, other.transaction():
                # It occupies the session in which the statement was prepared.
                await other.execute("SELECT 1")
                with pytest.raises(Unavailable, match="pgbouncer=true"):
                    await store.deleted_users()
        finally:
            await store.database.close()
