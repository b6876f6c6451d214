"""States and events are stored exactly once in a real PostgreSQL, also after an outage or by two processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

import pytest

from streamer.alerts import state_writer
from streamer.alerts.alert import Alert, State
from streamer.alerts.rules import Seen
from streamer.alerts.rules import State as Known
from streamer.alerts.state_writer import StateWriter
from streamer.counters import Counters
from streamer.protocol.alerts import stored_definition
from streamer.storage.alerts import AlertStore, Evaluated
from streamer.storage.database import Database
from tests.support.alerts import event_count, new_alert
from tests.support.apps import eventually, now_ms
from tests.support.proxy import Proxy


class Process:
    """One process's writer, and the calls of its callbacks."""

    def __init__(self, store: AlertStore) -> None:
        self.kept: list[str] = []
        self.again: list[str] = []
        self.away = 0
        self.committed = 0
        self.writer = StateWriter(self, store, Counters(), self._commit)

    def _commit(self) -> None:
        self.committed += 1

    def stored(self, alert: Alert, vendor_id: str, state: State) -> None:
        self.kept.append(vendor_id)

    def compare_again(self, alerts: Collection[Alert]) -> None:
        self.again += [alert.id for alert in alerts]
        self.writer.forget(alerts)

    def report_outage(self, away: Exception | None) -> None:
        self.away += away is not None


def entered(state: State, at: int) -> State:
    state.known = Known(Seen(True, False, False), {}, at)
    state.events.append(("entered", at, "{}"))
    return state


@pytest.fixture
async def proxy(serving_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(serving_url) as proxy:
        yield proxy


@pytest.fixture
async def store(proxy: Proxy) -> AsyncIterator[AlertStore]:
    """With the database role of servers, over a network that can fail."""
    database = await Database.open(proxy.url)
    yield AlertStore(database)
    await database.close()


@pytest.fixture
async def alert(store: AlertStore, database_url: str) -> Alert:
    row = await new_alert(store, database_url)
    evaluated = Evaluated(row.id, 1, row.source, 0, None, True, False, 0, 0)
    return Alert(evaluated, stored_definition(row.source, 0))


async def test_what_changes_while_it_is_stored_is_stored_next(
    store: AlertStore, alert: Alert, database_url: str
) -> None:
    """An event during a commit must be neither lost nor sent twice."""
    process, state = Process(store), entered(State(), now_ms())
    process.writer.put(alert, "v", state)
    async with asyncio.TaskGroup() as group:
        group.create_task(process.writer.store())
        await asyncio.sleep(0)
        assert process.writer.alerts() == {alert}, "who was there at the beginning is not stored yet"
        assert (alert, "v") in process.writer
        process.writer.put(alert, "v", entered(state, now_ms() + 1))
    assert (alert, "v") in process.writer
    assert len(state.events) == 1
    await process.writer.store()
    assert (len(process.writer), state.events, process.kept, process.committed) == (0, [], ["v", "v"], 2)
    assert await event_count(database_url) == 2


async def test_what_postgresql_did_not_take_is_stored_afterwards(
    store: AlertStore, alert: Alert, proxy: Proxy, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage must not lose an event."""
    monkeypatch.setattr(state_writer, "RETRY", 0.05)
    process = Process(store)
    running = asyncio.create_task(process.writer.run())
    proxy.down()
    for number in range(5):
        process.writer.put(alert, f"v{number}", entered(State(), now_ms()))
    await eventually(lambda: process.away > 1, "an outage that is seen")
    assert len(process.writer) == 5
    assert process.writer.alerts() == {alert}
    proxy.up()
    await eventually(lambda: not len(process.writer) and len(process.kept) == 5, "all are stored")
    running.cancel()
    assert await event_count(database_url) == 5


async def test_who_was_not_first_starts_over(store: AlertStore, alert: Alert, database_url: str) -> None:
    """While two processes evaluate one alert, the second must read the state stored by the first."""
    first, second = Process(store), Process(store)
    for process in (first, second):
        process.writer.put(alert, "v", entered(State(), now_ms()))
        await process.writer.store()
    assert (first.kept, first.again) == (["v"], [])
    assert (second.kept, second.again) == ([], [alert.id])
    assert await event_count(database_url) == 1
