"""The database role of `serve`: its rights, and how they are granted and checked.

`RIGHTS` is the complete list. `streamer db grant` grants them, `serve` checks them at the start, and the tests run
servers under such a role, so that a query which needs more fails there first. Granting needs the tables' owner.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncpg

from streamer.errors import DatabaseError, SettingsError
from streamer.storage import queries
from streamer.storage.connections import connected
from streamer.storage.dsn import parse_url, quoted
from streamer.storage.revisions import require_newest


class Right(NamedTuple):
    """One privilege on some columns of a table, and what the server needs it for."""

    table: str
    privilege: str
    columns: tuple[str, ...]
    why: str


RIGHTS: tuple[Right, ...] = (
    Right("alembic_version", "SELECT", ("version_num",), "to refuse a schema of another version"),
    Right("users", "SELECT", ("id", "clerkId", "deletedAt"), "owner of a vendor, and whether the user exists"),
    Right(
        "vendors",
        "SELECT",
        ("id", "userId", "name", "open", "primaryImage", "lat", "long", "locatedAt", "deletedAt", "hidden"),
        "a vendor's card and owner",
    ),
    Right(
        "vendors",
        "UPDATE",
        ("open", "hidden", "lat", "long", "locatedAt", "updatedAt"),
        "a vendor's position and status; to lock a vendor while its pings are stored",
    ),
    Right(
        "streamer_changes",
        "SELECT",
        ("id", "at", "transaction", "table", "rowId", "action", "clerkId"),
        "rows deleted or changed since the last poll",
    ),
    Right(
        "subscriptions",
        "SELECT",
        ("userId", "status", "startDate", "endDate"),
        "active subscriptions, where STREAMER_FREE_INTERVAL is set",
    ),
    Right("locations", "INSERT", ("id", "vendorId", "lat", "long", "timestamp"), "storing pings"),
    Right("locations", "SELECT", ("id", "vendorId", "lat", "long", "timestamp"), "history, and a vendor's newest ping"),
)

_ALERT = (
    *("id", "userId", "slot", "revision", "definition", "quiet", "url", "host", "secret", "expiresAt", "startedAt"),
    *("failingSince", "disabledAt", "disabledReason", "deletedAt", "idempotencyKey", "requestHash"),
    *("createdAt", "updatedAt"),
)
_STATE = ("alertId", "vendorId", "version", "inside", "open", "online", "told", "card", "eventAt", "quietUntil")
_EVENT = (
    *("id", "alertId", "vendorId", "type", "body", "at"),
    *("attempts", "nextAttempt", "deliveredAt", "gaveUpAt", "log"),
)
_WRITTEN = {
    "streamer_alerts": (_ALERT, _ALERT[3:], "alerts"),
    "streamer_alert_states": (_STATE, _STATE[2:], "the states of vendors in alerts"),
    "streamer_alert_events": (_EVENT, _EVENT[6:], "the webhooks of alerts"),
    "streamer_alert_processes": (("id", "seenAt"), ("seenAt",), "the processes that evaluate alerts"),
}
RIGHTS += tuple(
    Right(table, privilege, columns, why)
    for table, (all_columns, changed, why) in _WRITTEN.items()
    for privilege, columns in (("SELECT", all_columns), ("INSERT", all_columns), ("UPDATE", changed))
)

ADD_PARTITION = "streamer_add_partition(date)"
"""The SECURITY DEFINER functions that create the partition of a day; the day is their only argument."""
FUNCTIONS = (ADD_PARTITION, "streamer_add_alert_partition(date)")

TABLE_PRIVILEGES = ("DELETE", "TRUNCATE", "TRIGGER")
COLUMN_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "REFERENCES")

ATTRIBUTES = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
ITERATIONS = 4096


class Granted(NamedTuple):
    """What `grant` did: whether it created the role, whether that can log in, and its privileges beyond `RIGHTS`."""

    created: bool
    login: bool
    beyond: list[str]


async def require_rights(url: str) -> None:
    """Raises DatabaseError unless the role of the URL has the rights that `serve` needs."""
    async with connected(url) as connection:
        if left := await missing(connection):
            role = await connection.fetchval("SELECT current_user")
            raise DatabaseError(
                f"role {role!r} lacks rights that the server needs in {parse_url(url).masked()}: {'; '.join(left)}; "
                f"run `streamer db grant {role}` as the owner of the tables"
            )


async def grant(url: str, role: str, password: str | None = None) -> Granted:
    """Gives a role the rights of `serve` and no others on the tables; creates the role if it is missing.

    All or nothing. Raises DatabaseError for a role that is too powerful to be limited.
    """
    await require_newest(url)
    if not role or len(role.encode()) > 63 or "\0" in role:
        raise SettingsError(f"the role name {role!r} is not valid: PostgreSQL accepts names of 1 to 63 bytes")
    verifier = None if password is None else scram_verifier(password)
    async with connected(url) as connection, connection.transaction():
        found = await connection.fetchrow(queries.ROLE_POWER, role)
        if found is not None and found["power"] is not None:
            raise DatabaseError(
                f"role {role!r} {found['power']}: its rights can't be limited; name another role, which is created if "
                "it does not exist"
            )
        if found is None:
            try:
                await connection.execute(f"CREATE ROLE {quoted(role)} LOGIN {ATTRIBUTES}")
            except asyncpg.InsufficientPrivilegeError:
                raise DatabaseError(
                    "the role of DATABASE_URL lacks CREATEROLE: use the role that owns the tables, or let "
                    f"a superuser run CREATE ROLE {quoted(role)} LOGIN PASSWORD '…' and repeat this"
                ) from None
        if verifier is not None:
            # not the password: statements get into logs
            await connection.execute(f"ALTER ROLE {quoted(role)} PASSWORD '{verifier}'")
        await _give(connection, role)
        left = await missing(connection, role)
        if left:
            raise DatabaseError(
                f"role {role!r} did not get {'; '.join(left)}: the owner of the database has to grant that"
            )
        beyond = await _beyond(connection, role)
    return Granted(found is None, found is None or bool(found["login"]), beyond)


async def renew(connection: Any) -> None:
    """Grants the rights that a new version needs to the roles that had rights before."""
    for role in await holders(connection):
        if await missing(connection, role):
            async with connection.transaction():
                await _give(connection, role)


async def holders(connection: Any) -> list[str]:
    """Returns the roles that have the rights of `serve`."""
    return [row[0] for row in await connection.fetch(queries.RIGHTS_HOLDERS, ADD_PARTITION)]


async def missing(connection: Any, role: str | None = None) -> list[str]:
    """Returns the rights of `serve` that a role lacks; by default the role of the connection."""
    if role is None:
        role = await connection.fetchval("SELECT current_user")
    each = [(right.table, right.privilege, column) for right in RIGHTS for column in right.columns]
    arguments = [list(values) for values in zip(*each, strict=True)]
    return [row[0] for row in await connection.fetch(queries.MISSING_RIGHTS, role, *arguments, list(FUNCTIONS))]


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """Returns the SCRAM-SHA-256 verifier (RFC 5803) that PostgreSQL stores in place of a password."""
    if not password or not password.isascii() or not password.isprintable():
        # Other characters would need SASLprep normalization.
        raise SettingsError("the password must be of printable ASCII characters, at least one")
    salt = salt or secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${ITERATIONS}:{salt64}${stored64}:{server64}"


async def _give(connection: Any, role: str) -> None:
    to = quoted(role)
    for table in await _tables(connection):
        await connection.execute(f"REVOKE ALL ON TABLE {quoted(table)} FROM {to}")
    for right in RIGHTS:
        columns = ", ".join(map(quoted, right.columns))
        await connection.execute(f"GRANT {right.privilege} ({columns}) ON TABLE {quoted(right.table)} TO {to}")
    for function in FUNCTIONS:
        await connection.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {to}")
    schema, database = await connection.fetchrow("SELECT current_schema(), current_database()")
    # PUBLIC often has these, and the owner of the tables need not own the database.
    if not await connection.fetchval("SELECT has_schema_privilege($1::name, $2, 'USAGE')", role, schema):
        await connection.execute(f"GRANT USAGE ON SCHEMA {quoted(schema)} TO {to}")
    for privilege in ("CONNECT", "TEMPORARY"):
        if not await connection.fetchval("SELECT has_database_privilege($1::name, $2, $3)", role, database, privilege):
            await connection.execute(f"GRANT {privilege} ON DATABASE {quoted(database)} TO {to}")


async def _tables(connection: Any) -> Sequence[str]:
    """Returns the tables of the models that exist, with their partitions, and the view of the audit."""
    names = [*queries.TABLES, "alembic_version", "streamer_changes"]
    return [row[0] for row in await connection.fetch(queries.TABLES_TO_GRANT, names)]


async def _beyond(connection: Any, role: str) -> list[str]:
    allowed = {(right.table, right.privilege, column) for right in RIGHTS for column in right.columns}
    tables = await _tables(connection)
    held = await connection.fetch(queries.HELD_RIGHTS, role, tables, list(COLUMN_PRIVILEGES), list(TABLE_PRIVILEGES))
    more = {(table, privilege) for table, privilege, column in held if (table, privilege, column) not in allowed}
    return [f"{privilege} on {table}" for table, privilege in sorted(more)]
