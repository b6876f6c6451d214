"""Partitions of `locations` and of webhooks: one for each day (UTC), by range of id, as ids begin with their time."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import asyncpg

from streamer.errors import DatabaseError, Unavailable
from streamer.ingest.copy_rows import id_floor
from streamer.protocol.fields import LAST_TIMESTAMP
from streamer.storage.queries import PARTITION_NAMES

PARTITIONS_AHEAD = 7
PARTITIONS_BACK = 2
"""Days: pings arrive late from phones that were offline."""

LOCK_TIMEOUT_MS = 2_000
DAY = re.compile(r"(?:locations|streamer_alert_events)_(\d{8})")

LOCATIONS = "locations"
ADDS = {
    LOCATIONS: ("SELECT streamer_add_partition($1)", "vendors"),
    "streamer_alert_events": ("SELECT streamer_add_alert_partition($1)", "streamer_alerts"),
}
"""By partitioned table: the statement that creates a day's partition, and the other table that it locks."""

BUSY = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError, asyncpg.QueryCanceledError)
"""Errors of a statement that did not get its locks in time: try again."""


def partition_bounds(day: date) -> tuple[str, str, str]:
    """Returns name, lower bound and upper bound (exclusive) of the partition that holds the ids of a day.

    Raises ValueError for a day before 1970 or after the last whole day that an id can hold, in 2059.
    """
    start = int(datetime.combine(day, time(), UTC).timestamp()) * 1000
    end = start + 86_400_000
    if start < 0 or end > LAST_TIMESTAMP:
        raise ValueError(f"no id of a location can hold the time {day}: it is from 1970 to 2059")
    return f"locations_{day:%Y%m%d}", id_floor(start), id_floor(end)


def day_of(partition: str) -> date | None:
    """Returns the day of a partition by its name; None for the default partition."""
    day = DAY.fullmatch(partition)
    return None if day is None else datetime.strptime(day[1], "%Y%m%d").date()


async def present_partitions(connection: Any, table: str = LOCATIONS) -> set[str]:
    """Returns the names of a table's partitions."""
    return {row[0] for row in await connection.fetch(PARTITION_NAMES, table)}


async def ensure_partitions(connection: Any, today: date, ahead: int, table: str = LOCATIONS) -> list[str]:
    """Creates the missing partitions from 2 days before today to `ahead` days after; returns their names.

    Needs the tables' owner or a role with the rights of `serve`. Several processes may do it at once. Rows of such a
    day move out of the default partition. Locks are short and waited for only briefly, so that ingest is not delayed.
    Raises Unavailable if they are not granted in time; partitions created until then stay.
    """
    # The most urgent first.
    days = [today + timedelta(days=n) for n in (*range(ahead + 1), *range(-1, -PARTITIONS_BACK - 1, -1))]
    add, locked = ADDS[table]
    present = await present_partitions(connection, table)
    created, failed = [], []
    for day in days:
        name = f"{table}_{day:%Y%m%d}"
        if name in present:
            continue
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                if await connection.fetchval(add, day):  # False if another process was faster
                    created.append(name)
        except BUSY as busy:
            raise Unavailable(
                f"partition {name} could not be created now, {busy}: a transaction holds a lock on {table} or "
                f"{locked}; end it (pg_stat_activity shows it), or wait until it has ended and try again"
            ) from busy
        except asyncpg.SyntaxOrAccessError as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise DatabaseError(
            "partitions can't be created: " + "; ".join(failed) + " (attach, rename or drop a table of that name that "
            "is no partition; if the role lacks the right, run `streamer db grant` as the tables' owner)"
        )
    return created
