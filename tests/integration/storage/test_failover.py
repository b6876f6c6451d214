"""A standby takes over from its primary under load: DATABASE_URL names both, without a proxy in between."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest

from streamer.errors import Unavailable
from streamer.ingest.batcher import Batcher, Chunk, Rejected
from streamer.ingest.copy_rows import RowEncoder, location_id
from streamer.ingest.position import Position
from streamer.operations.embedded import PostgresServer
from streamer.storage import migrate, revisions, seed
from streamer.storage.database import Database
from streamer.storage.seed import SeededVendor
from streamer.storage.store import Store
from streamer.supervisor import Supervisor
from tests.conftest import Collected
from tests.support.apps import eventually, now_ms
from tests.support.standby import Standby, replicates

VENDORS = 20


class Pair(NamedTuple):
    """A primary with its standby, and the URL that names both."""

    primary: PostgresServer
    standby: Standby
    url: str
    vendors: list[SeededVendor]


@asynccontextmanager
async def replicated(primary: PostgresServer, folder: Path, synchronous: bool) -> AsyncIterator[Pair]:
    await migrate.upgrade(primary.url)
    vendors = await seed.seed(primary.url, VENDORS)
    async with Standby(folder / "standby", primary) as standby:
        if synchronous:
            await execute(primary.url, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        await replicates(primary, "sync" if synchronous else "async")
        place = urlsplit(primary.url)
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        user = place.netloc.rpartition("@")[0]
        yield Pair(primary, standby, f"postgresql://{user}@{hosts}{place.path}?connect_timeout=5", vendors)


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def stored(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        return [row[0] for row in await connection.fetch('SELECT "id" FROM "locations" ORDER BY "id"')]
    finally:
        await connection.close()


class Load:
    """All vendors' pings one after the other; `acked` are the ids of acked pings."""

    def __init__(self, store: Store, vendors: list[SeededVendor]) -> None:
        self.sent: list[str] = []
        self.acked: list[str] = []
        self.batcher = Batcher(store.pings.store, chance=lambda: 1.0)
        self._supervisor = Supervisor()
        self._supervisor.start({"batcher": self.batcher.run})
        self._vendors = [vendor.vendor_id for vendor in vendors]
        self._until = False
        self._task = asyncio.create_task(self._report())

    async def stop(self) -> None:
        self._until = True
        await self._task
        assert await self.batcher.drain(60)
        self.batcher.close()
        await self._supervisor.stop()
        assert self.batcher.fault is None

    async def more(self, count: int) -> None:
        """Waits for this many more acks."""
        wanted = len(self.acked) + count
        await eventually(lambda: len(self.acked) >= wanted, f"{count} more acks", 60)

    async def _report(self) -> None:
        start, seq = now_ms(), 0
        while not self._until:
            seq += 1
            for vendor_id in self._vendors:
                ping = Position(start + seq, 52.0, 21.0)
                id = location_id(vendor_id, ping.timestamp)

                def settled(chunk: Chunk, rejected: Rejected, id: str = id) -> None:
                    assert not rejected
                    self.acked.append(id)

                self.sent.append(id)
                rows = RowEncoder(vendor_id).encode([ping[:3]])
                await self.batcher.put(Chunk(vendor_id, range(seq, seq + 1), rows, True, ping, settled))
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("synchronous", [True, False])
async def test_a_standby_that_is_promoted_under_load(
    postgres_server: PostgresServer, own_folder: Path, loop_errors: Collected, synchronous: bool
) -> None:
    """The primary's machine dies, and the server finds the standby. With a synchronous one no acked ping is lost, with
    an asynchronous one at most those that were acked before the promotion.
    """
    async with replicated(postgres_server, own_folder, synchronous) as pair:
        store = Store(await Database.open(pair.url, statement_timeout=5, pool_timeout=5))
        load = Load(store, pair.vendors)
        await load.more(200)
        pair.primary.kill()
        before = len(load.acked)
        await pair.standby.promote()
        await load.more(200)
        await load.stop()
        await store.database.close()
        there = await stored(pair.standby.url)
        assert len(set(there)) == len(there)
        assert set(there) <= set(load.sent)
        kept = load.acked if synchronous else load.acked[before:]
        assert set(kept) <= set(there)
        assert len(load.acked) == len(load.sent)
        assert await revisions.revision(pair.url) == revisions.head()
    gc.collect()
    loop_errors.messages[:] = [m for m in loop_errors.messages if "ConnectionDoesNotExistError" not in m]


async def test_a_primary_that_is_demoted_and_keeps_its_sessions(
    postgres_server: PostgresServer, own_folder: Path, loop_errors: Collected
) -> None:
    """Sessions that stay open but refuse every write would block all pings forever."""
    async with replicated(postgres_server, own_folder, False) as pair:
        store = Store(await Database.open(pair.url, statement_timeout=5, pool_timeout=5))
        load = Load(store, pair.vendors)
        await load.more(200)
        await execute(
            pair.primary.url, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"
        )
        await pair.standby.promote()
        await load.more(200)
        await load.stop()
        await store.database.close()
        assert set(load.acked[-200:]) <= set(await stored(pair.standby.url))
    gc.collect()
    loop_errors.messages[:] = [m for m in loop_errors.messages if "ConnectionDoesNotExistError" not in m]


async def test_reads_follow_the_first_write_that_a_demoted_primary_refuses(
    postgres_server: PostgresServer, own_folder: Path
) -> None:
    """The other connections would read outdated rows: users who were deleted since, old positions."""
    async with replicated(postgres_server, own_folder, False) as pair:
        store = Store(await Database.open(pair.url, pool_size=4, statement_timeout=5, pool_timeout=5))

        async def servers() -> set[int]:
            """Returns the ports of the servers that answer four simultaneous reads."""
            port = "SELECT inet_server_port() FROM pg_sleep(0.2)"
            reads = [store.database.run(lambda connection: connection.fetchval(port)) for _ in range(4)]
            return set(await asyncio.gather(*reads))

        assert await servers() == {pair.primary.port}
        await execute(
            pair.primary.url, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"
        )
        await pair.standby.promote()
        with pytest.raises(Unavailable, match="is read-only"):
            await store.update_positions([(pair.vendors[0].vendor_id, Position(now_ms(), 52.0, 21.0))])
        assert await servers() == {pair.standby.port}
        await store.database.close()


async def test_a_host_that_does_not_answer_leaves_time_for_the_next(postgres_server: PostgresServer) -> None:
    """A machine without power does not refuse connections: if tried first, it must not use up the others' time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        place = urlsplit(postgres_server.url)
        user = place.netloc.rpartition("@")[0]
        url = f"postgresql://{user}@127.0.0.1:{port},127.0.0.1:{postgres_server.port}{place.path}?connect_timeout=2"
        assert await revisions.revision(url) is None


async def test_a_host_that_hangs_up_is_passed_over(postgres_server: PostgresServer) -> None:
    """A load balancer accepts connections for a server that is down, and closes them."""
    hanging_up = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with hanging_up:
        port = hanging_up.sockets[0].getsockname()[1]
        place = urlsplit(postgres_server.url)
        user = place.netloc.rpartition("@")[0]
        url = f"postgresql://{user}@127.0.0.1:{port},127.0.0.1:{postgres_server.port}{place.path}?sslmode=disable"
        assert await revisions.revision(url) is None


async def test_two_standbys_and_no_primary_are_named(postgres_server: PostgresServer, own_folder: Path) -> None:
    """A server started between the failure and the promotion must report that no host takes writes."""
    async with replicated(postgres_server, own_folder, False) as pair:
        pair.primary.kill()
        with pytest.raises(Unavailable, match=rf"{pair.standby.port}: it is a standby, or read-only"):
            Store(await Database.open(pair.url, pool_timeout=5))
        with pytest.raises(Unavailable, match="name all servers in DATABASE_URL"):
            await seed.seed(pair.standby.url)
