"""Maintenance of the database: retention, thinning, statistics, and a check of the schema.

Unavailable: try again later. DatabaseError: something must be repaired first.
"""

from __future__ import annotations

import asyncio
import re
import warnings
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy.exc import SAWarning

from streamer.errors import DatabaseError, SettingsError, Unavailable
from streamer.ingest.copy_rows import id_floor
from streamer.storage import alert_sql, audit, connections, partitions, queries, revisions
from streamer.storage.connections import connected
from streamer.storage.drift import drift
from streamer.storage.dsn import literal, parse_url, quoted

PRUNING = 0x76656E74610003
"""The advisory lock of pruning and thinning."""
STATEMENT = 3_600.0
LOCK_TIMEOUT_MS = 500
"""How long a drop waits for its locks: while it waits, all that want the tables after it wait too."""
MOST_TRIES = 60
TRY_AGAIN = 0.5
ROWS_AT_ONCE = 10_000
DAY = re.compile(r"locations_(\d{8})")
ALERT_DAY = re.compile(r"streamer_alert_events_(\d{8})")
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

    `alerts` counts alerts that ended, states that matter no more and webhooks outside of a day's partition.
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
        raise SettingsError(f"{option} is a number of days or weeks, as 30d or 12w, not {age!r}")
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

    Of alerts it drops the webhooks of days older than `alert_days`, and what ended before.

    Ingest waits for at most half a second at a time. Of two runs at once the second is refused.
    """
    pruned = Pruned((today or datetime.now(UTC).date()) - timedelta(days=days))
    cutoff = datetime(pruned.before.year, pruned.before.month, pruned.before.day)
    where = parse_url(url).masked()
    async with connected(url, STATEMENT) as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", PRUNING):
            raise Unavailable(
                f"{where} is being pruned by another process: wait for its end, or look into pg_stat_activity"
            )
        try:
            if await connection.fetchval("SELECT to_regclass('locations') IS NULL"):
                raise DatabaseError(f"{where} has no table locations: run `streamer db upgrade`")
            for row in await connection.fetch(queries.PARTITION_SIZES):
                partition = Partition(*row)
                named = DAY.fullmatch(partition.name)
                if named is None or datetime.strptime(named[1], "%Y%m%d").date() >= pruned.before:
                    continue
                if not dry_run:
                    await _drop(connection, partition.name, "locations", "vendors")
                pruned.partitions.append(partition)
            if dry_run:
                pruned.rows = await connection.fetchval(queries.OLD_ROWS, cutoff)
            else:
                while deleted := _count(await connection.execute(queries.DELETE_OLD_ROWS, cutoff, ROWS_AT_ONCE)):
                    pruned.rows += deleted
            if audit_days is not None:
                before = datetime.now(UTC) - timedelta(days=audit_days)
                pruned.entries = await audit.prune(connection, before, dry_run=dry_run)
            if alert_days is not None:
                await _prune_alerts(connection, pruned, (today or datetime.now(UTC).date()), alert_days, dry_run)
        finally:
            await connection.fetchval("SELECT pg_advisory_unlock($1)", PRUNING)
    return pruned


async def _prune_alerts(connection: Any, pruned: Pruned, today: date, days: int, dry_run: bool) -> None:
    before = today - timedelta(days=days)
    for row in await connection.fetch(alert_sql.PARTITION_SIZES):
        partition = Partition(*row)
        named = ALERT_DAY.fullmatch(partition.name)
        if named is None or datetime.strptime(named[1], "%Y%m%d").date() >= before:
            continue
        if not dry_run:
            await _drop(connection, partition.name, "streamer_alert_events", "streamer_alerts")
        pruned.partitions.append(partition)
    if dry_run:
        return
    cutoff = datetime(before.year, before.month, before.day)
    yesterday = datetime.combine(today - timedelta(days=1), datetime.min.time())
    for table, statement in alert_sql.PRUNE.items():
        # A state matters for as long as its quiet time, which has passed; the rest is kept as long as webhooks are.
        until = yesterday if table == "streamer_alert_states" else cutoff
        while deleted := _count(await connection.execute(statement, until, ROWS_AT_ONCE)):
            pruned.alerts += deleted


async def _drop(connection: Any, name: str, parent: str, referenced: str) -> None:
    for attempt in range(1, MOST_TRIES + 1):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                # The drop removes a foreign key on the other table too. The locks are taken in the order in which rows
                # are added: in the other order the two deadlock, and under a steady load no day could be dropped.
                await connection.execute(f"LOCK TABLE ONLY {quoted(parent)} IN ACCESS EXCLUSIVE MODE")
                await connection.execute(f"LOCK TABLE {quoted(referenced)} IN ACCESS EXCLUSIVE MODE")
                await connection.execute(f"DROP TABLE {quoted(name)}")
            return
        except partitions.BUSY as busy:
            if attempt == MOST_TRIES:
                raise Unavailable(
                    f"partition {name} could not be dropped in {MOST_TRIES} tries, something holds it: {busy}; look"
                    " for a long transaction in pg_stat_activity, end it or try again later: what is dropped stays so"
                ) from busy
        await asyncio.sleep(TRY_AGAIN)


def _count(status: str) -> int:
    return int(status.rsplit(" ", 1)[-1])


# Thinning


class Thinned(NamedTuple):
    """A day of `locations` that was thinned, and the rows that went."""

    name: str
    rows: int


async def thin(url: str, days: int, seconds: int = 60, *, today: date | None = None) -> list[Thinned]:
    """Keeps one location of each vendor per `keep` seconds in older days; needs the tables' owner.

    Each hour of a day is one transaction. A day that is done is marked by a comment on its partition, so a run that was
    interrupted continues, and the next one looks at new days only. Rows of the default partition stay.
    """
    before = (today or datetime.now(UTC).date()) - timedelta(days=days)
    done = []
    async with connected(url, STATEMENT) as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", PRUNING):
            raise Unavailable(
                f"{parse_url(url).masked()} is being pruned or thinned by another process: wait for its end"
            )
        for name, comment in await connection.fetch(queries.PARTITION_COMMENTS):
            named, marked = DAY.fullmatch(name), THINNED.fullmatch(comment)
            if named is None or (marked is not None and int(marked[1]) >= seconds):
                continue
            day = datetime.strptime(named[1], "%Y%m%d").replace(tzinfo=UTC)
            if day.date() >= before:
                continue
            start, rows = int(day.timestamp()) * 1000, 0
            for hour in range(24):
                bounds = id_floor(start + hour * HOUR_MS), id_floor(start + (hour + 1) * HOUR_MS)
                rows += _count(await connection.execute(queries.THIN, *bounds, seconds))
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
            [Partition(*row) for row in await connection.fetch(queries.PARTITION_SIZES)],
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
    today = today or datetime.now(UTC).date()
    async with connected(url) as connection:
        condition = await revisions.condition(connection, today)
        said = []
        if condition.revision is None:
            return ["it has no schema of ours: run `streamer db upgrade`"]
        if not condition.known:
            said.append(f"it is at revision {condition.revision}, newer than this version: install a newer one")
        elif not condition.newest:
            said.append(f"it is at revision {condition.revision}, not {revisions.head()}: run `streamer db upgrade`")
        said += await _partition_faults(connection, condition.days_ahead)
        for table, index in await connection.fetch(queries.INVALID_INDEXES):
            said.append(f"{table}: index {index} is invalid, a CREATE INDEX that broke off: REINDEX or drop it")
        for table, constraint in await connection.fetch(queries.UNVALIDATED):
            said.append(f"{table}: constraint {constraint} was never validated: ALTER TABLE … VALIDATE CONSTRAINT")
    with warnings.catch_warnings():
        # SQLAlchemy warns of properties of constraints that it does not know.
        warnings.simplefilter("ignore", SAWarning)
        return said + await drift(url)


async def _partition_faults(connection: Any, days_ahead: int) -> list[str]:
    said = []
    if days_ahead < 1:
        day = "today" if days_ahead < 0 else "tomorrow"
        said.append(f"locations: there is no partition for {day}: run `streamer db upgrade`")
    for name, bounds in await connection.fetch(queries.PARTITION_BOUNDS):
        named = DAY.fullmatch(name)
        if named is None:
            continue
        _, lower, upper = partitions.partition_bounds(datetime.strptime(named[1], "%Y%m%d").date())
        wanted = f"FOR VALUES FROM ('{lower}') TO ('{upper}')"
        if bounds != wanted:
            said.append(f"locations: partition {name} is {bounds}, it should be {wanted}")
    if not await connection.fetchval("SELECT to_regclass('locations_default') IS NOT NULL"):
        said.append("locations: there is no default partition, pings of a day without its own are refused")
    return said
