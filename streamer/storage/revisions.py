"""The migrations of this version, and the revision of a database.

Does not import Alembic and SQLAlchemy, which a server does not need otherwise: they cost startup time and memory.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from streamer.errors import DatabaseError
from streamer.storage.connections import connected
from streamer.storage.dsn import parse_url
from streamer.storage.partitions import partition_bounds, present_partitions

_REVISION, _FOLLOWS = (re.compile(rf'^{name} = "(\w+)"$', re.M) for name in ("revision", "down_revision"))


class Condition(NamedTuple):
    """The state of a server's database: its revision, and the days after today that have partitions without a gap.

    `days_ahead` is -1 if today's partition is missing.
    """

    revision: str | None
    known: bool
    newest: bool
    days_ahead: int

    @property
    def behind(self) -> bool:
        """Whether the revision is older than this version needs.

        An unknown one is newer: in a rolling upgrade the migration runs before the new processes start.
        """
        return self.revision is None or (self.known and not self.newest)


def migrations() -> Path:
    """Returns the folder of the migrations: in the package when installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "migrations"
    return inside if inside.exists() else package.parent / "migrations"


@cache
def _following() -> dict[str, str | None]:
    """Returns the predecessor of each revision of this version."""
    files = [path.read_text(encoding="utf-8") for path in (migrations() / "versions").glob("*.py")]
    found = [(_REVISION.search(text), _FOLLOWS.search(text)) for text in files]
    return {one[1]: follows[1] if follows is not None else None for one, follows in found if one is not None}


def known() -> frozenset[str]:
    """Returns all revisions of this version."""
    return frozenset(_following())


def head() -> str:
    """Returns the newest revision of this version."""
    newest = known() - set(_following().values())
    if len(newest) != 1:
        raise DatabaseError(f"the migrations in {migrations()} are incomplete: install venta-streamer again")
    return next(iter(newest))


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
    present = await present_partitions(connection)
    ahead = -1
    while partition_bounds(today + timedelta(days=ahead + 1))[0] in present:
        ahead += 1
    return Condition(found, found in known(), found == head(), ahead)
