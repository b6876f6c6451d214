"""Adopts a database made by Prisma, in place, while its gateway continues to write; and reverts the adoption.

`locations` becomes a partitioned table under its own name: a trigger mirrors every change of the old table into the
new one, existing rows are copied in small transactions, and one short lock exchanges the two names. The old table stays
as `locations_before_adopt` until `finish`; `revert` does the same in the other direction. Each step is recorded in the
table `streamer_adopt`, so that an interrupted run continues where it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from streamer.errors import DatabaseError, Unavailable
from streamer.storage import adopt_sql as sql
from streamer.storage import migrate
from streamer.storage.connections import connected
from streamer.storage.dsn import literal, parse_url, quoted
from streamer.storage.models import METADATA
from streamer.storage.partitions import BUSY, PARTITIONS_AHEAD, PARTITIONS_BACK, partition_bounds
from streamer.storage.queries import PRISMA_TABLES
from streamer.storage.revisions import revision_of

STATEMENT_TIMEOUT = 3_600.0
ADOPTING = 0x76656E74610004
"""The advisory lock of adoption."""

LOCK_TIMEOUT_MS = 300
"""How long to wait for a lock on a table in use: meanwhile all later requests for the table wait behind it."""
HOLD_TIMEOUT_MS = 700
"""How long one statement may hold such a lock."""
TRIES = 200
TRY_AGAIN = 0.25

BATCH = 5_000
"""Rows of one transaction."""
NAMED = 20
"""Number of rows of each kind that the dry run lists."""

Progress = Callable[[str], None]


class Obstacle(NamedTuple):
    """A reason that prevents adoption, and the ids of its first rows."""

    what: str
    rows: int
    ids: list[str]

    def line(self) -> str:
        """Returns it as one line of text."""
        more = ", …" if self.rows > len(self.ids) else ""
        return self.what if not self.ids else f"{self.what}: {self.rows} rows, by id {', '.join(self.ids)}{more}"


@dataclass(slots=True)
class Plan:
    """What adoption would do: the estimated rows to copy, their days, and the obstacles."""

    phase: str | None
    rows: int = 0
    days: list[date] = field(default_factory=list)
    other_ids: int = 0
    obstacles: list[Obstacle] = field(default_factory=list)


@dataclass(slots=True)
class Adopted:
    """The result of an adoption or its reversal; `held` is how many seconds the exchange locked the tables."""

    copied: int = 0
    held: float = 0.0


async def plan(url: str) -> Plan:
    """Checks a database without changing it, and lists the rows that must be changed before adoption."""
    async with connected(url, STATEMENT_TIMEOUT) as connection:
        return await _plan(connection, url)


async def adopt(url: str, progress: Progress = lambda _: None) -> Adopted:
    """Adopts a database, or continues an adoption. Raises DatabaseError when rows prevent it."""
    done = Adopted()
    async with connected(url, STATEMENT_TIMEOUT) as connection:
        await _alone(connection)
        found = await _plan(connection, url)
        if found.phase in ("reverting", "reverted"):
            raise DatabaseError("the adoption is being reverted: run `streamer db adopt --revert` to its end first")
        if found.obstacles:
            lines = "; ".join(obstacle.line() for obstacle in found.obstacles)
            raise DatabaseError(f"{parse_url(url).masked()} can't be adopted yet: {lines}")
        if found.phase in (None, "preparing"):
            progress("creating the partitioned table beside the old one")
            await _prepare(connection, found.days)
        if found.phase != "adopted":
            progress(f"copying about {found.rows:,} locations")
            done.copied = await _copy(connection, sql.OLD, sql.NEW, progress)
            await _complete_schema(connection)
            progress("exchanging the tables")
            done.held = await _exchange(connection, sql.CUT_OVER)
        progress("validating the constraints")
        for table, name in await connection.fetch(sql.UNVALIDATED_CHECKS, [name for _, name, _ in sql.CHECKS]):
            await connection.execute(f"ALTER TABLE {quoted(table)} VALIDATE CONSTRAINT {quoted(name)}")
    progress("upgrading the schema")
    await migrate.upgrade(url)
    return done


async def revert(url: str, progress: Progress = lambda _: None) -> Adopted:
    """Restores the schema that Prisma made, with all rows that were written since."""
    done = Adopted()
    async with connected(url, STATEMENT_TIMEOUT) as connection:
        await _alone(connection)
        phase = await _phase(connection)
        if phase is None:
            raise DatabaseError(f"{parse_url(url).masked()} was not adopted, or its old table is dropped")
        if phase in ("adopted", "reverting"):
            if marked := await connection.fetchval(sql.SOFT_DELETED):
                raise DatabaseError(
                    f'{marked} users or vendors are marked by "deletedAt", a column that goes: delete or unmark them'
                )
            if phase == "adopted":
                await _exchange(connection, sql.BEGIN_REVERTING)
            progress("copying back what was written since")
            await connection.execute(sql.REMOVE_VANISHED)
            done.copied = await _copy(connection, sql.OLD, sql.BEFORE, progress)
            await migrate.downgrade(url, "0002")
            progress("exchanging the tables")
            done.held = await _exchange(connection, sql.CUT_BACK)
        elif phase in ("preparing", "copying"):
            await _exchange(connection, sql.UNMIRROR)
        await _exchange(connection, sql.REMOVE_NEW, HOLD_TIMEOUT_MS * 100)
    return done


async def finish(url: str) -> None:
    """Drops the old table; after that the adoption cannot be reverted."""
    async with connected(url, STATEMENT_TIMEOUT) as connection:
        await _alone(connection)
        if await _phase(connection) != "adopted":
            raise DatabaseError(f"{parse_url(url).masked()} has no adopted table whose old one could be dropped")
        await _exchange(connection, sql.FINISH, HOLD_TIMEOUT_MS * 100)


# Looking


async def _plan(connection: Any, url: str) -> Plan:
    found = Plan(await _phase(connection))
    if found.phase == "adopted":
        return found
    if found.phase is None and await revision_of(connection) is not None:
        raise DatabaseError(f"{parse_url(url).masked()} was made by `streamer db upgrade`: there is nothing to adopt")
    found.obstacles += await _missing_columns(connection)
    if found.obstacles:
        return found
    for what, query in sql.OBSTACLES.items():
        rows = await connection.fetch(query, NAMED)
        if rows:
            found.obstacles.append(Obstacle(what, rows[0]["count"], [row["id"] for row in rows]))
    for row in await connection.fetch(sql.DEPENDENTS, sql.MIRROR):
        found.obstacles.append(Obstacle(f"{row[0]} depends on the table locations: drop it and create it again", 1, []))
    found.rows = await connection.fetchval(sql.ABOUT_ROWS)
    found.other_ids = await connection.fetchval(sql.OTHER_IDS)
    found.days = [row[0] for row in await connection.fetch(sql.DAYS)]
    return found


async def _missing_columns(connection: Any) -> list[Obstacle]:
    there = {(row[0], row[1]) for row in await connection.fetch(sql.COLUMNS, list(PRISMA_TABLES))}
    added = migrate.added_columns()
    missing = [
        f"{table}.{column.name}"
        for table in PRISMA_TABLES
        for column in METADATA.tables[table].columns
        if (table, column.name) not in there and (table, column.name) not in added
    ]
    if not missing:
        return []
    return [Obstacle(f"columns are missing, it is not the documented Prisma schema: {', '.join(missing)}", 1, [])]


async def _phase(connection: Any) -> str | None:
    if await connection.fetchval("SELECT to_regclass('streamer_adopt') IS NULL"):
        return None
    phase: str | None = await connection.fetchval('SELECT "phase" FROM "streamer_adopt"')
    return phase


async def _alone(connection: Any) -> None:
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", ADOPTING):
        raise Unavailable("another `streamer db adopt` runs on this database: wait for its end")


# Steps


async def _prepare(connection: Any, days: Sequence[date]) -> None:
    """Creates the new table with its partitions, and the trigger that mirrors the old one into it."""
    today = datetime.now(UTC).date()
    wanted = {*days, *(today + timedelta(days=n) for n in range(-PARTITIONS_BACK, PARTITIONS_AHEAD + 1))}

    await _exchange(connection, (sql.STATE, sql.BEGIN_STATE, sql.MIRROR_FUNCTION))
    for statement in sql.CREATE_NEW:
        await _exchange(connection, [statement])
    for day in sorted(wanted):
        # One by one: each asks for a lock on vendors, for its foreign key.
        name, lower, upper = partition_bounds(day)
        bounds = f"PARTITION OF {quoted(sql.NEW)} FOR VALUES FROM ({literal(lower)}) TO ({literal(upper)})"
        await _exchange(connection, [f"CREATE TABLE IF NOT EXISTS {quoted(name)} {bounds}"])
    await _copy_grants(connection)
    await _exchange(connection, sql.BEGIN_COPYING)


async def _copy_grants(connection: Any) -> None:
    """Gives the new table the owner and the privileges of the old one."""
    owner = await connection.fetchval(sql.OWNER)
    await connection.execute(f"ALTER TABLE {quoted(sql.NEW)} OWNER TO {quoted(owner)}")
    for row in await connection.fetch(sql.GRANTS, sql.NEW):
        await connection.execute(row[0])


async def _copy(connection: Any, source: str, target: str, progress: Progress) -> int:
    """Copies all rows that the target lacks, in the order of their ids; returns their number."""
    copied, seen, reported = 0, 0, time.monotonic()
    last: str | None = await connection.fetchval('SELECT "last" FROM "streamer_adopt"')
    while True:
        statement = sql.COPY_BATCH.format(quoted(source), quoted(target), ">=" if last is None else ">")
        # The rows are locked: a concurrent change of one waits for the commit, and the trigger then finds the copy.
        async with connection.transaction():
            row = await connection.fetchrow(statement, last or "", BATCH)
            if row["last"] is None:
                return copied
            last = row["last"]
            await connection.execute('UPDATE "streamer_adopt" SET "last" = $1', last)
        copied, seen = copied + row["copied"], seen + row["seen"]
        if time.monotonic() - reported > 5:
            progress(f"{seen:,} rows looked at, {copied:,} copied")
            reported = time.monotonic()


async def _complete_schema(connection: Any) -> None:
    """Adds the documented indexes, columns and checks to the other tables, without long locks."""
    # An interrupted CREATE INDEX CONCURRENTLY leaves an index that no query uses.
    for row in await connection.fetch(sql.INVALID_INDEXES, list(sql.INDEX_PLACES)):
        await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {quoted(row[0])}")
    for statement in sql.INDEXES:
        await connection.execute(statement)
    for table, column in sorted(migrate.added_columns("0002")):
        added = f"ALTER TABLE {quoted(table)} ADD COLUMN IF NOT EXISTS {quoted(column)} TIMESTAMP(3)"
        await _exchange(connection, [added])
    present = {row[0] for row in await connection.fetch(sql.CHECK_NAMES)}
    for table, name, condition in sql.CHECKS:
        if name not in present:
            added = f"ALTER TABLE {quoted(table)} ADD CONSTRAINT {quoted(name)} CHECK ({condition}) NOT VALID"
            await _exchange(connection, [added])


async def _exchange(connection: Any, statements: Sequence[str], hold_ms: int = HOLD_TIMEOUT_MS) -> float:
    """Runs statements that need locks on tables in use, in one transaction; returns the seconds it took.

    It waits only briefly for its locks and retries, so that other requests do not wait behind it for long.
    """
    for attempt in range(1, TRIES + 1):
        began = time.monotonic()
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                await connection.execute(f"SET LOCAL statement_timeout = {hold_ms}")
                for statement in statements:
                    await connection.execute(statement)
            return time.monotonic() - began
        except BUSY as busy:
            if attempt == TRIES:
                raise Unavailable(
                    f"the tables could not be locked in {TRIES} tries, {busy}: end the long transactions that "
                    "pg_stat_activity shows, and run the command again: it continues where it was"
                ) from busy
        await asyncio.sleep(TRY_AGAIN)
    raise AssertionError
