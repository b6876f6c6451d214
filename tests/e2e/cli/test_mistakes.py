"""A new operator's mistakes: each error has the cause, the value and the remedy."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest
import structlog

from streamer.cli.main import main
from streamer.operations.embedded import PostgresServer, ValkeyServer
from streamer.storage import migrate, seed
from tests.conftest import Serve
from tests.support.apps import SECRET, VendorApp, eventually

NOWHERE = "127.0.0.1:1"


class Ended(NamedTuple):
    """A command's exit status and output."""

    status: int
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs the command in this process, as new processes would take a minute. Settings by name; None unsets one."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)

    def started(line: str, **environment: str | None) -> Ended:
        for name, value in environment.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["streamer", *line.split()])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        return Ended(status, capfd.readouterr().err)

    yield started
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def well(database_url: str, redis_url: str) -> dict[str, str | None]:
    """The settings that a server needs."""
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "STREAMER_JWT_SECRET": SECRET,
        "STREAMER_PORT": "0",
    }


def said(ended: Ended, status: int, *parts: str) -> None:
    """Checks the exit status, and one message that contains all these texts, no traceback and no password."""
    assert ended.status == status, ended
    messages = [line for line in ended.err.splitlines() if line.startswith("streamer: ")]
    assert len(messages) == 1, ended.err
    assert "Traceback" not in ended.err
    for part in parts:
        assert part in ended.err, f"{part!r} is not in: {ended.err}"
    for secret in ("hidden", SECRET):
        assert secret not in ended.err


def other(url: str, **changed: str) -> str:
    """Returns a URL with other parts: user, password, host, path, query."""
    parts = urlsplit(url)
    user, password = changed.get("user", parts.username), changed.get("password", parts.password)
    place = changed.get("place", f"{parts.hostname}:{parts.port}")
    return f"postgresql://{user}:{password}@{place}/{changed.get('path', parts.path[1:])}{changed.get('query', '')}"


def test_postgresql_is_not_running(run: Run, well: dict[str, str | None], database_url: str) -> None:
    away = other(database_url, place=NOWHERE, password="hidden")
    said(run("serve", **{**well, "DATABASE_URL": away}), 1, NOWHERE, "can't be reached", "check that it runs")
    said(run("db upgrade"), 1, NOWHERE, "can't be reached", "DATABASE_URL")


def test_the_host_does_not_exist(run: Run, well: dict[str, str | None], database_url: str) -> None:
    wrong = other(database_url, place="postgres.invalid:5432")
    said(run("serve", **{**well, "DATABASE_URL": wrong}), 1, "postgres.invalid", "DATABASE_URL")


def test_the_password_is_wrong(run: Run, well: dict[str, str | None], database_url: str) -> None:
    wrong = other(database_url, password="hidden")
    said(run("serve", **{**well, "DATABASE_URL": wrong}), 1, "refused the login", "check user and password")


def test_the_database_does_not_exist(run: Run, well: dict[str, str | None], database_url: str) -> None:
    wrong = other(database_url, path="venta_bd")
    said(run("serve", **{**well, "DATABASE_URL": wrong}), 1, '"venta_bd" does not exist', "CREATE DATABASE")


def test_tls_is_asked_of_a_server_without(run: Run, well: dict[str, str | None], database_url: str) -> None:
    wrong = other(database_url, query="?sslmode=require")
    said(run("serve", **{**well, "DATABASE_URL": wrong}), 1, "does not support TLS", "remove sslmode")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("mysql://u:hidden@db/venta", ("DATABASE_URL", "'mysql'", "postgresql://")),
        ("u:hidden@db/venta", ("DATABASE_URL", "postgresql://")),
        ("postgresql://u:hid#den@db/venta", ("DATABASE_URL", "%23")),
        ("postgresql://u:hidden@db:54322222/venta", ("DATABASE_URL", "port")),
        ("postgresql://u:hidden@db", ("names no database", "venta_db")),
        ("postgresql://u:hidden@db/venta?connection_limit=many", ("connection_limit", "'many'")),
        ("postgresql://u:hidden@db/venta?sslmode=on", ("sslmode", "verify-full", "'on'")),
        ("postgresql://u:hidden@db/venta?sslmode=verify-full&sslrootcert=/nowhere.pem", ("/nowhere.pem", "check")),
    ],
)
def test_a_url_that_can_not_be(run: Run, well: dict[str, str | None], url: str, parts: tuple[str, ...]) -> None:
    ended = run("serve", **{**well, "DATABASE_URL": url})
    said(ended, 2, *parts)
    assert "den@" not in ended.err


@pytest.mark.parametrize("url", ["localhost:6379", "http://cache:6379", "redis://u:hid#den@cache"])
def test_a_redis_url_that_can_not_be(run: Run, well: dict[str, str | None], url: str) -> None:
    said(run("serve", **{**well, "REDIS_URL": url}), 2, "REDIS_URL", "redis://")


def test_an_old_schema(run: Run, well: dict[str, str | None], empty_database_url: str) -> None:
    said(run("serve", **{**well, "DATABASE_URL": empty_database_url}), 1, "revision none", "streamer db upgrade")


def test_the_port_is_taken(run: Run, well: dict[str, str | None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said(run("serve", **{**well, "STREAMER_PORT": str(port)}), 2, f"port {port} is taken", "--port")


def test_an_address_of_another_machine(run: Run, well: dict[str, str | None]) -> None:
    said(run("serve --host 192.0.2.1", **well), 2, "192.0.2.1", "choose another address by --host")


def test_several_mistakes_at_once(run: Run, well: dict[str, str | None]) -> None:
    """A misspelt setting is reported, with the probably intended one."""
    wrong = {"STREAMER_LOG_LEVEL": "loud", "STREAMER_JWT_SECRET": "short", "REDIS_URL": None, "STREAMER_POOL_SIZE": "0"}
    said(
        run("serve", **{**well, **wrong}),
        2,
        *("STREAMER_LOG_LEVEL", "'loud'", "'debug', 'info'", "at least 32 bytes long", "REDIS_URL", "at least 2"),
    )


def test_a_misspelt_setting(run: Run, well: dict[str, str | None]) -> None:
    ended = run("config", **{**well, "STREAMER_LOGLEVEL": "debug"})
    said(ended, 0, "STREAMER_LOGLEVEL is no setting", "STREAMER_LOG_LEVEL is")


def test_a_backup_folder_that_is_a_file(run: Run, well: dict[str, str | None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said(run("db backup --dir file", **well), 2, "--dir file", "choose another")


def test_a_backup_that_is_not_there(run: Run, well: dict[str, str | None], empty_database_url: str) -> None:
    said(run("db restore nowhere.dump", **{**well, "DATABASE_URL": empty_database_url}), 1, "nowhere.dump.json")


def test_a_key_that_is_none(run: Run, well: dict[str, str | None]) -> None:
    said(run("db backup --dir . --to ssh-rsa", **well), 2, "'ssh-rsa'", "age-keygen")


def test_an_age_that_is_none(run: Run, well: dict[str, str | None]) -> None:
    said(run("db prune --older-than 30", **well), 2, "'30'", "30d or 12w")


def test_reset_of_production(run: Run, well: dict[str, str | None]) -> None:
    said(run("db reset", **well), 1, "deletes everything", "--yes")


@pytest.mark.parametrize("services", ["{", "{}"])
def test_link_beside_a_broken_folder(run: Run, well: dict[str, str | None], tmp_path: Path, services: str) -> None:
    """The file of `streamer dev` may be truncated or of another version: the error names the settings instead."""
    (tmp_path / ".venta").mkdir()
    (tmp_path / ".venta" / "services.json").write_text(services)
    said(run("link vendor", **well), 2, "STREAMER_PUBLIC_URL", "--url")


@pytest.mark.parametrize(
    ("services", "found"), [("[]", "must be a JSON object, not []"), ('{"http": 5}', "must be a URL, not 5")]
)
@pytest.mark.parametrize("command", ["link vendor", "doctor", "token somebody"])
def test_a_file_of_dev_that_is_no_object_of_urls(
    run: Run, well: dict[str, str | None], tmp_path: Path, command: str, services: str, found: str
) -> None:
    """Each command that reads the invalid file names it and the remedy."""
    (tmp_path / ".venta").mkdir()
    (tmp_path / ".venta" / "services.json").write_text(services)
    said(run(command, **{**well, "DATABASE_URL": None}), 2, "services.json", found, "delete the file")


async def test_redis_is_not_running(serve: Serve, database_url: str, valkey_server: ValkeyServer) -> None:
    """The server starts degraded, says so, and recovers once Redis is up."""
    vendor = (await seed.seed(database_url, 1))[0]
    running = await serve(redis_url=valkey_server.url)
    valkey_server.kill()
    async with aiohttp.ClientSession() as session, VendorApp(running.url, vendor.clerk_id) as app:
        await app.ping(52, 21)
        await app.acked(1)

        async def told() -> bool:
            async with session.get(f"{running.url}/health") as response:
                return response.status == 503 and "redis" in (await response.json())["causes"]

        await eventually(told, "a cause")
        await valkey_server.restart()

        async def mended() -> bool:
            async with session.get(f"{running.url}/health") as response:
                return response.status == 200

        await eventually(mended, "a server that is well again")


async def test_the_disk_is_full(serve: Serve, database_url: str) -> None:
    """The operator gets PostgreSQL's message; no ping is acked or lost, and all are stored once there is space."""
    vendor = (await seed.seed(database_url, 1))[0]
    running = await serve()
    direct = await asyncpg.connect(database_url)
    await direct.execute("""
        CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'could not extend file "base/5/16384": No space left on device' USING ERRCODE = '53100';
        END $$;
        CREATE TRIGGER full_disk BEFORE INSERT ON "locations" FOR EACH ROW EXECUTE FUNCTION full_disk();
    """)
    async with aiohttp.ClientSession() as session, VendorApp(running.url, vendor.clerk_id) as app:
        await app.ping(52, 21)

        async def told() -> bool:
            async with session.get(f"{running.url}/health") as response:
                causes = (await response.json()).get("causes", {})
                return response.status == 503 and "No space left on device" in causes.get("storing", "")

        await eventually(told, "a cause with PostgreSQL's words")
        assert not [message for message in app.messages if message["type"] in ("ack", "reject")]
        await direct.execute('DROP TRIGGER full_disk ON "locations"')
        await app.acked(1)
    assert await direct.fetchval('SELECT count(*) FROM "locations"') == 1
    await direct.close()


async def test_postgresql_starts_after_the_server(postgres_server: PostgresServer) -> None:
    """A `db upgrade` before the database is up says so and can be repeated."""
    postgres_server.kill()
    with pytest.raises(Exception, match="check that it runs"):
        await migrate.upgrade(postgres_server.url)
    await postgres_server.restart()
    await migrate.upgrade(postgres_server.url)
