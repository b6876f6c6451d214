"""Connections to PostgreSQL, and the errors of drivers as errors of this project.

Unavailable means that PostgreSQL can't be reached or is busy, so trying again may help. DatabaseError means that
something must be repaired first; the message says what.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import asyncpg

from streamer import tls
from streamer.errors import DatabaseError, Unavailable
from streamer.storage.dsn import DatabaseUrl, parse_url

ANSWER_TIMEOUT = 60.0
CLOSE_TIMEOUT = 5.0

REFUSED = (asyncpg.SyntaxOrAccessError, asyncpg.ObjectNotInPrerequisiteStateError)

UNREACHABLE = (
    OSError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.TargetServerAttributeNotMatched,
)
"""Errors after which the next host is tried, as libpq does: never after a wrong password."""


class Connector:
    """Opens connections to the first host that accepts one, starting with the one that accepted last.

    Each host has its share of the timeout: a host that does not answer leaves time for the next ones.
    """

    def __init__(self, parsed: DatabaseUrl) -> None:
        self._hosts = list(parsed.hosts)

    async def __call__(self, *_: None, timeout: float, **arguments: Any) -> Any:
        """Connects with asyncpg's arguments; `timeout` is for all hosts together, in seconds."""
        failures: dict[str, BaseException] = {}
        for host, port in list(self._hosts):
            try:
                connection = await asyncpg.connect(
                    host=host, port=port, timeout=timeout / len(self._hosts), **arguments
                )
            except UNREACHABLE as error:
                failures[f"{host}:{port}"] = error
            else:
                if failures:
                    self._hosts.sort(key=lambda place: place != (host, port))
                return connection
        first, *others = failures.values()
        if not others:
            raise first
        raise OSError("; ".join(f"{place}: {_reason(error)}" for place, error in failures.items())) from first


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "it is a standby, or read-only"
    return str(error) or "no answer in time"


def connect_args(parsed: DatabaseUrl) -> dict[str, Any]:
    """Returns asyncpg's arguments for an operator's command."""
    arguments = parsed.connect_args()
    arguments["server_settings"] = {"application_name": "streamer db", **arguments["server_settings"]}
    return arguments


@asynccontextmanager
async def connected(url: str | DatabaseUrl, timeout: float = ANSWER_TIMEOUT) -> AsyncIterator[Any]:
    """Opens an asyncpg connection for an operator's command; `timeout` is the seconds of each statement."""
    parsed = parse_url(url) if isinstance(url, str) else url
    with explained(parsed):
        connection = await Connector(parsed)(**connect_args(parsed), command_timeout=timeout)
        try:
            yield connection
        finally:
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=CLOSE_TIMEOUT)


def row_count(status: str) -> int:
    """Returns how many rows a statement changed, by its status, such as `DELETE 5`."""
    return int(status.rpartition(" ")[2])


async def delete_in_batches(connection: Any, statement: str, *arguments: object) -> int:
    """Repeats a DELETE with a limit until no row is left; returns the number of deleted rows."""
    rows = 0
    while deleted := row_count(await connection.execute(statement, *arguments)):
        rows += deleted
    return rows


@contextmanager
def explained(parsed: DatabaseUrl) -> Iterator[None]:
    """Turns the errors of asyncpg into Unavailable or DatabaseError."""
    where = f"PostgreSQL at {parsed.masked()}"
    try:
        yield
    except asyncpg.PostgresError as error:
        raise explanation(where, error) from error
    except TimeoutError as error:
        raise Unavailable(f"{where} did not answer in time: try again when it is less busy") from error
    except (OSError, asyncpg.InterfaceError) as error:
        raise Unavailable(f"{where}{unreachable(error)}") from error


def unreachable(error: BaseException, silent: str = "no answer in time") -> str:
    """Returns why no connection could be opened and what to check; the text follows the name of the server."""
    if failed := tls.explained(error, "DATABASE_URL", "sslrootcert"):
        return f": {failed}"
    if "rejected SSL upgrade" in str(error):
        return f" does not support TLS: {error}; turn TLS on there, or remove sslmode from DATABASE_URL"
    cause = _reason(error) if str(error) else silent
    return f" can't be reached: {cause}; check that it runs and what DATABASE_URL says"


def explanation(where: str, error: BaseException | None) -> DatabaseError | Unavailable:
    """Returns the error to raise for one that PostgreSQL or PgBouncer reported, with its remedy."""
    code = getattr(error, "sqlstate", None) or "?????"
    cause = f"{error} (SQLSTATE {code})"
    if "unsupported startup parameter" in str(error):
        if "search_path" in str(error):
            return DatabaseError(
                f"{where} is PgBouncer and refuses a search_path: add pgbouncer=true to DATABASE_URL; for a schema "
                "other than public set it by ALTER ROLE … SET search_path and leave `schema` out of DATABASE_URL"
            )
        return DatabaseError(f"{where} is PgBouncer, {error}: add pgbouncer=true to DATABASE_URL")
    pooled = code == "08P01"  # PgBouncer's code for everything
    if pooled and "SSL required" in str(error):
        return DatabaseError(f"{where}: {cause}; add sslmode=require to DATABASE_URL")
    if pooled and "atabase" in str(error) and "does not exist" in str(error):
        code = "3D000"
    elif pooled and any(words in str(error) for words in ("authentication failed", "no such user", 'role "')):
        code = "28P01"
    if code in ("26000", "42P05"):
        return DatabaseError(
            f"{where} lost a prepared statement, {cause}: it is behind a pooler in transaction mode, "
            "so add pgbouncer=true to DATABASE_URL"
        )
    if code == "25006":
        return Unavailable(
            f"{where} is read-only: {cause}; it is a standby, or was demoted: name all servers in DATABASE_URL "
            "(host1:5432,host2:5432), so that the primary is found"
        )
    if code == "3D000":
        listed = " and list it in PgBouncer's [databases]" if pooled else ""
        return DatabaseError(f"{where}: {error}; create it with CREATE DATABASE{listed}")
    if code.startswith("28"):
        listed = " and in PgBouncer's auth_file" if pooled else ""
        return DatabaseError(f"{where} refused the login: {cause}; check user and password in DATABASE_URL{listed}")
    if code == "42501":
        return DatabaseError(
            f"{where} does not permit it: {cause}; use the role that owns the tables, or for `serve` a role that "
            "`streamer db grant` gave its rights to"
        )
    if code == "53300":
        return Unavailable(
            f"{where} has no connection left: {cause}; lower STREAMER_POOL_SIZE or raise PostgreSQL's max_connections"
        )
    if code == "53100":
        return Unavailable(f"{where} has no disk space left: {cause}; free some, then it continues by itself")
    if code == "55P03":
        return Unavailable(
            f"{where} is busy: {cause}; another upgrade or a long transaction holds a lock, try again when it has ended"
        )
    if code[:2] in ("08", "40", "53", "57", "??"):
        return Unavailable(f"{where} can't do it now: {cause}; try again")
    return DatabaseError(
        f"{where} refused a statement: {cause}; its schema or contents are not what this version expects"
    )
