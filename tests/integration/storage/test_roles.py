"""The database role of `serve`: its permissions are exactly what the server needs, and missing ones fail the start."""

from __future__ import annotations

import hmac
import re
from base64 import b64decode
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from streamer.errors import DatabaseError, SettingsError, Unavailable
from streamer.ingest.copy_rows import id_floor
from streamer.storage import migrate, partitions, roles, seed
from streamer.storage.dsn import quoted
from streamer.storage.roles import RIGHTS
from tests.conftest import SERVING_ROLE, as_serving, connected
from tests.support.commands import run
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "security.md"


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[Any]:
    async with connected(database_url) as connection:
        yield connection


@pytest.fixture
async def server(database_url: str, serving_url: str) -> AsyncIterator[Any]:
    """The connection of `serve`, to a database with a vendor."""
    await seed.seed(database_url)
    async with connected(serving_url) as connection:
        yield connection


@pytest.fixture
async def role(owner: Any) -> AsyncIterator[str]:
    """An unused role name with a quote in it. Roles belong to the whole cluster, so it is dropped afterwards."""
    name = 'a "serving" role'
    yield name
    if await owner.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name):
        await owner.execute(f"DROP OWNED BY {quoted(name)}")
        await owner.execute(f"DROP ROLE {quoted(name)}")


async def may(connection: Any, statement: str) -> bool:
    """Returns whether PostgreSQL allows a statement to this role; other errors of the statement are ignored."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return False
    finally:
        await transaction.rollback()
    return True


# the role's permissions


async def test_every_right_of_the_table_and_no_other(server: Any) -> None:
    """An extra permission helps an intruder; a missing one causes an outage."""
    allowed = {(right.table, right.privilege, column) for right in RIGHTS for column in right.columns}
    columns = await server.fetch(
        "SELECT relname, attname FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid AND attnum > 0 "
        "WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
    )
    assert {table for table, _ in columns} > {"users", "subscriptions", "integrations", "locations_default"}
    for table, column in columns:
        for privilege in roles.COLUMN_PRIVILEGES:
            has = await server.fetchval("SELECT has_column_privilege($1, $2::text, $3)", table, column, privilege)
            assert has == ((table, privilege, column) in allowed), (privilege, table, column)
        for privilege in roles.TABLE_PRIVILEGES:
            assert not await server.fetchval("SELECT has_table_privilege($1, $2)", table, privilege)


INTRUSIONS = (
    'SELECT "email" FROM "users"',
    'SELECT * FROM "users"',
    'SELECT "phone" FROM "vendors"',
    'SELECT 1 FROM "integrations"',
    """INSERT INTO "users" ("id", "clerkId", "email", "updatedAt") VALUES ('u', 'c', 'e', now())""",
    """UPDATE "vendors" SET "userId" = 'somebody'""",
    """UPDATE "vendors" SET "deletedAt" = NULL""",
    'DELETE FROM "vendors"',
    'DELETE FROM "locations"',
    'UPDATE "locations" SET "lat" = 0',
    'TRUNCATE "locations"',
    'DROP TABLE "locations_default"',
    "CREATE TABLE anything (id int)",
    """UPDATE "alembic_version" SET "version_num" = '0001'""",
    "ALTER FUNCTION streamer_add_partition(date) SECURITY INVOKER",
    "COPY \"users\" TO PROGRAM 'true'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT rolpassword FROM pg_authid",
    "CREATE ROLE another",
    "SET ROLE venta",
)


async def test_privileges_beyond_serving_are_refused(server: Any) -> None:
    """An attacker in the server must neither read people's addresses nor change stored data."""
    assert [statement for statement in INTRUSIONS if await may(server, statement)] == []


async def test_what_the_server_does_is_allowed(server: Any) -> None:
    """The same queries with the owner's role, as wrong queries would let the test above pass."""
    assert await may(server, 'SELECT "id", "clerkId", "deletedAt" FROM "users"')
    assert await may(server, 'SELECT "id" FROM "vendors" FOR KEY SHARE')
    assert await may(server, "CREATE TEMP TABLE mine (id int)")


# the function that creates partitions


async def test_the_server_makes_the_partitions_ahead(server: Any, owner: Any) -> None:
    """Without the owner's permissions, and without a daily task of an operator."""
    today = datetime.now(UTC).date()
    name = f"locations_{today + timedelta(days=40):%Y%m%d}"
    lower, upper = (id_floor(int((datetime.now(UTC).timestamp() // 86400 + n) * 86_400_000)) for n in (40, 41))
    await server.execute('INSERT INTO "locations" VALUES ($1, $2, 1, 2, now())', lower, "ctestvendor00000000000000")
    await partitions.ensure_partitions(server, today + timedelta(days=40), 0)
    assert await owner.fetchval('SELECT tableoid::regclass::text FROM "locations"') == name
    bound = await owner.fetchval("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = $1", name)
    assert bound == f"FOR VALUES FROM ('{lower}') TO ('{upper}')"
    assert await owner.fetchval("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = $1", name) == "venta"


async def test_the_server_can_not_fill_the_database_with_partitions(server: Any, owner: Any) -> None:
    """An attacker in the server could create a table for each day from 1970 on; only the owner may."""
    for away in (-32, 371, 3000):
        day = datetime.now(UTC).date() + timedelta(days=away)
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only the owner"):
            await server.fetchval("SELECT streamer_add_partition($1)", day)
        assert await owner.fetchval("SELECT streamer_add_partition($1)", day)


async def test_the_database_counts_days_as_the_server_does(owner: Any) -> None:
    """If the two computations of a bound differed, a partition would hold the wrong pings or could not be created."""
    for day in (date(1970, 1, 1), date(2000, 2, 29), date(2024, 11, 24), date(2059, 5, 24)):
        name, lower, upper = partitions.partition_bounds(day)
        assert await owner.fetchval("SELECT streamer_add_partition($1)", day)
        bound = await owner.fetchval("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = $1", name)
        assert bound == f"FOR VALUES FROM ('{lower}') TO ('{upper}')"
    for day in (date(1969, 12, 31), date(2059, 5, 25), date(9999, 1, 1)):
        with pytest.raises(asyncpg.DatetimeFieldOverflowError):
            await owner.fetchval("SELECT streamer_add_partition($1)", day)


async def test_the_owners_rights_are_not_lent_to_others_tables(server: Any, owner: Any) -> None:
    """Otherwise the function would, as the owner, use a temporary table with the same name."""
    await server.execute('CREATE TEMP TABLE "locations" ("id" TEXT); CREATE TEMP TABLE "vendors" ("id" TEXT)')
    day = datetime.now(UTC).date() + timedelta(days=50)
    assert await server.fetchval("SELECT streamer_add_partition($1)", day)
    parent = "SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = to_regclass($1)"
    assert await owner.fetchval(parent, f"public.locations_{day:%Y%m%d}") == "locations"


# granting permissions


async def test_a_role_is_made_with_nothing_but_its_rights(owner: Any, database_url: str, role: str) -> None:
    """An installation needs one command, not a page of GRANTs to copy."""
    assert (await roles.grant(database_url, role)) == (True, True, [])
    assert (await roles.grant(database_url, role)) == (False, True, [])
    powers = await owner.fetchrow(
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = $1",
        role,
    )
    assert not any(powers)
    assert await roles.missing(owner, role) == []
    assert await roles.holders(owner) == sorted([role, SERVING_ROLE])


async def test_an_owner_without_createrole_gets_an_explanation(owner: Any, database_url: str, role: str) -> None:
    """A managed PostgreSQL often lacks CREATEROLE; the administrator must know what to request."""
    name = f"{role}_owner"
    await owner.execute(f"CREATE ROLE {quoted(name)} LOGIN PASSWORD 'secret'")
    try:
        await owner.execute(f'GRANT SELECT ON "alembic_version" TO {quoted(name)}')
        place = database_url.rpartition("@")[2]
        with pytest.raises(DatabaseError, match=r"lacks CREATEROLE.*CREATE ROLE"):
            await roles.grant(f"postgresql://{name}:secret@{place}", role)
    finally:
        await owner.execute(f"DROP OWNED BY {quoted(name)}; DROP ROLE {quoted(name)}")


async def test_rights_too_many_are_taken_away(owner: Any, database_url: str, role: str) -> None:
    """Someone ran GRANT ALL at night; the next `db grant` repairs it."""
    await roles.grant(database_url, role)
    await owner.execute(f'GRANT ALL ON "users", "locations" TO {quoted(role)}')
    await owner.execute(f'GRANT UPDATE ("email") ON "users" TO {quoted(role)}')
    assert (await roles.grant(database_url, role)).beyond == []
    await owner.execute('GRANT DELETE ON "locations" TO PUBLIC')
    assert (await roles.grant(database_url, role)).beyond == ["DELETE on locations"]


async def test_rights_on_partitions_and_the_view_are_taken_away_too(owner: Any, database_url: str, role: str) -> None:
    """`GRANT ALL ON ALL TABLES` gives them too: through these a server could delete the audit, and every location."""
    await roles.grant(database_url, role)
    await owner.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {quoted(role)}")
    assert (await roles.grant(database_url, role)).beyond == []
    held = await owner.fetch(
        """
        SELECT relname, privilege FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) privilege
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')
            AND has_table_privilege($1::name, oid, privilege)
        """,
        role,
    )
    assert [tuple(row) for row in held] == []
    assert await roles.missing(owner, role) == []
    await owner.execute('GRANT DELETE ON "streamer_changes" TO PUBLIC')
    assert (await roles.grant(database_url, role)).beyond == ["DELETE on streamer_changes"]


async def test_a_password_that_no_log_can_have(owner: Any, database_url: str, role: str) -> None:
    """The role logs in with its password, which PostgreSQL never receives in plain text, as it logs statements."""
    await roles.grant(database_url, role, "correct horse")
    place = database_url.rpartition("@")[2]
    async with connected(f"postgresql://a%20%22serving%22%20role:correct%20horse@{place}") as connection:
        assert await connection.fetchval("SELECT current_user") == role
    with pytest.raises(asyncpg.InvalidPasswordError):
        async with connected(f"postgresql://a%20%22serving%22%20role:another@{place}"):
            pass
    assert re.fullmatch(
        r"SCRAM-SHA-256\$4096:[A-Za-z0-9+/=]{24}\$[A-Za-z0-9+/=]{44}:[A-Za-z0-9+/=]{44}",
        await owner.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = $1", role),
    )


def test_the_verifier_is_the_standards() -> None:
    """RFC 7677's example: the server's signature, computed from the verifier."""
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    spoken = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}"
    verifier = roles.scram_verifier("pencil", b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
    signed = hmac.digest(b64decode(verifier.rpartition(":")[2]), spoken.encode(), "sha256")
    assert signed == b64decode("6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


@pytest.mark.parametrize("password", ["", "zażółć", "a\nb"])
def test_a_password_that_two_sides_could_read_differently(password: str) -> None:
    """The error appears when the password is set, not later as an unexplained failed login."""
    with pytest.raises(SettingsError, match="printable ASCII"):
        roles.scram_verifier(password)


async def test_a_role_that_can_do_everything_is_refused(owner: Any, database_url: str, role: str) -> None:
    """Permissions don't restrict a superuser or the owner of the tables, so 'granted' would be wrong."""
    with pytest.raises(DatabaseError, match=r"'venta' is a superuser: .* name another"):
        await roles.grant(database_url, "venta")
    await owner.execute(f"CREATE ROLE {quoted(role)} IN ROLE venta")
    with pytest.raises(DatabaseError, match="is a member of the role that does"):
        await roles.grant(database_url, role)


@pytest.mark.parametrize("name", ["", "x" * 64, "a\0b"])
async def test_a_name_that_can_not_be(database_url: str, name: str) -> None:
    """PostgreSQL would truncate the name, and another role would get the permissions."""
    with pytest.raises(SettingsError, match="1 to 63 bytes"):
        await roles.grant(database_url, name)


# keeping permissions


async def test_an_upgrade_renews_them(owner: Any, database_url: str, serving_url: str) -> None:
    """A new version that reads one column more must start after `db upgrade`, with no other command."""
    await owner.execute(f'REVOKE SELECT ("primaryImage") ON "vendors" FROM {SERVING_ROLE}')
    with pytest.raises(DatabaseError, match=r"SELECT on vendors \(primaryImage\); run `streamer db grant"):
        await roles.require_rights(serving_url)
    await migrate.upgrade(database_url)
    await roles.require_rights(serving_url)


async def test_a_reset_keeps_them(database_url: str, serving_url: str) -> None:
    """In development the database is reset often; without its permissions the server would not start afterwards."""
    await migrate.reset(database_url)
    await roles.require_rights(serving_url)


async def test_a_schema_of_its_own(empty_database_url: str, role: str) -> None:
    """With ?schema=, the permissions and the function apply to the tables of that schema."""
    url = f"{empty_database_url}?schema=Other"
    await migrate.upgrade(url)
    await roles.grant(url, SERVING_ROLE)
    async with connected(f"{as_serving(empty_database_url)}?schema=Other") as connection:
        assert await roles.missing(connection) == []
        assert await connection.fetchval("SELECT streamer_add_partition($1)", date.today() + timedelta(days=99))


async def test_a_server_with_too_few_rights_does_not_start(database_url: str, serving_url: str, owner: Any) -> None:
    """The server would answer but store nothing, so the start must fail and name the command that fixes it."""
    await owner.execute(f'REVOKE INSERT ON "locations" FROM {SERVING_ROLE}')
    await owner.execute(f"REVOKE EXECUTE ON FUNCTION streamer_add_partition FROM {SERVING_ROLE}")
    with pytest.raises(DatabaseError) as refused:
        await roles.require_rights(serving_url)
    assert "EXECUTE on function streamer_add_partition(date); INSERT on locations (id, lat, long," in str(refused.value)
    assert f"streamer db grant {SERVING_ROLE}" in str(refused.value)


async def test_only_the_owner_can_give_them(serving_url: str) -> None:
    """Other roles get a message with the remedy, not a traceback."""
    with pytest.raises((DatabaseError, Unavailable), match="use the role that owns the tables"):
        await roles.grant(serving_url, "another_role")


async def test_the_command(database_url: str, tmp_path: Path, owner: Any, role: str) -> None:
    """The documented steps: a role, a password from a file, then serving."""
    (tmp_path / "password").write_text("of the file\n", encoding="utf-8")
    arguments = ("db", "grant", role, "--password-file", "password")
    done = await run(*arguments, folder=tmp_path, DATABASE_URL=database_url)
    assert (done.status, done.err) == (0, "")
    assert f"role {role} was created and has the privileges of `serve`" in done.out
    place = database_url.rpartition("@")[2]
    async with connected(f"postgresql://a%20%22serving%22%20role:of%20the%20file@{place}") as connection:
        assert await roles.missing(connection) == []
    await owner.execute(f"ALTER ROLE {quoted(role)} NOLOGIN")
    done = await run("db", "grant", role, folder=tmp_path, DATABASE_URL=database_url)
    assert "it can't log in" in done.err


def test_the_page_has_the_table() -> None:
    """docs/security.md must list exactly the granted permissions, as auditors read it."""
    text = PAGE.read_text(encoding="utf-8").partition("### Rights")[2].partition("\n#")[0]
    for right in RIGHTS:
        columns = ", ".join(f"`{column}`" for column in right.columns)
        assert f"| `{right.table}` | {right.privilege} | {columns} | {right.why} |" in text
    assert text.count("\n| `") == len(RIGHTS)
