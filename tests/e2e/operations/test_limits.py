"""Limits reached while running: disk, connections, descriptors, locks. Acked pings stay, and operators see the cause.

`UPKEEP_ROWS=5000000 pytest -s tests/e2e/operations/test_limits.py -k beside` prunes and backs up with as many rows.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import structlog

from streamer.ingest.copy_rows import id_floor
from streamer.operations import maintenance
from streamer.operations.backup import archive
from streamer.operations.embedded import PostgresServer
from streamer.storage import migrate, partitions, roles, seed
from streamer.storage.seed import SeededVendor
from tests.conftest import SERVING_PASSWORD, SERVING_ROLE, Collected, Running, Serve, as_serving
from tests.support.apps import CustomerApp, VendorApp, circle, eventually, now_ms
from tests.support.process import ServerProcess

LAT, LONG = 52.2, 21.0
BATCH = 500
UPKEEP_ROWS = int(os.environ.get("UPKEEP_ROWS", "20000"))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mounts a file system of this size at a folder; skips the test where that is not allowed."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Writes a file that leaves this many bytes free."""
    ballast = folder / "ballast"
    free = os.statvfs(folder)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - leave))
    return ballast


class Phone:
    """A vendor that continuously uploads batches without waiting for acks."""

    def __init__(self, app: VendorApp, vendor: SeededVendor) -> None:
        self.app = app
        self.vendor = vendor
        self.sent = 0
        self._start = now_ms() - 3_600_000

    async def upload(self) -> None:
        """Sends a batch."""
        pings = [{"lat": LAT, "long": LONG, "timestamp": self._start + self.sent + n} for n in range(BATCH)]
        await self.app.send({"type": "pings", "pings": pings})
        self.sent += BATCH

    async def stored(self, url: str) -> None:
        """Waits until all pings are acked, and compares them with the stored ones."""
        await self.app.acked(self.sent, within=60)
        rows = await query(url, 'SELECT count(*) FROM "locations" WHERE "vendorId" = $1', self.vendor.vendor_id)
        assert rows == self.sent


async def query(url: str, statement: str, *arguments: Any) -> Any:
    """Returns the single value of a query."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement, *arguments)
    finally:
        await connection.close()


async def causes(running: Running) -> dict[str, str]:
    """Returns the failures in `/health`."""
    async with aiohttp.ClientSession() as session, session.get(f"{running.url}/health") as response:
        found: dict[str, str] = (await response.json()).get("causes", {})
        return found


@asynccontextmanager
async def outage(
    running: Running, phone: Phone, words: str, provoke: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[None]:
    """Uploads until storing fails for a cause with this text; the fault must end within the block.

    The log has two lines about it, customers see the vendor move meanwhile, and the server stays ready.
    """
    await phone.app.expect("hello")
    with structlog.testing.capture_logs() as logs:

        async def named() -> bool:
            if provoke is not None:
                await provoke()
            await phone.upload()
            return words in (await causes(running)).get("storing", "")

        await eventually(named, f"storing that fails because it {words}", 60)
        assert not running.server.health.unready()
        async with CustomerApp(running.url) as customer:
            await customer.watch("w", circle(LAT, LONG, 5_000))
            await phone.app.ping(LAT + 0.001, LONG)
            phone.sent += 1
            await customer.sees("w", {phone.vendor.vendor_id: (LAT + 0.001, LONG)})
        yield
        await phone.app.acked(phone.sent, within=60)
        await eventually(lambda: running.server.batcher.outage is None, "storing works again")
    lines = [log["event"] for log in logs if "storing" in log["event"]]
    assert lines == ["storing failed; pings wait and are tried again", "storing works again"]


@pytest.mark.parametrize("crashes", [False, True])
async def test_a_disk_that_is_full_and_freed_again(
    serve: Serve, own_folder: Path, loop_errors: Collected, crashes: bool
) -> None:
    """The most common failure of a database: pings wait for the operator, and no acked one may be missing.

    Without space for its write-ahead log PostgreSQL crashes, and does not start until there is some.
    """
    with small_disk(own_folder, "256m"):
        async with PostgresServer(own_folder / "server", durable=False) as postgres:
            await migrate.upgrade(postgres.url)
            (vendor,) = await seed.seed(postgres.url, 1)
            running = await serve(database_url=postgres.url)
            async with VendorApp(running.url, vendor.clerk_id) as app:
                phone = Phone(app, vendor)
                ballast = fill(own_folder, 1 << 20)
                async with outage(running, phone, "has no disk space left"):
                    if crashes:
                        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                            while True:
                                await query(postgres.url, "SELECT pg_switch_wal(), pg_current_xact_id()")
                        await eventually(lambda: "PANIC" in postgres.log.read_text(), "PostgreSQL's crash")
                    ballast.unlink()
                    if crashes:
                        await postgres.restart()
                await phone.stored(postgres.url)
    loop_errors.messages[:] = [m for m in loop_errors.messages if "ConnectionDoesNotExistError" not in m]


async def test_connections_used_up_by_others(
    serve: Serve, postgres_server: PostgresServer, loop_errors: Collected
) -> None:
    """Another service takes all connections at the moment in which the server loses its own."""
    await migrate.upgrade(postgres_server.url)
    await roles.grant(postgres_server.url, SERVING_ROLE, SERVING_PASSWORD)
    await query(postgres_server.url, "ALTER SYSTEM SET max_connections = 20")
    await postgres_server.restart()
    (vendor,) = await seed.seed(postgres_server.url, 1)
    url = as_serving(postgres_server.url)
    running = await serve(database_url=url)
    async with VendorApp(running.url, vendor.clerk_id) as app, AsyncExitStack() as stack:
        phone = Phone(app, vendor)

        async def use_up() -> None:
            own = "application_name = 'venta-streamer'"
            await query(
                postgres_server.url, f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {own}"
            )
            with suppress(asyncpg.TooManyConnectionsError):
                while True:
                    connection = await asyncpg.connect(url)
                    stack.push_async_callback(connection.close)

        async with outage(running, phone, "has no connection left", use_up):
            await stack.aclose()
        await phone.stored(postgres_server.url)


async def test_more_clients_than_descriptors(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """New clients get an answer and retry later; connected ones are not affected."""
    (vendor,) = await seed.seed(database_url, 1)
    log = tmp_path / "log"
    async with AsyncExitStack() as stack:
        server = ServerProcess(database_url, redis_url, log=log)
        server.files = 300
        await stack.enter_async_context(server)
        app = await stack.enter_async_context(VendorApp(server.url, vendor.clerk_id))
        answers: list[int] = []
        for _ in range(120):
            customer = CustomerApp(server.url)
            try:
                await stack.enter_async_context(customer)
                answers.append(101)
            except aiohttp.WSServerHandshakeError as refused:
                answers.append(refused.status)
                assert customer._session is not None
                stack.push_async_callback(customer._session.close)
        assert set(answers) == {101, 503}
        await app.ping(LAT, LONG)
        await app.acked(1)
        async with aiohttp.ClientSession() as session, session.get(f"{server.url}/readyz") as response:
            assert response.status == 200
    assert "the limit on file descriptors is too low" in log.read_text()


@pytest.mark.parametrize("table", ["locations", "vendors"])
async def test_a_transaction_that_locks_a_table(
    serve: Serve, database_url: str, loop_errors: Collected, table: str
) -> None:
    """A forgotten migration: the message must name a lock rather than a slow server."""
    (vendor,) = await seed.seed(database_url, 1)
    running = await serve(statement_timeout=2.0)
    blocker = await asyncpg.connect(database_url)
    try:
        async with VendorApp(running.url, vendor.clerk_id) as app:
            phone = Phone(app, vendor)
            await app.expect("hello")
            await blocker.execute(f'BEGIN; LOCK TABLE "{table}" IN ACCESS EXCLUSIVE MODE')
            async with outage(running, phone, "holds a lock"):
                await blocker.execute("ROLLBACK")
            await phone.stored(database_url)
    finally:
        await blocker.close()


async def test_a_transaction_in_the_way_of_partitions(
    serve: Serve, postgres_server: PostgresServer, loop_errors: Collected
) -> None:
    """A report that reads all night must not block the pings of the next day."""
    await migrate.upgrade(postgres_server.url)
    (vendor,) = await seed.seed(postgres_server.url, 1)
    today, _, _ = partitions.partition_bounds(datetime.now(UTC).date())
    await query(postgres_server.url, f'DROP TABLE "{today}"')
    reader = await asyncpg.connect(postgres_server.url)
    try:
        await reader.execute("BEGIN; SELECT count(*) FROM locations")
        with structlog.testing.capture_logs() as logs:
            running = await serve(database_url=postgres_server.url)
            async with VendorApp(running.url, vendor.clerk_id) as app:
                await app.ping(LAT, LONG)
                await app.acked(1)
                event = "partitions could not be created; trying again"
                await eventually(
                    lambda: any(
                        log["event"] == event and "a transaction holds a lock on locations" in log["cause"]
                        for log in logs
                    ),
                    "the transaction named",
                )
                await app.ping(LAT, LONG)
                await app.acked(2)
                assert await query(postgres_server.url, "SELECT count(*) FROM locations_default") == 2
                await reader.execute("ROLLBACK")

                async def moved() -> bool:
                    there: bool = await query(
                        postgres_server.url,
                        "SELECT to_regclass($1) IS NOT NULL AND NOT EXISTS (SELECT FROM locations_default)",
                        today,
                    )
                    return there

                await eventually(moved, "today's partition with today's pings", 30)
    finally:
        await reader.close()
    assert await query(postgres_server.url, f'SELECT count(*) FROM "{today}"') == 2


async def test_prune_and_backup_beside_ingest(serve: Serve, database_url: str, tmp_path: Path) -> None:
    """Scheduled jobs run while vendors report: no ping may be lost or wait for their end."""
    loaded, (vendor,) = 0, await seed.seed(database_url, 1)
    now = datetime.now(UTC)
    old = [now.date() - timedelta(days=n) for n in range(100, 110)]
    connection = await asyncpg.connect(database_url)
    try:
        for day in old:
            await partitions.ensure_partitions(connection, day, 0)
            first = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
            rows = UPKEEP_ROWS // len(old)
            await connection.copy_records_to_table(
                "locations",
                columns=["id", "vendorId", "lat", "long", "timestamp"],
                records=(
                    (
                        f"{id_floor(first + n * 80_000_000 // rows)}{n:016}",
                        vendor.vendor_id,
                        LAT,
                        LONG,
                        datetime.fromtimestamp(first / 1000 + n * 80_000 / rows, UTC).replace(tzinfo=None),
                    )
                    for n in range(rows)
                ),
            )
            loaded += rows
    finally:
        await connection.close()
    running = await serve()
    async with VendorApp(running.url, vendor.clerk_id) as app:
        phone = Phone(app, vendor)
        for name, work in (
            ("backup", archive.backup(database_url, tmp_path)),
            ("prune", maintenance.prune(database_url, 90)),
        ):
            loop = asyncio.get_running_loop()
            task = asyncio.create_task(work)
            began, slowest = loop.time(), 0.0
            before = phone.sent
            while not task.done() or phone.sent == before:
                sent = loop.time()
                await phone.upload()
                await app.acked(phone.sent, within=60)
                slowest = max(slowest, loop.time() - sent)
            await task
            print(f"{name} with {loaded:,} rows took {loop.time() - began:.1f} s, the slowest ack {slowest:.2f} s")
        await phone.stored(database_url)
    assert await query(database_url, 'SELECT count(*) FROM "locations"') == phone.sent
