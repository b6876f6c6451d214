"""Reads and writes of the server besides pings. Timestamps are epoch milliseconds, positions degrees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any, NamedTuple

from streamer.ingest.copy_rows import id_floor, location_id
from streamer.ingest.position import Position
from streamer.protocol.history import LATEST_MS, LocationRow
from streamer.storage import partitions, queries, revisions
from streamer.storage.connections import row_count
from streamer.storage.database import Database, can_be_text
from streamer.storage.ping_writer import PingWriter
from streamer.storage.revisions import Condition

RECONCILE_VENDORS = 2000
"""Vendors of one statement, which takes a quarter of a second with some days' partitions."""

ID_SLACK_MS = 3_600_000
"""How far the time in an id that Prisma made may be from the row's timestamp."""

LOCATED_AHEAD = 60_000
"""How far, in ms, before `vendors.locatedAt` the newest ping that is not in the future is looked for."""


@dataclass(frozen=True, slots=True)
class VendorRow:
    """A vendor that is not deleted; `located_at` is the version of its position."""

    vendor_id: str
    clerk_id: str
    name: str
    open: bool
    primary_image: str | None
    located_at: int | None
    hidden: bool = False


class TableSize(NamedTuple):
    """One of our tables with its partitions: estimated rows, and bytes with all indexes."""

    table: str
    rows: int
    bytes: int


class Change(NamedTuple):
    """An inserted, updated or deleted user or vendor; `clerk_id` is the user's last one. Without a row: all rows."""

    id: int
    table: str
    row_id: str | None
    action: str
    clerk_id: str | None


class Changes(NamedTuple):
    """Changes in the order of their ids, and the transactions at the time of reading.

    `oldest` is the oldest transaction that was running, `next` the first that had not begun, `newest` the newest id.
    """

    oldest: int
    next: int
    newest: int
    changes: list[Change]


class Store:
    """Vendors, users, history and the schema's state; `pings` stores pings."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.pings = PingWriter(database)

    # vendors' positions

    async def update_positions(self, positions: Sequence[tuple[str, Position]]) -> None:
        """Updates vendors.lat/long to these, one for each vendor; an older position never replaces a newer."""
        if not positions:
            return
        rows = [(vendor_id, at.version, at.lat, at.long, at.ahead > 0) for vendor_id, at in positions]
        columns = [list(column) for column in zip(*rows, strict=True)]
        await self.database.execute(queries.UPDATE_POSITIONS, *columns, what="positions")

    async def reconcile_positions(self, since_ms: int) -> int:
        """Updates vendors.lat/long to the newest stored ping since then; returns how many vendors were behind.

        For the start: the previous process may have ended between a commit and the merged update.
        """
        floor, first, behind = id_floor(since_ms), "", 0

        async def some(connection: Any) -> str | None:
            nonlocal behind
            last: str | None = await connection.fetchval(queries.LAST_OF_SOME, first, RECONCILE_VENDORS)
            if last is not None:
                status = await connection.execute(queries.RECONCILE_POSITIONS, floor, since_ms, first, last)
                behind += row_count(status)
            return last

        while (last := await self.database.answer(some, "reconcile")) is not None:
            first = last
        return behind

    # reading

    async def vendors_of(self, clerk_ids: Sequence[str]) -> list[VendorRow]:
        """Returns the vendors of the users with these `clerkId`s, ordered by id."""
        return await self._vendors(queries.VENDORS_OF, clerk_ids)

    async def cards(self, vendor_ids: Sequence[str]) -> list[VendorRow]:
        """Returns the existing vendors among these, in any order."""
        return await self._vendors(queries.CARDS, vendor_ids)

    async def search(
        self, words: Sequence[str], only_open: bool, limit: int, after: tuple[str, str] = ("", "")
    ) -> list[VendorRow]:
        """Returns vendors whose names have words beginning with each of `words`, by (name, id), after `after`.

        Args:
            words: letters and digits only, folded as the index folds names.
        """
        query = " & ".join(f"{word}:*" for word in words)
        rows = await self.database.fetch(queries.SEARCH, query, only_open, *after, limit, what="search")
        return [VendorRow(*row) for row in rows]

    async def paying(self, vendor_ids: Sequence[str]) -> set[str]:
        """Returns the vendors among these whose user has an active subscription now."""
        asked = [vendor_id for vendor_id in vendor_ids if can_be_text(vendor_id)]
        if not asked:
            return set()
        return {row[0] for row in await self.database.fetch(queries.PAYING, asked)}

    async def changes(self, after: int, since: int, limit: int) -> Changes:
        """Returns changes of users and vendors with an id above `after`, by transactions from `since` on."""
        rows = await self.database.fetch(queries.CHANGES, after, since, limit)
        oldest, following, newest = rows[0][:3]
        return Changes(oldest, following, newest, [Change(*row[3:]) for row in rows if row[3] is not None])

    async def users(self, user_ids: Sequence[str]) -> list[tuple[str, str | None]]:
        """Returns (clerkId, vendorId) for each vendor of these users, deleted or not; None for a user without one."""
        rows = await self.database.fetch(queries.USERS, user_ids)
        return [(row[0], row[1]) for row in rows]

    async def existing_users(self, clerk_ids: Sequence[str]) -> set[str]:
        """Returns the `clerkId`s among these of users that exist and are not deleted."""
        rows = await self.database.fetch(queries.EXISTING_USERS, clerk_ids)
        return {row[0] for row in rows}

    async def deleted_users(self) -> list[str]:
        """Returns the `clerkId` of users marked as deleted, and of those deleted within a day."""
        rows = await self.database.fetch(queries.DELETED_USERS)
        return [row[0] for row in rows]

    async def newest_stored(self, located: Sequence[tuple[str, int | None]]) -> dict[tuple[str, int | None], int]:
        """The timestamps of vendors' newest stored pings, for each (vendor_id, located_at) whose row was just read.

        A vendor without any may be left out, and one whose newest is long before `located_at`.
        """
        located = [(vendor_id, at) for vendor_id, at in located if can_be_text(vendor_id)]
        if not located:
            return {}
        # A phone whose clock is ahead has pings in the future: its newest ping until now is a little older.
        asked = [
            (id, at, 0, "") if at is None else (id, at, at - LOCATED_AHEAD, id_floor(at - LOCATED_AHEAD))
            for id, at in located
        ]
        columns = [list(column) for column in zip(*asked, strict=True)]
        rows = await self.database.fetch(queries.NEWEST_STORED, *columns, what="durable")
        return {(row[0], row[1]): row[2] for row in rows}

    async def positions_at(self, pings: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[float, float]]:
        """Returns the stored latitude and longitude by (vendor_id, timestamp), for those that are stored."""
        by_id = {location_id(*ping): ping for ping in pings}
        rows = await self.database.fetch(queries.STORED, list(by_id), what="stored")
        return {by_id[row[0]]: (row[1], row[2]) for row in rows}

    async def locations(
        self, vendor_id: str, from_ms: int, to_ms: int, limit: int, after: tuple[int, str] | None = None
    ) -> list[LocationRow]:
        """Stored pings with from_ms <= timestamp < to_ms by (timestamp, id), after the page that ended at `after`."""
        from_ms, to_ms = min(max(from_ms, 0), LATEST_MS), min(max(to_ms, 0), LATEST_MS)
        after_ms, after_id = after or (from_ms - 1, "")
        from_ms = max(from_ms, min(after_ms, LATEST_MS))
        if from_ms >= to_ms or limit <= 0 or not can_be_text(vendor_id) or not can_be_text(after_id):
            return []
        arguments = (
            vendor_id,
            from_ms,
            to_ms,
            after_ms,
            after_id,
            id_floor(from_ms - ID_SLACK_MS),
            id_floor(to_ms + ID_SLACK_MS),
            limit,
        )
        rows = await self.database.fetch(queries.LOCATIONS, *arguments, what="history")
        return [LocationRow(*row) for row in rows]

    async def set_open(self, vendor_id: str, open: bool, hidden: bool, clerk_id: str) -> None:
        """Sets whether a vendor is open for business; the audit names this user as the actor."""
        if can_be_text(vendor_id) and can_be_text(clerk_id):
            await self.database.save(queries.SET_OPEN, vendor_id, open, clerk_id, hidden, what="open")

    async def now(self) -> int:
        """Returns PostgreSQL's time, epoch ms; raises Unavailable within HEALTH_TIMEOUT."""
        return int(await self.database.probe(lambda connection: connection.fetchval(queries.CLOCK), "clock"))

    async def condition(self, today: date) -> Condition:
        """Returns the state of the schema; raises Unavailable within HEALTH_TIMEOUT."""
        return await self.database.probe(lambda connection: revisions.condition(connection, today), "condition")

    async def table_sizes(self) -> list[TableSize]:
        """Returns the sizes of the tables; raises Unavailable within HEALTH_TIMEOUT, as a table may be locked."""
        rows = await self.database.probe(
            lambda connection: connection.fetch(queries.TABLE_SIZES, queries.TABLES), "sizes"
        )
        return [TableSize(*row) for row in rows]

    async def ensure_partitions(self, today: date, ahead: int) -> list[str]:
        """Creates the missing partitions of all tables up to `ahead` days after today; returns their names."""
        created = []
        for table in partitions.ADDS:
            work = partial(partitions.ensure_partitions, today=today, ahead=ahead, table=table)
            created += await self.database.answer(work, "partitions")
        return created

    async def _vendors(self, statement: str, ids: Sequence[str]) -> list[VendorRow]:
        asked = [id for id in ids if can_be_text(id)]
        rows = await self.database.fetch(statement, asked, what="vendors") if asked else []
        return [VendorRow(*row) for row in rows]
