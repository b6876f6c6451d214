"""Connections to a real PostgreSQL, and errors that name the remedy."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from streamer.errors import DatabaseError, Unavailable
from streamer.operations.embedded import PostgresServer
from streamer.storage import migrate, revisions, seed
from streamer.storage.database import Database
from streamer.storage.drift import drift
from streamer.storage.dsn import parse_url
from tests.conftest import connected

SECRET = "geheim"


async def test_what_the_url_says_is_what_the_session_has(empty_database_url: str) -> None:
    """If schema, name or time zone were not set, rows would be in the wrong schema, and times off by hours."""
    async with connected(f"{empty_database_url}?schema=my%20%22schema%22&application_name=a%20test") as connection:
        for setting, expected in {
            "search_path": '"my ""schema"""',
            "application_name": "a test",
            "timezone": "UTC",
        }.items():
            assert await connection.fetchval("SELECT current_setting($1)", setting) == expected
    async with connected(empty_database_url) as connection:
        assert await connection.fetchval("SELECT current_schema()") == "public"


async def test_a_parameter_without_effect_is_reported(empty_database_url: str) -> None:
    """An operator who misspells `connection_limit` would otherwise wait for connections that don't exist."""
    with capture_logs() as logs:
        await (await Database.open(f"{empty_database_url}?connection_limits=50&connection_limit=5")).close()
    (warned,) = [line for line in logs if line["log_level"] == "warning"]
    assert warned["parameters"] == ("connection_limits",)


async def test_a_server_without_tls_is_not_good_enough_when_tls_is_required(empty_database_url: str) -> None:
    """Otherwise people's locations would be sent in the clear."""
    with pytest.raises(Unavailable, match="SSL"):
        await revisions.revision(f"{empty_database_url}?sslmode=require")


async def test_a_server_that_is_away_is_unavailable(empty_database_url: str, unused_tcp_port: int) -> None:
    """A supervisor retries if a database is unavailable, and stops if its settings are wrong."""
    port = parse_url(empty_database_url).hosts[0][1]
    away = empty_database_url.replace(f":{port}/", f":{unused_tcp_port}/")
    for call in (revisions.revision, migrate.upgrade, drift, revisions.require_newest, seed.seed):
        with pytest.raises(Unavailable, match=rf"venta:\*\*\*@127\.0\.0\.1:{unused_tcp_port}.*can't be reached"):
            await call(away)


async def test_a_database_or_password_that_is_wrong_is_said(empty_database_url: str) -> None:
    """A retry does not help, so the error must differ from that of a server that is down."""
    parsed = parse_url(empty_database_url)
    with pytest.raises(DatabaseError, match="CREATE DATABASE"):
        await migrate.upgrade(empty_database_url.replace(f"/{parsed.database}", "/nowhere"))
    with pytest.raises(DatabaseError, match="check user and password") as refused:
        await migrate.upgrade(empty_database_url.replace(f":{parsed.password}@", f":{SECRET}@"))
    assert SECRET not in str(refused.value)


async def test_a_server_that_is_frozen_is_given_up(postgres_server: PostgresServer) -> None:
    """Nothing would end a start that hangs."""
    url = f"{postgres_server.url}?connect_timeout=1"
    assert await revisions.revision(url) is None
    postgres_server.pause()
    try:
        with pytest.raises(Unavailable, match="did not answer in time"):
            await revisions.revision(url)
    finally:
        postgres_server.resume()
