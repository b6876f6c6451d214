"""`streamer token`, and the tokens of other commands."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from streamer import settings
from streamer.accounts.tokens import make_token, rules_of
from streamer.dev.folder import DATA, SECRET, read_secret, read_services
from streamer.errors import SettingsError, StreamerError
from streamer.storage import dsn, queries
from streamer.storage.connections import connected

LOOKUP_TIMEOUT = 3.0
"""Seconds that `streamer token` may spend on looking up the user."""


def token(
    clerk_id: Annotated[str, typer.Argument(help="users.clerkId of the token's user.")],
    ttl: Annotated[float, typer.Option(help="Seconds until it expires.", min=1)] = 3600,
    data: Annotated[Path, typer.Option(help="Folder of `streamer dev`, for its secret.")] = DATA,
) -> None:
    """Print an HS256 token for development and load tests, signed with STREAMER_JWT_SECRET or dev's own secret."""
    typer.echo(sign(data, clerk_id, ttl))
    if (url := _known_database(data)) is not None and asyncio.run(_is_unknown(url, clerk_id)):
        typer.echo(
            f"streamer: warning: {dsn.parse_url(url).masked()} has no user {clerk_id!r}: a server on it lets this"
            " token watch, but not report for a vendor",
            err=True,
        )


def sign(data: Path, clerk_id: str, ttl: float = 3600) -> str:
    """Returns a token signed with STREAMER_JWT_SECRET or the secret of `streamer dev`; raises SettingsError."""
    configured = settings.load()
    claims = rules_of(configured).claims
    if configured.jwt_secret is not None:
        return make_token(configured.jwt_secret.get_secret_value(), clerk_id, ttl, claims=claims)
    try:
        return make_token(read_secret(data), clerk_id, ttl, claims=claims)
    except OSError:
        raise SettingsError(
            "there is no secret to sign with: set STREAMER_JWT_SECRET, "
            f"or run `streamer dev`, which keeps one in {data / SECRET}"
        ) from None


def _known_database(data: Path) -> str | None:
    given = settings.load().database_url
    return read_services(data).get("database") if given is None else given.get_secret_value()


async def _is_unknown(url: str, clerk_id: str) -> bool:
    """Whether the database answers and has no such user."""
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT), connected(url) as connection:
            return not await connection.fetch(queries.EXISTING_USERS, [clerk_id])
    except (StreamerError, TimeoutError):
        return False
