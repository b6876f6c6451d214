"""What the server stored, read beside it; and bare rows, to see what PostgreSQL itself can take."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from loadtest.clients.ping import Ping
from loadtest.clients.target import check_host
from loadtest.errors import RunFailed, WrongUse

EPOCH = datetime(1970, 1, 1)
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
COLUMNS = ("id", "vendorId", "lat", "long", "timestamp")
# Prisma writes settings of its own into the URL, which PostgreSQL would not know
UNDERSTOOD = {
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "database",
    "passfile",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
}
TIMEOUT = 60.0

Row = tuple[str, str, float, float, datetime]


class Stored(NamedTuple):
    """One row of `locations`; `timestamp` is epoch ms."""

    vendor_id: str
    timestamp: int
    lat: float
    long: float


class Database:
    """One connection to the server's database; use it as an async context manager."""

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
        self._connection: asyncpg.Connection | None = None

    async def __aenter__(self) -> Database:
        try:
            self._connection = await asyncpg.connect(
                self._dsn, timeout=10, command_timeout=TIMEOUT, server_settings=self._settings
            )
        except (OSError, TimeoutError, asyncpg.PostgresError) as failed:
            raise RunFailed(f"the database can't be reached: {failed!r}; is its URL right?") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.close(timeout=5)

    @property
    def connection(self) -> asyncpg.Connection:
        """The open connection."""
        if self._connection is None:
            raise RunFailed("the database is not connected; enter it first")
        return self._connection

    async def stored(self, vendor_ids: Sequence[str], first: int, last: int) -> list[Stored]:
        """The locations of these vendors with `first` <= timestamp <= `last` (epoch ms)."""
        rows = await self.connection.fetch(
            'SELECT "vendorId", timestamp, lat, long FROM locations'
            ' WHERE "vendorId" = ANY($1::text[]) AND timestamp BETWEEN $2 AND $3',
            list(vendor_ids),
            moment(first),
            moment(last),
        )
        return [Stored(row[0], milliseconds(row[1]), row[2], row[3]) for row in rows]

    async def count(self, ranges: Mapping[str, range]) -> int:
        """How many different locations there are in each vendor's range of epoch ms, together."""
        return int(
            await self.connection.fetchval(
                'SELECT count(DISTINCT (l."vendorId", l.timestamp))'
                " FROM unnest($1::text[], $2::timestamp[], $3::timestamp[]) AS r(vendor, first, last)"
                ' JOIN locations l ON l."vendorId" = r.vendor AND l.timestamp BETWEEN r.first AND r.last',
                list(ranges),
                [moment(some[0]) for some in ranges.values()],
                [moment(some[-1]) for some in ranges.values()],
            )
        )

    async def newest(self, vendor_ids: Sequence[str]) -> dict[str, int]:
        """The newest timestamp (epoch ms) in `locations` of each of these vendors that has one."""
        rows = await self.connection.fetch(
            'SELECT "vendorId", max(timestamp) FROM locations WHERE "vendorId" = ANY($1::text[]) GROUP BY 1',
            list(vendor_ids),
        )
        return {row[0]: milliseconds(row[1]) for row in rows}

    async def positions(self, vendor_ids: Sequence[str]) -> dict[str, tuple[float | None, float | None]]:
        """Where `vendors` says that each of these vendors is."""
        rows = await self.connection.fetch(
            "SELECT id, lat, long FROM vendors WHERE id = ANY($1::text[])", list(vendor_ids)
        )
        return {row[0]: (row[1], row[2]) for row in rows}

    async def copy(self, rows: Sequence[Row]) -> None:
        """Store rows the fastest way there is, in one transaction."""
        await self.connection.copy_records_to_table("locations", records=rows, columns=COLUMNS, timeout=TIMEOUT)

    async def backend(self) -> int:
        """The process id of this connection's backend; of use only when PostgreSQL runs on this machine."""
        return int(self.connection.get_server_pid())


def rows(pings: Iterable[tuple[str, Ping]]) -> list[Row]:
    """Ready rows of `locations` for (vendorId, ping)."""
    return [
        (location_id(vendor_id, ping.timestamp), vendor_id, ping.lat, ping.long, moment(ping.timestamp))
        for vendor_id, ping in pings
    ]


def location_id(vendor_id: str, timestamp: int) -> str:
    """An id in the shape of the server's: it has the same size, order and partition, but is not the same."""
    digest = hashlib.blake2b(f"{vendor_id}:{timestamp}".encode(), digest_size=8, person=b"loadtest").hexdigest()
    return f"c{base36(timestamp):0>8}{digest}"


def base36(number: int) -> str:
    """A number in base 36."""
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = DIGITS[digit] + digits
    return digits or "0"


def moment(timestamp: int) -> datetime:
    """Epoch ms as PostgreSQL's TIMESTAMP(3) holds it: UTC, without a zone."""
    return EPOCH + timedelta(milliseconds=timestamp)


def milliseconds(moment: datetime) -> int:
    """The epoch ms of a TIMESTAMP(3)."""
    return (moment.replace(tzinfo=UTC) - EPOCH.replace(tzinfo=UTC)) // timedelta(milliseconds=1)
