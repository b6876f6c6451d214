"""PostgreSQL: the pool, and all SQL of the server.

Timestamps are epoch milliseconds, positions degrees. Every wait is bounded. Unavailable means that PostgreSQL can't be
reached, does not answer, or refuses for a reason that is not in the data: what was to be stored may be stored or not,
and may be stored again without harm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple, TypeVar

import asyncpg

from streamer import tls
from streamer.counters import Counters
from streamer.errors import DatabaseError, ErrorCode, Unavailable
from streamer.ingest.batcher import Chunk, Rejected
from streamer.ingest.copy_rows import COLUMNS, COPY_HEADER, COPY_TRAILER, decode_rows, id_floor
from streamer.storage import database
from streamer.storage.database import Condition

T = TypeVar("T")

# SQL

KEEP_COMMITS_DURABLE = """
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""

# One for each connection, made when first needed: made anew each time, it would bloat the catalogs.
BEGIN_STAGING = """
BEGIN;
CREATE TEMP TABLE IF NOT EXISTS "streamer_staging" (
    "id" TEXT COLLATE "C", "vendorId" TEXT, "lat" DOUBLE PRECISION, "long" DOUBLE PRECISION, "timestamp" TIMESTAMP(3)
) ON COMMIT DELETE ROWS
"""

# The vendors are locked against deletion until the commit. Of two rows with one id the first to arrive is stored: the
# staging table is empty at the start of each transaction, so ctid is the order of arrival.
STORE_STAGED = """
WITH existing AS MATERIALIZED (
    SELECT "id" FROM "vendors" WHERE "id" IN (SELECT "vendorId" FROM pg_temp."streamer_staging")
    ORDER BY "id" FOR KEY SHARE
), stored AS (
    INSERT INTO "locations" ("id", "vendorId", "lat", "long", "timestamp")
    SELECT s."id", s."vendorId", s."lat", s."long", s."timestamp"
    FROM pg_temp."streamer_staging" s JOIN existing ON existing."id" = s."vendorId"
    ORDER BY s."id", s.ctid
    ON CONFLICT DO NOTHING
)
SELECT DISTINCT s."vendorId" FROM pg_temp."streamer_staging" s
WHERE NOT EXISTS (SELECT FROM existing WHERE existing."id" = s."vendorId")
"""

# The rows are locked in the order of their ids first, so that two such statements can't wait for each other.
WRITE_NEWEST = """
, due AS MATERIALIZED (
    SELECT v."id" FROM "vendors" v JOIN newest ON newest."id" = v."id"
    WHERE v."locatedAt" IS NULL OR v."locatedAt" < newest."at"
    ORDER BY v."id" FOR NO KEY UPDATE OF v
)
UPDATE "vendors" v
SET "lat" = newest."lat", "long" = newest."long", "locatedAt" = newest."at",
    "updatedAt" = date_trunc('milliseconds', now() AT TIME ZONE 'UTC')
FROM newest JOIN due ON due."id" = newest."id"
WHERE v."id" = newest."id" AND (v."locatedAt" IS NULL OR v."locatedAt" < newest."at")
"""

UPDATE_POSITIONS = (
    """
WITH newest AS MATERIALIZED (
    SELECT n."id", TIMESTAMP 'epoch' + n."ms" * INTERVAL '1 millisecond' AS "at", n."lat", n."long"
    FROM unnest($1::text[], $2::bigint[], $3::float8[], $4::float8[]) AS n("id", "ms", "lat", "long")
)"""
    + WRITE_NEWEST
)

# By vendor and index, some vendors at a time: read by time, a busy hour's pings would take longer than a statement may.
RECONCILE_POSITIONS = (
    """
WITH newest AS MATERIALIZED (
    SELECT v."id", l."at", l."lat", l."long"
    FROM "vendors" v, LATERAL (
        SELECT l."timestamp" AS "at", l."lat", l."long" FROM "locations" l
        WHERE l."vendorId" = v."id" AND l."id" >= $1 AND l."id" < 'd'
          AND (v."locatedAt" IS NULL OR l."timestamp" > v."locatedAt")
        ORDER BY l."timestamp" DESC, l."id" DESC LIMIT 1
    ) l
    WHERE v."id" > $2 AND v."id" <= $3
)"""
    + WRITE_NEWEST
)

LAST_OF_SOME = """
SELECT max("id") FROM (SELECT "id" FROM "vendors" WHERE "id" > $1 ORDER BY "id" LIMIT $2) AS "some"
"""

VENDORS = """
SELECT v."id", u."clerkId", v."name", v."open", v."primaryImage", v."lat", v."long",
    (EXTRACT(EPOCH FROM v."locatedAt") * 1000)::bigint
FROM "vendors" v JOIN "users" u ON u."id" = v."userId"
WHERE v."deletedAt" IS NULL AND u."deletedAt" IS NULL AND
"""
VENDORS_OF = VENDORS + 'u."clerkId" = ANY($1::text[]) ORDER BY v."id"'
CARDS = VENDORS + 'v."id" = ANY($1::text[])'

# The snapshot is that of the whole statement: a change that is not in it is of the oldest running transaction or later.
CHANGES = """
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
    coalesce((SELECT max("id") FROM "streamer_changes"), 0), c."id", c."table", c."rowId", c."action", c."clerkId"
FROM (SELECT) AS always LEFT JOIN LATERAL (
    SELECT * FROM "streamer_changes" WHERE "id" > $1 AND "transaction" >= $2 ORDER BY "id" LIMIT $3
) c ON true
ORDER BY c."id"
"""
USERS = """
SELECT u."clerkId", v."id" FROM "users" u LEFT JOIN "vendors" v ON v."userId" = u."id" WHERE u."id" = ANY($1::text[])
"""
LIVING_USERS = """SELECT "clerkId" FROM "users" WHERE "clerkId" = ANY($1::text[]) AND "deletedAt" IS NULL"""
DELETED_USERS = """
SELECT "clerkId" FROM "users" WHERE "deletedAt" IS NOT NULL
UNION
SELECT c."clerkId" FROM "streamer_changes" c
WHERE c."table" = 'users' AND c."action" = 'delete' AND c."at" > now() AT TIME ZONE 'UTC' - INTERVAL '1 day'
    AND NOT EXISTS (SELECT FROM "users" u WHERE u."clerkId" = c."clerkId")
"""

PAYING = """
SELECT v."id" FROM "vendors" v WHERE v."id" = ANY($1::text[]) AND EXISTS (
    SELECT FROM "subscriptions" s WHERE s."userId" = v."userId" AND s."status" = 'active'
        AND s."startDate" <= now() AT TIME ZONE 'UTC'
        AND (s."endDate" IS NULL OR s."endDate" > now() AT TIME ZONE 'UTC')
)
"""

# For whom it is done is for the audit's trigger, and holds as long as this statement.
SET_OPEN = """
UPDATE "vendors" SET "open" = $2, "updatedAt" = date_trunc('milliseconds', now() AT TIME ZONE 'UTC')
FROM (SELECT set_config('streamer.actor', $3, true) AS "actor") AS said
WHERE "id" = $1 AND "open" <> $2 AND said."actor" = $3
"""

# vendors."locatedAt" lags by a second or so: only what is newer is looked for among all locations.
NEWEST_STORED = """
SELECT a."id", a."located", (EXTRACT(EPOCH FROM n."at") * 1000)::bigint
FROM unnest($1::text[], $2::bigint[], $3::text[]) AS a("id", "located", "floor")
CROSS JOIN LATERAL (
    SELECT max(l."timestamp") AS "at" FROM "locations" l WHERE l."vendorId" = a."id" AND l."id" >= a."floor"
) n
WHERE n."at" IS NOT NULL
"""

# The range of ids lets PostgreSQL leave whole days out. Ids that carry no time (below 'cg', which is 2009, or not
# beginning with c) are in the default partition and are looked at always.
LOCATIONS = """
SELECT "id", (EXTRACT(EPOCH FROM "timestamp") * 1000)::bigint, "lat", "long"
FROM "locations"
WHERE "vendorId" = $1
  AND "timestamp" >= TIMESTAMP 'epoch' + $2::bigint * INTERVAL '1 millisecond'
  AND "timestamp" < TIMESTAMP 'epoch' + $3::bigint * INTERVAL '1 millisecond'
  AND ("timestamp", "id") > (TIMESTAMP 'epoch' + $4::bigint * INTERVAL '1 millisecond', $5::text)
  AND ("id" >= $6 AND "id" < $7 OR "id" < 'cg' OR "id" >= 'd')
ORDER BY "timestamp", "id"
LIMIT $8
"""

# reltuples is what the last ANALYZE or VACUUM found: counting would read the tables.
TABLE_SIZES = """
SELECT COALESCE(parent.relname, c.relname), SUM(GREATEST(c.reltuples, 0))::bigint,
    SUM(pg_total_relation_size(c.oid))::bigint
FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class parent ON parent.oid = i.inhparent
WHERE c.relkind = 'r' AND COALESCE(parent.oid, c.oid) = ANY(
    SELECT to_regclass(quote_ident(name)) FROM unnest($1::text[]) AS name
)
GROUP BY 1 ORDER BY 1
"""

RECONCILE_VENDORS = 2000
"""Vendors of one statement: a quarter of a second with some days' partitions."""

ID_SLACK_MS = 3_600_000
"""How far the time in an id that Prisma made may be from the row's timestamp."""

STAGING_AFTER_DUPLICATE = 1.0
"""Seconds: a resend seldom comes alone, and each COPY that fails leaves its rows as garbage in the table."""

ANSWER_GRACE = 2.0
"""Seconds a server may be late with its own timeout before the connection is given up."""

HEALTH_TIMEOUT = 2.0
CLOSE_TIMEOUT = 5.0

# SQLSTATE classes that are the fault of a row: data exception, integrity constraint, program limit, raised by a
# trigger. 08P01 from a server is a malformed row in a binary COPY.
DATA_CLASSES = frozenset({"22", "23", "54", "P0"})

# InternalClientError: the server ended a session while it was idle, and asyncpg had only half noticed.
_CONNECTION_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

LATEST_MS = 253_402_300_800_000
"""The year 10000, beyond which no timestamp is looked for."""


@dataclass(frozen=True, slots=True)
class VendorRow:
    """A vendor that is not deleted; `located_at` is the timestamp of the fix in lat and long."""

    vendor_id: str
    clerk_id: str
    name: str
    open: bool
    primary_image: str | None
    lat: float | None
    long: float | None
    located_at: int | None


class LocationRow(NamedTuple):
    """A stored ping; (timestamp, id) is its place in the history."""

    id: str
    timestamp: int
    lat: float
    long: float


class TableSize(NamedTuple):
    """One of our tables with its partitions: rows, about, and bytes with all indexes."""

    table: str
    rows: int
    bytes: int


class Change(NamedTuple):
    """A user or vendor that was inserted, updated or deleted; `clerk_id` is what a user's was. No row: all of them."""

    id: int
    table: str
    row_id: str | None
    action: str
    clerk_id: str | None


class Changes(NamedTuple):
    """Changes in the order of their ids, and what was so when they were read.

    `oldest` is the oldest transaction that was running, `next` the first that had not begun, `newest` the newest id.
    """

    oldest: int
    next: int
    newest: int
    changes: list[Change]


class Store:
    """The database as the server sees it; made by `Store.open`."""

    def __init__(
        self, pool: Any, where: str, pool_timeout: float, statement_timeout: float, counters: Counters | None = None
    ) -> None:
        self._pool = pool
        self._counters = counters or Counters()
        self._where = where
        self._pool_timeout = pool_timeout
        self._answer_timeout = statement_timeout + ANSWER_GRACE
        self._staging_until = 0.0

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        pool_size: int = 8,
        pool_timeout: float = 10.0,
        statement_timeout: float = 30.0,
        counters: Counters | None = None,
    ) -> Store:
        """Connect; the URL's connection_limit and pool_timeout win. Times are seconds. Raises Unavailable.

        Later outages end no Store: each call tries anew.
        """
        parsed = database.parse_url(url)
        pool_size = parsed.pool_size or pool_size
        pool_timeout = parsed.pool_timeout or pool_timeout
        where = f"{parsed.host}:{parsed.port}/{parsed.database}"
        arguments = parsed.connect_args()
        # PgBouncer refuses settings that it was not told to let through: there only our own clock bounds a statement.
        settings = {} if parsed.pgbouncer else _session_settings(statement_timeout)
        arguments["server_settings"] = {
            "application_name": "venta-streamer",
            **settings,
            **arguments["server_settings"],
        }
        arguments["timeout"] = min(arguments["timeout"], pool_timeout)
        # No floor: asyncpg would keep it by a task of its own that logs a traceback for each failure of an outage.
        pool = asyncpg.create_pool(
            **arguments, min_size=0, max_size=pool_size, init=_keep_commits_durable, reset=_nothing_to_reset
        )
        try:
            await pool
            await pool.release(await pool.acquire(timeout=pool_timeout))
        except _CONNECTION_ERRORS as error:
            pool.terminate()
            if failed := tls.trouble(error, "DATABASE_URL", "sslrootcert"):
                raise Unavailable(f"PostgreSQL at {where}: {failed}") from None
            reason = str(error) or f"no answer within {pool_timeout:g} s"
            raise Unavailable(
                f"PostgreSQL at {where} can't be used: {reason}; check that it runs and what DATABASE_URL says"
            ) from None
        return cls(pool, where, pool_timeout, statement_timeout, counters)

    async def close(self) -> None:
        """Let running statements end, for a moment, and close all connections."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    # storing pings

    async def store_chunks(self, chunks: Sequence[Chunk], retry: bool = False) -> Mapping[Chunk, Rejected]:
        """Commit every ping that can be stored, once; give those that never can be, by chunk and seq.

        `retry` says that an earlier attempt may have stored some. Raises Unavailable: some may be stored.
        """
        if not retry and time.monotonic() >= self._staging_until:
            rows = bytearray().join([COPY_HEADER, *[chunk.rows for chunk in chunks], COPY_TRAILER])
            try:
                await self._run(lambda connection: _copy(connection, "locations", None, rows), "copy")
            except asyncpg.UniqueViolationError:
                self._staging_until = time.monotonic() + STAGING_AFTER_DUPLICATE
            except asyncpg.PostgresError:
                pass
            else:
                return {}
        rejected: dict[Chunk, dict[int, tuple[ErrorCode, str]]] = {}
        await self._stage([_Part(chunk, 0, chunk.count) for chunk in chunks], rejected)
        return rejected

    async def _stage(self, parts: list[_Part], rejected: dict[Chunk, dict[int, tuple[ErrorCode, str]]]) -> None:
        """Store what can be stored of these, halving around a row that PostgreSQL does not take."""
        rows = bytearray().join([COPY_HEADER, *[part.rows for part in parts], COPY_TRAILER])
        try:
            missing = await self._run(lambda connection: _store_staged(connection, rows), "staging")
        except asyncpg.PostgresError as error:
            count = sum(part.count for part in parts)
            if count > 1:
                for half in _halves(parts, count // 2):
                    await self._stage(half, rejected)
                return
            part = parts[0]
            rejected.setdefault(part.chunk, {})[part.seqs[0]] = (ErrorCode.INTERNAL, _refusal(part, error))
            return
        for part in parts:
            vendor_id = part.chunk.vendor_id
            if vendor_id in missing:
                why = (ErrorCode.VENDOR_NOT_FOUND, f"vendor {vendor_id!r} does not exist: it was deleted")
                rejected.setdefault(part.chunk, {}).update(dict.fromkeys(part.seqs, why))

    # vendors' positions

    async def update_positions(self, fixes: Sequence[tuple[str, int, float, float]]) -> None:
        """Bring vendors.lat/long to these (vendor_id, timestamp, lat, long); an older fix never replaces a newer."""
        if not fixes:
            return
        newest: dict[str, tuple[str, int, float, float]] = {}
        for fix in fixes:
            known = newest.get(fix[0])
            if known is None or known[1] < fix[1]:
                newest[fix[0]] = fix
        columns = [list(column) for column in zip(*newest.values(), strict=True)]
        await self._answer(lambda connection: connection.execute(UPDATE_POSITIONS, *columns), "positions")

    async def reconcile_positions(self, since_ms: int) -> int:
        """Bring vendors.lat/long to the newest stored ping since then; how many vendors were behind.

        For the start: the process before may have ended between a commit and the merged update.
        """
        since, first, behind = id_floor(since_ms), "", 0

        async def some(connection: Any) -> str | None:
            nonlocal behind
            last: str | None = await connection.fetchval(LAST_OF_SOME, first, RECONCILE_VENDORS)
            if last is not None:
                status = await connection.execute(RECONCILE_POSITIONS, since, first, last)
                behind += int(str(status).rsplit(" ", 1)[-1])
            return last

        while (last := await self._answer(some, "reconcile")) is not None:
            first = last
        return behind

    # reading

    async def vendors_of(self, clerk_ids: Sequence[str]) -> list[VendorRow]:
        """The vendors of the users with these `clerkId`s, by their ids."""
        asked = [clerk_id for clerk_id in clerk_ids if _can_be_text(clerk_id)]
        return await self._vendors(VENDORS_OF, asked) if asked else []

    async def cards(self, vendor_ids: Sequence[str]) -> list[VendorRow]:
        """Those of these vendors that there are, in no order."""
        asked = [vendor_id for vendor_id in vendor_ids if _can_be_text(vendor_id)]
        return await self._vendors(CARDS, asked) if asked else []

    async def paying(self, vendor_ids: Sequence[str]) -> set[str]:
        """Those of these vendors whose user has an active subscription now."""
        asked = [vendor_id for vendor_id in vendor_ids if _can_be_text(vendor_id)]
        if not asked:
            return set()
        return {row[0] for row in await self._answer(lambda connection: connection.fetch(PAYING, asked))}

    async def changes(self, after: int, since: int, limit: int) -> Changes:
        """Changes of users and vendors with an id above `after`, by transactions from `since` on."""
        rows = await self._answer(lambda connection: connection.fetch(CHANGES, after, since, limit))
        oldest, following, newest = rows[0][:3]
        return Changes(oldest, following, newest, [Change(*row[3:]) for row in rows if row[3] is not None])

    async def users(self, user_ids: Sequence[str]) -> list[tuple[str, str | None]]:
        """(clerkId, vendorId) for each vendor of these users, deleted or not; a user without one has None."""
        rows = await self._answer(lambda connection: connection.fetch(USERS, user_ids))
        return [(row[0], row[1]) for row in rows]

    async def living_users(self, clerk_ids: Sequence[str]) -> set[str]:
        """Those of these who are users and not deleted."""
        rows = await self._answer(lambda connection: connection.fetch(LIVING_USERS, clerk_ids))
        return {row[0] for row in rows}

    async def deleted_users(self) -> list[str]:
        """The `clerkId` of all who are marked as deleted, and of those who were deleted within a day."""
        rows = await self._answer(lambda connection: connection.fetch(DELETED_USERS))
        return [row[0] for row in rows]

    async def newest_stored(self, located: Sequence[tuple[str, int | None]]) -> dict[tuple[str, int | None], int]:
        """The timestamps of vendors' newest stored pings, for each (vendor_id, located_at) whose row was just read.

        One that has none newer than `located_at` may be left out.
        """
        located = [(vendor_id, at) for vendor_id, at in located if _can_be_text(vendor_id)]
        if not located:
            return {}
        floors = ["" if at is None else id_floor(at) for _, at in located]
        columns = [[id for id, _ in located], [at for _, at in located], floors]
        rows = await self._answer(lambda connection: connection.fetch(NEWEST_STORED, *columns), "durable")
        return {(row[0], row[1]): row[2] for row in rows}

    async def locations(
        self, vendor_id: str, from_ms: int, to_ms: int, limit: int, after: tuple[int, str] | None = None
    ) -> list[LocationRow]:
        """Stored pings with from_ms <= timestamp < to_ms by (timestamp, id), after the page that ended at `after`."""
        from_ms, to_ms = min(max(from_ms, 0), LATEST_MS), min(max(to_ms, 0), LATEST_MS)
        after_ms, after_id = after or (from_ms - 1, "")
        from_ms = max(from_ms, min(after_ms, LATEST_MS))
        if from_ms >= to_ms or limit <= 0 or not _can_be_text(vendor_id) or not _can_be_text(after_id):
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
        rows = await self._answer(lambda connection: connection.fetch(LOCATIONS, *arguments), "history")
        return [LocationRow(*row) for row in rows]

    async def set_open(self, vendor_id: str, open: bool, clerk_id: str) -> None:
        """Open or close a vendor for business; the audit has it that this user did."""
        if _can_be_text(vendor_id) and _can_be_text(clerk_id):
            await self._answer(lambda connection: connection.execute(SET_OPEN, vendor_id, open, clerk_id), "open")

    async def ping(self) -> None:
        """Whether PostgreSQL answers, soon; raises Unavailable when it does not."""
        await self._soon(lambda connection: connection.execute("SELECT 1"), "ping")

    async def condition(self, today: date) -> Condition:
        """What the database is like, beyond that it answers: soon, or Unavailable."""
        return await self._soon(lambda connection: database.condition(connection, today), "condition")

    async def table_sizes(self) -> list[TableSize]:
        """How large our tables are: soon, or Unavailable, as a table locked for a change can't be measured."""
        rows = await self._soon(lambda connection: connection.fetch(TABLE_SIZES, database.TABLES), "sizes")
        return [TableSize(*row) for row in rows]

    async def _soon(self, work: Callable[[Any], Awaitable[T]], what: str) -> T:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                return await self._answer(work, what)
        except TimeoutError:
            raise Unavailable(f"PostgreSQL at {self._where} did not answer within {HEALTH_TIMEOUT:g} s") from None

    async def ensure_partitions(self, today: date, ahead: int) -> Any:
        """Have the partitions of `locations` ready, `ahead` days ahead of today."""
        return await self._answer(lambda connection: database.ensure_partitions(connection, today, ahead), "partitions")

    async def _vendors(self, statement: str, argument: object) -> list[VendorRow]:
        rows = await self._answer(lambda connection: connection.fetch(statement, argument), "vendors")
        return [VendorRow(*row) for row in rows]

    # connections

    async def _answer(self, work: Callable[[Any], Awaitable[T]], what: str = "other") -> T:
        """`_run` for what PostgreSQL has no reason to refuse."""
        try:
            return await self._run(work, what)
        except asyncpg.PostgresError as error:
            raise DatabaseError(
                f"PostgreSQL at {self._where} refused a statement: {error} (SQLSTATE {error.sqlstate});"
                " the schema or what is in it is not what this version expects: bring it up to date"
            ) from error

    async def _run(self, work: Callable[[Any], Awaitable[T]], what: str = "other") -> T:
        """Work on a pooled connection, within bounds. PostgresError is a fault in the data, Unavailable all else.

        A connection is kept only when its state is known. `what` names the work to who looks at how long it takes.
        """
        began = time.monotonic()
        try:
            return await self._work(work)
        finally:
            self._counters.postgresql[what].observe(time.monotonic() - began)

    async def _work(self, work: Callable[[Any], Awaitable[T]]) -> T:
        try:
            connection = await self._pool.acquire(timeout=self._pool_timeout)
        except TimeoutError:
            raise Unavailable(
                f"no connection to PostgreSQL at {self._where} was to be had within {self._pool_timeout:g} s:"
                f" all {self._pool.get_max_size()} are at work or it does not answer"
            ) from None
        except _CONNECTION_ERRORS as error:
            failed = tls.trouble(error, "DATABASE_URL", "sslrootcert")
            raise Unavailable(f"PostgreSQL at {self._where} can't be reached: {failed or error}") from error
        given_up = known = False

        def give_up() -> None:
            nonlocal given_up
            given_up = True
            _terminate(connection)

        # Not asyncio.timeout: what it cancels may then wait for a rollback, for ever if the server hangs.
        timer = asyncio.get_running_loop().call_later(self._answer_timeout, give_up)
        try:
            answer = await work(connection)
            known = True
            return answer
        except _CONNECTION_ERRORS as error:
            if given_up:
                raise Unavailable(
                    f"PostgreSQL at {self._where} did not answer within {self._answer_timeout:g} s;"
                    " the connection was given up"
                ) from None
            if isinstance(error, asyncpg.PostgresError):
                known = _is_in_the_data(error) and not _is_closed(connection)
                if known:
                    raise
                raise Unavailable(
                    f"PostgreSQL at {self._where} can't do it now: {error} (SQLSTATE {error.sqlstate})"
                ) from error
            if isinstance(error, asyncpg.InterfaceError) and not _is_closed(connection):
                raise
            raise Unavailable(f"the connection to PostgreSQL at {self._where} was lost: {error}") from error
        finally:
            timer.cancel()
            if not known:
                _terminate(connection)
            # What can fail here is a connection just lost, which is out of the pool by itself.
            with suppress(*_CONNECTION_ERRORS):
                await self._pool.release(connection)


class _Part:
    """Some of a chunk's pings: those from `start` up to `stop`."""

    __slots__ = ("chunk", "start", "stop")

    def __init__(self, chunk: Chunk, start: int, stop: int) -> None:
        self.chunk = chunk
        self.start = start
        self.stop = stop

    @property
    def count(self) -> int:
        return self.stop - self.start

    @property
    def seqs(self) -> Sequence[int]:
        return self.chunk.seqs[self.start : self.stop]

    @property
    def rows(self) -> bytes | bytearray:
        size = self.chunk.row_size
        return self.chunk.rows[self.start * size : self.stop * size]


def _halves(parts: list[_Part], middle: int) -> tuple[list[_Part], list[_Part]]:
    first: list[_Part] = []
    second: list[_Part] = []
    for part in parts:
        if middle >= part.count:
            first.append(part)
        elif middle <= 0:
            second.append(part)
        else:
            first.append(_Part(part.chunk, part.start, part.start + middle))
            second.append(_Part(part.chunk, part.start + middle, part.stop))
        middle -= part.count
    return first, second


def _refusal(part: _Part, error: Any) -> str:
    try:
        id = decode_rows(part.rows, part.chunk.row_size)[0][0]
    except ValueError:
        id = "?"
    return (
        f"location {id} of vendor {part.chunk.vendor_id!r} can't be stored, PostgreSQL says: {error}"
        f" (SQLSTATE {error.sqlstate})"
    )


async def _copy(connection: Any, table: str, schema: str | None, rows: bytearray) -> None:
    # As a bytearray: asyncpg would take bytes for the path of a file.
    await connection.copy_to_table(table, schema_name=schema, source=rows, columns=COLUMNS, format="binary")


async def _store_staged(connection: Any, rows: bytearray) -> frozenset[str]:
    """Store the rows of existing vendors that are not stored yet; give the vendors that don't exist."""
    # Not asyncpg's transaction(): BEGIN rides along with the first statement, and cancelling waits for no rollback.
    try:
        await connection.execute(BEGIN_STAGING)
        await _copy(connection, "streamer_staging", "pg_temp", rows)
        missing = await connection.fetch(STORE_STAGED)
        await connection.execute("COMMIT")
    except asyncpg.PostgresError:
        if not _is_closed(connection):
            await connection.execute("ROLLBACK")
        raise
    return frozenset(row[0] for row in missing)


async def _keep_commits_durable(connection: Any) -> None:
    # An ack is a promise: a database that is told to forget its newest commits in a crash is told otherwise by us.
    await connection.execute(KEEP_COMMITS_DURABLE)


async def _nothing_to_reset(_: Any) -> None:
    """Our statements leave nothing behind in a session, so the round trip that resets it can go."""


def _is_in_the_data(error: Any) -> bool:
    sqlstate = error.sqlstate or ""
    return sqlstate[:2] in DATA_CLASSES or sqlstate == "08P01"


def _terminate(connection: Any) -> None:
    with suppress(asyncpg.InterfaceError):  # a lost connection is taken from us, and then answers nothing
        connection.terminate()


def _is_closed(connection: Any) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True


def _can_be_text(value: str) -> bool:
    """Whether PostgreSQL can hold this text at all."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _session_settings(statement_timeout: float) -> dict[str, str]:
    milliseconds = str(round(statement_timeout * 1000))
    return {
        "statement_timeout": milliseconds,
        # What a client that vanished has locked is let go of as soon.
        "idle_in_transaction_session_timeout": milliseconds,
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        # Compiling takes longer than any statement here.
        "jit": "off",
    }
