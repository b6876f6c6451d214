"""TLS to PostgreSQL and Redis with real certificates: exactly the checks of the URL are made."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis.asyncio import Connection

from streamer.broker.redis_address import RedisAddress
from streamer.broker.redis_cluster import Nodes
from streamer.broker.redis_compat import reset
from streamer.broker.redis_node import Node
from streamer.cli import config
from streamer.errors import SettingsError, Unavailable
from streamer.storage import drift, revisions, seed
from streamer.storage.database import Database
from streamer.storage.store import Store
from tests.conftest import Serve
from tests.support.apps import CustomerApp, VendorApp, circle, eventually, now_ms
from tests.support.tls import TlsFront


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """The authority that the client trusts."""
    return trustme.CA()


@pytest.fixture(scope="session")
def certificate(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("localhost")


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path) -> Path:
    """The authority's certificate as a file."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


# both


async def test_everything_over_tls(
    serve: Serve, serving_url: str, redis_url: str, database_url: str, certificate: Any, trusted: Path
) -> None:
    """With a remote database and Redis, a ping is stored and shown, and neither connection is unencrypted."""
    (one,) = await seed.seed(database_url, 1)
    async with TlsFront(serving_url, certificate) as postgres, TlsFront(redis_url, certificate) as redis:
        running = await serve(
            database_url=f"{postgres.url}?sslmode=verify-full&sslrootcert={trusted}",
            redis_url=f"{redis.url}?ssl_ca_certs={trusted}",
        )
        async with CustomerApp(running.url) as customer, VendorApp(running.url, one.clerk_id) as vendor:
            await customer.watch("w", circle(52.0, 21.0, 1000))
            await vendor.ping(52.0, 21.0, timestamp=now_ms())
            await vendor.acked(1)
            await customer.sees("w", {one.vendor_id: (52.0, 21.0)})
        assert postgres.served > 0
        assert redis.served > 0


# PostgreSQL


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_certificate_of_the_authority_is_taken(
    database_url: str, certificate: Any, trusted: Path, mode: str
) -> None:
    """Migrations and the server connect with different libraries: both check certificates."""
    async with TlsFront(database_url, certificate) as front:
        url = f"{front.url}?sslmode={mode}&sslrootcert={trusted}"
        assert await revisions.revision(url) == revisions.head()
        assert await drift.drift(url) == []
        store = Store(await Database.open(url))
        await store.now()
        await store.database.close()
        assert front.served >= 4


async def refused(url: str) -> str:
    """Returns the errors of the commands and of the server."""
    said = []
    with pytest.raises(Unavailable) as by_command:
        await revisions.revision(url)
    with pytest.raises(Unavailable) as by_server:
        Store(await Database.open(url, pool_timeout=5))
    said = [str(by_command.value), str(by_server.value)]
    assert all(" localhost:" in text or "@localhost:" in text for text in said), "which one it was"
    assert "venta:" not in "".join(said).replace("venta:***", ""), "no password"
    return "; ".join(said)


async def test_anothers_certificate_is_refused(database_url: str, trusted: Path) -> None:
    """An attacker between the server and its database, with a self-made certificate, must not be accepted."""
    stranger = trustme.CA().issue_cert("localhost")
    async with TlsFront(database_url, stranger) as front:
        for mode in ("verify-ca", "verify-full"):
            said = await refused(f"{front.url}?sslmode={mode}&sslrootcert={trusted}")
            assert said.count("its certificate is not trusted") == 2
            assert said.count("set sslrootcert=FILE in DATABASE_URL") == 2
        said = await refused(f"{front.url}?sslmode=verify-full")  # the authorities that the system trusts
        assert said.count("its certificate is not trusted") == 2
        assert front.served == 0, "not even the password was sent"


async def test_a_certificate_for_another_host_is_refused(database_url: str, authority: Any, trusted: Path) -> None:
    """Any host of the same authority could pretend to be the database; verify-ca does not check the name."""
    async with TlsFront(database_url, authority.issue_cert("cache.example")) as front:
        said = await refused(f"{front.url}?sslmode=verify-full&sslrootcert={trusted}")
        assert said.count("its certificate is for another host") == 2
        assert await revisions.revision(f"{front.url}?sslmode=verify-ca&sslrootcert={trusted}") == revisions.head()


async def test_an_expired_certificate_is_refused(database_url: str, authority: Any, trusted: Path) -> None:
    """Certificates expire: the message must say so."""
    yesterday = datetime.now(UTC) - timedelta(days=1)
    expired = authority.issue_cert("localhost", not_before=yesterday - timedelta(days=9), not_after=yesterday)
    async with TlsFront(database_url, expired) as front:
        said = await refused(f"{front.url}?sslmode=verify-full&sslrootcert={trusted}")
    assert said.count("its certificate is not valid now (certificate has expired): renew it") == 2


async def test_a_client_shows_its_certificate(
    database_url: str, authority: Any, certificate: Any, trusted: Path, tmp_path: Path
) -> None:
    """Some databases require a client certificate."""
    own = authority.issue_cert("streamer.example")
    own.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    own.cert_chain_pems[0].write_to_path(str(tmp_path / "own.pem"))
    async with TlsFront(database_url, certificate, clients=authority) as front:
        url = f"{front.url}?sslmode=verify-full&sslrootcert={trusted}"
        shown = f"{url}&sslcert={tmp_path / 'own.pem'}&sslkey={tmp_path / 'key.pem'}"
        assert await revisions.revision(shown) == revisions.head()
        with pytest.raises(Unavailable):
            await revisions.revision(url)


# Redis


class Unheard:
    """A handler that ignores events."""

    def on_message(self, channel: bytes, data: bytes) -> None: ...
    def on_subscribed(self, channel: bytes) -> None: ...
    def on_answering(self, node: Node) -> None: ...
    def on_subscription(self, node: Node, up: bool) -> None: ...
    def on_slots_moved(self) -> None: ...


async def redis_cause(url: str, hold: str = "") -> str:
    """Returns why a Redis is unavailable, as in /readyz; empty if it is available."""
    found = Nodes(RedisAddress(url, 2.0), Unheard())
    task = asyncio.create_task(found.keep())
    try:
        await eventually(lambda: found.cause is None or hold in str(found.cause), "a cause")
        return found.cause or ""
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await found.close()


async def test_redis_with_the_right_certificate(redis_url: str, certificate: Any, trusted: Path) -> None:
    """rediss:// checks the server's certificate and name."""
    async with TlsFront(redis_url, certificate) as front:
        assert await redis_cause(f"{front.url}?ssl_ca_certs={trusted}", "nothing like it") == ""


async def test_a_lost_tls_connection_is_released(redis_url: str, certificate: Any, trusted: Path) -> None:
    """A lost connection has no socket any more: closing it must not fail, or the broker's task dies."""
    async with TlsFront(redis_url, certificate) as front:
        port = int(front.url.rpartition(":")[2].partition("/")[0])
        connection = Connection()
        connection._reader, connection._writer = await asyncio.open_connection(
            "localhost", port, ssl=ssl.create_default_context(cafile=str(trusted))
        )
        connection._writer.transport.abort()
        await asyncio.sleep(0.05)
        reset(connection)
        assert connection._writer is None


async def test_redis_with_a_wrong_certificate(redis_url: str, authority: Any, trusted: Path) -> None:
    """Otherwise positions and the password would be sent to a man in the middle."""
    yesterday = datetime.now(UTC) - timedelta(days=1)
    for wrong, cause in (
        (trustme.CA().issue_cert("localhost"), "its certificate is not trusted"),
        (authority.issue_cert("cache.example"), "its certificate is for another host"),
        (
            authority.issue_cert("localhost", not_before=yesterday - timedelta(days=9), not_after=yesterday),
            "its certificate is not valid now",
        ),
    ):
        async with TlsFront(redis_url, wrong) as front:
            assert cause in await redis_cause(f"{front.url}?ssl_ca_certs={trusted}", "certificate")
            assert front.served == 0


async def test_redis_that_speaks_no_tls(redis_url: str, trusted: Path) -> None:
    """rediss:// to a port without TLS is reported as such, and never falls back to plain text."""
    url = redis_url.replace("redis://", "rediss://")
    assert "speaks TLS if REDIS_URL says rediss://" in await redis_cause(url, "TLS")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("rediss://localhost?ssl_ca_certs=/nowhere/ca.pem", "/nowhere/ca.pem"),
        ("rediss+cluster://localhost?ssl_ca_certs=/nowhere/ca.pem", "/nowhere/ca.pem"),
        ("rediss://localhost?sslmode=verify-full", "no parameter 'sslmode'"),
        ("redis://localhost?ssl_ca_certs=/etc/ssl/cert.pem", "no parameter 'ssl_ca_certs'"),
        ("rediss://localhost?ssl_cert_reqs=perhaps", "perhaps"),
        ("redis://localhost?socket_timeout=soon", "socket_timeout"),
    ],
)
def test_an_unusable_redis_url_is_reported_at_the_start(url: str, said: str) -> None:
    """Otherwise the connection would fail repeatedly in a task, with only the driver's message."""
    with pytest.raises(SettingsError, match="REDIS_URL") as wrong:
        config.load(redis_url=url)
    assert said in str(wrong.value)
