"""The commands as real processes: their output, exit status and remaining files."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import jwt
import psutil
import pytest
import typer.main
from typer.testing import CliRunner

from streamer import __version__
from streamer.cli.main import cli
from streamer.operations.embedded import PostgresServer
from streamer.storage import seed
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually
from tests.support.commands import Command, run

WARSAW = (52.2297, 21.0122)
NOWHERE = "postgresql://somebody:dont-tell@127.0.0.1:1/venta"


def commands(command: Any, *names: str) -> Iterator[tuple[str, ...]]:
    """The words of all commands, including groups."""
    yield names
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        yield from commands(command.get_command(None, name), *names, name)


EVERY_COMMAND = list(commands(typer.main.get_command(cli)))


def one_line(err: str) -> str:
    """Returns the message of an expected failure: one line, no traceback."""
    said = [line for line in err.splitlines() if line.startswith("streamer: ")]
    assert len(said) == 1, err
    assert "Traceback" not in err
    return said[0]


async def test_help(tmp_path: Path) -> None:
    """The help describes the commands and how to call them."""
    done = await run("--help", folder=tmp_path)
    assert done.status == 0
    listed = {line.split()[1] for line in done.out.partition("Commands")[2].splitlines() if line.startswith("│ ")}
    assert listed >= {words[0] for words in EVERY_COMMAND if words}


@pytest.mark.parametrize("words", EVERY_COMMAND, ids=" ".join)
def test_help_of_a_command(words: tuple[str, ...]) -> None:
    """Each command's own help can be shown."""
    done = CliRunner().invoke(cli, [*words, "--help"], prog_name="streamer", env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.exit_code == 0, done.output
    assert " ".join(("Usage: streamer", *words)) in done.output
    described = done.output.split("Usage:")[1].split("╭")[0].strip().splitlines()
    assert len(described) > 1, f"{words} is not described"


async def test_wrong_use(tmp_path: Path) -> None:
    """A mistyped command or option is reported, and nothing else happens."""
    wrong = {
        "": "Usage",
        "nonsense": "No such command 'nonsense'",
        "serve --prot 80": "--port",
        "serve --port 65536": "'--port'",
        "serve here": "here",
        "dev --simulate -1": "--simulate",
        "token": "clerk_id",
        "db downgrade": "revision",
        "db seed --vendors 0": "'--vendors'",
    }
    answers = await asyncio.gather(*(run(*words.split(), folder=tmp_path) for words in wrong))
    for (words, said), done in zip(wrong.items(), answers, strict=True):
        assert done.status == 2, (words, done)
        assert said in done.err + done.out
        assert "Traceback" not in done.err
    assert os.listdir(tmp_path) == []


# settings


async def test_serve_without_settings(tmp_path: Path) -> None:
    """A first start must name every missing setting at once; an empty value counts as missing."""
    done = await run("serve", folder=tmp_path, DATABASE_URL="", STREAMER_JWT_SECRET="")
    assert done.status == 2
    for name in ("DATABASE_URL: ", "REDIS_URL: ", "STREAMER_JWT_SECRET or STREAMER_JWKS_URL: "):
        assert name in done.err
    done = await run("serve", folder=tmp_path, DATABASE_URL=NOWHERE, STREAMER_JWKS_URL="https://issuer.example/jwks")
    assert done.status == 2
    assert "REDIS_URL: " in done.err
    assert "DATABASE_URL" not in done.err
    assert "STREAMER_JWT_SECRET" not in done.err


async def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    """One failed start must name all wrong settings; secrets must not be logged."""
    (tmp_path / ".env").write_text("STREAMER_STALL=never\nSTREAMER_WATCH_AUTH=maybe\n")
    done = await run(
        "serve",
        "--host",
        "127.0.0.1",
        folder=tmp_path,
        DATABASE_URL="mysql://somebody:dont-tell@db/venta",
        REDIS_URL="redis://:dont#tell@cache",
        STREAMER_JWT_SECRET="dont-tell",
        STREAMER_PORT="eighty",
        STREAMER_POOL_SIZE="1",
        STREAMER_BATCH_PINGS="1000000",
        STREAMER_MAX_RADIUS="nan",
    )
    assert done.status == 2
    said = done.err.splitlines()
    for line in (
        "  DATABASE_URL must begin with postgresql:// or postgres://, not with 'mysql'",
        "  STREAMER_JWT_SECRET: must be at least 32 bytes long, not 9",
        "  STREAMER_PORT: must be a whole number, not 'eighty'",
        "  STREAMER_POOL_SIZE: must be at least 2 connections, not '1'",
        "  STREAMER_BATCH_PINGS: must be at most 100000 pings, not '1000000'",
        "  STREAMER_STALL: must be a number (s), not 'never'",
        "  STREAMER_MAX_RADIUS: must be a finite number, not 'nan'",
        "  STREAMER_WATCH_AUTH: must be 'required' or 'optional', not 'maybe'",
    ):
        assert line in said
    assert sum(line.startswith("  REDIS_URL must be like redis://") for line in said) == 1
    for secret in ("dont-tell", "dont#tell", "dont", "Traceback"):
        assert secret not in done.err


async def test_config(tmp_path: Path) -> None:
    """An operator must see which value of a setting is in force, and which of four sources it came from."""
    (tmp_path / ".env").write_text(
        "STREAMER_PORT=81\nSTREAMER_HOST=192.0.2.1\nREDIS_URL=redis://u:dont-tell@cache:7/1\n"
    )
    done = await run(
        *("config", "--host", "127.0.0.9"),
        folder=tmp_path,
        DATABASE_URL="postgresql://u:dont-tell@db:5433/venta?schema=public",
        STREAMER_JWT_SECRET="dont-tell" * 4,
        STREAMER_PORT="82",
        STREAMER_POOLSIZE="9",
    )
    assert done.status == 0
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in done.out.splitlines()}
    assert rows["DATABASE_URL"] == "postgresql://u:***@db:5433/venta?schema=public environment"
    assert rows["REDIS_URL"] == "redis://u:***@cache:7/1 .env"
    assert rows["STREAMER_JWT_SECRET"] == "*** environment"
    assert rows["STREAMER_HOST"] == "127.0.0.9 command line"
    assert rows["STREAMER_PORT"] == "82 environment"
    assert rows["STREAMER_POOL_SIZE"] == "8 connections default"
    assert rows["STREAMER_JWKS_URL"] == "- default"
    assert "dont-tell" not in done.out + done.err
    assert one_line(done.err) == "streamer: STREAMER_POOLSIZE is no setting: STREAMER_POOL_SIZE is"


async def test_an_env_file_that_can_not_be_read(tmp_path: Path) -> None:
    """A file in another encoding is named, without a traceback."""
    (tmp_path / ".env").write_bytes(b"\xff\xfeP\0O\0R\0T\0")
    done = await run("config", folder=tmp_path)
    assert done.status == 2
    assert "cannot read .env" in one_line(done.err)


# the database


async def test_serve_on_a_database_not_migrated(empty_database_url: str, redis_url: str, tmp_path: Path) -> None:
    """A new version on an old schema must not start, or it would fail later, with vendors connected."""
    given = {"DATABASE_URL": empty_database_url, "REDIS_URL": redis_url, "STREAMER_JWT_SECRET": SECRET}
    done = await run("serve", "--port", "0", folder=tmp_path, **given)
    assert done.status == 1
    assert "run `streamer db upgrade`" in one_line(done.err)
    done = await run("db", "seed", folder=tmp_path, **given)
    assert done.status == 1
    assert "run `streamer db upgrade`" in one_line(done.err)


async def test_postgresql_away(redis_url: str, tmp_path: Path) -> None:
    """The error names PostgreSQL's address, but not the password."""
    given = {"DATABASE_URL": NOWHERE, "REDIS_URL": redis_url, "STREAMER_JWT_SECRET": SECRET}
    for words in ("serve --port 0", "db upgrade", "db seed"):
        done = await run(*words.split(), folder=tmp_path, **given)
        assert done.status == 1, done
        said = one_line(done.err)
        assert "PostgreSQL at postgresql://somebody:***@127.0.0.1:1/venta can't be reached" in said
        assert "dont-tell" not in done.err


async def test_db_needs_a_database(tmp_path: Path) -> None:
    """Commands that may delete data must not guess."""
    for words in ("upgrade", "reset --yes"):
        done = await run("db", *words.split(), folder=tmp_path)
        assert done.status == 2
        assert "DATABASE_URL: which PostgreSQL is meant" in done.err


async def tables(url: str) -> set[str]:
    """Returns the tables of a database, without partitions."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition "
            "AND relnamespace = 'public'::regnamespace"
        )
    finally:
        await connection.close()
    return {row["relname"] for row in rows}


async def count(url: str, table: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        found: int = await connection.fetchval(f'SELECT count(*) FROM "{table}"')
    finally:
        await connection.close()
    return found


async def test_db_from_nothing_and_back(empty_database_url: str, tmp_path: Path) -> None:
    """The commands of the quick start, each twice, as in a script that runs again."""
    url = empty_database_url

    async def db(words: str, **given: str) -> str:
        done = await run("db", *words.split(), folder=tmp_path, DATABASE_URL=url, **given)
        assert done.status == 0, done
        return done.out

    for _ in range(2):
        assert "is at migration 0" in await db("upgrade")
    ours = await tables(url)
    assert ours > {"users", "subscriptions", "vendors", "locations", "integrations", "streamer_audit"}

    for _ in range(2):
        (vendor,) = map(json.loads, (await db("seed --json")).splitlines())
        assert (vendor["clerkId"], vendor["name"]) == ("clerk_test_user", "Test Vendor")
        many = [json.loads(line) for line in (await db("seed --vendors 12 --json")).splitlines()]
        assert len({row["vendorId"] for row in many}) == len({row["clerkId"] for row in many}) == 12
        assert set(many[0]) == {"vendorId", "clerkId", "name"}
        assert await count(url, "vendors") == 13

    done = await run("db", "reset", folder=tmp_path, DATABASE_URL=url)
    assert done.status == 1
    assert "add --yes" in one_line(done.err)
    assert url not in done.err
    assert await count(url, "vendors") == 13
    await db("reset --yes")
    assert await count(url, "vendors") == 0
    assert await db("seed --vendors 3") == "3 vendors exist\n"
    await db("reset", STREAMER_ENV="development")
    assert await count(url, "vendors") == 0

    for _ in range(2):
        assert "is at migration none" in await db("downgrade base")
        assert await tables(url) <= {"alembic_version"}
    done = await run("db", "upgrade", "nonsense", folder=tmp_path, DATABASE_URL=url)
    assert done.status == 1
    assert "nonsense" in one_line(done.err)


# tokens


async def test_token(tmp_path: Path) -> None:
    """A token for experiments, signed with the server's secret; without one the error says where to get it."""
    done = await run("token", "clerk_test_user", "--ttl", "60", folder=tmp_path, STREAMER_JWT_SECRET=SECRET)
    claims = jwt.decode(done.out.strip(), SECRET, algorithms=["HS256"])
    assert claims["sub"] == "clerk_test_user"
    assert claims["exp"] - claims["iat"] == 60
    done = await run("token", "clerk_test_user", folder=tmp_path)
    assert done.status == 2
    assert "set STREAMER_JWT_SECRET, or run `streamer dev`" in one_line(done.err)


# serving


async def test_a_taken_port(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """A port in use must be reported by its number before any setup."""
    given = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "STREAMER_JWT_SECRET": SECRET}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = await run("serve", "--port", port, folder=tmp_path, **given)
        assert done.status == 2
        assert f"port {port} is taken" in one_line(done.err)
        done = await run("dev", "--port", port, folder=tmp_path)
        assert done.status == 2
        assert f"port {port} is taken" in one_line(done.err)
        assert os.listdir(tmp_path) == []
    done = await run("serve", "--host", "no.such.host.invalid", "--port", "0", folder=tmp_path, **given)
    assert done.status == 2
    assert "cannot listen on no.such.host.invalid:0" in one_line(done.err)


async def test_two_processes_are_one_server(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """A customer sees vendors of all processes, whichever it is connected to."""
    given = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "STREAMER_JWT_SECRET": SECRET,
        "STREAMER_WATCH_AUTH": "optional",
    }
    assert (await run("db", "seed", folder=tmp_path, **given)).status == 0
    async with (
        Command("serve", "--port", "0", folder=tmp_path, **given) as first,
        Command("serve", "--port", "0", folder=tmp_path, **given) as second,
    ):
        async with CustomerApp(await first.url()) as customer, VendorApp(await second.url(), "clerk_test_user") as app:
            await customer.watch("near", circle(*WARSAW, 1000))
            vendor_id = (await app.expect("hello"))["vendorId"]
            await app.ping(52.23, 21.0121)
            await app.acked(1)
            await customer.sees("near", {vendor_id: (52.23, 21.0121)})
            await app.ping(52.23, 21.0122)
            await customer.sees("near", {vendor_id: (52.23, 21.0122)})
            second.signal(signal.SIGTERM)
            assert await app.closed() == 1012
            assert (await second.ended()).status == 0
        first.signal(signal.SIGINT)
        assert (await first.ended()).status == 0
    assert await count(database_url, "locations") == 2


async def test_a_second_ctrl_c_ends_at_once(postgres_server: PostgresServer, redis_url: str, tmp_path: Path) -> None:
    """An operator must not have to wait for a database that does not answer."""
    given = {
        "DATABASE_URL": postgres_server.url,
        "REDIS_URL": redis_url,
        "STREAMER_JWT_SECRET": SECRET,
        "STREAMER_DRAIN_TIMEOUT": "500",
    }
    assert (await run("db", "upgrade", folder=tmp_path, **given)).status == 0
    assert (await run("db", "seed", folder=tmp_path, **given)).status == 0
    async with (
        Command("serve", "--port", "0", folder=tmp_path, **given) as server,
        VendorApp(await server.url(), "clerk_test_user") as app,
    ):
        await app.expect("hello")
        postgres_server.pause()
        try:
            await app.ping(*WARSAW)
            server.signal(signal.SIGINT)
            await server.said("stopping")
            server.signal(signal.SIGINT)
            assert (await server.ended()).status == -signal.SIGINT
        finally:
            postgres_server.resume()


# development


def family(pid: int) -> list[psutil.Process]:
    """Returns the descendants of a process."""
    return list(psutil.Process(pid).children(recursive=True))


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def positions(customer: CustomerApp) -> dict[str, tuple[float, float]]:
    return {id: (card["lat"], card["long"]) for id, card in customer.views["near"].items()}


async def test_dev(tmp_path: Path) -> None:
    """The first command of the quick start starts a server with moving vendors, and one Ctrl-C ends all processes."""
    services, names = tmp_path / "data" / "services.json", {"postgres", "valkey-server"}
    words = ("dev", "--data", "data", "--port", "0", "--simulate", "20")
    async with Command(*words, folder=tmp_path) as server:
        url = await server.url()
        said = await server.said("Ctrl-C")
        for step in ("setting up PostgreSQL", "starting Valkey", "migrating the database", "seeding 20"):
            assert step in said
        urls = json.loads(services.read_text())
        assert set(urls) == {"http", "database", "redis"}
        assert urls["http"] == url
        assert urls["database"] not in said
        for private in (services, tmp_path / "data" / "jwt-secret"):
            assert stat.S_IMODE(private.stat().st_mode) == 0o600
        processes = family(server.pid)
        assert {process.name() for process in processes} == names

        async with CustomerApp(url) as customer:
            await customer.watch("near", circle(*WARSAW, 20_000))
            await eventually(lambda: len(customer.views["near"]) == 20, "20 vendors", 30)
            before = {id: (card["lat"], card["long"]) for id, card in customer.views["near"].items()}
            await eventually(
                lambda: any((c["lat"], c["long"]) != before[id] for id, c in customer.views["near"].items()),
                "moves",
                30,
            )

        done = await run("token", "clerk_test_user", "--data", "data", folder=tmp_path)
        async with VendorApp(url, None, token=done.out.strip()) as app:
            await app.expect("hello")
            await app.ping(*WARSAW)
            await app.acked(1)

        # another one on the same folder is refused, and does not affect the first
        done = await run("dev", "--data", "data", "--port", "0", folder=tmp_path)
        assert done.status == 1
        assert f"is in use by process {server.pid}" in one_line(done.err)
        assert json.loads(services.read_text()) == urls

        stored = await count(urls["database"], "locations")
        assert stored >= 20
        server.signal(signal.SIGINT)
        done = await server.ended()
        assert done.status == 0
        assert "Traceback" not in done.err
        await eventually(lambda: gone(processes), "its PostgreSQL and Valkey gone")
        assert not services.exists()

    async with Command("dev", "--data", "data", "--port", "0", folder=tmp_path) as server:
        again = await server.url()
        urls = json.loads(services.read_text())
        assert urls["http"] == again
        assert await count(urls["database"], "locations") >= stored
        assert await count(urls["database"], "vendors") == 21
        processes = family(server.pid)
        server.signal(signal.SIGTERM)
        assert (await server.ended()).status == 0
        await eventually(lambda: gone(processes), "its PostgreSQL and Valkey gone")


async def test_ctrl_c_while_dev_sets_up(tmp_path: Path) -> None:
    """Ctrl-C in the first seconds must leave no process, and the next start must work like the first."""
    async with Command("dev", "--data", "data", "--port", "0", folder=tmp_path) as server:
        await server.said("setting up PostgreSQL")
        await eventually(lambda: bool(family(server.pid)), "initdb at work")
        processes = family(server.pid)
        server.signal(signal.SIGINT)
        done = await server.ended()
        assert done.status == 0
        assert "Traceback" not in done.err
        await eventually(lambda: gone(processes), "initdb gone")
    assert not (tmp_path / "data" / "services.json").exists()


async def test_dev_on_given_services(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """With a given PostgreSQL and Redis no others are started, and their passwords are not stored."""
    given = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "STREAMER_JWT_SECRET": SECRET}
    async with Command("dev", "--port", "0", folder=tmp_path, **given) as server:
        url = await server.url()
        said = await server.said("Ctrl-C")
        assert family(server.pid) == []
        password = database_url.split(":")[2].split("@")[0]
        assert password not in said
        assert json.loads((tmp_path / ".venta" / "services.json").read_text()) == {
            "http": url,
            "database": database_url,
            "redis": redis_url,
        }
        async with VendorApp(url, "clerk_test_user") as app:
            await app.expect("hello")
    assert os.listdir(tmp_path / ".venta") == []


async def test_a_data_folder_that_can_not_be(tmp_path: Path) -> None:
    """A conflicting file is named; nothing is deleted."""
    (tmp_path / "data").write_text("mine")
    done = await run("dev", "--data", "data", "--port", "0", folder=tmp_path)
    assert done.status == 2
    assert "cannot use --data data" in one_line(done.err)
    assert (tmp_path / "data").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
async def test_dev_names_the_folder_of_its_data_when_it_is_elsewhere(tmp_path: Path) -> None:
    """Started by root in a folder that PostgreSQL's user can't enter, `dev` must say where it keeps the data."""
    os.chmod(tmp_path, 0o700)
    async with Command("dev", "--data", "data", "--port", "0", folder=tmp_path) as server:
        said = await server.said("Ctrl-C")
        elsewhere = (tmp_path / "data" / "postgresql.elsewhere").resolve()
        try:
            assert f"its data is in {elsewhere / 'postgresql'}" in said
            server.signal(signal.SIGINT)
            assert (await server.ended()).status == 0
        finally:
            if elsewhere.parent.name == "venta-streamer":
                shutil.rmtree(elsewhere)


async def test_version(tmp_path: Path) -> None:
    """Problem reports need the version."""
    done = await run("--version", folder=tmp_path)
    assert (done.status, done.out) == (0, f"streamer {__version__}\n")


async def test_completion(tmp_path: Path) -> None:
    """A shell completes the commands after the documented setup."""
    done = await run("--show-completion", "bash", folder=tmp_path, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_STREAMER_COMPLETE" in done.out
    completed = await run(folder=tmp_path, _STREAMER_COMPLETE="complete_bash", COMP_WORDS="streamer do", COMP_CWORD="1")
    assert "doctor" in completed.out.split()


async def test_a_token_for_an_unknown_user_is_warned_of(tmp_path: Path, database_url: str) -> None:
    """A token for a mistyped user can watch, but its vendor never appears: the command must warn."""
    (vendor,) = await seed.seed(database_url, 1)
    for clerk_id, warned in ((vendor.clerk_id, False), ("clerk_nobody", True)):
        done = await run("token", clerk_id, folder=tmp_path, STREAMER_JWT_SECRET=SECRET, DATABASE_URL=database_url)
        assert done.status == 0
        assert done.out.count(".") == 2
        assert ("has no user 'clerk_nobody'" in done.err) == warned
    away = await run("token", "x", folder=tmp_path, STREAMER_JWT_SECRET=SECRET, DATABASE_URL=NOWHERE)
    assert (away.status, away.err) == (0, "")
