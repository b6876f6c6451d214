"""Alerts, the states of vendors that they know, and their webhooks, in PostgreSQL. Times are epoch milliseconds."""

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
"""Alerts are shared between processes by slots."""
PAGE = 2000
"""Alerts that are read at once."""
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


class AlertRow(NamedTuple):
    """An alert as its owner sees it; `secret` is encrypted."""

    id: str
    source: dict[str, Any]
    quiet: int
    url: str
    expires: int | None
    created: int
    updated: int
    started: int | None
    """When it was first looked at: who was inside then is no event."""
    failing: int | None
    disabled: int | None
    reason: str | None
    secret: bytes
    request_hash: str | None


class NewAlert(NamedTuple):
    """An alert to be created."""

    source: dict[str, Any]
    quiet: int
    url: str
    host: str
    secret: bytes
    expires: int | None
    reason: str | None
    """Why it is disabled from the start; None: it is not."""
    key: str | None
    """Of two creations of one user with the same key, the second finds what the first created."""
    request_hash: str | None


class Change(NamedTuple):
    """What an alert becomes."""

    new: NewAlert
    same: bool
    """It looks at the same as before, so what it knows of vendors stays."""
    revive: bool
    """It is not ended by the change, so its waiting webhooks stay."""


class DeliveryRow(NamedTuple):
    """A webhook and the answers to it."""

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
    """An alert as the process that looks at it needs it."""

    id: str
    revision: int
    source: dict[str, Any]
    quiet: int
    expires: int | None
    started: bool
    """What vendors were at the beginning is stored."""
    ended: bool
    updated: int
    slot: int


class StateRow(NamedTuple):
    """What a vendor was to an alert when it was last looked at."""

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
    """A webhook that this process is to send now."""

    id: str
    alert_id: str
    body: bytes
    at: int
    attempts: int
    url: str
    host: str
    secret: bytes


class Attempt(NamedTuple):
    """The outcome of a request; `next` is when to send again, None: never."""

    id: str
    alert_id: str
    attempts: int
    delivered: bool
    next: int | None
    entry: dict[str, Any]


def new_id(at: int) -> str:
    """Returns a new id, shaped like a cuid, that begins with its time and so sorts by it."""
    return id_floor(at) + "".join(secrets.choice(ALPHABET) for _ in range(16))


def slot_of(alert_id: str) -> int:
    """Returns the slot of an alert."""
    return crc32(alert_id.encode()) % SLOTS


class AlertStore:
    """Reads and writes alerts; raises Unavailable and DatabaseError as `Store` does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # for their owners

    async def create(self, clerk_id: str, new: NewAlert, limit: int, now: int) -> tuple[AlertRow, bool]:
        """Returns the alert and whether it was created now.

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
        """Returns a user's alerts in the order of their ids, after one."""
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
            edit: returns what the alert becomes, or raises ProtocolError; nothing else changes it meanwhile.
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
        """Returns an alert's webhooks, the newest first, before one; an empty id for the newest of all."""
        if not can_be_text(before):
            return []
        rows = await self._database.fetch(sql.DELIVERIES, id, before, limit, what="alerts")
        return [DeliveryRow._make((*row[:8], orjson.loads(row["log"]))) for row in rows]

    async def add_event(self, alert_id: str, kind: str, body: str, at: int) -> str:
        """Has a webhook sent that is about no vendor; returns its id."""
        id = new_id(at)
        await self._database.save(sql.ADD_EVENT, id, alert_id, "", kind, body, at, what="alerts")
        return id

    # for the processes that look at them

    async def beat(self, process: str, lease: int) -> set[str]:
        """Says that a process is there; returns those that said so within `lease` ms, this one included."""
        rows = await self._database.fetch(sql.BEAT, process, lease, what="alert-beat")
        return {row[0] for row in rows}

    async def leave(self, process: str) -> None:
        """Says that a process looks at no alerts any more."""
        await self._database.execute(sql.LEAVE, process, what="alert-beat")

    async def changed(
        self, slots: Iterable[int], since: int, after: str = "", *, ended: bool = True
    ) -> list[Evaluated]:
        """Returns up to PAGE alerts of some slots in the order of (updated, id), changed after (since, after)."""
        wanted = list(slots)
        rows = await self._database.fetch(sql.CHANGED, wanted, since, after, PAGE, ended, what="alert-changes")
        return [Evaluated._make((row[0], row[1], orjson.loads(row[2]), *row[3:])) for row in rows]

    async def states(self, alert_ids: Sequence[str]) -> list[StateRow]:
        """Returns what is known of vendors to these alerts."""
        rows = await self._database.fetch(sql.STATES, alert_ids, what="alert-states")
        return [StateRow._make((*row[:6], orjson.loads(row[6]), orjson.loads(row[7]), row[8])) for row in rows]

    async def start(self, alerts: Sequence[tuple[str, int]]) -> None:
        """Notes of alerts, each with its revision, that what vendors were at the beginning is stored."""
        ids, revisions = [id for id, _ in alerts], [revision for _, revision in alerts]
        await self._database.save(sql.START, ids, revisions, what="alert-states")

    async def commit(
        self, states: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]
    ) -> dict[tuple[str, str], int]:
        """Stores states and the events that led to them.

        Returns:
            The new version of each state that was stored, by (alert id, vendor id). The others were changed by another
            process, or their alert was changed or ended: nothing of them is stored.
        """
        given = orjson.dumps(states).decode(), orjson.dumps(events).decode()
        rows = await self._database.save(sql.COMMIT, *given, what="alert-events")
        return {(row[0], row[1]): row[2] for row in rows}

    # for delivery

    async def claim(self, most: int, per_host: int, busy: dict[str, int], lease: int) -> list[Claimed]:
        """Returns webhooks that are due, each claimed for `lease` ms so that no other process sends it meanwhile.

        Args:
            most: how many at most.
            per_host: how many requests a host may get at once.
            busy: how many each host has now.
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

    async def disable(self, alert_id: str, reason: str, failing_for: int | None = None) -> bool:
        """Disables an alert, if its webhooks have failed for so many ms; returns whether it did."""

        async def work(connection: Any) -> bool:
            async with transaction(connection):
                if await connection.fetchval(sql.DISABLE, alert_id, reason, failing_for) is None:
                    return False
                await connection.execute(sql.DROP_EVENTS, alert_id)
                return True

        return await self._database.answer(work, "alert-record")

    async def waiting(self) -> tuple[int, float]:
        """Returns how many webhooks are not delivered yet (up to 100,000), and the age of the oldest in seconds."""
        row = await self._database.answer(lambda c: c.fetchrow(sql.WAITING), "alert-counts")
        return row[0], row[1]

    async def counts(self) -> tuple[int, int]:
        """Returns how many alerts there are, and how many disabled ones."""
        row = await self._database.answer(lambda c: c.fetchrow(sql.COUNTS), "alert-counts")
        return row[0], row[1]


def _alert(row: Any) -> AlertRow:
    return AlertRow(row[0], orjson.loads(row[1]), *row[2:])


def _no_user() -> ProtocolError:
    return ProtocolError(ErrorCode.FORBIDDEN, "the user of this token is not known here, so can have no alerts")


def _no_alert(id: str) -> ProtocolError:
    return ProtocolError(ErrorCode.ALERT_NOT_FOUND, f"you have no alert {id!r:.80}")
