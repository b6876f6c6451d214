"""Fixtures of the tests of the schema."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date, timedelta
from typing import Any

import pytest

from tests.conftest import connected

TODAY = date(2026, 11, 24)
DAY_MS = 86_400_000


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    """A connection to a fresh database with one user and one vendor."""
    async with connected(database_url) as opened:
        await opened.execute(
            """
            INSERT INTO "users" ("id", "clerkId", "email", "updatedAt")
            VALUES ('u1', 'clerk_1', '1@example.com', now());
            INSERT INTO "vendors" ("id", "name", "userId", "updatedAt") VALUES ('v1', 'One', 'u1', now());
            """
        )
        yield opened


async def without_days(connection: Any) -> Any:
    """The same connection, after dropping all partitions except the default one."""
    for name in await partition_names(connection):
        if name != "locations_default":
            await connection.execute(f'DROP TABLE "{name}"')
    return connection


async def partition_names(connection: Any) -> list[str]:
    """Returns the partitions of `locations` in the order of their names."""
    rows = await connection.fetch(
        "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = 'locations'::regclass "
        "ORDER BY relname"
    )
    return [row[0] for row in rows]


def days(first: int, last: int) -> list[str]:
    """Returns the names of the partitions of a range of days, relative to TODAY."""
    return [f"locations_{TODAY + timedelta(days=n):%Y%m%d}" for n in range(first, last + 1)]
