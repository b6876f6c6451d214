"""The server's database: what it stored, vendors for the load test, and bare rows to compare with."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from loadtest import RunFailed, WrongUse
from loadtest.clients.target import Identity, check_host
from loadtest.measure.recording import Histogram

EPOCH = datetime(1970, 1, 1)
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
COLUMNS = ("id", "vendorId", "lat", "long", "timestamp")
# Prisma writes settings of its own into the URL, which PostgreSQL does not know
UNDERSTOOD = {
    *("host", "port", "user", "password", "dbname", "database", "passfile"),
    *("sslmode", "sslrootcert", "sslcert", "sslkey"),
}
TIMEOUT = 60.0
COMMITS = 200
PAST = 590_000

# a user has the id of its vendor, as both live and die together
ADD_USERS = """
INSERT INTO users (id, "clerkId", email, "updatedAt")
SELECT id, clerk, clerk || '@loadtest.example', now() AT TIME ZONE 'UTC'
FROM unnest($1::text[], $2::text[]) AS u(id, clerk)
"""
ADD_VENDORS = """
INSERT INTO vendors (id, name, "userId", "updatedAt")
SELECT id, name, id, now() AT TIME ZONE 'UTC' FROM unnest($1::text[], $2::text[]) AS v(id, name)
"""

Row = tuple[str, str, float, float, datetime]


class Stored(NamedTuple):
    """One row of `locations`; `timestamp` is epoch ms."""

    vendor_id: str
    timestamp: int
    lat: float
    long: float


class Database:
    """One connection to the server's database; an async context manager, which has a `connection` once entered."""

    def __init__(self, url: str, own: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("postgres", "postgresql"):
            raise WrongUse("the database URL must begin with postgresql://")
        query = parse_qsl(parts.query)
        host = dict(query).get("host") or parts.hostname
        if host is not None and not host.startswith("/"):
            check_host(host, own)
        schema = dict(query).get("schema")
        kept = [(name, value) for name, value in query if name in UNDERSTOOD]
        self._dsn = urlunsplit(parts._replace(query=urlencode(kept)))
        self._settings = {"search_path": f'"{schema}"'} if schema else {}

    async def __aenter__(self) -> Database:
        try:
            self.connection: asyncpg.Connection = await asyncpg.connect(
                self._dsn, timeout=10, command_timeout=TIMEOUT, server_settings=self._settings
            )
        except (OSError, TimeoutError, asyncpg.PostgresError) as failed:
            raise RunFailed(f"the database can't be reached: {failed!r}; is its URL right?") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.close(timeout=5)

    async def stored(self, vendor_ids: Sequence[str], first: int, last: int) -> list[Stored]:
        """Returns the locations of these vendors with `first` <= timestamp <= `last` (epoch ms)."""
        rows = await self.connection.fetch(
            'SELECT "vendorId", timestamp, lat, long FROM locations'
            ' WHERE "vendorId" = ANY($1::text[]) AND timestamp BETWEEN $2 AND $3',
            list(vendor_ids),
            moment(first),
            moment(last),
        )
        return [Stored(row[0], milliseconds(row[1]), row[2], row[3]) for row in rows]

    async def newest(self, vendor_ids: Sequence[str]) -> dict[str, int]:
        """Returns the newest timestamp (epoch ms) in `locations` of each of these vendors that has one."""
        rows = await self.connection.fetch(
            'SELECT "vendorId", max(timestamp) FROM locations WHERE "vendorId" = ANY($1::text[]) GROUP BY 1',
            list(vendor_ids),
        )
        return {row[0]: milliseconds(row[1]) for row in rows}

    async def positions(self, vendor_ids: Sequence[str]) -> dict[str, tuple[float | None, float | None]]:
        """Returns each of these vendors' lat and long in `vendors`."""
        rows = await self.connection.fetch(
            "SELECT id, lat, long FROM vendors WHERE id = ANY($1::text[])", list(vendor_ids)
        )
        return {row[0]: (row[1], row[2]) for row in rows}

    async def add_vendors(self, run: str, count: int) -> list[Identity]:
        """Adds `count` users with one vendor each that belong to this run alone, and returns them."""
        made = [Identity(f"cloadtest{run}{n:08d}", f"loadtest_{run}_{n}", f"Load test {n}") for n in range(count)]
        async with self.connection.transaction():
            await self.connection.execute(
                ADD_USERS, *zip(*[(one.vendor_id, one.clerk_id) for one in made], strict=True)
            )
            await self.connection.execute(ADD_VENDORS, [one.vendor_id for one in made], [one.name for one in made])
        return made

    async def remove_vendors(self, made: Sequence[Identity]) -> None:
        """Removes vendors that `add_vendors` added, with their users and locations."""
        ids = [one.vendor_id for one in made]
        for first in range(0, len(ids), 500):
            await self.connection.execute("DELETE FROM users WHERE id = ANY($1::text[])", ids[first : first + 500])

    async def copy(self, rows: Sequence[Row]) -> None:
        """Stores rows by one COPY, in one transaction."""
        await self.connection.copy_records_to_table("locations", records=rows, columns=COLUMNS, timeout=TIMEOUT)

    async def backend(self) -> int:
        """Returns the process id of this connection's backend; useful only when PostgreSQL runs on this machine."""
        return int(self.connection.get_server_pid())


async def measure_copy(database: Database, vendors: Sequence[Identity], count: int) -> dict[str, float]:
    """Copies `count` rows in one transaction, commits 200 single ones, and returns the rate and the commit delays."""
    each = max(1, count // len(vendors))
    first = int(time.time() * 1000) - PAST
    ready = sorted(
        row(vendor.vendor_id, first + step, 52.2 + step * 1e-6) for vendor in vendors for step in range(each)
    )
    began = time.perf_counter()
    await database.copy(ready)
    rate = len(ready) / (time.perf_counter() - began)
    commits = Histogram()
    for single in [row(vendors[0].vendor_id, first - 1 - step, 52.2) for step in range(COMMITS)]:
        start = time.perf_counter()
        await database.copy([single])
        commits.record(time.perf_counter() - start)
    p50, p99 = commits.curve([50, 99])
    return {"rows_per_s": round(rate), "commit_p50_ms": p50, "commit_p99_ms": p99}


def row(vendor_id: str, timestamp: int, lat: float, long: float = 21.0) -> Row:
    """Returns a row of `locations`; `timestamp` is epoch ms."""
    return location_id(vendor_id, timestamp), vendor_id, lat, long, moment(timestamp)


def location_id(vendor_id: str, timestamp: int) -> str:
    """Returns an id with the size, order and partition of the server's, but not the same."""
    digest = hashlib.blake2b(f"{vendor_id}:{timestamp}".encode(), digest_size=8, person=b"loadtest").hexdigest()
    return f"c{base36(timestamp):0>8}{digest}"


def base36(number: int) -> str:
    """Returns a number in base 36."""
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = DIGITS[digit] + digits
    return digits or "0"


def moment(timestamp: int) -> datetime:
    """Returns epoch ms as a TIMESTAMP(3) holds it: UTC, without a zone."""
    return EPOCH + timedelta(milliseconds=timestamp)


def milliseconds(moment: datetime) -> int:
    """Returns the epoch ms of a TIMESTAMP(3)."""
    return (moment.replace(tzinfo=UTC) - EPOCH.replace(tzinfo=UTC)) // timedelta(milliseconds=1)
