"""The audit of users, vendors, subscriptions and integrations: entries that triggers write for each change.

Reading needs a connection of the tables' owner. A vendor's position is not audited (`UNAUDITED`), so pings cost nothing
here. Entries contain personal data of deleted rows, so they are pruned.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from streamer.storage import queries
from streamer.storage.connections import connected, delete_in_batches
from streamer.storage.revisions import require_newest

AUDITED = ("users", "vendors", "subscriptions", "integrations")

UNAUDITED = {"vendors": frozenset({"hidden", "lat", "long", "locatedAt", "updatedAt"})}
"""Columns whose change alone makes no entry, by table; `updatedAt` in all of them."""

PRUNE_CHUNK = 10_000
"""Rows of one transaction, so that locks and transactions are short."""

NAMES = ("zz_streamer_audit", "zz_streamer_audit_truncate", "zz_streamer_audit_update")


@dataclass(frozen=True, slots=True)
class Entry:
    """One change. `before` and `after` are the changed columns of an update, else the whole row or None.

    `user` is the role that logged in, `actor` the person it acted for; `at` is the start of the transaction, in UTC.
    """

    id: int
    at: datetime
    table: str
    row_id: str | None
    action: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    user: str
    actor: str | None
    application: str | None
    address: str | None

    def fields(self) -> dict[str, Any]:
        """Returns the entry for JSON, with the names of the table's columns."""
        named = {"rowId" if name == "row_id" else name: value for name, value in asdict(self).items()}
        return named | {"at": self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")}

    def line(self) -> str:
        """Returns one line of text without control characters."""
        who = f"by {self.user}" + "".join(
            f" {word} {said}"
            for word, said in (("for", self.actor), ("in", self.application), ("from", self.address))
            if said
        )
        changes = []
        for name in sorted({*(self.before or ()), *(self.after or ())}):
            sides = [_shown(row[name]) for row in (self.before, self.after) if row is not None and name in row]
            if self.action != "update" or name != "updatedAt":
                changes.append(f"{name}: {' → '.join(sides)}")
        at = self.fields()["at"]
        return _harmless(f"{at} {self.table} {self.row_id or '(all)'} {self.action} {who}; {', '.join(changes)}")


def audited_columns(table: str) -> set[str]:
    """Returns the columns of a table whose change makes an entry."""
    from streamer.storage.models import METADATA  # imports SQLAlchemy, which reading and pruning do without

    left_out = UNAUDITED.get(table, frozenset({"updatedAt"}))
    return {column.name for column in METADATA.tables[table].columns} - left_out


async def audited(
    url: str, *, since: datetime | None = None, table: str | None = None, row_id: str | None = None, limit: int
) -> list[Entry]:
    """Returns the newest entries of a database, the newest first."""
    await require_newest(url)
    async with connected(url) as connection:
        return await entries(connection, since=since, table=table, row_id=row_id, limit=limit)


async def entries(
    connection: Any, *, since: datetime | None = None, table: str | None = None, row_id: str | None = None, limit: int
) -> list[Entry]:
    """Returns the newest entries, the newest first."""
    begin = None if since is None else since.astimezone(UTC).replace(tzinfo=None)
    rows = await connection.fetch(queries.AUDIT_ENTRIES, begin, table, row_id, limit)
    return [
        Entry(id, at.replace(tzinfo=UTC), table, row_id, action, _object(before), _object(after), *who)
        for id, at, table, row_id, action, before, after, *who in rows
    ]


async def prune(connection: Any, before: datetime, *, dry_run: bool = False) -> int:
    """Deletes the entries from before a time in batches; returns their number."""
    until = before.astimezone(UTC).replace(tzinfo=None)
    if dry_run:
        return int(await connection.fetchval(queries.COUNT_AUDIT, until))
    return await delete_in_batches(connection, queries.PRUNE_AUDIT, until, PRUNE_CHUNK)


async def gaps(connection: Any) -> list[str]:
    """Returns a line for each trigger that is missing, disabled, or covers too few columns."""
    found = {
        (table, name): (on, set(columns)) for table, name, on, columns in await connection.fetch(queries.AUDIT_TRIGGERS)
    }
    lines = []
    for table in AUDITED:
        for name in NAMES:
            on, columns = found.get((table, name), (None, set()))
            if on is None:
                lines.append(f"{table}: trigger {name} is missing")
            elif not on:
                lines.append(f"{table}: trigger {name} is disabled")
            elif columns and (unseen := audited_columns(table) - columns):
                lines.append(f"{table}: trigger {name} does not cover {', '.join(sorted(unseen))}")
    return lines


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _harmless(text: str) -> str:
    """Replaces control and format characters by JSON escapes."""
    steering = ("Cc", "Cf", "Zl", "Zp", "Cs")
    return "".join(
        json.dumps(character)[1:-1] if unicodedata.category(character) in steering else character for character in text
    )


def _object(value: str | None) -> dict[str, Any] | None:
    return None if value is None else dict(json.loads(value))
