"""Alerts, their last states of vendors, and their webhooks, in PostgreSQL. Times are epoch milliseconds."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from streamer.errors import ErrorCode, ProtocolError
from streamer.ingest.copy_rows import id_floor
from streamer.storage import alert_sql as sql
from streamer.storage.database import Database, can_be_text, transaction

SLOTS = 256
"""Alerts are distributed over processes by slots."""
PAGE = 2000
"""Maximum number of alerts read at once."""
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


class AlertRow(NamedTuple):
    """An alert as its owner reads it; `secret` is encrypted."""

    id: str
    source: dict[str, Any]
    quiet: int
    url: str
    expires: int | None
    created: int
    updated: int
    started: int | None
    """When it was first evaluated: vendors that were inside then are no events."""
    failing: int | None
    disabled: int | None
    reason: str | None
    secret: bytes
    request_hash: str | None


class NewAlert(NamedTuple):
    """An alert to create."""

    source: dict[str, Any]
    quiet: int
    url: str
    host: str
    secret: bytes
    expires: int | None
    reason: str | None
    """Why it is disabled from the start; None if it is not."""
    key: str | None
    """The idempotency key: a user's second creation with the same key returns the first alert."""
    request_hash: str | None


class Change(NamedTuple):
    """A change of an alert."""

    new: NewAlert
    same: bool
    """It evaluates the same vendors and area as before, so their states are kept."""
    revive: bool
    """It is not ended by the change, so its pending webhooks are kept."""


class DeliveryRow(NamedTuple):
    """A webhook and its answers."""

    id: str
    vendor_id: str
    kind: str
    at: int
    attempts: int
    next: int | None
    delivered: int | None
    gave_up: int | None
    log: list[dict[str, Any]]


class Evaluated(NamedTuple):
    """An alert for the process that evaluates it."""

    id: str
    revision: int
    source: dict[str, Any]
    quiet: int
    expires: int | None
    started: bool
    """The initial states of vendors are stored."""
    ended: bool
    updated: int
    slot: int


class StateRow(NamedTuple):
    """A vendor's state when an alert last evaluated it."""

    alert_id: str
    vendor_id: str
    version: int
    inside: bool
    open: bool
    online: bool
    told: dict[str, int]
    card: dict[str, Any]
    event_at: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A webhook that this process must send now."""

    id: str
    alert_id: str
    body: bytes
    at: int
    attempts: int
    url: str
    host: str
    secret: bytes


class Attempt(NamedTuple):
    """The outcome of a request; `next` is when to send it again, None if never."""

    id: str
    alert_id: str
    attempts: int
    delivered: bool
    next: int | None
    entry: dict[str, Any]


def new_id(at: int) -> str:
    """Returns a new id in the form of a cuid; it begins with its time, and so sorts by it."""
    return id_floor(at) + "".join(secrets.choice(ALPHABET) for _ in range(16))


def slot_of(alert_id: str) -> int:
    """Returns the slot of an alert."""
    return crc32(alert_id.encode()) % SLOTS


class AlertStore:
    """Reads and writes alerts; raises Unavailable and DatabaseError as `Store` does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # for owners

    async def create(self, clerk_id: str, new: NewAlert, limit: int, now: int) -> tuple[AlertRow, bool]:
        """Creates an alert; returns it, and False if an earlier request created it.

        Raises:
            ProtocolError: There is no such user, or the user has `limit` alerts already.
        """
        if not can_be_text(clerk_id):
            raise _no_user()

        async def work(connection: Any) -> tuple[AlertRow, bool] | ProtocolError:
            # Errors are returned: one that is raised here would end the connection.
            async with transaction(connection):
                user = await connection.fetchrow(sql.LOCK_USER, clerk_id)
                if user is None:
                    return _no_user()
                if new.key is not None:
                    found = await connection.fetchrow(sql.BY_KEY, user["id"], new.key)
                    if found is not None:
                        return _alert(found), False
                if await connection.fetchval(sql.COUNT_OF_USER, user["id"]) >= limit:
                    return ProtocolError(
                        ErrorCode.TOO_MANY_ALERTS, f"you have {limit} alerts, the most that are allowed: delete one"
                    )
                id = new_id(now)
                row = await connection.fetchrow(
                    sql.CREATE,
                    id,
                    user["id"],
                    slot_of(id),
                    orjson.dumps(new.source).decode(),
                    new.quiet,
                    new.url,
                    new.host,
                    new.secret,
                    new.expires,
                    new.reason,
                    new.key,
                    new.request_hash,
                )
                return _alert(row), True

        created = await self._database.answer(work, "alerts")
        if isinstance(created, ProtocolError):
            raise created
        return created

    async def list_of(self, clerk_id: str, after: str, limit: int) -> list[AlertRow]:
        """Returns a user's alerts in the order of their ids, after the id `after`."""
        if not (can_be_text(clerk_id) and can_be_text(after)):
            return []
        rows = await self._database.fetch(sql.LIST, clerk_id, after, limit, what="alerts")
        return [_alert(row) for row in rows]

    async def get(self, clerk_id: str, id: str) -> AlertRow:
        """Returns a user's alert; ProtocolError when the user has none of this id."""
        if not (can_be_text(clerk_id) and can_be_text(id)):
            raise _no_alert(id)
        row = await self._database.answer(lambda c: c.fetchrow(sql.GET, clerk_id, id), "alerts")
        if row is None:
            raise _no_alert(id)
        return _alert(row)

    async def change(self, clerk_id: str, id: str, edit: Callable[[AlertRow], Change]) -> AlertRow:
        """Changes a user's alert; returns it. ProtocolError when the user has none of this id.

        Args:
            edit: returns the change, or raises ProtocolError; the alert is locked meanwhile.
        """
        if not (can_be_text(clerk_id) and can_be_text(id)):
            raise _no_alert(id)

        async def work(connection: Any) -> AlertRow | ProtocolError:
            # Errors are returned: one that is raised here would end the connection.
            async with transaction(connection):
                row = await connection.fetchrow(sql.GET_TO_CHANGE, clerk_id, id)
                if row is None:
                    return _no_alert(id)
                try:
                    new, same, revive = edit(_alert(row))
                except ProtocolError as refused:
                    return refused
                row = await connection.fetchrow(
                    sql.CHANGE,
                    id,
                    orjson.dumps(new.source).decode(),
                    new.quiet,
                    new.url,
                    new.host,
                    new.expires,
                    new.reason,
                    same,
                )
                if not revive:
                    await connection.execute(sql.DROP_EVENTS, id)
                return _alert(row)

        changed = await self._database.answer(work, "alerts")
        if isinstance(changed, ProtocolError):
            raise changed
        return changed

    async def delete(self, clerk_id: str, id: str) -> None:
        """Deletes a user's alert; ProtocolError when the user has none of this id."""
        if not (can_be_text(clerk_id) and can_be_text(id)):
            raise _no_alert(id)

        async def work(connection: Any) -> Any:
            async with transaction(connection):
                found = await connection.fetchval(sql.DELETE, clerk_id, id)
                if found is not None:
                    await connection.execute(sql.DROP_EVENTS, id)
                return found

        if await self._database.answer(work, "alerts") is None:
            raise _no_alert(id)

    async def deliveries(self, id: str, before: str, limit: int) -> list[DeliveryRow]:
        """Returns an alert's webhooks, newest first, before the id `before`; empty: from the newest on."""
        if not can_be_text(before):
            return []
        rows = await self._database.fetch(sql.DELIVERIES, id, before, limit, what="alerts")
        return [DeliveryRow._make((*row[:8], orjson.loads(row["log"]))) for row in rows]

    async def add_event(self, alert_id: str, kind: str, body: str, at: int) -> str:
        """Adds a webhook without a vendor to be sent; returns its id."""
        id = new_id(at)
        await self._database.save(sql.ADD_EVENT, id, alert_id, "", kind, body, at, what="alerts")
        return id

    # for evaluation

    async def beat(self, process: str, lease: int) -> set[str]:
        """Sends a process's heartbeat; returns the processes with one in the last `lease` ms, this one included."""
        rows = await self._database.fetch(sql.BEAT, process, lease, what="alert-beat")
        return {row[0] for row in rows}

    async def leave(self, process: str) -> None:
        """Removes a process that no longer evaluates alerts."""
        await self._database.execute(sql.LEAVE, process, what="alert-beat")

    async def changed(
        self, slots: Iterable[int], since: int, after: str = "", *, ended: bool = True
    ) -> list[Evaluated]:
        """Returns up to PAGE alerts of some slots in the order of (updated, id), changed after (since, after)."""
        wanted = list(slots)
        rows = await self._database.fetch(sql.CHANGED, wanted, since, after, PAGE, ended, what="alert-changes")
        return [Evaluated._make((row[0], row[1], orjson.loads(row[2]), *row[3:])) for row in rows]

    async def states(self, alert_ids: Sequence[str]) -> list[StateRow]:
        """Returns the stored states of vendors of these alerts."""
        rows = await self._database.fetch(sql.STATES, alert_ids, what="alert-states")
        return [StateRow._make((*row[:6], orjson.loads(row[6]), orjson.loads(row[7]), row[8])) for row in rows]

    async def start(self, alerts: Sequence[tuple[str, int]]) -> None:
        """Records that the initial states of alerts, each with its revision, are stored."""
        ids, revisions = [id for id, _ in alerts], [revision for _, revision in alerts]
        await self._database.save(sql.START, ids, revisions, what="alert-states")

    async def commit(
        self, states: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]
    ) -> dict[tuple[str, str], int]:
        """Stores states and their events.

        Returns:
            The new version of each stored state, by (alert id, vendor id). A missing one was not stored, nor were its
            events: another process had changed it, or its alert was changed or ended.
        """
        given = orjson.dumps(states).decode(), orjson.dumps(events).decode()
        rows = await self._database.save(sql.COMMIT, *given, what="alert-events")
        return {(row[0], row[1]): row[2] for row in rows}

    # for delivery

    async def claim(self, most: int, per_host: int, busy: dict[str, int], lease: int) -> list[Claimed]:
        """Claims due webhooks for `lease` ms, so that no other process sends them meanwhile.

        Args:
            most: maximum number of webhooks.
            per_host: maximum number of simultaneous requests per host.
            busy: current number of requests by host.
        """
        full = [host for host, count in busy.items() if count >= per_host]

        async def work(connection: Any) -> list[Any]:
            async with connection.transaction():
                await connection.execute(sql.PLAN_ANEW)
                rows: list[Any] = await connection.fetch(
                    sql.CLAIM, most, per_host, list(busy), list(busy.values()), full, lease
                )
                return rows

        rows = await self._database.answer(work, "alert-claim")
        return [Claimed(row["id"], row["alertId"], row["body"].encode(), *row[3:]) for row in rows]

    async def record(self, attempts: Sequence[Attempt]) -> None:
        """Stores the outcomes of requests."""
        given = orjson.dumps([each._asdict() for each in attempts]).decode()
        await self._database.execute(sql.RECORD, given, what="alert-record")

    async def disable(
        self, alert_id: str, reason: str, failing_for: int | None = None, *, url: str | None = None
    ) -> bool:
        """Disables an alert; returns whether it did.

        Args:
            failing_for: only if its webhooks have failed for so many ms.
            url: only if this is its URL.
        """

        async def work(connection: Any) -> bool:
            async with transaction(connection):
                if await connection.fetchval(sql.DISABLE, alert_id, reason, failing_for, url) is None:
                    return False
                await connection.execute(sql.DROP_EVENTS, alert_id)
                return True

        return await self._database.answer(work, "alert-record")

    async def waiting(self) -> tuple[int, float]:
        """Returns the number of undelivered webhooks (up to 100,000), and the age of the oldest in seconds."""
        row = await self._database.answer(lambda c: c.fetchrow(sql.WAITING), "alert-counts")
        return row[0], row[1]

    async def counts(self) -> tuple[int, int]:
        """Returns the numbers of alerts and of disabled alerts."""
        row = await self._database.answer(lambda c: c.fetchrow(sql.COUNTS), "alert-counts")
        return row[0], row[1]


def _alert(row: Any) -> AlertRow:
    return AlertRow(row[0], orjson.loads(row[1]), *row[2:])


def _no_user() -> ProtocolError:
    return ProtocolError(ErrorCode.FORBIDDEN, "the user of this token is not known here, so can have no alerts")


def _no_alert(id: str) -> ProtocolError:
    return ProtocolError(ErrorCode.ALERT_NOT_FOUND, f"you have no alert {id!r:.80}")
