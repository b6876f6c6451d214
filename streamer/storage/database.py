"""The database around the server: its URL, its schema's migrations, the days' partitions of `locations`, seeds.

Every function takes the URL as Prisma writes it, connects, and closes what it opened. Unavailable means that PostgreSQL
can't be reached or is busy just now; DatabaseError that something there must be mended first, and how.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from uuid import uuid4

import asyncpg
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, CheckConstraint, Connection, NullPool, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from streamer import tls
from streamer.errors import DatabaseError, SettingsError, Unavailable
from streamer.ingest.copy_rows import LAST_TIMESTAMP, id_floor
from streamer.storage import audit, roles
from streamer.storage.audit import Entry
from streamer.storage.models import Base
from streamer.storage.roles import Granted, quoted

SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
ENCRYPTING = ("require", "verify-ca", "verify-full")

CONNECT_TIMEOUT = 10.0
NO_LIMIT = 86_400.0
"""Seconds that stand for Prisma's 0, which means no limit: a day."""

ANSWER_TIMEOUT = 60.0
CHANGE_TIMEOUT = 3_600.0
"""Seconds that one statement of a migration may take; it may rewrite a large table."""
CLOSE_TIMEOUT = 5.0

TURN_TIMEOUT_MS = 60_000
"""How long to wait for another upgrade to end."""
LOCK_TIMEOUT_MS = 5_000
"""How long a migration waits for a table: while it waits, all that want the table after it wait too."""
PARTITION_LOCK_TIMEOUT_MS = 2_000

CHANGING_SCHEMA = 0x76656E74610001
"""The advisory lock of migrations: any number that is always the same, and not that of streamer_add_partition."""

PARTITIONS_AHEAD = 7
PARTITIONS_BACK = 2
"""Days: pings come late, from phones that were offline."""

BUSY = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError, asyncpg.QueryCanceledError)
"""What a statement that waited too briefly for its locks raises: try again."""
REFUSED = (asyncpg.SyntaxOrAccessError, asyncpg.ObjectNotInPrerequisiteStateError)

SEED_CHUNK = 10_000


# The URL


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """Where PostgreSQL is and how to connect, as `parse_url` read it; seconds, and None where the URL is silent."""

    host: str
    port: int
    database: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    schema: str | None = None
    pool_size: int | None = None
    pool_timeout: float | None = None
    connect_timeout: float = CONNECT_TIMEOUT
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    statement_cache_size: int | None = None
    pgbouncer: bool = False
    application_name: str | None = None
    ignored: tuple[str, ...] = ()

    def connect_args(self) -> dict[str, Any]:
        """The arguments for `asyncpg.connect` and `create_pool`; SettingsError when a certificate can't be read."""
        server_settings = {"timezone": "UTC"}
        # PgBouncer refuses a search_path that it was not told to let through, so there only one that is asked for.
        if self.schema is not None or not self.pgbouncer:
            server_settings["search_path"] = quoted(self.schema or "public")
        if self.application_name is not None:
            server_settings["application_name"] = self.application_name
        arguments = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "database": self.database,
            "ssl": self._ssl(),
            "server_settings": server_settings,
            "statement_cache_size": self.statement_cache_size,
            "timeout": self.connect_timeout,
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def sqlalchemy_url(self) -> URL:
        """The same place for SQLAlchemy; all that is not user, host, port and database is in `connect_args`."""
        return URL.create("postgresql+asyncpg", self.user, self.password, self.host, self.port, self.database)

    def url_of(self, database: str) -> str:
        """The URL of another database on the same server."""
        user = quote(self.user, safe="") if self.user is not None else ""
        password = f":{quote(self.password, safe='')}" if self.password is not None else ""
        host = quote(self.host, safe=":") if self.host.startswith("/") or ":" not in self.host else f"[{self.host}]"
        tls = {"sslrootcert": self.sslrootcert, "sslcert": self.sslcert, "sslkey": self.sslkey}
        query = urlencode({"sslmode": self.sslmode, **{name: given for name, given in tls.items() if given}})
        return f"postgresql://{user}{password}@{host}:{self.port}/{quote(database, safe='')}?{query}"

    def masked(self) -> str:
        """For messages: without the password."""
        user = f"{self.user}:***@" if self.password is not None else f"{self.user}@" if self.user else ""
        schema = f"?schema={self.schema}" if self.schema is not None else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"postgresql://{user}{host}:{self.port}/{self.database}{schema}"

    def _ssl(self) -> str | bool | ssl.SSLContext:
        if self.sslmode == "disable" or self.host.startswith("/"):
            return False
        if self.sslmode not in ENCRYPTING:
            return self.sslmode
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.sslmode == "verify-full"
        # as libpq has it: `require` checks too when it is given what to check with
        verifying = self.sslmode != "require" or self.sslrootcert is not None
        context.verify_mode = ssl.CERT_REQUIRED if verifying else ssl.CERT_NONE
        try:
            if self.sslrootcert is not None:
                context.load_verify_locations(cafile=self.sslrootcert)
            elif verifying:
                context.load_default_certs()
            if self.sslcert is not None:
                context.load_cert_chain(self.sslcert, self.sslkey)
        except OSError as error:
            files = [file for file in (self.sslrootcert, self.sslcert, self.sslkey) if file is not None]
            raise SettingsError(
                f"DATABASE_URL: a certificate can't be used, {error}: check the files {', '.join(files)}"
            ) from None
        return context


def parse_url(url: str) -> DatabaseUrl:
    """Read a URL as Prisma writes it; parameters without a meaning here are listed in `ignored`.

    SettingsError names what is wrong, never the password.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        shown = repr(scheme) if separator else "something else"
        raise SettingsError(f"DATABASE_URL must begin with postgresql:// or postgres://, not with {shown}")
    try:
        parts = urlsplit(url)
        userinfo, _, place = parts.netloc.rpartition("@")
        user, _, password = (unquote(part, errors="strict") for part in userinfo.partition(":"))
        host, port = _host_and_port(place)
        path = parts.path.removeprefix("/")
        if "/" in path or "@" in path:
            raise ValueError(path)
        database = unquote(path, errors="strict")
        parameters = {name: value for name, value in parse_qsl(parts.query, errors="strict") if value}
    except ValueError as error:
        # urlsplit's own messages quote what may be part of a password
        reason = (
            "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else "its host, port or database can't be read"
        )
        raise SettingsError(
            f"DATABASE_URL can't be used: {reason}; write /, ?, #, @ and : in the user's name and the password "
            "percent-encoded (%2F, %3F, %23, %40, %3A)"
        ) from None
    if parts.fragment:
        raise SettingsError("DATABASE_URL has a '#': write it percent-encoded, as %23")
    if not database:
        raise SettingsError("DATABASE_URL names no database: postgresql://user:password@host:5432/venta_db")
    if any("\0" in given for given in (user, password, host, database, *parameters.values())):
        raise SettingsError("DATABASE_URL has a zero byte (%00) in it, which PostgreSQL can't take: remove it")
    return DatabaseUrl(
        **_parameters(parameters, host, port),
        database=database,
        user=user or None,
        password=password or None,
    )


def _host_and_port(place: str) -> tuple[str, int]:
    """Of `host`, `host:port`, `[::1]:port`, `%2Fvar%2Frun:port`; ValueError."""
    host, bracket, rest = place.partition("]")
    if bracket:
        host = host.removeprefix("[")
    else:
        host, colon, number = place.partition(":")
        rest = colon + number
    if rest and (not rest.startswith(":") or "," in rest):
        raise ValueError(rest)
    return unquote(host, errors="strict") or "localhost", _port(rest.removeprefix(":") or "5432")


def _port(given: str) -> int:
    port = int(given) if given.isascii() and given.isdecimal() else 0
    if not 1 <= port <= 65535:
        raise ValueError(given)
    return port


def _parameters(given: dict[str, str], host: str, port: int) -> dict[str, Any]:
    """DatabaseUrl's fields that a query string sets; empties `given` of what it understands."""
    if "," in host:
        raise SettingsError(f"DATABASE_URL names several hosts, {host!r}: name one")
    fields: dict[str, Any] = {"host": given.pop("host", host), "port": port}
    if "port" in given:
        fields["port"] = _number(given, "port", 1, 65535)
    fields["schema"] = given.pop("schema", None)
    fields["application_name"] = given.pop("application_name", None)
    if "connection_limit" in given:
        fields["pool_size"] = _number(given, "connection_limit", 1, 10_000)
    if "pool_timeout" in given:
        fields["pool_timeout"] = _number(given, "pool_timeout") or NO_LIMIT
    if "connect_timeout" in given:
        fields["connect_timeout"] = _number(given, "connect_timeout") or NO_LIMIT
    if "statement_cache_size" in given:
        fields["statement_cache_size"] = _number(given, "statement_cache_size")
    pgbouncer = given.pop("pgbouncer", "false")
    if pgbouncer not in ("true", "false"):
        raise SettingsError(f"DATABASE_URL: pgbouncer must be true or false, not {pgbouncer!r}")
    if pgbouncer == "true":
        fields |= {"pgbouncer": True, "statement_cache_size": 0}
    fields |= _ssl_parameters(given)
    fields["ignored"] = tuple(sorted(given))
    return fields


def _number(given: dict[str, str], name: str, least: int = 0, most: int = int(NO_LIMIT)) -> int:
    value = given.pop(name)
    number = int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else -1
    if not least <= number <= most:
        raise SettingsError(f"DATABASE_URL: {name} must be a whole number from {least} to {most}, not {value!r}")
    return number


def _ssl_parameters(given: dict[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    mode = given.pop("sslmode", None)
    accept = given.pop("sslaccept", None)
    if mode is not None and mode not in SSL_MODES:
        raise SettingsError(f"DATABASE_URL: sslmode must be one of {', '.join(SSL_MODES)}, not {mode!r}")
    if accept not in (None, "strict", "accept_invalid_certs"):
        raise SettingsError(f"DATABASE_URL: sslaccept must be strict or accept_invalid_certs, not {accept!r}")
    if accept == "strict" and mode in (None, "prefer", "require"):
        mode = "verify-full"
    if mode is not None:
        fields["sslmode"] = mode
    for name in ("sslrootcert", "sslcert", "sslkey"):
        if name in given:
            fields[name] = given.pop(name)
    # Prisma's sslcert is the authority's certificate; libpq's is the client's, and that one has a key.
    if "sslcert" in fields and "sslkey" not in fields and "sslrootcert" not in fields:
        fields["sslrootcert"] = fields.pop("sslcert")
    if ("sslcert" in fields) != ("sslkey" in fields):
        raise SettingsError("DATABASE_URL: sslcert and sslkey belong together: a client's certificate and its key")
    if ("sslrootcert" in fields or "sslcert" in fields) and mode not in ENCRYPTING:
        raise SettingsError(
            f"DATABASE_URL names a certificate, and sslmode={mode or 'prefer'} may do without: "
            f"say sslmode={', '.join(ENCRYPTING[:-1])} or {ENCRYPTING[-1]}"
        )
    if left := sorted(name for name in given if name.startswith("ssl")):
        # to ignore these could mean to connect less safely than was asked for
        raise SettingsError(
            f"DATABASE_URL: {', '.join(left)} can't be used here: say sslmode, sslrootcert, sslcert, sslkey (PEM files)"
        )
    return fields


# Migrations


async def upgrade(
    url: str, revision: str = "head", *, today: date | None = None, ahead: int = PARTITIONS_AHEAD
) -> None:
    """Bring the schema up to a revision, and make the partitions of these days; where nothing is to do, change nothing.

    All or nothing; of two at once the second waits for the first. One at a time in a process (but for the same
    database): Alembic keeps what it is doing in a module.
    """
    parsed = parse_url(url)
    await _make_schema(parsed)
    async with migrating(url) as connection:
        await connection.run_sync(_refuse_foreign_tables, parsed)
        await connection.run_sync(lambda sync: command.upgrade(_config(sync), revision))
    async with _connected(parsed, CHANGE_TIMEOUT) as opened:
        if await opened.fetchval(ADDS_PARTITIONS):
            await ensure_partitions(opened, today or datetime.now(UTC).date(), ahead)
            await roles.renew(opened)


async def downgrade(url: str, revision: str) -> None:
    """Take migrations back down to a revision; `base` for none. All or nothing."""
    async with migrating(url) as connection:
        await connection.run_sync(lambda sync: command.downgrade(_config(sync), revision))


async def reset(url: str, *, today: date | None = None, ahead: int = PARTITIONS_AHEAD) -> None:
    """Drop all tables of ours with all they hold, and make them anew; what others have in the database stays."""
    parsed = parse_url(url)
    await _make_schema(parsed)
    async with _connected(parsed) as opened:
        holders = await roles.holders(opened)
    async with migrating(url) as connection:
        names = (await connection.scalars(text(OUR_TABLES), {"tables": list(Base.metadata.tables)})).all()
        for name in names:
            await connection.execute(text(f"DROP TABLE IF EXISTS {quoted(name)} CASCADE"))
        for signature in (await connection.scalars(text(OUR_FUNCTIONS))).all():
            await connection.execute(text(f"DROP FUNCTION {signature}"))
    await upgrade(url, today=today, ahead=ahead)
    for role in holders:
        await grant(url, role)


async def revision(url: str) -> str | None:
    """The revision that the database is at; None before the first upgrade."""
    async with _connected(parse_url(url)) as connection:
        return await _revision(connection)


def head() -> str:
    """The newest revision that this version of the server has."""
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    if newest is None:
        raise DatabaseError(f"there are no migrations in {migrations()}: install venta-streamer anew")
    return newest


async def require_newest(url: str) -> None:
    """DatabaseError unless the database is at the newest revision."""
    parsed = parse_url(url)
    async with _connected(parsed) as connection:
        found = await _revision(connection)
    newest = head()
    if found == newest:
        return
    if found is not None and found not in _known():
        raise DatabaseError(
            f"{parsed.masked()} is at revision {found}, which this version does not know, its newest is {newest}: "
            "install the version that made it"
        )
    raise DatabaseError(
        f"{parsed.masked()} is at revision {found or 'none'}, this version needs {newest}: run `streamer db upgrade`"
    )


async def require_rights(url: str) -> None:
    """DatabaseError unless whoever the URL names may do what `serve` has to."""
    parsed = parse_url(url)
    async with _connected(parsed) as connection:
        if left := await roles.missing(connection):
            role = await connection.fetchval("SELECT current_user")
            raise DatabaseError(
                f"role {role!r} may not do what the server has to in {parsed.masked()}: {'; '.join(left)}; run "
                f"`streamer db grant {role}` as the owner of the tables"
            )


async def grant(url: str, role: str, password: str | None = None) -> Granted:
    """Give a role the rights of `serve` and no others on our tables; make it when there is none. See `grants`."""
    await require_newest(url)
    async with _connected(parse_url(url)) as connection:
        return await roles.grant(connection, role, password)


async def drift(url: str) -> list[str]:
    """Where the database differs from the models, a line each; empty when it does not."""
    async with migrating(url) as connection:
        lines = await connection.run_sync(_drift)
    async with _connected(parse_url(url)) as opened:
        return lines + await audit.gaps(opened)


async def audited(
    url: str, *, since: datetime | None, table: str | None, row_id: str | None, limit: int
) -> list[Entry]:
    """The newest changes of users, vendors, subscriptions and integrations, the newest first."""
    await require_newest(url)
    async with _connected(parse_url(url)) as connection:
        return await audit.entries(connection, since=since, table=table, row_id=row_id, limit=limit)


def comparison() -> dict[str, Any]:
    """How Alembic compares the models with the database: the arguments of its `context.configure`.

    Only tables of the models are looked at: the database has others' tables too, and partitions come and go.
    """
    return {
        "target_metadata": Base.metadata,
        "compare_type": True,
        "compare_server_default": True,
        "include_name": _is_ours,
    }


def migrations() -> Path:
    """The folder of the migrations: in the package when installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "migrations"
    return inside if inside.exists() else package.parent / "migrations"


@asynccontextmanager
async def migrating(url: str) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction which alone may change the schema; waits its turn, but not forever."""
    parsed = parse_url(url)
    arguments = _arguments(parsed) | {"command_timeout": CHANGE_TIMEOUT}
    if parsed.statement_cache_size == 0:
        # behind PgBouncer the next transaction may meet names that another session gave
        arguments |= {"prepared_statement_cache_size": 0, "prepared_statement_name_func": lambda: f"streamer_{uuid4()}"}
    engine = create_async_engine(parsed.sqlalchemy_url(), connect_args=arguments, poolclass=NullPool)
    try:
        with _explained(parsed):
            async with engine.begin() as connection:
                await connection.execute(text(f"SET LOCAL lock_timeout = {TURN_TIMEOUT_MS}"))
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({CHANGING_SCHEMA})"))
                await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
                yield connection
    finally:
        await engine.dispose()


TABLES = list(Base.metadata.tables)
"""Ours; a partition belongs to its table."""

PARTITIONED = "SELECT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = to_regclass('locations'))"
ADDS_PARTITIONS = "SELECT to_regprocedure('streamer_add_partition(date)') IS NOT NULL"

OUR_TABLES = r"""
SELECT relname FROM pg_class
WHERE relnamespace = to_regnamespace(quote_ident(current_schema())) AND relkind IN ('r', 'p')
  AND (relname = ANY(:tables) OR relname = 'alembic_version' OR relname ~ '^locations_(default|\d{8})$')
ORDER BY relkind, relname
"""

# regprocedure quotes where it is needed
OUR_FUNCTIONS = r"""
SELECT oid::regprocedure::text FROM pg_proc
WHERE pronamespace = to_regnamespace(quote_ident(current_schema())) AND proname ^@ 'streamer_'
"""


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _known() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


async def _revision(connection: Any) -> str | None:
    if await connection.fetchval("SELECT to_regclass('alembic_version') IS NULL"):
        return None
    found: str | None = await connection.fetchval('SELECT "version_num" FROM "alembic_version"')
    return found


async def _make_schema(parsed: DatabaseUrl) -> None:
    """Like `prisma migrate`, make the schema that the URL names."""
    if parsed.schema is None:
        return
    async with _connected(parsed) as connection, connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = {TURN_TIMEOUT_MS}")
        await connection.execute(f"SELECT pg_advisory_xact_lock({CHANGING_SCHEMA})")
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", parsed.schema):
            await connection.execute(f"CREATE SCHEMA {quoted(parsed.schema)}")


def _refuse_foreign_tables(connection: Connection, parsed: DatabaseUrl) -> None:
    if MigrationContext.configure(connection).get_current_revision() is not None:
        return
    if present := sorted(set(Base.metadata.tables) & set(inspect(connection).get_table_names())):
        raise DatabaseError(
            f"{parsed.masked()} has tables {', '.join(present)} that were not made by `streamer db upgrade` "
            "(by Prisma, perhaps), and they can't be taken over: give an empty database or another ?schema=, and copy "
            "the rows; or, if they hold nothing of worth, `streamer db reset`"
        )


def _is_ours(name: str | None, type_: str, _: Any) -> bool:
    return type_ != "table" or name in Base.metadata.tables


def _drift(connection: Connection) -> list[str]:
    # compare_metadata itself asks for the tables of no schema, the first of the search_path
    context = MigrationContext.configure(connection, opts=comparison())
    lines = [_in_words(difference) for difference in _flat(compare_metadata(context, Base.metadata))]
    # Alembic compares neither checks nor partitioning
    inspector = inspect(connection)
    present = set(inspector.get_table_names())
    for name, table in sorted(Base.metadata.tables.items()):
        if name not in present:
            continue
        wanted = {str(check.name) for check in table.constraints if isinstance(check, CheckConstraint)}
        found = {str(check["name"]) for check in inspector.get_check_constraints(name)}
        lines += [f"{name}: check {check} is missing" for check in sorted(wanted - found)]
        lines += [f"{name}: check {check} is in no model" for check in sorted(found - wanted)]
    if "locations" in present and not connection.scalar(text(PARTITIONED)):
        lines.append("locations: is not partitioned")
    if not connection.scalar(text(ADDS_PARTITIONS)):
        lines.append("locations: function streamer_add_partition(date) is missing")
    return lines


def _flat(differences: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Alembic puts the changes of one column into a list of their own."""
    for difference in differences:
        if isinstance(difference, list):
            yield from difference
        else:
            yield difference


def _in_words(difference: tuple[Any, ...]) -> str:
    kind, *rest = difference
    if kind.startswith("modify_"):
        _, table, column, _, found, wanted = rest
        return f"{table}: {kind.removeprefix('modify_')} of column {column} is {found!r}, the model has {wanted!r}"
    action, _, what = kind.partition("_")
    object = rest[-1]
    owner = object.name if what == "table" else getattr(object, "table", None)
    if what == "column":
        owner = rest[1]
    verdict = "is missing" if action == "add" else "is in no model"
    return f"{owner}: {what} {getattr(object, 'name', object)} {verdict}"


# Partitions


def partition_bounds(day: date) -> tuple[str, str, str]:
    """Name, lower bound and upper bound of the partition for the ids of this day (UTC); the upper is not in it.

    ValueError for a day before 1970 or after the last whole one that an id can hold, in 2059.
    """
    start = int(datetime.combine(day, time(), UTC).timestamp()) * 1000
    end = start + 86_400_000
    if start < 0 or end > LAST_TIMESTAMP:
        raise ValueError(f"no id of a location can hold the time {day}: it is from 1970 to 2059")
    return f"locations_{day:%Y%m%d}", id_floor(start), id_floor(end)


async def ensure_partitions(connection: Any, today: date, ahead: int) -> list[str]:
    """Make those partitions that are missing, from 2 days before today to `ahead` days after; give their names.

    Needs an asyncpg connection of the tables' owner, or of a role that has the rights of `serve`. Several processes may
    do it at once. Rows of such a day that are in the default partition move. Ingest is not held up: locks are short,
    and asked for so briefly that it may fail with Unavailable, to be tried again later; what is made by then stays.
    """
    # the most urgent first
    days = [today + timedelta(days=n) for n in (*range(ahead + 1), *range(-1, -PARTITIONS_BACK - 1, -1))]
    present = set(await _partitions(connection))
    created, failed = [], []
    for day in days:
        name, _, _ = partition_bounds(day)
        if name in present:
            continue
        try:
            if await _add_partition(connection, day):
                created.append(name)
        except BUSY as busy:
            raise Unavailable(
                f"partition {name} could not be made just now, {busy}: try again, or run `streamer db upgrade`, "
                "which waits longer for rows that must move"
            ) from busy
        except asyncpg.SyntaxOrAccessError as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise DatabaseError(
            "partitions can't be made: " + "; ".join(failed) + " (a table of that name that is no partition must be "
            "attached, renamed or dropped; a role that may not make them gets the right by `streamer db grant`, run as "
            "the tables' owner)"
        )
    return created


class Condition(NamedTuple):
    """What a running server wants to know of its database: its revision and whether that is known to this version and
    the newest, and for how many days after today there are partitions without a gap (-1: not even today's is there).
    """

    revision: str | None
    known: bool
    newest: bool
    days_ahead: int


async def condition(connection: Any, today: date) -> Condition:
    """The condition of the database behind an asyncpg connection."""
    found = await _revision(connection)
    present = set(await _partitions(connection))
    ahead = -1
    while partition_bounds(today + timedelta(days=ahead + 1))[0] in present:
        ahead += 1
    known, newest = _versions()
    return Condition(found, found in known, found == newest, ahead)


@cache
def _versions() -> tuple[frozenset[str], str]:
    # What is installed does not change while a process runs, and reading it takes milliseconds.
    return frozenset(_known()), head()


async def _partitions(connection: Any) -> Sequence[str]:
    rows = await connection.fetch(
        "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = to_regclass('locations')"
    )
    return [row[0] for row in rows]


async def _add_partition(connection: Any, day: date) -> bool:
    """Whether it was made here, and not by another process."""
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = {PARTITION_LOCK_TIMEOUT_MS}")
        made: bool = await connection.fetchval("SELECT streamer_add_partition($1)", day)
    return made


# Seeds


class SeededVendor(NamedTuple):
    """A vendor that `seed` has seen to, and the `clerkId` of the user it belongs to."""

    vendor_id: str
    clerk_id: str
    name: str


async def seed(url: str, vendors: int | None = None) -> list[SeededVendor]:
    """Add the documented test user and vendor; or, with a number, so many users with one vendor each.

    The same ids and names every time; what is there already stays as it is.
    """
    parsed = parse_url(url)
    await require_newest(url)
    async with _connected(parsed) as connection:
        if vendors is None:
            return [await _seed_test_vendor(connection)]
        seeded: list[SeededVendor] = []
        for first in range(1, vendors + 1, SEED_CHUNK):
            seeded += await _seed_chunk(connection, range(first, min(first + SEED_CHUNK, vendors + 1)))
        return seeded


NOW = "date_trunc('milliseconds', now() AT TIME ZONE 'UTC')"

SEED_TEST_USER = f"""
INSERT INTO "users" ("id", "clerkId", "email", "firstName", "lastName", "updatedAt")
VALUES ('ctestuser0000000000000000', 'clerk_test_user', 'test@example.com', 'Test', 'User', {NOW})
ON CONFLICT DO NOTHING
"""

# Prisma's own seed may have been there before, with other ids.
SEED_TEST_VENDOR = f"""
INSERT INTO "vendors" ("id", "name", "description", "userId", "lat", "long", "updatedAt")
SELECT 'ctestvendor00000000000000', 'Test Vendor', 'A test vendor for development', u."id", 40.7128, -74.0060, {NOW}
FROM "users" u
WHERE u."clerkId" = 'clerk_test_user'
  AND NOT EXISTS (SELECT FROM "vendors" v WHERE v."userId" = u."id" AND v."name" = 'Test Vendor')
ON CONFLICT DO NOTHING
"""

TEST_VENDOR = """
SELECT v."id", u."clerkId", v."name" FROM "vendors" v JOIN "users" u ON u."id" = v."userId"
WHERE u."clerkId" = 'clerk_test_user' ORDER BY v."name" <> 'Test Vendor', v."createdAt", v."id" LIMIT 1
"""

SEED_USERS = f"""
INSERT INTO "users" ("id", "clerkId", "email", "firstName", "lastName", "updatedAt")
SELECT "id", "clerkId", "email", 'Seed', "number", {NOW}
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS given("id", "clerkId", "email", "number")
ON CONFLICT DO NOTHING
"""

SEED_VENDORS = f"""
INSERT INTO "vendors" ("id", "name", "description", "userId", "updatedAt")
SELECT given."id", given."name", 'A seeded vendor', u."id", {NOW}
FROM unnest($1::text[], $2::text[], $3::text[]) AS given("id", "name", "clerkId")
JOIN "users" u ON u."clerkId" = given."clerkId"
ON CONFLICT DO NOTHING
"""

SEEDED = """
SELECT v."id", u."clerkId", v."name" FROM "vendors" v JOIN "users" u ON u."id" = v."userId"
WHERE v."id" = ANY($1::text[]) ORDER BY v."id"
"""


async def _seed_test_vendor(connection: Any) -> SeededVendor:
    async with connection.transaction():
        await connection.execute(SEED_TEST_USER)
        await connection.execute(SEED_TEST_VENDOR)
        row = await connection.fetchrow(TEST_VENDOR)
    if row is None:
        raise DatabaseError(
            "the test vendor can't be added: another user has the id or the email test@example.com of clerk_test_user, "
            "or another vendor the id; change or delete that one"
        )
    return SeededVendor(*row)


async def _seed_chunk(connection: Any, numbers: range) -> list[SeededVendor]:
    digits = [f"{number:06d}" for number in numbers]
    clerk_ids = [f"clerk_seed_{number}" for number in digits]
    vendor_ids = [f"cseedvendor{number:0>14}" for number in digits]
    async with connection.transaction():
        await connection.execute(
            SEED_USERS,
            [f"cseeduser{number:0>16}" for number in digits],
            clerk_ids,
            [f"seed_{number}@example.com" for number in digits],
            digits,
        )
        await connection.execute(SEED_VENDORS, vendor_ids, [f"Seed Vendor {number}" for number in digits], clerk_ids)
        rows = await connection.fetch(SEEDED, vendor_ids)
    if len(rows) < len(numbers):
        raise DatabaseError(
            f"{len(numbers) - len(rows)} of the vendors {vendor_ids[0]} to {vendor_ids[-1]} can't be added: other "
            "users have the id or the email (seed_…@example.com) of theirs; change or delete those"
        )
    return [SeededVendor(*row) for row in rows]


# Connections


def _arguments(parsed: DatabaseUrl) -> dict[str, Any]:
    arguments = parsed.connect_args()
    arguments["server_settings"] = {"application_name": "streamer db", **arguments["server_settings"]}
    return arguments


@asynccontextmanager
async def connected(url: str, timeout: float = ANSWER_TIMEOUT) -> AsyncIterator[Any]:
    """An asyncpg connection for the operator's work; each statement on it has so many seconds."""
    async with _connected(parse_url(url), timeout) as connection:
        yield connection


async def revision_of(connection: Any) -> str | None:
    """The revision of the database behind an asyncpg connection; None before the first upgrade."""
    return await _revision(connection)


@asynccontextmanager
async def _connected(parsed: DatabaseUrl, timeout: float = ANSWER_TIMEOUT) -> AsyncIterator[Any]:
    """An asyncpg connection; each statement on it has so many seconds."""
    with _explained(parsed):
        connection = await asyncpg.connect(**_arguments(parsed), command_timeout=timeout)
        try:
            yield connection
        finally:
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=CLOSE_TIMEOUT)


@contextmanager
def _explained(parsed: DatabaseUrl) -> Iterator[None]:
    """What drivers and Alembic raise, as errors of ours."""
    where = f"PostgreSQL at {parsed.masked()}"
    try:
        yield
    except CommandError as error:
        raise DatabaseError(
            f"{where} can't be migrated: {error}; this version has {', '.join(sorted(_known()))}"
        ) from error
    except DBAPIError as error:
        raise _explanation(where, getattr(error.orig, "sqlstate", None), error.orig) from error
    except asyncpg.PostgresError as error:
        raise _explanation(where, error.sqlstate, error) from error
    except TimeoutError as error:
        raise Unavailable(f"{where} did not answer in time: try again when it is less busy") from error
    except (OSError, asyncpg.InterfaceError) as error:
        if failed := tls.trouble(error, "DATABASE_URL", "sslrootcert"):
            raise Unavailable(f"{where}: {failed}") from error
        raise Unavailable(
            f"{where} can't be reached: {error}; check that it runs and what DATABASE_URL says"
        ) from error


def _explanation(where: str, sqlstate: str | None, error: object) -> DatabaseError | Unavailable:
    code = sqlstate or "?????"
    said = f"{error} (SQLSTATE {code})"
    if code == "3D000":
        return DatabaseError(f"{where}: {error}; make it with CREATE DATABASE")
    if code.startswith("28"):
        return DatabaseError(f"{where} does not let us in: {said}; check user and password in DATABASE_URL")
    if code == "42501":
        return DatabaseError(
            f"{where} does not allow it: {said}; use the role that owns the tables, or for `serve` one that "
            "`streamer db grant` has given its rights"
        )
    if code == "55P03":
        return Unavailable(
            f"{where} is busy: {said}; another upgrade or a long transaction holds it, try again when that has ended"
        )
    if code[:2] in ("08", "40", "53", "57", "??"):
        return Unavailable(f"{where} can't do it now: {said}; try again")
    return DatabaseError(
        f"{where} refused a statement: {said}; its schema or contents are not what this version expects"
    )
