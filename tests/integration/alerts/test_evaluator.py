"""Which alerts a process evaluates, with a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest

from streamer.alerts.evaluator import Evaluator
from streamer.counters import Counters
from streamer.live.index import LiveIndex
from streamer.storage.alerts import SLOTS, AlertStore, Change, NewAlert
from streamer.storage.database import Database
from tests.conftest import connected
from tests.support.alerts import event_count, new_alert
from tests.support.apps import now_ms

ALL = frozenset(range(SLOTS))


class Heard:
    """A fake broker: held cells are read immediately; `meanwhile` is called during the read."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], None] = lambda: None

    def hold(self, cells: Iterable[int], vendor_ids: Iterable[str] = ()) -> None:
        pass

    def release(self, cells: Iterable[int], vendor_ids: Iterable[str] = ()) -> None:
        pass

    async def ready(self, cells: Iterable[int], vendor_ids: Iterable[str] = ()) -> bool:
        self.meanwhile()
        return True


def evaluator_of(store: AlertStore, broker: Heard, index: LiveIndex, clock: Callable[[], int]) -> Evaluator:
    """An evaluator of process "p"."""
    faked: Any = broker
    return Evaluator("p", store, index, faked, clock, Counters(), lambda: None)


@pytest.fixture
async def store(serving_url: str) -> AsyncIterator[AlertStore]:
    """With the database role of servers."""
    database = await Database.open(serving_url)
    yield AlertStore(database)
    await database.close()


async def test_slots_that_go_and_come_back_while_they_are_read_are_read_again(
    store: AlertStore, database_url: str
) -> None:
    """A lease ends and is regained during a slow query: otherwise no process would evaluate these alerts any more."""
    old, _ = await new_alert(store, database_url), await new_alert(store, database_url)
    async with connected(database_url) as connection:
        await connection.execute(
            'UPDATE "streamer_alerts" SET "updatedAt" = "updatedAt" - interval \'1 day\' WHERE "id" = $1', old.id
        )
    broker = Heard()
    evaluator = evaluator_of(store, broker, LiveIndex("p"), now_ms)

    def lose_and_regain() -> None:
        broker.meanwhile = lambda: None
        evaluator._own(frozenset())
        evaluator._own(ALL)

    evaluator._own(ALL)
    await evaluator._follow()
    lose_and_regain()
    broker.meanwhile = lose_and_regain
    await evaluator._follow()
    await evaluator._follow()
    assert old.id in evaluator.alerts


async def test_an_alert_that_starts_again_reports_no_vendor_that_was_inside_before(
    store: AlertStore, database_url: str
) -> None:
    """A user who turns an alert on again, or moves its area, would be told that a vendor left which left days ago."""
    row = await new_alert(store, database_url)
    source = {"on": ["entered", "left"], "vendors": ["v"]}
    inside = {"version": 1, "inside": True, "open": False, "online": False, "told": {}, "card": {}, "eventAt": 0}
    await store.commit([{"alertId": row.id, "vendorId": "v", "revision": 1, "quietUntil": 0, **inside}], [])
    async with connected(database_url) as connection:
        owner = await connection.fetchval('SELECT "clerkId" FROM "users"')
    asked = NewAlert(source, 0, row.url, "a.example", row.secret, None, None, None, None)
    await store.change(owner, row.id, lambda _: Change(asked, same=False, revive=True))
    index = LiveIndex("p")
    clock = now_ms()
    evaluator = evaluator_of(store, Heard(), index, lambda: clock)
    evaluator._own(ALL)
    await evaluator._follow()
    clock += 2 * index.offline_after
    evaluator._pass_time()
    while evaluator._writer:
        await evaluator._writer.store()
    assert await event_count(database_url) == 0
    assert [state.inside for state in await store.states([row.id])] == [False]
