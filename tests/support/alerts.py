"""Alerts in a real PostgreSQL, without a server."""

from __future__ import annotations

from streamer.storage import seed
from streamer.storage.alerts import AlertRow, AlertStore, NewAlert
from tests.conftest import connected
from tests.support.apps import now_ms


async def new_alert(store: AlertStore, database_url: str, host: str = "a.example") -> AlertRow:
    """Creates an alert of a new user for one listed vendor."""
    (one,) = await seed.seed(database_url, 1)
    source = {"on": ["entered"], "vendors": ["v"]}
    new = NewAlert(source, 0, f"https://{host}/", host, b"x", None, None, None, None)
    row, _ = await store.create(one.clerk_id, new, 100, now_ms())
    return row


async def event_count(database_url: str) -> int:
    """Returns the number of stored events."""
    async with connected(database_url) as connection:
        count: int = await connection.fetchval('SELECT count(*) FROM "streamer_alert_events"')
        return count
