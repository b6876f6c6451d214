"""The connection pool, and what the server reads and writes.

Timestamps are epoch milliseconds, positions degrees. Every wait is bounded. Unavailable means that PostgreSQL can't be
reached, does not answer, or refuses for a reason that is not in the data: what was to be stored may be stored or not,
and may be stored again without harm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple, TypeVar

import asyncpg

from streamer import tls
from streamer.counters import Counters
from streamer.errors import DatabaseError, ErrorCode, Unavailable
from streamer.ingest.batcher import Chunk, Rejected
from streamer.ingest.copy_rows import COLUMNS, COPY_HEADER, COPY_TRAILER, decode_rows, id_floor, location_id
from streamer.ingest.position import Position
from streamer.storage import partitions, queries, revisions
from streamer.storage.connections import Connector, explanation, unreachable
from streamer.storage.dsn import parse_url
from streamer.storage.models import TABLES
from streamer.storage.revisions import Condition

T = TypeVar("T")

# SQL

RECONCILE_VENDORS = 2000
"""Vendors of one statement: a quarter of a second with some days' partitions."""

ID_SLACK_MS = 3_600_000
"""How far the time in an id that Prisma made may be from the row's timestamp."""

LOCATED_AHEAD = 60_000
"""How far, in ms, before `vendors.locatedAt` the newest ping that is not in the future is looked for."""

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
    """A vendor that is not deleted; `located_at` is the version of the position in lat and long."""

    vendor_id: str
    clerk_id: str
    name: str
    open: bool
    primary_image: str | None
    lat: float | None
    long: float | None
    located_at: int | None
    hidden: bool = False


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
    """The database of the server; opened by `Store.open`."""

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

        A Store survives later outages: each call tries again.
        """
        parsed = parse_url(url)
        pool_size = parsed.pool_size or pool_size
        pool_timeout = parsed.pool_timeout or pool_timeout
        where = f"{parsed.places}/{parsed.database}"
        arguments = parsed.connect_args()
        # PgBouncer rejects settings that it is not configured to pass on: there only our own timer limits a statement.
        settings = {} if parsed.pgbouncer else _session_settings(statement_timeout)
        arguments["server_settings"] = {
            "application_name": "venta-streamer",
            **settings,
            **arguments["server_settings"],
        }
        arguments["timeout"] = min(arguments["timeout"], pool_timeout)
        # No floor: asyncpg would keep it by a task of its own that logs a traceback for each failure of an outage.
        pool = asyncpg.create_pool(
            **arguments,
            connect=Connector(parsed),
            min_size=0,
            max_size=pool_size,
            init=_keep_commits_durable,
            reset=_nothing_to_reset,
        )
        try:
            await pool
            await pool.release(await pool.acquire(timeout=pool_timeout))
        except _CONNECTION_ERRORS as error:
            pool.terminate()
            where = f"PostgreSQL at {where}"
            if isinstance(error, asyncpg.PostgresError):
                raise explanation(where, error.sqlstate, error) from None
            raise Unavailable(f"{where}{unreachable(error, f'no answer within {pool_timeout:g} s')}") from None
        return cls(pool, where, pool_timeout, statement_timeout, counters)

    async def close(self) -> None:
        """Waits a moment for running statements, and closes all connections."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    # storing pings

    async def store_chunks(self, chunks: Sequence[Chunk], retry: bool = False) -> Mapping[Chunk, Rejected]:
        """Commits every ping that can be stored, once; returns those that never can be, by chunk and seq.

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
        await self._correct([chunk for chunk in chunks if chunk not in rejected])
        return rejected

    async def _correct(self, chunks: Sequence[Chunk]) -> None:
        """Sets the newest ping of each chunk to what is stored, where another ping of its timestamp came first.

        Counts all such pings of the chunks that ask for it.
        """
        by_id: dict[str, list[Chunk]] = {}
        for chunk in chunks:
            by_id.setdefault(location_id(chunk.vendor_id, chunk.newest[0]), []).append(chunk)
        sent = {
            chunk: [(row[0], row[2:4]) for row in decode_rows(chunk.rows, chunk.row_size)]
            for chunk in chunks
            if chunk.duplicates is not None
        }
        ids = by_id.keys() | {id for pings in sent.values() for id, _ in pings}
        found = await self._answer(lambda connection: connection.fetch(queries.STORED, list(ids)), "stored")
        stored = {row[0]: (row[1], row[2]) for row in found}
        for chunk, pings in sent.items():
            chunk.duplicates = sum(stored.get(id, position) != position for id, position in pings)
        for id in by_id.keys() & stored.keys():
            lat, long = stored[id]
            for chunk in by_id[id]:
                if chunk.newest[1:3] != (lat, long):
                    chunk.newest = chunk.newest._replace(lat=lat, long=long)
                    chunk.corrected = True

    async def _stage(self, parts: list[_Part], rejected: dict[Chunk, dict[int, tuple[ErrorCode, str]]]) -> None:
        """Stores what can be stored, and isolates a row that PostgreSQL refuses by halving."""
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

    async def update_positions(self, positions: Sequence[tuple[str, Position]]) -> None:
        """Updates vendors.lat/long to these, one for each vendor; an older position never replaces a newer."""
        if not positions:
            return
        rows = [(vendor_id, at.version, at.lat, at.long, at.ahead > 0) for vendor_id, at in positions]
        columns = [list(column) for column in zip(*rows, strict=True)]
        await self._answer(lambda connection: connection.execute(queries.UPDATE_POSITIONS, *columns), "positions")

    async def reconcile_positions(self, since_ms: int) -> int:
        """Updates vendors.lat/long to the newest stored ping since then; returns how many vendors were behind.

        For the start: the process before may have ended between a commit and the merged update.
        """
        since, first, behind = id_floor(since_ms), "", 0

        async def some(connection: Any) -> str | None:
            nonlocal behind
            last: str | None = await connection.fetchval(queries.LAST_OF_SOME, first, RECONCILE_VENDORS)
            if last is not None:
                status = await connection.execute(queries.RECONCILE_POSITIONS, since, first, last)
                behind += int(str(status).rsplit(" ", 1)[-1])
            return last

        while (last := await self._answer(some, "reconcile")) is not None:
            first = last
        return behind

    # reading

    async def vendors_of(self, clerk_ids: Sequence[str]) -> list[VendorRow]:
        """Returns the vendors of the users with these `clerkId`s, ordered by id."""
        asked = [clerk_id for clerk_id in clerk_ids if can_be_text(clerk_id)]
        return await self._vendors(queries.VENDORS_OF, asked) if asked else []

    async def cards(self, vendor_ids: Sequence[str]) -> list[VendorRow]:
        """Returns those of these vendors that exist, in no order."""
        asked = [vendor_id for vendor_id in vendor_ids if can_be_text(vendor_id)]
        return await self._vendors(queries.CARDS, asked) if asked else []

    async def search(
        self, words: Sequence[str], only_open: bool, limit: int, after: tuple[str, str] = ("", "")
    ) -> list[VendorRow]:
        """Returns vendors whose names have words beginning with each of `words`, by (name, id), after `after`.

        Args:
            words: letters and digits only, folded as the index folds names.
        """
        query = " & ".join(f"{word}:*" for word in words)
        rows = await self._answer(
            lambda connection: connection.fetch(queries.SEARCH, query, only_open, *after, limit), "search"
        )
        return [VendorRow(*row) for row in rows]

    async def paying(self, vendor_ids: Sequence[str]) -> set[str]:
        """Returns those of these vendors whose user has an active subscription now."""
        asked = [vendor_id for vendor_id in vendor_ids if can_be_text(vendor_id)]
        if not asked:
            return set()
        return {row[0] for row in await self._answer(lambda connection: connection.fetch(queries.PAYING, asked))}

    async def changes(self, after: int, since: int, limit: int) -> Changes:
        """Returns changes of users and vendors with an id above `after`, by transactions from `since` on."""
        rows = await self._answer(lambda connection: connection.fetch(queries.CHANGES, after, since, limit))
        oldest, following, newest = rows[0][:3]
        return Changes(oldest, following, newest, [Change(*row[3:]) for row in rows if row[3] is not None])

    async def users(self, user_ids: Sequence[str]) -> list[tuple[str, str | None]]:
        """Returns (clerkId, vendorId) for each vendor of these users, deleted or not; None for a user without one."""
        rows = await self._answer(lambda connection: connection.fetch(queries.USERS, user_ids))
        return [(row[0], row[1]) for row in rows]

    async def living_users(self, clerk_ids: Sequence[str]) -> set[str]:
        """Returns those of these `clerkId`s that are users and not deleted."""
        rows = await self._answer(lambda connection: connection.fetch(queries.LIVING_USERS, clerk_ids))
        return {row[0] for row in rows}

    async def deleted_users(self) -> list[str]:
        """Returns the `clerkId` of users marked as deleted, and of those deleted within a day."""
        rows = await self._answer(lambda connection: connection.fetch(queries.DELETED_USERS))
        return [row[0] for row in rows]

    async def newest_stored(self, located: Sequence[tuple[str, int | None]]) -> dict[tuple[str, int | None], int]:
        """The timestamps of vendors' newest stored pings, for each (vendor_id, located_at) whose row was just read.

        A vendor without any may be left out, and one whose newest is long before `located_at`.
        """
        located = [(vendor_id, at) for vendor_id, at in located if can_be_text(vendor_id)]
        if not located:
            return {}
        # That of a phone whose clock is ahead is in the future: its newest ping until now is a little older.
        floors = ["" if at is None else id_floor(at - LOCATED_AHEAD) for _, at in located]
        columns = [[id for id, _ in located], [at for _, at in located], floors]
        rows = await self._answer(lambda connection: connection.fetch(queries.NEWEST_STORED, *columns), "durable")
        return {(row[0], row[1]): row[2] for row in rows}

    async def positions_at(self, pings: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[float, float]]:
        """Returns the stored latitude and longitude of each (vendor_id, timestamp) that is stored."""
        by_id = {location_id(*ping): ping for ping in pings}
        rows = await self._answer(lambda connection: connection.fetch(queries.STORED, list(by_id)), "stored")
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
        rows = await self._answer(lambda connection: connection.fetch(queries.LOCATIONS, *arguments), "history")
        return [LocationRow(*row) for row in rows]

    async def set_open(self, vendor_id: str, open: bool, hidden: bool, clerk_id: str) -> None:
        """Sets whether a vendor is open for business; the audit names this user as the actor."""
        if can_be_text(vendor_id) and can_be_text(clerk_id):
            await self._answer(
                lambda connection: connection.execute(queries.SET_OPEN, vendor_id, open, clerk_id, hidden), "open"
            )

    async def now(self) -> int:
        """Returns PostgreSQL's time soon, epoch ms, or raises Unavailable."""
        return int(await self._soon(lambda connection: connection.fetchval(queries.CLOCK), "clock"))

    async def condition(self, today: date) -> Condition:
        """Returns the state of the schema soon, or raises Unavailable."""
        return await self._soon(lambda connection: revisions.condition(connection, today), "condition")

    async def table_sizes(self) -> list[TableSize]:
        """Returns the sizes of the tables soon, or raises Unavailable: a locked table can't be measured."""
        rows = await self._soon(lambda connection: connection.fetch(queries.TABLE_SIZES, list(TABLES)), "sizes")
        return [TableSize(*row) for row in rows]

    async def _soon(self, work: Callable[[Any], Awaitable[T]], what: str) -> T:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                return await self._answer(work, what)
        except TimeoutError:
            raise Unavailable(f"PostgreSQL at {self._where} did not answer within {HEALTH_TIMEOUT:g} s") from None

    async def ensure_partitions(self, today: date, ahead: int) -> list[str]:
        """Creates the missing partitions up to `ahead` days after today; returns their names."""
        return await self._answer(
            lambda connection: partitions.ensure_partitions(connection, today, ahead), "partitions"
        )

    async def _vendors(self, statement: str, argument: object) -> list[VendorRow]:
        rows = await self._answer(lambda connection: connection.fetch(statement, argument), "vendors")
        return [VendorRow(*row) for row in rows]

    # connections

    async def answer(self, work: Callable[[Any], Awaitable[T]], what: str) -> T:
        """Returns what `work` returns on a pooled connection; for the statements of other modules of this package."""
        return await self._answer(work, what)

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

        A connection is kept only when its state is known. `what` is the label of the duration metric.
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
                f"no connection to PostgreSQL at {self._where} within {self._pool_timeout:g} s:"
                f" all {self._pool.get_max_size()} are in use, or it does not answer"
            ) from None
        except asyncpg.PostgresError as error:
            raise Unavailable(str(explanation(f"PostgreSQL at {self._where}", error.sqlstate, error))) from error
        except _CONNECTION_ERRORS as error:
            failed = tls.trouble(error, "DATABASE_URL", "sslrootcert")
            raise Unavailable(f"PostgreSQL at {self._where} can't be reached: {failed or error}") from error
        given_up = known = False

        def give_up() -> None:
            nonlocal given_up
            given_up = True
            _terminate(connection)

        # Not asyncio.timeout: what it cancels may then wait for a rollback, forever if the server hangs.
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
                reason = explanation(f"PostgreSQL at {self._where}", error.sqlstate, error)
                raise Unavailable(str(reason)) from error
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
        await connection.execute(queries.BEGIN_STAGING)
        await _copy(connection, "streamer_staging", "pg_temp", rows)
        missing = await connection.fetch(queries.STORE_STAGED)
        await connection.execute("COMMIT")
    except asyncpg.PostgresError:
        if not _is_closed(connection):
            await connection.execute("ROLLBACK")
        raise
    return frozenset(row[0] for row in missing)


async def _keep_commits_durable(connection: Any) -> None:
    # Override synchronous_commit=off: an ack promises durability.
    await connection.execute(queries.KEEP_COMMITS_DURABLE)


async def _nothing_to_reset(_: Any) -> None:
    """Saves a round trip: the statements of this module leave nothing behind in a session."""


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


def can_be_text(value: str) -> bool:
    """Returns whether PostgreSQL can store this text."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _session_settings(statement_timeout: float) -> dict[str, str]:
    milliseconds = str(round(statement_timeout * 1000))
    return {
        "statement_timeout": milliseconds,
        # Earlier than that, so that the error names a lock as the cause.
        "lock_timeout": str(round(statement_timeout * 500)),
        # The locks of a client that vanished are released as soon.
        "idle_in_transaction_session_timeout": milliseconds,
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        # Compiling takes longer than any statement here.
        "jit": "off",
    }
