"""Alerts in a real PostgreSQL: states fence events, claims are exclusive, old days are deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamer.errors import ProtocolError
from streamer.operations import maintenance
from streamer.storage import partitions
from streamer.storage.alerts import AlertRow, AlertStore, Attempt, Change, NewAlert, new_id
from streamer.storage.database import Database
from tests.conftest import connected
from tests.support.alerts import event_count, new_alert
from tests.support.apps import eventually, now_ms


@pytest.fixture
async def store(serving_url: str) -> AsyncIterator[AlertStore]:
    """With the database role of servers."""
    database = await Database.open(serving_url)
    yield AlertStore(database)
    await database.close()


def state(row: AlertRow, vendor_id: str, version: int, *, inside: bool = True, revision: int = 1) -> dict[str, Any]:
    return {
        "alertId": row.id,
        "vendorId": vendor_id,
        "revision": revision,
        "version": version,
        "inside": inside,
        "open": False,
        "online": False,
        "told": {},
        "card": {},
        "eventAt": 0,
        "quietUntil": 0,
    }


def event(row: AlertRow, vendor_id: str, at: int) -> dict[str, Any]:
    return {
        "id": new_id(at),
        "alertId": row.id,
        "vendorId": vendor_id,
        "type": "vendor.entered",
        "body": "{}",
        "at": at,
    }


async def test_of_two_processes_one_stores_the_event(store: AlertStore, database_url: str) -> None:
    """If two processes see the same vendor enter, during a takeover of alerts, one event is stored."""
    row, now = await new_alert(store, database_url), now_ms()
    both = await asyncio.gather(*(store.commit([state(row, "v", 1)], [event(row, "v", now + n)]) for n in range(4)))
    assert sorted(len(each) for each in both) == [0, 0, 0, 1]
    assert await event_count(database_url) == 1
    assert await store.commit([state(row, "v", 2, inside=False)], [event(row, "v", now + 9)]) == {(row.id, "v"): 2}
    assert await store.commit([state(row, "v", 2)], [event(row, "v", now + 9)]) == {}
    # The state of a vendor that left is equivalent to no state.
    assert await store.commit([state(row, "v", 1)], [event(row, "v", now + 9)]) == {(row.id, "v"): 3}
    assert await event_count(database_url) == 3


async def test_an_alert_that_changed_or_ended_takes_no_event(store: AlertStore, database_url: str) -> None:
    """No webhook is sent for an alert after it was deleted."""
    row, now = await new_alert(store, database_url), now_ms()
    assert await store.commit([state(row, "v", 1, revision=7)], [event(row, "v", now)]) == {}
    assert await store.disable(row.id, "a test")
    assert await store.commit([state(row, "v", 1, revision=2)], [event(row, "v", now)]) == {}
    assert await event_count(database_url) == 0


async def test_a_change_of_an_alert_that_was_just_deleted_changes_nothing(store: AlertStore, database_url: str) -> None:
    """If a change and a deletion cross, a deleted alert must not be stored again."""
    row = await new_alert(store, database_url)
    async with connected(database_url) as connection:
        clerk_id = await connection.fetchval(
            'SELECT "clerkId" FROM "users" u JOIN "streamer_alerts" a ON a."userId" = u."id" WHERE a."id" = $1', row.id
        )
        await store.delete(clerk_id, row.id)
        new = NewAlert(row.source, 0, row.url, "a.example", row.secret, None, None, None, None)
        with pytest.raises(ProtocolError, match="you have no alert"):
            await store.change(clerk_id, row.id, lambda _: Change(new, same=False, revive=True))
        assert await connection.fetchval('SELECT "url" FROM "streamer_alerts" WHERE "id" = $1', row.id) == ""


async def test_a_webhook_is_claimed_by_one_and_in_order(store: AlertStore, database_url: str) -> None:
    """If two processes sent at the same time, or in the wrong order, a receiver would end with the wrong state."""
    row, now = await new_alert(store, database_url), now_ms()
    await store.commit([state(row, "v", 1)], [event(row, "v", now + n) for n in range(3)])
    await store.commit([state(row, "w", 1)], [event(row, "w", now)])
    claims = await asyncio.gather(*(store.claim(10, 8, {}, 60_000) for _ in range(4)))
    claimed = [each for claim in claims for each in claim]
    assert len(claimed) == 2
    assert len({each.id for each in claimed}) == 2
    done = [Attempt(each.id, each.alert_id, each.attempts, True, None, {"at": now, "ms": 1}) for each in claimed]
    await store.record(done)
    following = await store.claim(10, 8, {}, 60_000)
    assert len(following) == 1
    assert following[0].at == now + 1
    assert await store.claim(10, 8, {}, 60_000) == []


async def test_a_claim_of_a_killed_process_is_taken_up(store: AlertStore, database_url: str) -> None:
    """Otherwise webhooks claimed by a killed process would never be sent."""
    row = await new_alert(store, database_url)
    await store.commit([state(row, "v", 1)], [event(row, "v", now_ms())])
    first = await store.claim(10, 8, {}, 0)
    again = await store.claim(10, 8, {}, 60_000)
    assert [each.id for each in first] == [each.id for each in again]
    assert again[0].attempts == 2
    # The first process's late failure does not reset the second one's claim.
    await store.record([Attempt(first[0].id, row.id, 1, False, now_ms(), {"at": 1, "ms": 1})])
    assert await store.claim(10, 8, {}, 60_000) == []


async def test_a_host_gets_its_share_only(store: AlertStore, database_url: str) -> None:
    """Without the limit, all requests of a process could wait for one receiver."""
    row = await new_alert(store, database_url)
    for number in range(20):
        await store.commit([state(row, f"v{number}", 1)], [event(row, f"v{number}", now_ms())])
    assert len(await store.claim(64, 8, {"a.example": 5}, 60_000)) == 3
    assert await store.claim(64, 8, {"a.example": 8}, 60_000) == []
    assert len(await store.claim(4, 8, {}, 60_000)) == 4


async def test_days_of_webhooks_are_made_and_dropped(store: AlertStore, database_url: str, serving_url: str) -> None:
    """Without partitions, deleting a day would be a DELETE of millions of rows."""
    today = datetime.now(UTC).date()
    row = await new_alert(store, database_url)
    await store.commit([state(row, "v", 1)], [event(row, "v", now_ms())])
    async with connected(database_url) as connection:
        assert len(await partitions.ensure_partitions(connection, today, 2, "streamer_alert_events")) == 5
        assert await partitions.ensure_partitions(connection, today, 2, "streamer_alert_events") == []
        names = (
            'SELECT "relname" FROM pg_class WHERE "relname" ~ \'^streamer_alert_events_\\d+$\' AND "relkind" = \'r\''
        )
        made = {found[0] for found in await connection.fetch(names)}
        assert made == {f"streamer_alert_events_{today + timedelta(days=n):%Y%m%d}" for n in range(-2, 3)}
        # Rows from before the day had its partition were moved into it.
        assert await connection.fetchval('SELECT count(*) FROM "streamer_alert_events_default"') == 0
        assert await event_count(database_url) == 1
        await connection.execute('UPDATE "streamer_alerts" SET "deletedAt" = now() AT TIME ZONE \'UTC\'')
        pruned = await maintenance.prune(database_url, 90, None, 30, today=today + timedelta(days=32))
        assert {each.name for each in pruned.partitions if "alert" in each.name} == {
            f"streamer_alert_events_{today + timedelta(days=n):%Y%m%d}" for n in range(-2, 2)
        }
        assert pruned.alerts == 1
        assert await connection.fetchval('SELECT count(*) FROM "streamer_alerts"') == 0
        assert await connection.fetchval('SELECT count(*) FROM "streamer_alert_states"') == 0


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("streamer_alerts", '"expiresAt" = NULL'),
        ("streamer_alert_states", '"inside" = true, "version" = 2'),
    ],
)
async def test_what_comes_back_while_it_is_pruned_stays(
    store: AlertStore, database_url: str, table: str, change: str
) -> None:
    """A user extends an alert that ended, or a vendor enters again: pruning would delete what was just committed."""
    row = await new_alert(store, database_url)
    await store.commit([state(row, "v", 1, inside=False)], [])
    async with connected(database_url) as connection:
        if table == "streamer_alerts":
            await connection.execute("""UPDATE "streamer_alerts" SET "expiresAt" = now() - interval '60 days'""")
        async with connection.transaction():
            await connection.execute(f'UPDATE "{table}" SET {change}')
            pruning = asyncio.create_task(maintenance.prune(database_url, 90, alert_days=30))

            async def waits() -> bool:
                return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

            await eventually(waits, "a prune that waits for the row")
        await pruning
        assert await connection.fetchval(f'SELECT count(*) FROM "{table}"') == 1


async def test_processes_that_are_there_know_each_other(store: AlertStore) -> None:
    """A live process considered dead would have its alerts evaluated twice; a dead one considered alive, never."""
    assert await store.beat("a", 60_000) == {"a"}
    assert await store.beat("b", 60_000) == {"a", "b"}
    await store.leave("a")
    assert await store.beat("b", 60_000) == {"b"}


async def test_a_webhook_on_its_way_while_its_partition_is_made(store: AlertStore, database_url: str) -> None:
    """PostgreSQL then refuses the row for the default partition, and it must go into the new one."""
    row = await new_alert(store, database_url)
    async with connected(database_url) as connection:
        async with connection.transaction():
            await connection.execute("SELECT streamer_add_alert_partition($1)", datetime.now(UTC).date())
            adding = asyncio.create_task(store.add_event(row.id, "alert.test", "{}", now_ms()))
            async with connected(database_url) as other:

                async def waits() -> bool:
                    count: int = await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
                    return count > 0

                await eventually(waits, "a row that waits for the partition")
        assert await adding
