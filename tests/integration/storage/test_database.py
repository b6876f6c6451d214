"""The URL, migrations, partitions and seeds, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import DatabaseError, SettingsError, Unavailable
from streamer.ingest.copy_rows import LAST_TIMESTAMP, id_floor, location_id
from streamer.operations.embedded import PostgresServer
from streamer.storage import database
from streamer.storage.database import parse_url, partition_bounds
from tests.conftest import connected
from tests.support.paths import ROOT

TODAY = date(2026, 11, 24)
DAY_MS = 86_400_000
SECRET = "geheim"


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    """A connection to a fresh database with one vendor and without any day's partition."""
    async with connected(database_url) as opened:
        for name in await partitions(opened):
            if name != "locations_default":
                await opened.execute(f'DROP TABLE "{name}"')
        await opened.execute(
            """
            INSERT INTO "users" ("id", "clerkId", "email", "updatedAt")
            VALUES ('u1', 'clerk_1', '1@example.com', now());
            INSERT INTO "vendors" ("id", "name", "userId", "updatedAt") VALUES ('v1', 'One', 'u1', now());
            """
        )
        yield opened


async def partitions(connection: Any) -> list[str]:
    rows = await connection.fetch(
        "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = 'locations'::regclass "
        "ORDER BY relname"
    )
    return [row[0] for row in rows]


def days(first: int, last: int) -> list[str]:
    return [f"locations_{TODAY + timedelta(days=n):%Y%m%d}" for n in range(first, last + 1)]


def noon(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()) * 1000


async def add_ping(connection: Any, timestamp: int) -> str:
    id = location_id("v1", timestamp)
    await connection.execute(
        'INSERT INTO "locations" ("id", "vendorId", "lat", "long") VALUES ($1, $2, 1, 2)', id, "v1"
    )
    return id


async def leftovers(url: str) -> list[str]:
    """Every table, index, sequence and type that there is besides PostgreSQL's own."""
    async with connected(url) as connection:
        rows = await connection.fetch(
            """
            SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
            UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace
            UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            """
        )
    return sorted(row[0] for row in rows)


async def lasting(url: str) -> list[str]:
    """`leftovers` without the days' partitions, which come and go."""
    return [name for name in await leftovers(url) if not re.match(r"_?locations_\d{8}", name)]


# The URL


def test_the_documented_url() -> None:
    """What database.md tells people to write must mean what it says."""
    url = parse_url("postgresql://user:password@localhost:5432/venta_db?connection_limit=20&pool_timeout=20")
    assert (url.user, url.password, url.host, url.port, url.database) == (
        "user",
        "password",
        "localhost",
        5432,
        "venta_db",
    )
    assert (url.pool_size, url.pool_timeout, url.ignored) == (20, 20.0, ())
    assert url.connect_args() == {
        "host": "localhost",
        "port": 5432,
        "user": "user",
        "password": "password",
        "database": "venta_db",
        "ssl": "prefer",
        "server_settings": {"timezone": "UTC", "search_path": '"public"'},
        "timeout": database.CONNECT_TIMEOUT,
    }


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_defaults(scheme: str) -> None:
    """A short URL must not need what it leaves out."""
    url = parse_url(f"{scheme}:///venta_db")
    assert (url.host, url.port, url.user, url.password) == ("localhost", 5432, None, None)
    assert (url.pool_size, url.pool_timeout, url.schema) == (None, None, None)
    assert not {"user", "password", "statement_cache_size"} & url.connect_args().keys()


printable = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(user=printable, password=printable, name=printable, schema=printable, port=st.integers(1, 65535))
def test_anything_percent_encoded_comes_back(user: str, password: str, name: str, schema: str, port: int) -> None:
    """A password with an @ or a % in it would be read as another password or another host."""
    parsed = parse_url(
        f"postgresql://{quote(user, '')}:{quote(password, '')}@db.example.com:{port}/{quote(name, '')}"
        f"?schema={quote(schema, '')}"
    )
    assert (parsed.user, parsed.password, parsed.host, parsed.port) == (user, password, "db.example.com", port)
    assert (parsed.database, parsed.schema) == (name, schema)
    made = parsed.sqlalchemy_url()
    assert (made.username, made.password, made.host, made.port, made.database) == (
        *(user, password, "db.example.com", port),
        name,
    )


@given(st.text(max_size=40))
def test_no_text_is_too_strange_to_be_refused_properly(text: str) -> None:
    """A mistake in the environment must end in a sentence, not in a traceback."""
    for url in (text, f"postgresql://{text}", f"postgresql://u:{SECRET}@h/d?{text}"):
        try:
            parse_url(url)
        except SettingsError as error:
            assert SECRET not in str(error)  # noqa: PT017 - most texts are refused, some are not


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("postgresql://u@[::1]/d", "::1", 5432),
        ("postgresql://u@[fe80::1%25eth0]:5433/d", "fe80::1%eth0", 5433),
        ("postgresql://u@192.0.2.7:6000/d", "192.0.2.7", 6000),
        ("postgresql://u@localhost/d?host=/var/run/postgresql", "/var/run/postgresql", 5432),
        ("postgresql:///d?host=/var/run/postgresql&port=5433", "/var/run/postgresql", 5433),
        ("postgresql://u@%2Fvar%2Frun%2Fpostgresql:5433/d", "/var/run/postgresql", 5433),
    ],
)
def test_hosts(url: str, host: str, port: int) -> None:
    """An IPv6 address has colons of its own; a socket's folder has slashes."""
    parsed = parse_url(url)
    assert (parsed.host, parsed.port) == (host, port)
    assert parsed.connect_args()["host"] == host


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://u:geheim@h/d", "mysql"),
        ("h/d", "postgresql://"),
        ("postgresql://u:geheim@h", "names no database"),
        ("postgresql://u:geheim@h:0/d", "port"),
        ("postgresql://u:geheim@h:65536/d", "port"),
        ("postgresql://u:geheim@h:x/d", "port"),
        ("postgresql://u:geheim@[::1/d", "host"),
        ("postgresql://u:geheim@h1,h2/d", "several hosts"),
        ("postgresql://u:geheim@h1:5432,h2:5432/d", "port"),
        ("postgresql://u:geh/geheim@h/d", "%2F"),
        ("postgresql://u:1/geheim@h/d", "%2F"),
        ("postgresql://u:geheim#1@h/d", "%23"),
        ("postgresql://u:geheim%00@h/d", "%00"),
        ("postgresql://u:geheim%ff@h/d", "UTF-8"),
        ("postgresql://u:geheim@h/d?connection_limit=0", "connection_limit must be a whole number from 1"),
        ("postgresql://u:geheim@h/d?connection_limit=many", "'many'"),
        ("postgresql://u:geheim@h/d?pool_timeout=-1", "pool_timeout"),
        ("postgresql://u:geheim@h/d?connect_timeout=1.5", "connect_timeout"),
        ("postgresql://u:geheim@h/d?pgbouncer=yes", "pgbouncer"),
        ("postgresql://u:geheim@h/d?sslmode=sometimes", "sslmode must be one of disable"),
        ("postgresql://u:geheim@h/d?sslaccept=all", "sslaccept"),
        ("postgresql://u:geheim@h/d?sslidentity=client.p12&sslpassword=geheim", "sslidentity, sslpassword"),
        ("postgresql://u:geheim@h/d?sslmode=require&sslkey=client.key", "belong together"),
        ("postgresql://u:geheim@h/d?sslrootcert=root.crt", "say sslmode="),
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_its_password(url: str, said: str) -> None:
    """Whoever mistypes the URL must learn what to mend, and nobody else the password, from the log."""
    with pytest.raises(SettingsError) as refused:
        parse_url(url)
    assert said in str(refused.value)
    assert SECRET not in str(refused.value)


def test_the_password_is_in_no_message_and_no_repr() -> None:
    """Logs are read by more people than may know the password."""
    parsed = parse_url(f"postgresql://venta:{SECRET}@[::1]:5433/venta_db?schema=other&application_name=x")
    assert parsed.masked() == "postgresql://venta:***@[::1]:5433/venta_db?schema=other"
    assert SECRET not in repr(parsed) + str(parsed) + str(parsed.sqlalchemy_url())
    assert parse_url("postgresql://venta@h/d").masked() == "postgresql://venta@h:5432/d"


def test_zero_means_no_limit() -> None:
    """Prisma's 0 taken as zero seconds would let every request fail."""
    parsed = parse_url("postgresql://u@h/d?pool_timeout=0&connect_timeout=0")
    assert (parsed.pool_timeout, parsed.connect_timeout) == (database.NO_LIMIT, database.NO_LIMIT)
    assert parsed.connect_args()["timeout"] == database.NO_LIMIT
    assert parse_url("postgresql://u@h/d?connect_timeout=3").connect_args()["timeout"] == 3


def test_unknown_parameters_are_listed() -> None:
    """A misspelt parameter would be without effect, and nobody told."""
    parsed = parse_url("postgresql://u@h/d?connection_limits=5&schema=s&channel_binding=require&schema=t&empty=")
    assert parsed.ignored == ("channel_binding", "connection_limits")
    assert parsed.schema == "t"


@pytest.mark.parametrize(
    ("query", "size"),
    [("pgbouncer=true", 0), ("statement_cache_size=0", 0), ("statement_cache_size=50", 50), ("pgbouncer=false", None)],
)
def test_prepared_statements_can_be_turned_off(query: str, size: int | None) -> None:
    """Behind PgBouncer a statement prepared on one connection is unknown on the next."""
    assert parse_url(f"postgresql://u@h/d?{query}").connect_args().get("statement_cache_size") == size


def test_behind_pgbouncer_only_a_schema_asked_for_is_set() -> None:
    """PgBouncer refuses a connection with a search_path that it was not told of."""
    assert "search_path" not in parse_url("postgresql://u@h/d?pgbouncer=true").connect_args()["server_settings"]
    asked = parse_url("postgresql://u@h/d?pgbouncer=true&schema=s").connect_args()["server_settings"]
    assert asked["search_path"] == '"s"'


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "prefer"),
        ("sslmode=prefer", "prefer"),
        ("sslmode=allow", "allow"),
        ("sslmode=disable", False),
        ("sslmode=require", (ssl.CERT_NONE, False)),
        ("sslmode=require&sslaccept=accept_invalid_certs", (ssl.CERT_NONE, False)),
        ("sslmode=verify-ca", (ssl.CERT_REQUIRED, False)),
        ("sslmode=verify-full", (ssl.CERT_REQUIRED, True)),
        ("sslaccept=strict", (ssl.CERT_REQUIRED, True)),
        ("sslmode=require&sslaccept=strict", (ssl.CERT_REQUIRED, True)),
        ("sslmode=disable&host=/tmp", False),
        ("sslmode=verify-full&host=/tmp", False),
    ],
)
def test_ssl(query: str, expected: object) -> None:
    """A connection less safe than was asked for looks like any other."""
    found = parse_url(f"postgresql://u@h/d?{query}").connect_args()["ssl"]
    if isinstance(found, ssl.SSLContext):
        assert (found.verify_mode, found.check_hostname) == expected
    else:
        assert found == expected


def test_a_certificate_that_is_not_there_is_named() -> None:
    """The driver's own message would not say which file."""
    for name in ("sslrootcert", "sslcert"):
        with pytest.raises(SettingsError, match=r"/nowhere/root\.crt"):
            parse_url(f"postgresql://u@h/d?sslmode=verify-full&{name}=/nowhere/root.crt").connect_args()


async def test_what_the_url_says_is_what_the_session_has(empty_database_url: str) -> None:
    """A schema, a name or a zone that does not arrive: rows in the wrong schema, times off by hours."""
    async with connected(f"{empty_database_url}?schema=my%20%22schema%22&application_name=a%20test") as connection:
        for setting, expected in {
            "search_path": '"my ""schema"""',
            "application_name": "a test",
            "timezone": "UTC",
        }.items():
            assert await connection.fetchval("SELECT current_setting($1)", setting) == expected
    async with connected(empty_database_url) as connection:
        assert await connection.fetchval("SELECT current_schema()") == "public"


async def test_a_server_without_tls_is_not_good_enough_when_tls_is_required(empty_database_url: str) -> None:
    """Locations of people would go over the wire in the clear."""
    with pytest.raises(Unavailable, match="SSL"):
        await database.revision(f"{empty_database_url}?sslmode=require")


# Migrations


async def test_up_is_the_newest_and_has_partitions(empty_database_url: str) -> None:
    """A server started after `db upgrade` must find all that it needs."""
    assert await database.revision(empty_database_url) is None
    await database.upgrade(empty_database_url, today=TODAY, ahead=3)
    assert await database.revision(empty_database_url) == database.head()
    await database.require_newest(empty_database_url)
    async with connected(empty_database_url) as connection:
        assert await partitions(connection) == [*days(-2, 3), "locations_default"]


async def test_upgrade_makes_the_days_around_now_by_itself(database_url: str) -> None:
    """The first ping after the installation would land in the default partition."""
    now = int(datetime.now(UTC).timestamp() * 1000)
    async with connected(database_url) as connection:
        await database.seed(database_url)
        for offset in (-1, 0, database.PARTITIONS_AHEAD - 1):
            id = id_floor(now + offset * DAY_MS) + "0" * 16
            place = await connection.fetchval(
                """
                INSERT INTO "locations" ("id", "vendorId", "lat", "long") VALUES ($1, 'ctestvendor00000000000000', 1, 2)
                RETURNING tableoid::regclass::text
                """,
                id,
            )
            assert place != "locations_default"


async def test_every_migration_goes_up_and_down(empty_database_url: str) -> None:
    """A rollback in production would stop half way."""
    before = await leftovers(empty_database_url)
    revisions = sorted(path.name.split("_")[0] for path in database.migrations().glob("versions/*.py"))
    assert revisions[-1] == database.head()
    at: dict[str, list[str]] = {}
    for revision in revisions:
        await database.upgrade(empty_database_url, revision, today=TODAY, ahead=1)
        at[revision] = await lasting(empty_database_url)
    for revision in reversed(revisions):
        assert await database.revision(empty_database_url) == revision
        assert await lasting(empty_database_url) == at[revision]
        await database.downgrade(empty_database_url, "-1")
    async with connected(empty_database_url) as connection:
        await connection.execute('DROP TABLE "alembic_version"')
    assert await leftovers(empty_database_url) == before


async def test_up_twice_changes_nothing(database_url: str) -> None:
    """Every deployment runs it."""
    before = await leftovers(database_url)
    await database.upgrade(database_url)
    assert await leftovers(database_url) == before


async def test_two_upgrades_at_once(empty_database_url: str) -> None:
    """Two machines that are deployed together would meet in CREATE TABLE, and one would not start."""
    programs = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", f"import asyncio; from streamer.storage import database as d; asyncio.run({call})"),
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
        )
        for call in [f"d.upgrade({empty_database_url!r})"] * 3
    ]
    for program in programs:
        _, said = await program.communicate()
        assert program.returncode == 0, said.decode()
    assert await database.drift(empty_database_url) == []


async def test_two_upgrades_of_one_database_in_one_process(empty_database_url: str) -> None:
    """Alembic's context is a module's: the second must not enter it before the first has left."""
    await asyncio.gather(*(database.upgrade(empty_database_url) for _ in range(3)))
    assert await database.drift(empty_database_url) == []


async def test_a_schema_of_its_own(empty_database_url: str) -> None:
    """`?schema=` is how Prisma shares a database between applications: nothing may land in public."""
    url = f"{empty_database_url}?schema=venta%2Drides"
    await database.upgrade(url)
    assert await database.drift(url) == []
    assert await leftovers(empty_database_url) == []
    assert await database.revision(empty_database_url) is None
    assert len(await database.seed(url, 2)) == 2
    await database.reset(url)
    async with connected(url) as connection:
        assert await connection.fetchval('SELECT count(*) FROM "vendors"') == 0


async def test_a_server_on_an_old_schema_says_what_to_do(empty_database_url: str) -> None:
    """It would start, and fail at the first statement."""
    with pytest.raises(DatabaseError, match=rf"none.*{database.head()}.*`streamer db upgrade`"):
        await database.require_newest(empty_database_url)
    await database.upgrade(empty_database_url, "0001")
    with pytest.raises(DatabaseError, match=rf"0001.*{database.head()}.*`streamer db upgrade`"):
        await database.require_newest(empty_database_url)


async def test_a_database_of_a_newer_version_is_left_alone(database_url: str) -> None:
    """An old server, rolled back onto a newer schema, must not be told to upgrade."""
    async with connected(database_url) as connection:
        await connection.execute("""UPDATE "alembic_version" SET "version_num" = 'f00d'""")
    with pytest.raises(DatabaseError, match=rf"f00d.*does not know.*{database.head()}"):
        await database.require_newest(database_url)
    with pytest.raises(DatabaseError, match="f00d"):
        await database.upgrade(database_url)


async def test_an_unknown_revision_is_named(database_url: str) -> None:
    """Alembic's own exception is no sentence for a command line."""
    with pytest.raises(DatabaseError, match=r"'7777'.*0001, 0002"):
        await database.downgrade(database_url, "7777")


async def test_tables_made_by_prisma_are_not_touched(empty_database_url: str) -> None:
    """Half of a migration on somebody's production tables."""
    async with connected(empty_database_url) as connection:
        await connection.execute('CREATE TABLE "users" ("id" TEXT); CREATE TABLE "_prisma_migrations" ("id" TEXT)')
    with pytest.raises(DatabaseError, match=r"has tables users that were not made by `streamer db upgrade`"):
        await database.upgrade(empty_database_url)
    assert await database.revision(empty_database_url) is None


async def test_others_tables_in_the_same_database_are_no_matter(empty_database_url: str) -> None:
    """Prisma's own bookkeeping, or another application's tables, would be proposed for deletion."""
    async with connected(empty_database_url) as connection:
        await connection.execute('CREATE TABLE "_prisma_migrations" ("id" TEXT PRIMARY KEY)')
        await database.upgrade(empty_database_url)
        assert await database.drift(empty_database_url) == []
        await database.reset(empty_database_url)
        assert await connection.fetchval("SELECT to_regclass('_prisma_migrations')") is not None


async def test_a_migration_waits_for_nobody_forever(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it waits for a table, every ping waits behind it."""
    monkeypatch.setattr(database, "LOCK_TIMEOUT_MS", 100)
    async with connected(database_url) as other, other.transaction():
        await other.execute('LOCK TABLE "vendors" IN ACCESS SHARE MODE')
        with pytest.raises(Unavailable, match="try again when that has ended"):
            await database.downgrade(database_url, "0001")
    assert await database.revision(database_url) == database.head()


async def test_reset_empties_and_rebuilds(database_url: str) -> None:
    """Yesterday's experiments would stay in a development database."""
    await database.seed(database_url, 3)
    async with connected(database_url) as connection:
        await connection.execute('DROP INDEX "idx_users_email"; CREATE TABLE "locations_20200101" ("left" TEXT)')
        await database.reset(database_url, today=TODAY, ahead=0)
        assert await connection.fetchval('SELECT count(*) FROM "users"') == 0
        assert await partitions(connection) == [*days(-2, 0), "locations_default"]
        assert await connection.fetchval("SELECT to_regclass('locations_20200101')") is None
    assert await database.drift(database_url) == []


async def test_drift_is_said_in_words(database_url: str) -> None:
    """Whoever changed the database by hand learns what is different, and only that."""
    async with connected(database_url) as connection:
        await connection.execute(
            """
            DROP INDEX "idx_vendors_location";
            ALTER TABLE "users" ALTER COLUMN "firstName" SET NOT NULL;
            ALTER TABLE "users" ADD COLUMN "nickname" TEXT;
            ALTER TABLE "vendors" ALTER COLUMN "open" DROP DEFAULT;
            ALTER TABLE "users" ALTER COLUMN "createdAt" TYPE TIMESTAMPTZ;
            ALTER TABLE "vendors" DROP CONSTRAINT "vendors_lat_check";
            ALTER TABLE "vendors" DROP CONSTRAINT "vendors_userId_fkey";
            ALTER TABLE "subscriptions" ADD CONSTRAINT "mine" CHECK ("status" <> '');
            """
        )
    lines = sorted(await database.drift(database_url))
    expected = [
        "subscriptions: check mine is in no model",
        "users: column nickname is in no model",
        "users: nullable of column firstName",
        "users: type of column createdAt",
        "vendors: check vendors_lat_check is missing",
        "vendors: default of column open",
        "vendors: fk vendors_userId_fkey is missing",
        "vendors: index idx_vendors_location is missing",
    ]
    assert len(lines) == len(expected), lines
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True)), lines


async def test_alembics_own_command_works_from_anywhere(empty_database_url: str, tmp_path: Path) -> None:
    """Whoever writes the next migration uses `alembic`: it must find database and migrations, and see no drift."""
    ini = database.migrations().parent / "alembic.ini"
    for arguments in (["upgrade", "head"], ["check"], ["upgrade", "head", "--sql"], ["downgrade", "base"]):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "alembic", "-c", str(ini), *arguments],
            cwd=tmp_path,
            env={**os.environ, "DATABASE_URL": empty_database_url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert await database.revision(empty_database_url) is None


# Who can't be reached


async def test_a_server_that_is_away_is_unavailable(empty_database_url: str, unused_tcp_port: int) -> None:
    """A supervisor tries again what is unavailable, and stops at what is wrong."""
    port = parse_url(empty_database_url).port
    away = empty_database_url.replace(f":{port}/", f":{unused_tcp_port}/")
    for call in (database.revision, database.upgrade, database.drift, database.require_newest, database.seed):
        with pytest.raises(Unavailable, match=rf"venta:\*\*\*@127\.0\.0\.1:{unused_tcp_port}.*can't be reached"):
            await call(away)


async def test_a_database_or_password_that_is_wrong_is_said(empty_database_url: str) -> None:
    """Trying again would not help, so it is another error than that of a server away."""
    parsed = parse_url(empty_database_url)
    with pytest.raises(DatabaseError, match="CREATE DATABASE"):
        await database.upgrade(empty_database_url.replace(f"/{parsed.database}", "/nowhere"))
    with pytest.raises(DatabaseError, match="check user and password") as refused:
        await database.upgrade(empty_database_url.replace(f":{parsed.password}@", f":{SECRET}@"))
    assert SECRET not in str(refused.value)


async def test_a_server_that_is_frozen_is_given_up(postgres_server: PostgresServer) -> None:
    """A start that hangs is restarted by nobody."""
    url = f"{postgres_server.url}?connect_timeout=1"
    assert await database.revision(url) is None
    postgres_server.pause()
    try:
        with pytest.raises(Unavailable, match="did not answer in time"):
            await database.revision(url)
    finally:
        postgres_server.resume()


# Partitions


@given(st.dates(date(1970, 1, 1), date(2059, 1, 1)), st.integers(0, DAY_MS - 1))
def test_a_day_holds_exactly_the_ids_of_its_milliseconds(day: date, within: int) -> None:
    """A ping stored in a neighbour's partition would be forgotten with it, or be missed by history."""
    name, lower, upper = partition_bounds(day)
    start = noon(day) - DAY_MS // 2
    assert name == f"locations_{day.isoformat().replace('-', '')}"
    assert len(lower) == len(upper) == 9
    for vendor_id in ("v1", "another"):
        assert lower <= location_id(vendor_id, start + within) < upper
        assert location_id(vendor_id, start + DAY_MS) >= upper
        assert start == 0 or location_id(vendor_id, start - 1) < lower
    assert partition_bounds(day + timedelta(days=1))[1] == upper


@pytest.mark.parametrize("day", [date(1969, 12, 31), date(2060, 1, 1), date.max - timedelta(days=1)])
def test_a_day_that_no_id_can_hold(day: date) -> None:
    """Its bounds would be those of another day."""
    with pytest.raises(ValueError, match=str(day)):
        partition_bounds(day)
    last = datetime.fromtimestamp(LAST_TIMESTAMP / 1000, UTC).date()
    assert partition_bounds(last - timedelta(days=1))[1] < id_floor(LAST_TIMESTAMP)


async def test_missing_days_are_made_and_only_those(connection: Any) -> None:
    """Without tomorrow's partition, tomorrow's pings pile up in the default one."""
    assert sorted(await database.ensure_partitions(connection, TODAY, 2)) == days(-2, 2)
    assert await database.ensure_partitions(connection, TODAY, 2) == []
    assert await database.ensure_partitions(connection, TODAY + timedelta(days=1), 2) == days(3, 3)
    await connection.execute(f'DROP TABLE "{days(-1, -1)[0]}"')
    assert await database.ensure_partitions(connection, TODAY, 2) == days(-1, -1)
    assert await partitions(connection) == [*days(-2, 3), "locations_default"]


async def test_a_made_partition_is_like_the_others(connection: Any, database_url: str) -> None:
    """A day without its key would store pings twice; without its check, NaN."""
    await database.ensure_partitions(connection, TODAY, 0)
    await add_ping(connection, noon(TODAY))
    with pytest.raises(asyncpg.UniqueViolationError):
        await add_ping(connection, noon(TODAY))
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute("""UPDATE "locations" SET "lat" = 'NaN'""")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await connection.execute("""UPDATE "locations" SET "vendorId" = 'nobody'""")
    children = await connection.fetchval(
        "SELECT count(*) FROM pg_inherits JOIN pg_index ON inhrelid = indexrelid WHERE indrelid = $1::text::regclass",
        days(0, 0)[0],
    )
    assert children == 3
    await connection.execute("""DELETE FROM "users" """)
    assert await connection.fetchval('SELECT count(*) FROM "locations"') == 0
    assert await database.drift(database_url) == []


async def test_many_processes_make_them_at_once(connection: Any, database_url: str) -> None:
    """All processes of a deployment wake at the same midnight."""

    async def ensure() -> list[str]:
        async with connected(database_url) as own:
            return await database.ensure_partitions(own, TODAY, 3)

    made = await asyncio.gather(*(ensure() for _ in range(4)))
    assert sorted(name for names in made for name in names) == days(-2, 3)
    assert await partitions(connection) == [*days(-2, 3), "locations_default"]


async def test_pings_of_a_day_without_partition_move_into_it(connection: Any) -> None:
    """PostgreSQL refuses a partition whose rows are in the default one: that day would never get its own."""
    ids = [await add_ping(connection, noon(TODAY) + second * 1000) for second in range(50)]
    other = await add_ping(connection, noon(TODAY + timedelta(days=9)))
    await database.ensure_partitions(connection, TODAY, 0)
    found = dict(await connection.fetch('SELECT "id", tableoid::regclass::text FROM "locations"'))
    assert found == {**dict.fromkeys(ids, days(0, 0)[0]), other: "locations_default"}


async def test_pings_are_stored_while_partitions_are_made(connection: Any, database_url: str) -> None:
    """A transaction that stores pings and one that makes days must not wait for each other."""
    await database.ensure_partitions(connection, TODAY, 0)
    async with connected(database_url) as storing, storing.transaction():
        await add_ping(storing, noon(TODAY))
        assert await database.ensure_partitions(connection, TODAY, 2) == days(1, 2)
        await add_ping(storing, noon(TODAY) + 1)
    assert await connection.fetchval('SELECT count(*) FROM "locations"') == 2


async def test_a_long_reader_is_not_waited_for(
    connection: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody after us would wait behind us for as long as the reader reads."""
    monkeypatch.setattr(database, "PARTITION_LOCK_TIMEOUT_MS", 100)
    async with connected(database_url) as reading, reading.transaction():
        await reading.fetch('SELECT count(*) FROM "locations"')
        with pytest.raises(Unavailable, match=f"{days(0, 0)[0]}.*try again"):
            await database.ensure_partitions(connection, TODAY, 0)
    assert sorted(await database.ensure_partitions(connection, TODAY, 0)) == days(-2, 0)
    assert await connection.fetchval("SELECT current_setting('lock_timeout')") == "0"


async def test_a_table_in_the_way_is_named_and_the_other_days_are_made(connection: Any) -> None:
    """One detached partition, kept as an archive, would leave all later days without theirs."""
    blocked = days(0, 0)[0]
    await connection.execute(f'CREATE TABLE "{blocked}" ("id" TEXT)')
    with pytest.raises(DatabaseError, match=f"{blocked}.*attached, renamed or dropped"):
        await database.ensure_partitions(connection, TODAY, 1)
    assert await partitions(connection) == [*days(-2, -1), *days(1, 1), "locations_default"]


async def test_a_role_that_does_not_own_the_tables_is_told(connection: Any, database_url: str) -> None:
    """A server with fewer rights must say who makes the days instead."""
    await connection.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO pg_monitor")
    await connection.execute("SET ROLE pg_monitor")
    with pytest.raises(DatabaseError, match="owner"):
        await database.ensure_partitions(connection, TODAY, 0)


# Seeds


async def everything(connection: Any) -> list[Any]:
    return [
        await connection.fetch(f'SELECT * FROM "{table}" ORDER BY "id"') for table in ("users", "vendors", "locations")
    ]


async def test_the_documented_seed(database_url: str) -> None:
    """Everybody's first steps use this user and this vendor."""
    (seeded,) = await database.seed(database_url)
    assert (seeded.clerk_id, seeded.name, len(seeded.vendor_id)) == ("clerk_test_user", "Test Vendor", 25)
    async with connected(database_url) as connection:
        row = await connection.fetchrow(
            """
            SELECT u."email", u."firstName", u."lastName", v."description", v."lat", v."long", v."open"
            FROM "users" u JOIN "vendors" v ON v."userId" = u."id" WHERE v."id" = $1
            """,
            seeded.vendor_id,
        )
    assert tuple(row) == (
        *("test@example.com", "Test", "User"),
        "A test vendor for development",
        40.7128,
        -74.006,
        True,
    )


async def test_seeding_twice_changes_nothing(database_url: str) -> None:
    """A second run would rename or move vendors that somebody is working with."""
    async with connected(database_url) as connection:
        first = [await database.seed(database_url), await database.seed(database_url, 30)]
        await connection.execute("""UPDATE "vendors" SET "name" = 'Renamed' WHERE "id" = 'cseedvendor00000000000007'""")
        before = await everything(connection)
        second = [await database.seed(database_url), await database.seed(database_url, 30)]
        assert await everything(connection) == before
    assert [one.vendor_id for one in second[1]] == [one.vendor_id for one in first[1]]
    assert second[1][6].name == "Renamed"


async def test_prismas_own_seed_was_there_before(database_url: str) -> None:
    """The backend's seed makes the same user with an id of its own; ours must use that, and add no second vendor."""
    async with connected(database_url) as connection:
        await connection.execute(
            """
            INSERT INTO "users" ("id", "clerkId", "email", "updatedAt")
            VALUES ('cm3v', 'clerk_test_user', 'test@example.com', now());
            INSERT INTO "vendors" ("id", "name", "userId", "updatedAt") VALUES ('cm3w', 'Test Vendor', 'cm3v', now());
            """
        )
        assert await database.seed(database_url) == [("cm3w", "clerk_test_user", "Test Vendor")]
        assert await connection.fetchval('SELECT count(*) FROM "vendors"') == 1


async def test_many_vendors_have_an_owner_each(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load test takes the ids as they are printed, and a token for each owner."""
    monkeypatch.setattr(database, "SEED_CHUNK", 7)
    seeded = await database.seed(database_url, 20)
    assert seeded[0] == ("cseedvendor00000000000001", "clerk_seed_000001", "Seed Vendor 000001")
    assert len({one.clerk_id for one in seeded}) == len({one.vendor_id for one in seeded}) == 20
    assert all(len(one.vendor_id) == 25 for one in seeded)
    async with connected(database_url) as connection:
        rows = await connection.fetch(
            """
            SELECT v."id", u."clerkId", v."name" FROM "vendors" v JOIN "users" u ON u."id" = v."userId" ORDER BY v."id"
            """
        )
    assert [tuple(row) for row in rows] == seeded
    assert await database.seed(database_url, 5) == seeded[:5]


async def test_seeds_that_somebody_is_in_the_way_of(database_url: str) -> None:
    """Vendors fewer than asked for, and nobody told why."""
    async with connected(database_url) as connection:
        await connection.execute(
            """
            INSERT INTO "users" ("id", "clerkId", "email", "updatedAt")
            VALUES ('x', 'x', 'test@example.com', now()), ('y', 'y', 'seed_000002@example.com', now())
            """
        )
    with pytest.raises(DatabaseError, match=r"test@example\.com"):
        await database.seed(database_url)
    with pytest.raises(DatabaseError, match=r"1 of the vendors .* can't be added"):
        await database.seed(database_url, 3)


async def test_seeding_an_old_schema_says_what_to_do(empty_database_url: str) -> None:
    """It would fail with the name of a column."""
    with pytest.raises(DatabaseError, match="streamer db upgrade"):
        await database.seed(empty_database_url)
