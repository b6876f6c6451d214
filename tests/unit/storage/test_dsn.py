"""DATABASE_URL is read as Prisma and libpq mean it."""

from __future__ import annotations

import ssl
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import SettingsError
from streamer.storage import dsn
from streamer.storage.dsn import parse_url

SECRET = "geheim"


printable = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


def test_the_documented_url() -> None:
    """URLs as documented must have the documented meaning."""
    url = parse_url("postgresql://user:password@localhost:5432/venta_db?connection_limit=20&pool_timeout=20")
    assert (url.user, url.password, url.hosts, url.database) == ("user", "password", (("localhost", 5432),), "venta_db")
    assert (url.pool_size, url.pool_timeout, url.ignored) == (20, 20.0, ())
    assert url.connect_args() == {
        "user": "user",
        "password": "password",
        "database": "venta_db",
        "ssl": "prefer",
        "server_settings": {"timezone": "UTC", "search_path": '"public"'},
        "target_session_attrs": "any",
        "timeout": dsn.CONNECT_TIMEOUT,
    }


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_defaults(scheme: str) -> None:
    """A short URL must not need what it leaves out."""
    url = parse_url(f"{scheme}:///venta_db")
    assert (url.hosts, url.user, url.password) == ((("localhost", 5432),), None, None)
    assert (url.pool_size, url.pool_timeout, url.schema) == (None, None, None)
    assert not {"user", "password", "statement_cache_size"} & url.connect_args().keys()


@given(user=printable, password=printable, name=printable, schema=printable, port=st.integers(1, 65535))
def test_anything_percent_encoded_comes_back(user: str, password: str, name: str, schema: str, port: int) -> None:
    """A password with an @ or a % in it would be read as another password or another host."""
    parsed = parse_url(
        f"postgresql://{quote(user, '')}:{quote(password, '')}@db.example.com:{port}/{quote(name, '')}"
        f"?schema={quote(schema, '')}"
    )
    assert (parsed.user, parsed.password, parsed.hosts) == (user, password, (("db.example.com", port),))
    assert (parsed.database, parsed.schema) == (name, schema)


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
    assert parsed.hosts == ((host, port),)


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
        ("postgresql://u:geheim@h1,h2:x/d", "port"),
        ("postgresql://u:geheim@h1,h2/d?port=1,2,3", "2 hosts and 3 ports"),
        ("postgresql://u:geheim@h1,h2/d?target_session_attrs=standby", "the server writes"),
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
        ("postgresql://u:geheim@h/d?sslrootcert=root.crt", "set sslmode="),
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_its_password(url: str, said: str) -> None:
    """The error for a mistyped URL must name the mistake, and never the password."""
    with pytest.raises(SettingsError) as refused:
        parse_url(url)
    assert said in str(refused.value)
    assert SECRET not in str(refused.value)


def test_the_password_is_in_no_message_and_no_repr() -> None:
    """Logs are read by more people than may know the password."""
    parsed = parse_url(f"postgresql://venta:{SECRET}@[::1]:5433/venta_db?schema=other&application_name=x")
    assert parsed.masked() == "postgresql://venta:***@[::1]:5433/venta_db?schema=other"
    assert SECRET not in repr(parsed) + str(parsed)
    assert parse_url("postgresql://venta@h/d").masked() == "postgresql://venta@h:5432/d"


def test_zero_means_no_limit() -> None:
    """In Prisma 0 means no limit; taken as zero seconds, it would make every request fail."""
    parsed = parse_url("postgresql://u@h/d?pool_timeout=0&connect_timeout=0")
    assert (parsed.pool_timeout, parsed.connect_timeout) == (dsn.NO_LIMIT, dsn.NO_LIMIT)
    assert parsed.connect_args()["timeout"] == dsn.NO_LIMIT
    assert parse_url("postgresql://u@h/d?connect_timeout=3").connect_args()["timeout"] == 3


def test_unknown_parameters_are_listed() -> None:
    """A misspelt parameter would otherwise have no effect, unnoticed."""
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
    """PgBouncer refuses a connection with a search_path, unless it is configured for it."""
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
    """A connection that is less secure than was asked for looks like any other."""
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


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u@a:1,b:2/d", (("a", 1), ("b", 2))),
        ("postgresql://u@a,b/d", (("a", 5432), ("b", 5432))),
        ("postgresql://u@[::1]:1,b/d", (("::1", 1), ("b", 5432))),
        ("postgresql://u@/d?host=a,b&port=1,2", (("a", 1), ("b", 2))),
        ("postgresql://u@/d?host=a,b&port=6000", (("a", 6000), ("b", 6000))),
    ],
)
def test_several_hosts(url: str, hosts: tuple[tuple[str, int], ...]) -> None:
    """Whoever has a standby names it as in libpq; after a failover a server that knows one host stays down."""
    parsed = parse_url(url)
    assert parsed.hosts == hosts
    assert parsed.connect_args()["target_session_attrs"] == "read-write"
    assert parse_url(parsed.url_of("d")).hosts == hosts
    assert parsed.libpq_environment()["PGHOST"] == ",".join(host for host, _ in hosts)
    assert parse_url(f"{url}{'&' if '?' in url else '?'}target_session_attrs=any").target_session_attrs == "any"
