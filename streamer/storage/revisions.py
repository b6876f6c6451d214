"""Which migrations there are, and which of them a database has."""

from __future__ import annotations

from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from streamer.errors import DatabaseError
from streamer.storage.connections import connected
from streamer.storage.dsn import parse_url
from streamer.storage.partitions import partition_bounds, present_partitions


class Condition(NamedTuple):
    """The state of a server's database: its revision, and the days after today that have partitions without a gap.

    `days_ahead` is -1 if not even today's partition is there.
    """

    revision: str | None
    known: bool
    newest: bool
    days_ahead: int


def migrations() -> Path:
    """Returns the folder of the migrations: in the package when installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "migrations"
    return inside if inside.exists() else package.parent / "migrations"


def alembic_config(connection: Connection | None = None) -> Config:
    """Returns Alembic's configuration, to run on a connection."""
    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@cache
def known() -> frozenset[str]:
    """Returns all revisions of this version; cached, as reading them takes milliseconds."""
    return frozenset(script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions())


@cache
def head() -> str:
    """Returns the newest revision of this version."""
    newest = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if newest is None:
        raise DatabaseError(f"there are no migrations in {migrations()}: install venta-streamer again")
    return newest


def added_columns(only: str | None = None) -> frozenset[tuple[str, str]]:
    """Returns the (table, column) that migrations add to Prisma's tables: all of them, or one migration's."""
    scripts = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    return frozenset(
        column
        for script in scripts
        if only in (None, script.revision)
        for column in getattr(script.module, "ADDED_COLUMNS", ())
    )


async def revision_of(connection: Any) -> str | None:
    """Returns the revision of the database behind an asyncpg connection; None before the first upgrade."""
    if await connection.fetchval("SELECT to_regclass('alembic_version') IS NULL"):
        return None
    found: str | None = await connection.fetchval('SELECT "version_num" FROM "alembic_version"')
    return found


async def revision(url: str) -> str | None:
    """Returns the revision of a database; None before the first upgrade."""
    async with connected(url) as connection:
        return await revision_of(connection)


async def require_newest(url: str) -> None:
    """Raises DatabaseError unless the database is at the newest revision."""
    parsed = parse_url(url)
    found, newest = await revision(url), head()
    if found == newest:
        return
    if found is not None and found not in known():
        raise DatabaseError(
            f"{parsed.masked()} is at revision {found}, which this version does not know, its newest is {newest}: "
            "install the version that made it"
        )
    raise DatabaseError(
        f"{parsed.masked()} is at revision {found or 'none'}, this version needs {newest}: run `streamer db upgrade`"
    )


async def condition(connection: Any, today: date) -> Condition:
    """Returns the state of the database behind an asyncpg connection."""
    found = await revision_of(connection)
    present = set(await present_partitions(connection))
    ahead = -1
    while partition_bounds(today + timedelta(days=ahead + 1))[0] in present:
        ahead += 1
    return Condition(found, found in known(), found == head(), ahead)
