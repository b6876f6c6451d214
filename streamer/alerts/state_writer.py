"""Stores the states of this process's alerts together with their events, many in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, Protocol

from streamer.alerts.alert import Alert, State
from streamer.alerts.rules import quiet_until
from streamer.counters import Counters
from streamer.errors import DatabaseError, Unavailable
from streamer.storage.alerts import AlertStore, new_id

MOST_PENDING = 50_000
"""Maximum states that wait for PostgreSQL; further ones are dropped, and compared with the live index afterwards."""
MOST_AT_ONCE = 1000
"""States of one transaction."""
RETRY = 1.0


class StateOwner(Protocol):
    """The owner of the states."""

    def stored(self, alert: Alert, vendor_id: str, state: State) -> None:
        """Called with a state that has been stored."""

    def compare_again(self, alerts: Collection[Alert]) -> None:
        """Called with alerts whose states were not stored, to compare them again."""

    def report_outage(self, away: Exception | None) -> None:
        """Called with the error of an outage, or None when PostgreSQL answered."""


class StateWriter:
    """States and their events, until they are stored. `committed` is called when there are webhooks to send."""

    def __init__(self, owner: StateOwner, store: AlertStore, counters: Counters, committed: Callable[[], None]) -> None:
        self._owner = owner
        self._store = store
        self._counters = counters
        self._committed = committed
        self._pending: dict[tuple[Alert, str], State] = {}
        self._storing: dict[tuple[Alert, str], State] = {}
        """The states of the running transaction."""
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, key: tuple[Alert, str]) -> bool:
        return key in self._pending or key in self._storing

    def put(self, alert: Alert, vendor_id: str, state: State) -> None:
        """Queues a changed state."""
        self._pending[alert, vendor_id] = state
        self._wake.set()

    def alerts(self) -> set[Alert]:
        """Returns the alerts with states that are not stored yet."""
        return {alert for alert, _ in (*self._pending, *self._storing)}

    def forget(self, alerts: Collection[Alert]) -> None:
        """Drops the states of some alerts that are not stored yet."""
        self._pending = {key: state for key, state in self._pending.items() if key[0] not in alerts}

    async def run(self) -> None:
        """Stores states and events until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                try:
                    await self.store()
                except (Unavailable, DatabaseError) as away:
                    self._owner.report_outage(away)
                    if len(self._pending) > MOST_PENDING:
                        self._owner.compare_again(self.alerts())
                    await asyncio.sleep(RETRY)

    async def store(self) -> None:
        """Stores the oldest of the states.

        Raises:
            Unavailable, DatabaseError: PostgreSQL is away, or refused; the states stay queued.
        """
        async with self._lock:
            some = dict(zip(self._pending, range(MOST_AT_ONCE), strict=False))
            batch = self._storing = {key: self._pending.pop(key) for key in some}
            rows, events, sent = [], [], {}
            for (alert, vendor_id), state in batch.items():
                rows.append(row_of(alert, vendor_id, state))
                sent[alert, vendor_id] = len(state.events)
                events += [
                    {
                        "id": new_id(at),
                        "alertId": alert.id,
                        "vendorId": vendor_id,
                        "type": f"vendor.{kind}",
                        "body": body,
                        "at": at,
                    }
                    for kind, at, body in state.events
                ]
            try:
                versions = await self._store.commit(rows, events)
            except BaseException:
                # The same states may have changed again meanwhile.
                self._pending = {**batch, **self._pending}
                raise
            finally:
                self._storing = {}
            refused = set()
            for (alert, vendor_id), state in batch.items():
                version = versions.get((alert.id, vendor_id))
                if version is None:
                    refused.add(alert)
                    continue
                done = state.events[: sent[alert, vendor_id]]
                del state.events[: len(done)]
                for kind, _, _ in done:
                    self._counters.alert_events[kind] += 1
                state.version = version
                self._owner.stored(alert, vendor_id, state)
            if events:
                self._committed()
        if refused:
            # Another process was first, or the alert was changed or deleted.
            self._owner.compare_again(refused)


def row_of(alert: Alert, vendor_id: str, state: State) -> dict[str, Any]:
    """Returns a state in its stored form."""
    seen = state.known.seen
    return {
        "alertId": alert.id,
        "vendorId": vendor_id,
        "revision": alert.revision,
        "version": state.version + 1,
        "inside": seen.inside,
        "open": seen.open,
        "online": seen.online,
        "told": state.known.told,
        "card": state.card,
        "eventAt": state.known.event_at,
        "quietUntil": quiet_until(alert.definition, state.known),
    }
