"""REDIS_URL: one Redis, a Redis Cluster (`redis+cluster://`) or a primary found by Sentinel (`redis+sentinel://`)."""

from __future__ import annotations

from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlsplit

from redis.asyncio import Connection
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError

from streamer import tls
from streamer.broker.redis_compat import reset
from streamer.errors import SettingsError

Host = tuple[str, int]

SENTINEL_PORT = 26379
SENTINEL_TIMEOUT = 1.0
"""Seconds that one Sentinel may take to answer before the next one is asked."""
SENTINEL_OPTIONS = ("username", "password")


class RedisAddress:
    """The address of Redis, and a factory of connections to it.

    `redis+sentinel://[user:password@]host:port,host:port/SERVICE[/DB]`: user and password are those of Redis; the
    query's `sentinel_username` and `sentinel_password` are those of the Sentinels.
    """

    def __init__(self, url: str, timeout: float) -> None:
        parsed = urlsplit(url)
        scheme, _, kind = parsed.scheme.partition("+")
        self.cluster = kind == "cluster"
        self.service: str | None = None
        """The name of the primary that the Sentinels watch."""
        self._sentinel: Sentinel | None = None
        plain = parsed._replace(scheme=scheme)
        if kind == "sentinel":
            plain = self._ask_sentinels(plain)
        self._options: dict[str, Any] = {
            **parse_url(plain.geturl()),
            "protocol": 2,
            "socket_timeout": timeout,
            "driver_info": None,
        }
        self._connection: Any = self._options.pop("connection_class", Connection)
        self.seed: Host = (str(self._options.get("host", "localhost")), int(self._options.get("port", 6379)))

    def _ask_sentinels(self, url: SplitResult) -> SplitResult:
        """Sets up the Sentinels of a URL; returns the URL without their options."""
        credentials, at, hosts = url.netloc.rpartition("@")
        sentinels = [_host(host) for host in hosts.split(",") if host]
        self.service, _, database = url.path.strip("/").partition("/")
        if not self.service or not sentinels:
            raise SettingsError(
                "REDIS_URL: name the Sentinels and the service, as in"
                " redis+sentinel://host1:26379,host2:26379,host3:26379/mymaster"
            )
        parts = [part for part in url.query.split("&") if part]
        theirs = (part.removeprefix("sentinel_").partition("=") for part in parts if part.startswith("sentinel_"))
        login = {name: unquote(value) for name, _, value in theirs if name in SENTINEL_OPTIONS}
        query = "&".join(part for part in parts if not part.startswith("sentinel_"))
        # Sentinels of a deployment with TLS speak it too, with the same certificates.
        options = parse_url(f"{url.scheme}://h/0?{query}")
        self._sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            sentinels,
            sentinel_kwargs={
                "socket_timeout": SENTINEL_TIMEOUT,
                "socket_connect_timeout": SENTINEL_TIMEOUT,
                "ssl": url.scheme == "rediss",
                "protocol": 2,
                **{name: value for name, value in options.items() if name.startswith("ssl_")},
                **login,
            },
        )
        host = sentinels[0][0]
        netloc = f"{credentials}{at}{f'[{host}]' if ':' in host else host}"
        return url._replace(netloc=netloc, path=f"/{database or 0}", query=query)

    async def primary(self) -> Host:
        """The primary's host and port, from the Sentinels if there are any; raises RedisError or OSError."""
        if self._sentinel is None or self.service is None:
            return self.seed
        host, port = await self._sentinel.discover_master(self.service)
        return str(host), int(port)

    async def connect(self, where: Host | None = None) -> Connection:
        """Connects to `where`, or to the primary; raises RedisError, OSError or TimeoutError."""
        connection = self.connection(where or await self.primary())
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        except BaseException:
            reset(connection)
            raise
        return connection

    def connection(self, where: Host) -> Connection:
        """An unconnected connection."""
        options = dict(self._options)
        if "path" not in options:  # no UNIX socket
            options["host"], options["port"] = where
        made: Connection = self._connection(**options)
        return made

    async def close(self) -> None:
        """Closes the connections to the Sentinels."""
        if self._sentinel is not None:
            for sentinel in self._sentinel.sentinels:
                await sentinel.aclose()

    @classmethod
    def check(cls, url: str) -> Self:
        """Raises SettingsError for a URL with an unknown parameter, or a certificate that can't be read."""
        try:
            address = cls(url, timeout=1.0)
            connection = address.connection(address.seed)
            if isinstance(connection, SSLConnection):
                connection.ssl_context.get()
            return address
        except OSError as error:
            files = ", ".join(
                str(value)
                for name, value in address._options.items()
                if name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
            )
            raise SettingsError(f"REDIS_URL: a certificate can't be used, {error}: check {files}") from None
        except TypeError as error:
            name = str(error).rpartition("argument ")[2]
            raise SettingsError(
                f"REDIS_URL: there is no parameter {name}; for TLS say rediss:// and ssl_ca_certs"
            ) from None
        except (RedisError, ValueError) as error:
            raise SettingsError(f"REDIS_URL can't be used: {error}") from None


def _host(text: str) -> Host:
    name, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text.strip("[]"), SENTINEL_PORT
    return name.strip("[]"), int(port)


def describe(error: BaseException) -> str:
    """Why Redis can't be used, in one sentence for an operator."""
    if isinstance(error, TimeoutError) and not str(error):
        # A client with TLS gets this from a Redis without TLS, which waits for the end of a line.
        return "it did not answer in time: check that it runs, and speaks TLS if REDIS_URL says rediss://"
    return tls.explained(error, "REDIS_URL", "ssl_ca_certs") or f"{type(error).__name__}: {error}"
