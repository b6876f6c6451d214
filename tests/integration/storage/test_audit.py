"""The audit: every change of users, vendors, subscriptions and integrations adds an entry; pings add none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from streamer.ingest.position import Position
from streamer.storage import audit, drift
from streamer.storage.database import Database
from streamer.storage.models import METADATA
from streamer.storage.store import Store
from tests.conftest import SERVING_ROLE, Serve, connected
from tests.support.apps import VendorApp, eventually
from tests.support.commands import run

USER = (
    """INSERT INTO "users" ("id", "clerkId", "email", "updatedAt") VALUES ('u1', 'clerk_1', '1@example.com', now())"""
)
VENDOR = """INSERT INTO "vendors" ("id", "name", "userId", "updatedAt") VALUES ('v1', 'One', 'u1', now())"""


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    """The owner's connection to a database with a user and a vendor, and no entries."""
    async with connected(database_url) as opened:
        await opened.execute(f'{USER}; {VENDOR}; TRUNCATE "streamer_audit"')
        yield opened


async def entries(connection: Any) -> list[audit.Entry]:
    """Returns all entries, oldest first."""
    return (await audit.entries(connection, limit=1000))[::-1]


async def test_an_entry_has_old_and_new_values(connection: Any) -> None:
    """After a complaint the old value of a change must be known."""
    await connection.execute(
        """UPDATE "vendors" SET "name" = 'Two', "phone" = '1', "open" = true, "updatedAt" = now()"""
    )
    (entry,) = await entries(connection)
    assert (entry.table, entry.row_id, entry.action) == ("vendors", "v1", "update")
    assert entry.before is not None
    assert entry.after is not None
    assert {**entry.before, "updatedAt": 0} == {"name": "One", "phone": None, "updatedAt": 0}
    assert {**entry.after, "updatedAt": 0} == {"name": "Two", "phone": "1", "updatedAt": 0}
    assert abs(entry.at - datetime.now(UTC)) < timedelta(minutes=1)


async def test_inserted_and_deleted_rows_are_audited(connection: Any) -> None:
    """Deleting a user also deletes vendors and subscriptions; the entries have their values."""
    await connection.execute(
        """
        INSERT INTO "subscriptions" ("id", "userId", "provider", "productId", "status", "startDate", "updatedAt")
        VALUES ('s1', 'u1', 'stripe', 'p', 'active', now(), now());
        INSERT INTO "integrations" ("id", "service", "externalId", "internalId", "metadata", "updatedAt")
        VALUES ('i1', 'clerk', 'e', 'u1', '{"a": [1]}', now());
        UPDATE "integrations" SET "metadata" = '{"a": [2]}';
        DELETE FROM "users";
        """
    )
    found = await entries(connection)
    assert sorted((e.table, e.action) for e in found) == [
        ("integrations", "insert"),
        ("integrations", "update"),
        ("subscriptions", "delete"),
        ("subscriptions", "insert"),
        ("users", "delete"),
        ("vendors", "delete"),
    ]
    by = {(e.table, e.action): e for e in found}
    assert (by["integrations", "update"].before, by["integrations", "update"].after) == (
        {"metadata": {"a": [1]}},
        {"metadata": {"a": [2]}},
    )
    gone = by["users", "delete"]
    assert gone.after is None
    assert gone.before is not None
    assert gone.before["email"] == "1@example.com"


async def test_every_column_but_the_position_is_watched(connection: Any) -> None:
    """A column that a later migration adds would otherwise change without an entry."""
    values = {"TEXT": "'x'", "TIMESTAMP": "now()", "BOOLEAN": "false", "JSONB": "'{}'", "DOUBLE": "1"}
    await connection.execute(
        """
        INSERT INTO "subscriptions" ("id", "userId", "provider", "productId", "status", "startDate", "updatedAt")
        VALUES ('s1', 'u1', 'stripe', 'p', 'active', '2024-01-01', '2024-01-01');
        INSERT INTO "integrations" ("id", "service", "externalId", "internalId", "updatedAt")
        VALUES ('i1', 'clerk', 'e', 'u1', '2024-01-01');
        """
    )
    for table in audit.AUDITED:
        for column in METADATA.tables[table].columns:
            value = values[str(column.type).split("(")[0].split()[0]]
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute('TRUNCATE "streamer_audit"')
            if column.foreign_keys:
                await connection.execute("""INSERT INTO "users" VALUES ('x', 'x', 'x', NULL, NULL, now(), now())""")
                await connection.execute('TRUNCATE "streamer_audit"')
            await connection.execute(f'UPDATE "{table}" SET "{column.name}" = {value}')
            seen = any(entry.table == table for entry in await entries(connection))
            assert seen == (column.name in audit.audited_columns(table)), (table, column.name)
            await transaction.rollback()


async def test_an_update_without_changes_is_not_audited(connection: Any) -> None:
    """Backends save unchanged forms, and Prisma sets `updatedAt` each time; such changes must add no entries."""
    await connection.execute("""UPDATE "vendors" SET "name" = 'One', "open" = true, "updatedAt" = now()""")
    await connection.execute("""UPDATE "users" SET "email" = '1@example.com', "updatedAt" = now()""")
    await connection.execute("""UPDATE "vendors" SET "name" = 'One', "lat" = 1, "long" = 2""")
    assert await entries(connection) == []


async def test_columns_of_others_are_seen(connection: Any) -> None:
    """A backend may add a column by a migration of its own, even of a type that can't be compared."""
    await connection.execute(
        """ALTER TABLE "users" ADD COLUMN "settings" JSON; UPDATE "users" SET "settings" = '[1]'"""
    )
    (entry,) = await entries(connection)
    assert (entry.before, entry.after) == ({"settings": None}, {"settings": [1]})


async def test_truncating_a_table_is_audited(connection: Any) -> None:
    """TRUNCATE fires no trigger of rows."""
    await connection.execute('TRUNCATE "integrations"')
    (entry,) = await entries(connection)
    assert (entry.table, entry.action, entry.row_id) == ("integrations", "truncate", None)


async def test_an_entry_has_its_actor(connection: Any, database_url: str) -> None:
    """An entry has the login role, the program, its address, and the user that it names, if any."""
    other = await asyncpg.connect(database_url, server_settings={"application_name": "backend"})
    try:
        async with other.transaction():
            await other.execute("SET LOCAL streamer.actor = 'clerk_admin'")
            await other.execute("""UPDATE "users" SET "email" = 'new@example.com'""")
        await other.execute("""UPDATE "users" SET "email" = 'newer@example.com'""")
    finally:
        await other.close()
    first, second = await entries(connection)
    assert (first.user, first.actor, first.application, first.address) == (
        "venta",
        "clerk_admin",
        "backend",
        "127.0.0.1",
    )
    assert second.actor is None


async def test_a_backend_needs_no_right_for_it_and_has_none(connection: Any, database_url: str) -> None:
    """A Prisma client with permissions only on the five tables writes as before, and can't change audit entries."""
    await connection.execute(
        """
        CREATE ROLE a_backend LOGIN PASSWORD 'a';
        GRANT SELECT, INSERT, UPDATE, DELETE ON "users", "vendors", "subscriptions", "integrations", "locations"
        TO a_backend
        """
    )
    try:
        place = database_url.rpartition("@")[2]
        other = await asyncpg.connect(f"postgresql://a_backend:a@{place}")
        try:
            # as Prisma writes: the changed columns, and the row back
            row = await other.fetchrow(
                """UPDATE "vendors" SET "name" = $1, "updatedAt" = $2 WHERE "id" = $3 RETURNING "id", "name" """,
                *("Two", datetime(2024, 1, 1), "v1"),
            )
            assert tuple(row) == ("v1", "Two")
            await other.execute("""DELETE FROM "users" WHERE "id" = 'u1'""")
            for statement in ('SELECT 1 FROM "streamer_audit"', 'DELETE FROM "streamer_audit"'):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await other.execute(statement)
        finally:
            await other.close()
        assert [(e.user, e.action) for e in await entries(connection)] == [
            ("a_backend", "update"),
            ("a_backend", "delete"),
            ("a_backend", "delete"),
        ]
    finally:
        await connection.execute("DROP OWNED BY a_backend; DROP ROLE a_backend")


async def test_a_change_taken_back_leaves_no_entry(connection: Any) -> None:
    """The entry is in the change's own transaction: both or neither."""
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("""UPDATE "vendors" SET "name" = 'Two'""")
    assert len(await entries(connection)) == 1
    await transaction.rollback()
    assert await entries(connection) == []


async def test_pings_are_not_audited(connection: Any, serving_url: str) -> None:
    """Vendors move every second: an entry for each move would cost more than the pings."""
    store = Store(await Database.open(serving_url))
    try:
        await store.update_positions([("v1", Position(1_732_467_600_000, 52.0, 21.0))])
        assert await connection.fetchval('SELECT "lat" FROM "vendors"') == 52.0
        assert await entries(connection) == []
    finally:
        await store.database.close()


async def test_a_vendor_opens(serve: Serve, database_url: str, connection: Any) -> None:
    """A change by the server has the user of the app as its actor."""
    running = await serve()
    async with VendorApp(running.url, "clerk_1") as vendor:
        await vendor.expect("hello")
        await vendor.send({"type": "status", "open": False})
        await vendor.send({"type": "status", "open": False})

        async def told() -> bool:
            return len(await entries(connection)) > 0

        await eventually(told, "an entry")
    (entry,) = await entries(connection)
    assert (entry.row_id, entry.user, entry.actor, entry.application) == (
        "v1",
        SERVING_ROLE,
        "clerk_1",
        "venta-streamer",
    )
    assert entry.after is not None
    assert entry.after["open"] is False


# retention and reading


async def test_old_entries_are_forgotten(connection: Any, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are personal data and must not be kept forever. They are deleted in parts, so that no lock lasts long."""
    monkeypatch.setattr(audit, "PRUNE_CHUNK", 3)
    for number in range(10):
        await connection.execute("""UPDATE "vendors" SET "name" = $1""", str(number))
    await connection.execute("""UPDATE "streamer_audit" SET "at" = "at" - interval '400 days' WHERE "id" % 10 <> 0""")
    before = datetime.now(UTC) - timedelta(days=365)
    assert await audit.prune(connection, before, dry_run=True) == 9
    assert await audit.prune(connection, before) == 9
    assert await audit.prune(connection, before) == 0
    assert len(await entries(connection)) == 1


async def test_they_are_pruned_with_all_else(connection: Any, database_url: str, tmp_path: Path) -> None:
    """One scheduled command prunes all data; by default the audit is kept for a year."""
    await connection.execute("""UPDATE "vendors" SET "name" = 'Two'""")
    await connection.execute("""UPDATE "streamer_audit" SET "at" = "at" - interval '100 days'""")
    place: dict[str, Any] = {"folder": tmp_path, "DATABASE_URL": database_url}
    assert "entries" not in (await run("db", "prune", "--older-than", "30d", **place)).out
    older = ("db", "prune", "--older-than", "30d", "--audit-older-than", "90d")
    assert "would drop 1 audit entries" in (await run(*older, "--dry-run", **place)).out
    assert "dropped 1 audit entries" in (await run(*older, **place)).out
    assert await entries(connection) == []


async def test_a_disabled_trigger_is_reported(connection: Any, database_url: str) -> None:
    """A trigger that was disabled for a bulk load and not enabled again is reported."""
    assert await drift.drift(database_url) == []
    await connection.execute(
        """
        ALTER TABLE "users" DISABLE TRIGGER "zz_streamer_audit";
        DROP TRIGGER "zz_streamer_audit_truncate" ON "vendors";
        DROP TRIGGER "zz_streamer_audit_update" ON "integrations";
        CREATE TRIGGER "zz_streamer_audit_update" AFTER UPDATE OF "id", "service", "externalId", "createdAt"
        ON "integrations" FOR EACH ROW EXECUTE FUNCTION streamer_audit();
        """
    )
    assert await drift.drift(database_url) == [
        "users: trigger zz_streamer_audit is disabled",
        "vendors: trigger zz_streamer_audit_truncate is missing",
        "integrations: trigger zz_streamer_audit_update does not cover internalId, metadata",
    ]


async def test_the_command(connection: Any, database_url: str, tmp_path: Path) -> None:
    """Output as lines or as JSON; a value can't contain terminal control sequences."""
    await connection.execute("""UPDATE "vendors" SET "name" = E'Zażółć\\x1b[2J\\u009b2J'""")
    await connection.execute("""UPDATE "users" SET "email" = 'new@example.com'""")
    done = await run("db", "audit", "--since", "1h", "--table", "vendors", folder=tmp_path, DATABASE_URL=database_url)
    assert (done.status, done.err) == (0, "")
    (line,) = done.out.splitlines()
    assert "vendors v1 update by venta" in line
    assert r'name: "One" → "Zażółć\u001b[2J\u009b2J"' in line
    done = await run("db", "audit", "--id", "u1", "--json", folder=tmp_path, DATABASE_URL=database_url)
    (entry,) = map(json.loads, done.out.splitlines())
    assert (entry["table"], entry["before"], entry["after"]) == (
        "users",
        {"email": "1@example.com"},
        {"email": "new@example.com"},
    )
    for age in ("yesterday", "999999d"):
        done = await run("db", "audit", "--since", age, folder=tmp_path, DATABASE_URL=database_url)
        assert done.status == 2
        assert repr(age) in done.err
