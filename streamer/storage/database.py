"""The pool of connections to PostgreSQL: bounded waits, and the errors of drivers as errors of this project.

Unavailable means that PostgreSQL can't be reached, does not answer, or refuses for a reason other than the data. It is
then unknown whether the data was stored; storing it again is harmless.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any, TypeVar

import asyncpg
import structlog

from streamer import tls
from streamer.counters import Counters
from streamer.errors import DatabaseError, Unavailable
from streamer.storage import queries
from streamer.storage.connections import Connector, explanation, unreachable
from streamer.storage.dsn import parse_url

log = structlog.get_logger()

T = TypeVar("T")

ANSWER_GRACE = 2.0
"""Seconds that PostgreSQL may be late with its own timeout before the connection is given up."""

HEALTH_TIMEOUT = 2.0
CLOSE_TIMEOUT = 5.0

# SQLSTATE classes that are the fault of a row: data exception, integrity constraint, program limit, raised by a
# trigger. 08P01 from a server is a malformed row in a binary COPY.
DATA_CLASSES = frozenset({"22", "23", "54", "P0"})

# InternalClientError: the server ended a session while it was idle, and asyncpg had only half noticed.
_CONNECTION_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class Database:
    """The server's connections to one database; opened by `Database.open`."""

    def __init__(
        self,
        pool: Any,
        where: str,
        pool_timeout: float,
        statement_timeout: float,
        pooled: bool,
        counters: Counters | None = None,
    ) -> None:
        self._pool = pool
        self._pooled = pooled
        """Whether the database is behind PgBouncer, so that each transaction may be in another session."""
        self._counters = counters or Counters()
        self._where = where
        self._pool_timeout = pool_timeout
        self._answer_timeout = statement_timeout + ANSWER_GRACE

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        pool_size: int = 8,
        pool_timeout: float = 10.0,
        statement_timeout: float = 30.0,
        counters: Counters | None = None,
    ) -> Database:
        """Connect; the URL's connection_limit and pool_timeout win. Times are seconds. Raises Unavailable.

        It survives later outages: each call tries again.
        """
        parsed = parse_url(url)
        if parsed.ignored:
            log.warning("parameters of DATABASE_URL have no effect: correct or remove them", parameters=parsed.ignored)
        pool_size = parsed.pool_size or pool_size
        pool_timeout = parsed.pool_timeout or pool_timeout
        where = f"PostgreSQL at {parsed.places}/{parsed.database}"
        arguments = parsed.connect_args()
        # PgBouncer rejects settings that it is not configured to pass on: with it, only our own timer limits a
        # statement.
        settings = {} if parsed.pgbouncer else _session_settings(statement_timeout)
        arguments["server_settings"] = {
            "application_name": "venta-streamer",
            **settings,
            **arguments["server_settings"],
        }
        arguments["timeout"] = min(arguments["timeout"], pool_timeout)
        # No minimum size: asyncpg would maintain it with a task that logs a traceback for each failure of an outage.
        pool = asyncpg.create_pool(
            **arguments,
            connect=Connector(parsed),
            min_size=0,
            max_size=pool_size,
            init=_keep_commits_durable,
            reset=_skip_reset,
        )
        try:
            await pool
            await pool.release(await pool.acquire(timeout=pool_timeout))
        except _CONNECTION_ERRORS as error:
            pool.terminate()
            if isinstance(error, asyncpg.PostgresError):
                raise explanation(where, error) from None
            raise Unavailable(f"{where}{unreachable(error, f'no answer within {pool_timeout:g} s')}") from None
        return cls(pool, where, pool_timeout, statement_timeout, parsed.pgbouncer, counters)

    async def close(self) -> None:
        """Waits a moment for running statements, and closes all connections."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def answer(self, work: Callable[[Any], Awaitable[T]], what: str = "other") -> T:
        """Returns what `work` returns, like `run`; raises DatabaseError if PostgreSQL refuses a statement."""
        try:
            return await self.run(work, what)
        except asyncpg.PostgresError as error:
            raise DatabaseError(
                f"{self._where} refused a statement: {error} (SQLSTATE {error.sqlstate});"
                " the schema or its contents are not what this version expects: run `streamer db check`"
            ) from error

    async def fetch(self, statement: str, *arguments: object, what: str = "other") -> list[Any]:
        """Returns the rows of a statement; `what` labels the duration metric."""
        rows: list[Any] = await self.answer(lambda connection: connection.fetch(statement, *arguments), what)
        return rows

    async def execute(self, statement: str, *arguments: object, what: str = "other") -> None:
        """Executes a statement; `what` labels the duration metric."""
        await self.answer(lambda connection: connection.execute(statement, *arguments), what)

    async def save(self, statement: str, *arguments: object, what: str = "other") -> list[Any]:
        """Returns the rows of a statement once its changes are on disk; `what` labels the duration metric."""

        async def work(connection: Any) -> list[Any]:
            async with self.durable(connection):
                rows: list[Any] = await connection.fetch(statement, *arguments)
                return rows

        return await self.answer(work, what)

    def durable(self, connection: Any) -> AbstractAsyncContextManager[None]:
        """Returns the context in which a single statement is committed to disk."""
        return transaction(connection) if self._pooled else nullcontext()

    async def run(self, work: Callable[[Any], Awaitable[T]], what: str = "other") -> T:
        """Returns what `work` returns on a pooled connection, within bounds; `what` labels the duration metric.

        A connection is kept only when its state is known.

        Raises:
            asyncpg.PostgresError: the fault is in the data.
            Unavailable: anything else.
        """
        began = time.monotonic()
        try:
            return await self._work(work)
        except asyncpg.CheckViolationError as error:
            if error.constraint_name is not None:
                raise
            # The partition of a row was created while the row was being inserted into the default one.
            return await self._work(work)
        finally:
            self._counters.postgresql[what].observe(time.monotonic() - began)

    async def _work(self, work: Callable[[Any], Awaitable[T]]) -> T:
        try:
            connection = await self._pool.acquire(timeout=self._pool_timeout)
        except TimeoutError:
            raise Unavailable(
                f"no connection to {self._where} within {self._pool_timeout:g} s:"
                f" all {self._pool.get_max_size()} are in use, or it does not answer"
            ) from None
        except asyncpg.PostgresError as error:
            raise Unavailable(str(explanation(self._where, error))) from error
        except _CONNECTION_ERRORS as error:
            failed = tls.explained(error, "DATABASE_URL", "sslrootcert")
            raise Unavailable(f"{self._where} can't be reached: {failed or error}") from error
        given_up = known = False

        def give_up() -> None:
            nonlocal given_up
            given_up = True
            _terminate(connection)

        # Not asyncio.timeout: what it cancels may then wait for a rollback, forever if the server hangs.
        timer = asyncio.get_running_loop().call_later(self._answer_timeout, give_up)
        try:
            answer = await work(connection)
            known = True
            return answer
        except _CONNECTION_ERRORS as error:
            if given_up:
                raise Unavailable(
                    f"{self._where} did not answer within {self._answer_timeout:g} s; the connection was given up"
                ) from None
            if isinstance(error, asyncpg.PostgresError):
                known = _is_data_error(error) and not is_closed(connection)
                if known:
                    raise
                if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                    # Other connections to this server would continue to read outdated data.
                    await self._pool.expire_connections()
                raise Unavailable(str(explanation(self._where, error))) from error
            if isinstance(error, asyncpg.InterfaceError) and not is_closed(connection):
                raise
            raise Unavailable(f"the connection to {self._where} was lost: {error}") from error
        finally:
            timer.cancel()
            if not known:
                _terminate(connection)
            # This fails only for a connection that was just lost, which the pool drops by itself.
            with suppress(*_CONNECTION_ERRORS):
                await self._pool.release(connection)

    async def probe(self, work: Callable[[Any], Awaitable[T]], what: str) -> T:
        """Returns what `work` returns within HEALTH_TIMEOUT, or raises Unavailable."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                return await self.answer(work, what)
        except TimeoutError:
            raise Unavailable(f"{self._where} did not answer within {HEALTH_TIMEOUT:g} s") from None


@asynccontextmanager
async def transaction(connection: Any) -> AsyncIterator[None]:
    """A transaction that is committed to disk also where commits are asynchronous, in any session."""
    # Not asyncpg's transaction(): BEGIN and the override are one round trip, and a cancellation does not wait for a
    # rollback.
    try:
        await connection.execute(queries.BEGIN_DURABLE)
        yield
        await connection.execute("COMMIT")
    except asyncpg.PostgresError:
        if not is_closed(connection):
            await connection.execute("ROLLBACK")
        raise


async def _keep_commits_durable(connection: Any) -> None:
    await connection.execute(queries.KEEP_COMMITS_DURABLE)


async def _skip_reset(_: Any) -> None:
    """Saves a round trip: the statements of this package leave nothing behind in a session."""


def _is_data_error(error: Any) -> bool:
    sqlstate = error.sqlstate or ""
    return sqlstate[:2] in DATA_CLASSES or sqlstate == "08P01"


def _terminate(connection: Any) -> None:
    with suppress(asyncpg.InterfaceError):  # a lost connection is taken from us, and then answers nothing
        connection.terminate()


def is_closed(connection: Any) -> bool:
    """Returns whether a connection is closed, or was taken from us."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True


def can_be_text(value: str) -> bool:
    """Returns whether PostgreSQL can store this text."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _session_settings(statement_timeout: float) -> dict[str, str]:
    milliseconds = str(round(statement_timeout * 1000))
    return {
        "statement_timeout": milliseconds,
        # Earlier than that, so that the error names a lock as the cause.
        "lock_timeout": str(round(statement_timeout * 500)),
        # The locks of a client that disappeared are released as quickly.
        "idle_in_transaction_session_timeout": milliseconds,
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        # Compiling takes longer than any statement here.
        "jit": "off",
    }
