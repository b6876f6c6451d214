"""Single questions that commands ask the database."""

from __future__ import annotations

from streamer.storage.connections import connected
from streamer.storage.queries import CLOCK

HAS_USER = """SELECT EXISTS (SELECT FROM "users" WHERE "clerkId" = $1 AND "deletedAt" IS NULL)"""
VERSION = "SHOW server_version"


async def has_user(url: str, clerk_id: str) -> bool:
    """Returns whether there is a user with this `clerkId` who is not deleted."""
    async with connected(url) as connection:
        return bool(await connection.fetchval(HAS_USER, clerk_id))


async def clock_and_version(url: str) -> tuple[float, str]:
    """Returns PostgreSQL's clock, epoch seconds, and its version."""
    async with connected(url) as connection:
        return await connection.fetchval(CLOCK) / 1000, str(await connection.fetchval(VERSION))
