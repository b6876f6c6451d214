"""Alembic's environment: runs on the connection of `streamer db upgrade`, or with its own command on DATABASE_URL."""

from __future__ import annotations

import asyncio
from logging.config import fileConfig

from alembic import context
from sqlalchemy import Connection

from streamer import settings
from streamer.errors import SettingsError
from streamer.storage import migrate


def run(connection: Connection) -> None:
    """Runs the requested migrations in the connection's transaction."""
    context.configure(connection=connection, **migrate.comparison())
    with context.begin_transaction():
        context.run_migrations()


async def run_on_database_url() -> None:
    """As `run`, on a connection of its own, with no other upgrade at the same time."""
    url = settings.load().database_url
    if url is None:
        raise SettingsError("DATABASE_URL is not set: which PostgreSQL is meant?")
    async with migrate.migrating(url.get_secret_value()) as connection:
        await connection.run_sync(run)


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, **migrate.comparison())
    with context.begin_transaction():
        context.run_migrations()
elif (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    if context.config.config_file_name is not None:
        fileConfig(context.config.config_file_name, disable_existing_loggers=False)
    asyncio.run(run_on_database_url())
