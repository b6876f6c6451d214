"""Migrations: bringing the schema up to a revision, down, or back to empty tables."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from typing import Any
from uuid import uuid4

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, NullPool, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from streamer.errors import DatabaseError
from streamer.storage import roles
from streamer.storage.connections import Connector, connect_args, connected, explained, explanation
from streamer.storage.dsn import DatabaseUrl, parse_url, quoted
from streamer.storage.models import METADATA
from streamer.storage.partitions import PARTITIONS_AHEAD, ensure_partitions
from streamer.storage.queries import ADDS_PARTITIONS, OUR_FUNCTIONS, OUR_TABLES
from streamer.storage.revisions import known, migrations

CHANGE_TIMEOUT = 3_600.0
"""Seconds that one statement of a migration may take; it may rewrite a large table."""
TURN_TIMEOUT_MS = 60_000
"""How long to wait for another upgrade to end."""
LOCK_TIMEOUT_MS = 5_000
"""How long a migration waits for a table: meanwhile all later requests for the table wait too."""

CHANGING_SCHEMA = 0x76656E74610001
"""The advisory lock of migrations; it differs from that of streamer_add_partition."""


async def upgrade(
    url: str, revision: str = "head", *, today: date | None = None, ahead: int = PARTITIONS_AHEAD
) -> None:
    """Upgrades the schema to a revision and creates the partitions around today; keeps all data.

    All or nothing; a concurrent upgrade waits for the first. Alembic keeps its state in a module, so one process can
    upgrade one database at a time.
    """
    parsed = parse_url(url)
    await _create_schema(parsed)
    async with migrating(url) as connection:
        await connection.run_sync(_refuse_foreign_tables, parsed)
        await connection.run_sync(lambda sync: command.upgrade(alembic_config(sync), revision))
    async with connected(parsed, CHANGE_TIMEOUT) as opened:
        if await opened.fetchval(ADDS_PARTITIONS):
            await ensure_partitions(opened, today or datetime.now(UTC).date(), ahead)
            await roles.renew(opened)


async def downgrade(url: str, revision: str) -> None:
    """Downgrades the schema to a revision, `base` for none; all or nothing."""
    async with migrating(url) as connection:
        await connection.run_sync(lambda sync: command.downgrade(alembic_config(sync), revision))


async def reset(url: str, *, today: date | None = None, ahead: int = PARTITIONS_AHEAD) -> None:
    """Drops all tables of this server with their contents and creates them again; other tables stay."""
    parsed = parse_url(url)
    await _create_schema(parsed)
    async with connected(parsed) as opened:
        holders = await roles.holders(opened)
    async with migrating(url) as connection:
        names = (await connection.scalars(text(OUR_TABLES), {"tables": list(METADATA.tables)})).all()
        for name in names:
            await connection.execute(text(f"DROP TABLE IF EXISTS {quoted(name)} CASCADE"))
        for signature in (await connection.scalars(text(OUR_FUNCTIONS))).all():
            await connection.execute(text(f"DROP FUNCTION {signature}"))
    await upgrade(url, today=today, ahead=ahead)
    for role in holders:
        await roles.grant(url, role)


def alembic_config(connection: Connection | None = None) -> Config:
    """Returns Alembic's configuration, to run on a connection."""
    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def added_columns(only: str | None = None) -> frozenset[tuple[str, str]]:
    """Returns the (table, column) that migrations add to Prisma's tables: all of them, or one migration's."""
    scripts = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    return frozenset(
        column
        for script in scripts
        if only in (None, script.revision)
        for column in getattr(script.module, "ADDED_COLUMNS", ())
    )


def comparison() -> dict[str, Any]:
    """Returns the arguments of Alembic's `context.configure`: how it compares the models with the database.

    Only tables of the models are compared: the database has other tables too, and partitions vary.
    """
    return {
        "target_metadata": METADATA,
        "compare_type": True,
        "compare_server_default": True,
        "include_name": lambda name, kind, _: kind != "table" or name in METADATA.tables,
    }


@asynccontextmanager
async def migrating(url: str) -> AsyncIterator[AsyncConnection]:
    """Opens a transaction with the exclusive lock for schema changes; waits for the lock, with a timeout."""
    parsed = parse_url(url)
    arguments = connect_args(parsed) | {"command_timeout": CHANGE_TIMEOUT, "async_creator_fn": Connector(parsed)}
    if parsed.statement_cache_size == 0:
        # Behind PgBouncer the next transaction may meet names that another session gave.
        arguments |= {"prepared_statement_cache_size": 0, "prepared_statement_name_func": lambda: f"streamer_{uuid4()}"}
    engine = create_async_engine("postgresql+asyncpg://", connect_args=arguments, poolclass=NullPool)
    try:
        with explained(parsed):
            async with engine.begin() as connection:
                await connection.execute(text(f"SET LOCAL lock_timeout = {TURN_TIMEOUT_MS}"))
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({CHANGING_SCHEMA})"))
                await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
                yield connection
    except DBAPIError as error:
        raise explanation(f"PostgreSQL at {parsed.masked()}", error.orig) from error
    except CommandError as error:
        raise DatabaseError(
            f"{parsed.masked()} can't be migrated: {error}; this version has {', '.join(sorted(known()))}"
        ) from error
    finally:
        await engine.dispose()


async def _create_schema(parsed: DatabaseUrl) -> None:
    """Creates the schema that the URL names, as `prisma migrate` does."""
    if parsed.schema is None:
        return
    async with connected(parsed) as connection, connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = {TURN_TIMEOUT_MS}")
        await connection.execute(f"SELECT pg_advisory_xact_lock({CHANGING_SCHEMA})")
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", parsed.schema):
            await connection.execute(f"CREATE SCHEMA {quoted(parsed.schema)}")


def _refuse_foreign_tables(connection: Connection, parsed: DatabaseUrl) -> None:
    if MigrationContext.configure(connection).get_current_revision() is not None:
        return
    if present := sorted(set(METADATA.tables) & set(inspect(connection).get_table_names())):
        raise DatabaseError(
            f"{parsed.masked()} has tables {', '.join(present)} that `streamer db upgrade` did not make (perhaps "
            "Prisma did): `streamer db adopt --dry-run` checks whether they can be adopted, and `streamer db adopt` "
            "adopts them; or name an empty database or another ?schema="
        )
