"""DATABASE_URL: parsing, and the arguments that asyncpg connects with."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from streamer.errors import SettingsError

SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
ENCRYPTING = ("require", "verify-ca", "verify-full")
SESSION_ATTRS = ("any", "primary", "read-write")

CONNECT_TIMEOUT = 10.0
NO_LIMIT = 86_400.0
"""Seconds for Prisma's 0, which means no limit: a day."""


def quoted(identifier: str) -> str:
    """Quotes an SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quotes an SQL string, for statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """Where PostgreSQL is and how to connect. Times are seconds; None where the URL does not say."""

    hosts: tuple[tuple[str, int], ...]
    """Host and port of each server, in the order in which they are tried."""
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
    target_session_attrs: str = "any"
    ignored: tuple[str, ...] = ()

    def connect_args(self) -> dict[str, Any]:
        """Returns asyncpg's arguments, except the hosts; raises SettingsError if a certificate can't be read."""
        server_settings = {"timezone": "UTC"}
        # PgBouncer refuses a search_path at connection start, unless it was configured for it.
        if not self.pgbouncer or self.schema not in (None, "public"):
            server_settings["search_path"] = quoted(self.schema or "public")
        if self.application_name is not None:
            server_settings["application_name"] = self.application_name
        arguments = {
            "user": self.user,
            "password": self.password,
            "database": self.database,
            "ssl": self._ssl(),
            "server_settings": server_settings,
            "statement_cache_size": self.statement_cache_size,
            "target_session_attrs": self.target_session_attrs,
            "timeout": self.connect_timeout,
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def libpq_environment(self) -> dict[str, str]:
        """Returns libpq's environment variables for the same connection: pg_dump and pg_restore read them."""
        given = {
            "PGHOST": ",".join(host for host, _ in self.hosts),
            "PGPORT": ",".join(str(port) for _, port in self.hosts),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.database,
            "PGTARGETSESSIONATTRS": self.target_session_attrs,
            "PGSSLMODE": self.sslmode,
            "PGSSLROOTCERT": self.sslrootcert or ("system" if self.sslmode == "verify-full" else None),
            "PGSSLCERT": self.sslcert,
            "PGSSLKEY": self.sslkey,
            "PGCONNECT_TIMEOUT": str(max(2, round(self.connect_timeout))),
        }
        return {name: value for name, value in given.items() if value is not None}

    def url_of(self, database: str) -> str:
        """Returns the URL of another database on the same server."""
        user = quote(self.user, safe="") if self.user is not None else ""
        password = f":{quote(self.password, safe='')}" if self.password is not None else ""
        hosts = ",".join(
            f"{quote(host, safe=':') if host.startswith('/') else _bracketed(host)}:{port}" for host, port in self.hosts
        )
        tls = {"sslrootcert": self.sslrootcert, "sslcert": self.sslcert, "sslkey": self.sslkey}
        query = urlencode(
            {
                "sslmode": self.sslmode,
                "target_session_attrs": self.target_session_attrs,
                **{name: given for name, given in tls.items() if given},
            }
        )
        return f"postgresql://{user}{password}@{hosts}/{quote(database, safe='')}?{query}"

    @property
    def places(self) -> str:
        """The hosts with their ports, for messages."""
        return ",".join(f"{_bracketed(host)}:{port}" for host, port in self.hosts)

    def masked(self) -> str:
        """Returns the URL for messages, without the password."""
        user = f"{self.user}:***@" if self.password is not None else f"{self.user}@" if self.user else ""
        schema = f"?schema={self.schema}" if self.schema is not None else ""
        return f"postgresql://{user}{self.places}/{self.database}{schema}"

    def _ssl(self) -> str | bool | ssl.SSLContext:
        if self.sslmode == "disable" or all(host.startswith("/") for host, _ in self.hosts):
            return False
        if self.sslmode not in ENCRYPTING:
            return self.sslmode
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.sslmode == "verify-full"
        # As in libpq: `require` verifies the certificate too if it is given an authority.
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
    """Parses a URL as Prisma and libpq write it; `ignored` lists the parameters that have no meaning here.

    Raises SettingsError, which names the mistake and never the password.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        shown = repr(scheme) if separator else "something else"
        raise SettingsError(f"DATABASE_URL must begin with postgresql:// or postgres://, not with {shown}")
    try:
        # Not urlsplit's netloc for the hosts: it accepts one port only.
        parts = urlsplit(url)
        userinfo, _, places = parts.netloc.rpartition("@")
        user, _, password = (unquote(part, errors="strict") for part in userinfo.partition(":"))
        hosts = tuple(_host_and_port(place) for place in places.split(","))
        path = parts.path.removeprefix("/")
        if "/" in path or "@" in path:
            raise ValueError(path)
        database = unquote(path, errors="strict")
        parameters = {name: value for name, value in parse_qsl(parts.query, errors="strict") if value}
    except ValueError as error:
        # urlsplit's own messages may quote a part of the password.
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
    texts = (user, password, database, *(host for host, _ in hosts), *parameters.values())
    if any("\0" in given for given in texts):
        raise SettingsError("DATABASE_URL contains a zero byte (%00), which PostgreSQL can't take: remove it")
    return DatabaseUrl(
        **_parameters(parameters, hosts),
        database=database,
        user=user or None,
        password=password or None,
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _host_and_port(place: str) -> tuple[str, int]:
    """Splits `host`, `host:port`, `[::1]:port` or `%2Fvar%2Frun:port`; raises ValueError."""
    host, bracket, rest = place.partition("]")
    if bracket:
        host = host.removeprefix("[")
    else:
        host, colon, number = place.partition(":")
        rest = colon + number
    if rest and not rest.startswith(":"):
        raise ValueError(rest)
    return unquote(host, errors="strict") or "localhost", _port(rest.removeprefix(":") or "5432")


def _port(given: str) -> int:
    port = int(given) if given.isascii() and given.isdecimal() else 0
    if not 1 <= port <= 65535:
        raise ValueError(given)
    return port


def _parameters(given: dict[str, str], hosts: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    """Returns the fields that a query string sets, and removes known parameters from `given`."""
    fields: dict[str, Any] = {"hosts": _hosts(given, hosts)}
    several = len(fields["hosts"]) > 1
    attrs = given.pop("target_session_attrs", "read-write" if several else "any")
    if attrs not in SESSION_ATTRS:
        raise SettingsError(
            f"DATABASE_URL: target_session_attrs must be one of {', '.join(SESSION_ATTRS)}, not {attrs!r}: "
            "the server writes, which a standby refuses"
        )
    fields["target_session_attrs"] = attrs
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


def _hosts(given: dict[str, str], hosts: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """Applies libpq's `host` and `port` parameters, which may be lists."""
    names = given.pop("host").split(",") if "host" in given else [host for host, _ in hosts]
    if "port" in given:
        text = given.pop("port")
        try:
            ports = [_port(port) for port in text.split(",")]
        except ValueError:
            raise SettingsError(
                f"DATABASE_URL: port must be a whole number from 1 to 65535, or one for each host, not {text!r}"
            ) from None
    else:
        ports = [port for _, port in hosts]
    if len(ports) == 1:
        ports *= len(names)
    if len(ports) != len(names):
        raise SettingsError(f"DATABASE_URL names {len(names)} hosts and {len(ports)} ports: give one port, or one each")
    return tuple((name or "localhost", port) for name, port in zip(names, ports, strict=True))


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
    # Prisma's sslcert is the authority's certificate. libpq's is the client's, which has a key.
    if "sslcert" in fields and "sslkey" not in fields and "sslrootcert" not in fields:
        fields["sslrootcert"] = fields.pop("sslcert")
    if ("sslcert" in fields) != ("sslkey" in fields):
        raise SettingsError("DATABASE_URL: sslcert and sslkey belong together: a client's certificate and its key")
    if ("sslrootcert" in fields or "sslcert" in fields) and mode not in ENCRYPTING:
        raise SettingsError(
            f"DATABASE_URL names a certificate, but sslmode={mode or 'prefer'} allows connections without TLS: "
            f"set sslmode={', '.join(ENCRYPTING[:-1])} or {ENCRYPTING[-1]}"
        )
    if left := sorted(name for name in given if name.startswith("ssl")):
        # Ignoring these could make the connection less secure than requested.
        raise SettingsError(
            f"DATABASE_URL: {', '.join(left)} can't be used here: use sslmode, sslrootcert, sslcert, sslkey (PEM files)"
        )
    return fields
