"""Maintenance of the database: retention, thinning, statistics, and a check of the schema.

Unavailable: try again later. DatabaseError: something must be repaired first.
"""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple

from streamer.errors import DatabaseError, SettingsError, Unavailable
from streamer.ingest.copy_rows import id_floor
from streamer.storage import alert_sql, audit, connections, partitions, queries, revisions
from streamer.storage.connections import connected, delete_in_batches, row_count
from streamer.storage.dsn import literal, parse_url, quoted

PRUNING = 0x76656E74610003
"""The advisory lock of pruning and thinning."""
STATEMENT = 3_600.0
LOCK_TIMEOUT_MS = 500
"""How long a drop waits for its locks: meanwhile all later requests for the tables wait behind it."""
MOST_TRIES = 60
TRY_AGAIN = 0.5
ROWS_AT_ONCE = 10_000
THINNED = re.compile(r"thinned to (\d+) s")
HOUR_MS = 3_600_000
AGE = re.compile(r"(\d{1,5})([dw])")

# Retention


class Partition(NamedTuple):
    """A partition of `locations`: estimated rows, and bytes."""

    name: str
    rows: int
    bytes: int


@dataclass(slots=True)
class Pruned:
    """What was dropped, or would be: whole days, rows of the default partition, entries of the audit, and of alerts.

    `alerts` counts alerts that ended, obsolete states, and webhooks outside of a day's partition.
    """

    before: date
    partitions: list[Partition] = field(default_factory=list)
    rows: int = 0
    entries: int = 0
    alerts: int = 0


def days_of(age: str, option: str = "--older-than") -> int:
    """Returns the days of an age like `30d` or `12w`; raises SettingsError for anything else."""
    found = AGE.fullmatch(age.strip().lower())
    if found is None or (days := int(found[1]) * (7 if found[2] == "w" else 1)) < 1:
        raise SettingsError(f"{option} must be a number of days or weeks, such as 30d or 12w, not {age!r}")
    return days


async def prune(
    url: str,
    days: int,
    audit_days: int | None = None,
    alert_days: int | None = None,
    *,
    dry_run: bool = False,
    today: date | None = None,
) -> Pruned:
    """Drops partitions whose whole day is older, and audit entries older than `audit_days`; needs the tables' owner.

    It also drops webhooks older than `alert_days`, and alerts and states that ended before.

    Ingest waits for at most half a second at a time. Of two concurrent runs the second is refused.
    """
    today = today or datetime.now(UTC).date()
    pruned = Pruned(today - timedelta(days=days))
    async with _pruning(url) as connection:
        if await connection.fetchval("SELECT to_regclass('locations') IS NULL"):
            raise DatabaseError(f"{parse_url(url).masked()} has no table locations: run `streamer db upgrade`")
        pruned.partitions += await _drop_days(connection, "locations", "vendors", pruned.before, dry_run)
        cutoff = _midnight(pruned.before)
        if dry_run:
            pruned.rows = await connection.fetchval(queries.OLD_ROWS, cutoff)
        else:
            pruned.rows = await delete_in_batches(connection, queries.DELETE_OLD_ROWS, cutoff, ROWS_AT_ONCE)
        if audit_days is not None:
            before = datetime.now(UTC) - timedelta(days=audit_days)
            pruned.entries = await audit.prune(connection, before, dry_run=dry_run)
        if alert_days is not None:
            await _prune_alerts(connection, pruned, today, alert_days, dry_run)
    return pruned


@asynccontextmanager
async def _pruning(url: str) -> AsyncIterator[Any]:
    """Opens a connection with the exclusive lock for pruning and thinning."""
    async with connected(url, STATEMENT) as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", PRUNING):
            raise Unavailable(
                f"{parse_url(url).masked()} is being pruned or thinned by another process: wait for its end, or check"
                " pg_stat_activity"
            )
        try:
            yield connection
        finally:
            await connection.fetchval("SELECT pg_advisory_unlock($1)", PRUNING)


async def _prune_alerts(connection: Any, pruned: Pruned, today: date, days: int, dry_run: bool) -> None:
    before = today - timedelta(days=days)
    pruned.partitions += await _drop_days(connection, "streamer_alert_events", "streamer_alerts", before, dry_run)
    if dry_run:
        return
    for table, statement in alert_sql.PRUNE.items():
        # A state is needed until its quiet time ends; the rest is kept as long as webhooks are.
        until = today - timedelta(days=1) if table == "streamer_alert_states" else before
        pruned.alerts += await delete_in_batches(connection, statement, _midnight(until), ROWS_AT_ONCE)


async def _drop_days(connection: Any, table: str, referenced: str, before: date, dry_run: bool) -> list[Partition]:
    """Drops the partitions of earlier days; returns them."""
    dropped = []
    for row in await connection.fetch(queries.PARTITION_SIZES, table):
        partition = Partition(*row)
        day = partitions.day_of(partition.name)
        if day is not None and day < before:
            if not dry_run:
                await _drop(connection, partition.name, table, referenced)
            dropped.append(partition)
    return dropped


async def _drop(connection: Any, name: str, parent: str, referenced: str) -> None:
    for attempt in range(1, MOST_TRIES + 1):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                # The drop removes a foreign key on the other table too. The locks are taken in the same order as by
                # inserts: otherwise the two deadlock, and under a steady load no day could be dropped.
                await connection.execute(f"LOCK TABLE ONLY {quoted(parent)} IN ACCESS EXCLUSIVE MODE")
                await connection.execute(f"LOCK TABLE {quoted(referenced)} IN ACCESS EXCLUSIVE MODE")
                await connection.execute(f"DROP TABLE {quoted(name)}")
            return
        except partitions.BUSY as busy:
            if attempt == MOST_TRIES:
                raise Unavailable(
                    f"partition {name} could not be dropped in {MOST_TRIES} tries, it is locked: {busy}; look for a"
                    " long transaction in pg_stat_activity, end it or try again later; other partitions stay dropped"
                ) from busy
        await asyncio.sleep(TRY_AGAIN)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time())


# Thinning


class Thinned(NamedTuple):
    """A day of `locations` that was thinned, and the number of rows that were deleted."""

    name: str
    rows: int


async def thin(url: str, days: int, seconds: int = 60, *, today: date | None = None) -> list[Thinned]:
    """Keeps one location of each vendor per `keep` seconds in older days; needs the tables' owner.

    Each hour of a day is one transaction. A finished day is marked by a comment on its partition, so an interrupted run
    continues, and the next one handles new days only. Rows of the default partition stay.
    """
    before = (today or datetime.now(UTC).date()) - timedelta(days=days)
    done = []
    async with _pruning(url) as connection:
        for name, comment in await connection.fetch(queries.PARTITION_COMMENTS):
            day, marked = partitions.day_of(name), THINNED.fullmatch(comment)
            if day is None or day >= before or (marked is not None and int(marked[1]) >= seconds):
                continue
            start, rows = int(_midnight(day).replace(tzinfo=UTC).timestamp()) * 1000, 0
            for hour in range(24):
                bounds = id_floor(start + hour * HOUR_MS), id_floor(start + (hour + 1) * HOUR_MS)
                rows += row_count(await connection.execute(queries.THIN, *bounds, seconds))
            await connection.execute(f"COMMENT ON TABLE {quoted(name)} IS {literal(f'thinned to {seconds} s')}")
            done.append(Thinned(name, rows))
    return done


# Statistics


class TableStats(NamedTuple):
    """A table with its partitions: estimated rows and dead rows, and bytes."""

    table: str
    rows: int
    dead: int
    table_bytes: int
    index_bytes: int
    vacuumed: datetime | None
    analyzed: datetime | None


class IndexStats(NamedTuple):
    """An index, summed over partitions; `scans` are those since the statistics were reset."""

    table: str
    name: str
    bytes: int
    scans: int


class StatementStats(NamedTuple):
    """The cost of a kind of statement since the statistics were reset, in milliseconds."""

    query: str
    calls: int
    total_ms: float
    mean_ms: float
    rows: int


@dataclass(frozen=True, slots=True)
class Stats:
    """The state of the database."""

    bytes: int
    cache_hits: float | None
    """The share of blocks found in PostgreSQL's own cache; None if none was read."""
    connections: int
    commits: int
    rollbacks: int
    deadlocks: int
    temporary_bytes: int
    oldest_transaction: float | None
    """Seconds; a transaction that stays open keeps dead rows from being removed."""
    since: datetime | None
    tables: list[TableStats]
    indexes: list[IndexStats]
    partitions: list[Partition]
    statements: list[StatementStats] | None
    """The most expensive ones; None without pg_stat_statements, or the right to see it."""


async def stats(url: str, *, statements: int = 10) -> Stats:
    """Returns sizes, dead rows, cache hits, indexes and expensive statements."""
    async with connected(url) as connection:
        size, hit, read, backends, commits, rollbacks, deadlocks, temporary, since = await connection.fetchrow(
            queries.DATABASE_STATS
        )
        return Stats(
            size,
            hit / (hit + read) if hit + read else None,
            backends,
            commits,
            rollbacks,
            deadlocks,
            temporary,
            await connection.fetchval(queries.OLDEST_TRANSACTION),
            since,
            [TableStats(*row) for row in await connection.fetch(queries.TABLE_STATS, queries.TABLES)],
            [IndexStats(*row) for row in await connection.fetch(queries.INDEX_STATS, queries.TABLES)],
            [Partition(*row) for row in await connection.fetch(queries.PARTITION_SIZES, "locations")],
            await _statements(connection, statements),
        )


async def _statements(connection: Any, most: int) -> list[StatementStats] | None:
    if not await connection.fetchval(queries.HAS_STATEMENTS):
        return None
    try:
        return [StatementStats(*row) for row in await connection.fetch(queries.SLOW_STATEMENTS, most)]
    except connections.REFUSED:
        return None  # it is there but not loaded by the server, or not for this role


async def check(url: str, *, today: date | None = None) -> list[str]:
    """Returns a line with its remedy for each difference from what this version needs; empty when there is none."""
    from sqlalchemy.exc import SAWarning  # takes longer to import than the other commands take

    from streamer.storage.drift import drift

    today = today or datetime.now(UTC).date()
    async with connected(url) as connection:
        condition = await revisions.condition(connection, today)
        said = []
        if condition.revision is None:
            return ["it has no schema of this server: run `streamer db upgrade`"]
        if not condition.known:
            said.append(f"it is at revision {condition.revision}, newer than this version: install a newer one")
        elif not condition.newest:
            said.append(f"it is at revision {condition.revision}, not {revisions.head()}: run `streamer db upgrade`")
        said += await _partition_faults(connection, condition.days_ahead)
        for table, index in await connection.fetch(queries.INVALID_INDEXES):
            said.append(f"{table}: index {index} is invalid, its CREATE INDEX was interrupted: REINDEX or drop it")
        for table, constraint in await connection.fetch(queries.UNVALIDATED):
            said.append(f"{table}: constraint {constraint} was never validated: ALTER TABLE … VALIDATE CONSTRAINT")
    with warnings.catch_warnings():
        # SQLAlchemy warns about properties of constraints that it does not know.
        warnings.simplefilter("ignore", SAWarning)
        return said + await drift(url)


async def _partition_faults(connection: Any, days_ahead: int) -> list[str]:
    said = []
    if days_ahead < 1:
        absent = "today" if days_ahead < 0 else "tomorrow"
        said.append(f"locations: there is no partition for {absent}: run `streamer db upgrade`")
    for table, rows in (("locations", "pings"), ("streamer_alert_events", "webhooks")):
        found = await connection.fetch(queries.PARTITION_BOUNDS, table)
        for name, bounds in found:
            day = partitions.day_of(name)
            if day is None:
                continue
            _, lower, upper = partitions.partition_bounds(day)
            wanted = f"FOR VALUES FROM ('{lower}') TO ('{upper}')"
            if bounds != wanted:
                said.append(f"{table}: partition {name} is {bounds}, it should be {wanted}")
        present = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table)
        if present and "DEFAULT" not in [bounds for _, bounds in found]:
            said.append(f"{table}: there is no default partition, {rows} of a day without its own are refused")
    return said
