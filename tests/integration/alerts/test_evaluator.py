"""Which alerts a process evaluates, with a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable

import pytest

from streamer.alerts.evaluator import Evaluator
from streamer.counters import Counters
from streamer.live.index import LiveIndex
from streamer.storage.alerts import SLOTS, AlertStore
from streamer.storage.database import Database
from tests.conftest import connected
from tests.support.alerts import new_alert
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
    evaluator = Evaluator("p", store, LiveIndex("p"), broker, now_ms, Counters(), lambda: None)  # type: ignore[arg-type]

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
