"""Pings are stored in a real PostgreSQL exactly once, whatever fails."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import date, datetime
from itertools import cycle
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from streamer.accounts.dataloader import DataLoader
from streamer.clocks import CLOCK_TOLERANCE
from streamer.errors import DatabaseError, ErrorCode, Unavailable
from streamer.ingest.batcher import Batcher, Chunk, Rejected
from streamer.ingest.copy_rows import RowEncoder, id_floor, location_id
from streamer.ingest.position import Position, arrived
from streamer.operations.embedded import PostgresServer
from streamer.protocol.history import LocationRow
from streamer.storage import database as database_module
from streamer.storage import migrate, queries
from streamer.storage.database import Database
from streamer.storage.store import Store, VendorRow
from streamer.supervisor import Supervisor
from tests.conftest import Collected
from tests.support.apps import eventually
from tests.support.proxy import Proxy

T0 = 1732467600000
VENDORS = [f"cm3xk2p4q00000{n:03}h4v2e9zda" for n in range(20)]
VENDOR, OTHER = VENDORS[:2]


async def seed(url: str) -> None:
    """A database with one user who has all vendors."""
    async with connected(url) as connection:
        await connection.execute(
            """INSERT INTO "users" ("id", "clerkId", "email", "updatedAt") VALUES ('u', 'clerk', 'u@x.org', now())"""
        )
        await connection.executemany(
            """INSERT INTO "vendors" ("id", "name", "userId", "updatedAt") VALUES ($1, $2, 'u', now())""",
            [(vendor_id, f"Truck {n}") for n, vendor_id in enumerate(VENDORS)],
        )


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Store]:
    store = Store(await Database.open(url, **options))
    try:
        yield store
    finally:
        await store.database.close()


@pytest.fixture
async def url(database_url: str) -> str:
    await seed(database_url)
    return database_url


@pytest.fixture
async def store(url: str, serving_url: str) -> AsyncIterator[Store]:
    """A store with the server's least privilege; `url` is the owner's and seeded."""
    async with opened(serving_url) as store:
        yield store


@pytest.fixture
async def direct(url: str) -> AsyncIterator[Any]:
    """A second connection, to observe and to disturb the store."""
    async with connected(url) as connection:
        yield connection


def nobody(chunk: Chunk, rejected: Rejected) -> None:
    """A callback for a chunk whose outcome is not awaited."""


def chunk(vendor_id: str, timestamps: Sequence[int], lat: float = 52.0, settled: Any = nobody, seq: int = 1) -> Chunk:
    pings = [(timestamp, lat, 21.0) for timestamp in timestamps]
    rows = RowEncoder(vendor_id).encode(pings)
    return Chunk(vendor_id, range(seq, seq + len(pings)), rows, True, Position(*max(pings)), settled)


def poison(vendor_id: str, timestamps: Sequence[int], bad: int, seq: int = 1) -> Chunk:
    """A chunk whose row at index `bad` has a timestamp that PostgreSQL can't store."""
    good = chunk(vendor_id, timestamps, seq=seq)
    end = (bad + 1) * good.row_size
    rows = good.rows[: end - 8] + struct.pack(">q", 2**63 - 2) + good.rows[end:]
    return Chunk(vendor_id, good.seqs, rows, True, good.newest, nobody)


async def stored(connection: Any) -> list[tuple[str, int]]:
    """Returns vendor and timestamp of each row; a ping stored twice would be contained twice."""
    rows = await connection.fetch(
        """SELECT "vendorId", (EXTRACT(EPOCH FROM "timestamp") * 1000)::bigint FROM "locations" ORDER BY 1, 2"""
    )
    return [tuple(row) for row in rows]


def pings(vendor_id: str, timestamps: Sequence[int]) -> list[tuple[str, int]]:
    return [(vendor_id, timestamp) for timestamp in timestamps]


# both paths


async def test_stored_pings_equal_the_reported_ones(store: Store, direct: Any) -> None:
    """The binary format must not lose a coordinate or a millisecond, also for Prisma's clients."""
    timestamps = [0, T0, T0 + 1, 36**8 - 1]
    assert await store.pings.store([chunk(VENDOR, timestamps, lat=-12.345678901234567)]) == {}
    rows = await direct.fetch('SELECT * FROM "locations" ORDER BY "id"')
    assert [row["id"] for row in rows] == [location_id(VENDOR, timestamp) for timestamp in timestamps]
    assert {(row["vendorId"], row["lat"], row["long"]) for row in rows} == {(VENDOR, -12.345678901234567, 21.0)}
    assert rows[2]["timestamp"] == datetime(2024, 11, 24, 17, 0, 0, 1000)


@pytest.mark.parametrize("retry", [False, True])
async def test_a_ping_sent_twice_is_stored_once(store: Store, url: str, direct: Any, retry: bool) -> None:
    """A reconnecting app resends pings without an ack: within a batch, in the next one, through another server."""
    ten = range(T0, T0 + 10)
    twice = [chunk(VENDOR, ten), chunk(OTHER, ten), chunk(VENDOR, range(T0 + 5, T0 + 15), lat=9.0)]
    assert await store.pings.store(twice, retry) == {}
    assert await store.pings.store([chunk(VENDOR, range(T0 + 10, T0 + 20), lat=9.0)], retry) == {}
    async with opened(url) as another:
        assert await another.pings.store([chunk(VENDOR, range(T0, T0 + 25), lat=9.0)], retry) == {}
    assert await stored(direct) == sorted(pings(VENDOR, range(T0, T0 + 25)) + pings(OTHER, ten))
    # of two positions with one timestamp the first to arrive is stored
    lats = await direct.fetch('SELECT "lat" FROM "locations" WHERE "vendorId" = $1 ORDER BY "id"', VENDOR)
    assert [row[0] for row in lats] == [52.0] * 10 + [9.0] * 15


async def test_two_servers_store_the_same_pings_at_once(store: Store, url: str, direct: Any) -> None:
    """An app may move to another server while pings of its old connection are still being stored."""
    async with opened(url) as another:
        ahead = [chunk(vendor_id, range(T0, T0 + 50)) for vendor_id in VENDORS]

        async def put(target: Store, chunks: list[Chunk]) -> None:
            retry = False
            while True:
                try:
                    assert await target.pings.store(chunks, retry) == {}
                    return
                except Unavailable:  # for example a deadlock between the two; the batcher retries
                    retry = True

        for _ in range(3):
            await asyncio.gather(put(store, ahead), put(another, ahead[::-1]))
    assert await stored(direct) == [ping for vendor_id in VENDORS for ping in pings(vendor_id, range(T0, T0 + 50))]


async def test_a_vendor_that_is_gone_costs_only_its_own_pings(store: Store, direct: Any) -> None:
    """One deleted vendor's app must not block the pings of all others."""
    await direct.execute('DELETE FROM "vendors" WHERE "id" = $1', OTHER)
    gone = chunk(OTHER, [T0, T0 + 1], seq=7)
    rejected = await store.pings.store([chunk(VENDOR, [T0]), gone, chunk(VENDORS[2], [T0])])
    assert list(rejected) == [gone]
    assert list(rejected[gone]) == [7, 8]
    code, message = rejected[gone][7]
    assert code == ErrorCode.VENDOR_NOT_FOUND
    assert OTHER in message
    assert await stored(direct) == pings(VENDOR, [T0]) + pings(VENDORS[2], [T0])


async def test_a_vendor_deleted_while_its_pings_are_stored(store: Store, direct: Any) -> None:
    """The deletion takes effect, the others' pings are stored, and no row refers to a missing vendor."""
    deletion = direct.transaction()
    await deletion.start()
    await direct.execute('DELETE FROM "vendors" WHERE "id" = $1', OTHER)
    gone = chunk(OTHER, [T0])
    storing = asyncio.create_task(store.pings.store([chunk(VENDOR, [T0]), gone], True))
    await asyncio.sleep(0.1)
    assert not storing.done()
    await deletion.commit()
    assert list(await storing) == [gone]
    assert await stored(direct) == pings(VENDOR, [T0])


@pytest.mark.parametrize("retry", [False, True])
async def test_one_row_that_can_not_be_stored_costs_only_itself(store: Store, direct: Any, retry: bool) -> None:
    """An endless retry would block all storage; if dropped silently, its app would wait forever."""
    hundred = range(T0, T0 + 100)
    first, second = poison(VENDOR, hundred, 37, seq=1000), poison(OTHER, hundred, 99)
    chunks = [chunk(VENDORS[2], hundred), first, second, chunk(VENDORS[3], hundred)]
    rejected = await store.pings.store(chunks, retry)
    assert {each: list(seqs) for each, seqs in rejected.items()} == {first: [1037], second: [100]}
    code, message = rejected[first][1037]
    assert code == ErrorCode.INTERNAL
    assert location_id(VENDOR, T0 + 37) in message
    assert VENDOR in message
    assert "timestamp out of range" in message
    assert len(await stored(direct)) == 398
    # and the connection is still usable
    assert await store.pings.store([chunk(VENDORS[4], hundred)], retry) == {}


async def test_staging_leaves_nothing_behind(store: Store, direct: Any) -> None:
    """A temporary table that is left for each batch would bloat PostgreSQL's catalogs."""

    async def catalog() -> int:
        return int(await direct.fetchval("SELECT count(*) FROM pg_class"))

    await store.pings.store([chunk(VENDOR, [T0])], True)
    before = await catalog()
    for n in range(20):
        await store.pings.store([chunk(VENDOR, [T0, T0 + n])], True)
    assert await catalog() == before
    assert await direct.fetchval("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'") == 0


# outages


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("committed", [False, True])
async def test_a_connection_cut_at_the_commit(url: str, direct: Any, retry: bool, committed: bool) -> None:
    """It is unknown whether these pings are stored: after a retry they must be stored once."""
    async with Proxy(url) as proxy, opened(proxy.url) as store:
        await store.pings.store([chunk(OTHER, [T0])], retry)
        # COPY: its end on the server or on the client; staging: COMMIT likewise
        piece = b"COMMIT\0" if retry else b"COPY 3\0" if committed else b"\xff\xff"
        setattr(proxy, "cut_answer" if committed else "cut_request", piece)
        three = range(T0, T0 + 3)
        with pytest.raises(Unavailable):
            await store.pings.store([chunk(VENDOR, three)], retry)
        assert proxy.cut_request is proxy.cut_answer is None, "it was cut"
        if committed:
            assert await stored(direct) == pings(VENDOR, three) + pings(OTHER, [T0])
        assert await store.pings.store([chunk(VENDOR, three)], True) == {}
        assert await stored(direct) == pings(VENDOR, three) + pings(OTHER, [T0])


@pytest.mark.parametrize("retry", [False, True])
async def test_a_session_terminated_while_it_stores(store: Store, direct: Any, retry: bool) -> None:
    """An administrator or a failover ends sessions at any moment."""
    lock = direct.transaction()
    await lock.start()
    await direct.execute('LOCK TABLE "locations" IN ACCESS EXCLUSIVE MODE')
    storing = asyncio.create_task(store.pings.store([chunk(VENDOR, range(T0, T0 + 3))], retry))
    waiting = """SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"""
    async with asyncio.timeout(20):
        while (pid := await direct.fetchval(waiting)) is None:  # noqa: ASYNC110  # only PostgreSQL knows
            await asyncio.sleep(0.01)
    await direct.fetchval("SELECT pg_terminate_backend($1)", pid)
    with pytest.raises(Unavailable):
        await storing
    await lock.commit()
    assert await stored(direct) == []
    assert await store.pings.store([chunk(VENDOR, range(T0, T0 + 3))], True) == {}
    assert await stored(direct) == pings(VENDOR, range(T0, T0 + 3))


@pytest.mark.parametrize("retry", [False, True])
async def test_a_lock_that_is_not_released(url: str, direct: Any, retry: bool) -> None:
    """A lock held by a migration or a forgotten session must be reported as an outage."""
    async with opened(url, statement_timeout=0.2) as store:
        async with direct.transaction():
            await direct.execute('LOCK TABLE "locations" IN ACCESS EXCLUSIVE MODE')
            with pytest.raises(Unavailable, match="55P03"):
                await store.pings.store([chunk(VENDOR, [T0])], retry)
            with pytest.raises(Unavailable, match="55P03"):
                await store.locations(VENDOR, T0, T0 + 1, 10)
        assert await store.pings.store([chunk(VENDOR, [T0])], True) == {}
    assert await stored(direct) == pings(VENDOR, [T0])


@pytest.mark.parametrize("retry", [False, True])
async def test_a_cancelled_call_leaves_no_trace(store: Store, direct: Any, retry: bool) -> None:
    """A server that stops during a batch must stop, and its connection must not be reused in an unknown state."""
    async with direct.transaction():
        await direct.execute('LOCK TABLE "locations" IN ACCESS EXCLUSIVE MODE')
        storing = asyncio.create_task(store.pings.store([chunk(VENDOR, [T0])], retry))
        await asyncio.sleep(0.1)
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
    assert await store.pings.store([chunk(VENDOR, [T0])], True) == {}
    assert await stored(direct) == pings(VENDOR, [T0])


async def test_an_exhausted_pool_is_an_outage_of_bounded_length(url: str, direct: Any) -> None:
    """Requests must not wait without a limit; the limits of the URL apply, as for Prisma."""
    limits = ("&" if "?" in url else "?") + "connection_limit=1&pool_timeout=1"
    async with opened(url + limits, pool_size=9, pool_timeout=99) as store, direct.transaction():
        await direct.execute('LOCK TABLE "locations" IN ACCESS EXCLUSIVE MODE')
        storing = asyncio.create_task(store.pings.store([chunk(VENDOR, [T0])]))

        async def blocked() -> bool:
            return bool(await direct.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        await eventually(blocked, "the only connection waits for the lock")
        with pytest.raises(Unavailable, match=r"within 1 s: all 1 are in use"):
            await vendor(store, VENDOR)
        storing.cancel()
        with suppress(asyncio.CancelledError):
            await storing


async def test_behind_pgbouncer(url: str, direct: Any) -> None:
    """With PgBouncer's transaction pooling, nothing may depend on a session."""
    async with opened(url + ("&" if "?" in url else "?") + "pgbouncer=true") as store:
        for retry in (False, True, True):
            assert await store.pings.store([chunk(VENDOR, [T0, T0 + 1])], retry) == {}
        assert await durable(store) == T0 + 1
    assert await stored(direct) == pings(VENDOR, [T0, T0 + 1])


async def test_a_failed_open_names_the_remedy_and_no_password(unused_tcp_port: int) -> None:
    """The message is shown in logs and on screens."""
    with pytest.raises(Unavailable) as failed:
        Store(await Database.open(f"postgresql://venta:s3cret@127.0.0.1:{unused_tcp_port}/venta_db"))
    assert f"127.0.0.1:{unused_tcp_port}/venta_db" in str(failed.value)
    assert "DATABASE_URL" in str(failed.value)
    assert "s3cret" not in str(failed.value)


async def test_acked_is_on_disk_even_where_commits_are_asynchronous(url: str, direct: Any) -> None:
    """With synchronous_commit=off, the default of some hosts, a crash would lose acked pings."""
    await direct.execute(f'ALTER DATABASE "{urlsplit(url).path[1:]}" SET synchronous_commit = off')
    async with opened(url) as store:
        assert await store.database.run(lambda connection: connection.fetchval("SHOW synchronous_commit")) == "on"


async def test_acked_is_on_disk_after_commits_became_asynchronous(postgres_server: PostgresServer) -> None:
    """A reloaded configuration reaches open sessions: while they are used, acked pings would be lost in a crash."""
    await migrate.upgrade(postgres_server.url)
    async with opened(postgres_server.url, pool_size=1) as store, connected(postgres_server.url) as operator:
        shown = await store.database.run(lambda connection: connection.fetchval("SHOW synchronous_commit"))
        await operator.execute("ALTER SYSTEM SET synchronous_commit = off")
        await operator.execute("SELECT pg_reload_conf()")

        async def reloaded() -> bool:
            return bool(await operator.fetchval("SHOW synchronous_commit") == "off")

        await eventually(reloaded, "the configuration reloaded")
        assert await store.database.run(lambda connection: connection.fetchval("SHOW synchronous_commit")) == shown


async def test_a_server_killed_and_restarted_loses_no_ping(
    postgres_server: PostgresServer, loop_errors: Collected
) -> None:
    """The guarantee of an ack: each of these is stored once, including those acked before the crash."""
    await migrate.upgrade(postgres_server.url)
    await seed(postgres_server.url)
    async with opened(postgres_server.url, statement_timeout=5, pool_timeout=5) as store:
        batcher, supervisor = Batcher(store.pings.store, chance=lambda: 1.0), Supervisor()
        supervisor.start({"batcher": batcher.run})
        acked: list[Chunk] = []

        def settled(chunk: Chunk, rejected: Rejected) -> None:
            assert not rejected
            acked.append(chunk)

        async def report() -> int:
            for n in range(300):
                for vendor_id in VENDORS:
                    await batcher.put(chunk(vendor_id, [T0 + n], settled=settled))
                await asyncio.sleep(0.002)
            return 300 * len(VENDORS)

        reporting = asyncio.create_task(report())
        await asyncio.sleep(0.15)
        postgres_server.kill()
        await asyncio.sleep(0.2)
        acked_before = len(acked)
        assert 0 < acked_before < 300 * len(VENDORS)
        with pytest.raises(Unavailable):
            await store.now()
        await postgres_server.restart()
        total = await reporting
        assert await batcher.drain(30)
        batcher.close()
        await supervisor.stop()
        assert len(acked) == total
        assert batcher.retries > 0
        assert batcher.fault is None
        await store.now()
    async with connected(postgres_server.url) as direct:
        assert await stored(direct) == [p for vendor_id in VENDORS for p in pings(vendor_id, range(T0, T0 + 300))]
    # A COPY on a session that the server just ended leaves an unretrieved future in asyncpg, out of reach of callers.
    gc.collect()
    loop_errors.messages[:] = [
        message for message in loop_errors.messages if "ConnectionDoesNotExistError" not in message
    ]


async def test_a_server_that_hangs_is_given_up_and_taken_up_again(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen machine sends no error, so only a timeout ends the wait. What it received before is stored once."""
    monkeypatch.setattr(database_module, "ANSWER_GRACE", 0.1)
    await migrate.upgrade(postgres_server.url)
    await seed(postgres_server.url)
    async with opened(postgres_server.url, statement_timeout=0.3, pool_timeout=0.5) as store:
        for retry in (False, True):
            await store.pings.store([chunk(OTHER, [T0])], retry)
            postgres_server.pause()
            try:
                with pytest.raises(Unavailable, match="did not answer"):
                    await store.pings.store([chunk(VENDOR, range(T0, T0 + 3))], retry)
                with pytest.raises(Unavailable):
                    await vendor(store, VENDOR)
                with pytest.raises(Unavailable):
                    await store.now()
            finally:
                postgres_server.resume()
            postgres_server.pause()
            try:
                with pytest.raises(Unavailable):
                    await store.ensure_partitions(date(2024, 11, 24), 1)
            finally:
                postgres_server.resume()
            async with asyncio.timeout(30):
                while True:
                    with suppress(Unavailable):
                        assert await store.pings.store([chunk(VENDOR, range(T0, T0 + 3))], True) == {}
                        break
                    await asyncio.sleep(0.05)
    async with connected(postgres_server.url) as direct:
        assert await stored(direct) == pings(VENDOR, range(T0, T0 + 3)) + pings(OTHER, [T0])


# vendors' positions


async def position_of(direct: Any, vendor_id: str) -> tuple[float, float, datetime]:
    row = await direct.fetchrow('SELECT "lat", "long", "locatedAt" FROM "vendors" WHERE "id" = $1', vendor_id)
    return row[0], row[1], row[2]


async def test_an_older_fix_never_replaces_a_newer(store: Store, url: str, direct: Any) -> None:
    """Two servers write the same vendors at the same time, in any order: the newest must remain, without a deadlock."""
    async with opened(url) as another:
        # each server has the newest fix of every second vendor, and writes them in the opposite order
        for n in range(20):
            fixes = [
                [(v, Position(T0 + 10 * n + late, 1.0 * n, 1.0 * late)) for v, late in zip(VENDORS, cycle(lates))]
                for lates in ((0, 1), (1, 0))
            ]
            await asyncio.gather(store.update_positions(fixes[0]), another.update_positions(fixes[1][::-1]))
            for vendor_id in VENDORS[:4]:
                assert await position_of(direct, vendor_id) == (
                    n,
                    1.0,
                    datetime(2024, 11, 24, 17, 0, 0, (10 * n + 1) * 1000),
                )
        await another.update_positions([(VENDOR, Position(T0, 50.0, 50.0))])
        await another.update_positions([])
        await another.update_positions([("nobody", Position(T0, 50.0, 50.0))])
    assert (await position_of(direct, VENDOR))[:2] == (19.0, 1.0)
    behind = await direct.fetchval(
        """SELECT max(abs(EXTRACT(EPOCH FROM now() AT TIME ZONE 'UTC' - "updatedAt"))) FROM "vendors" """
        """WHERE "id" = $1""",
        VENDOR,
    )
    assert behind < 3600  # UTC, whatever the session's time zone


async def test_positions_are_ordered_as_customers_see_them(store: Store, direct: Any) -> None:
    """A backlog must not move back a phone whose clock is ahead, and a wrong clock must not pin a phone."""
    now, chance = int(time.time() * 1000), random.Random(3)
    phones = ((-3_000, 0, 1, 2_000), (-1_000, *range(CLOCK_TOLERANCE - 2, CLOCK_TOLERANCE + 3)), (-3_000, 0, 59_000))
    for ahead in phones * 10:
        await direct.execute('UPDATE "vendors" SET "lat" = NULL, "long" = NULL, "locatedAt" = NULL')
        held: Position | None = None
        for n in range(6):
            at = now + n
            position = arrived(at + chance.choice(ahead), float(n), 0.0, at)
            held = position if held is None else position.after(held) or held
            await store.update_positions([(VENDOR, position)])
            assert (await position_of(direct, VENDOR))[0] == held.lat, f"{position} after {held}"


async def test_a_position_of_a_wrong_server_yields(store: Store, direct: Any) -> None:
    """A server whose clock is an hour ahead must not pin a vendor's position in `vendors` for an hour."""
    now = int(time.time() * 1000)
    await store.update_positions([(VENDOR, Position(now + 3_600_000, 1.0, 1.0))])
    await store.update_positions([(VENDOR, Position(now, 2.0, 2.0))])
    assert (await position_of(direct, VENDOR))[:2] == (2.0, 2.0)


@pytest.mark.parametrize("at_a_time", [1, 2, 1000])
async def test_positions_behind_are_brought_up_after_a_crash(
    store: Store, direct: Any, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed between a commit and the merged update must not leave a parked truck at its old position."""
    monkeypatch.setattr("streamer.storage.store.RECONCILE_VENDORS", at_a_time)
    await store.pings.store([chunk(VENDOR, [T0 + 1, T0 + 9, T0 + 5], lat=7.0), chunk(OTHER, [T0 - 5000], lat=7.0)])
    await store.update_positions([(VENDORS[2], Position(T0, 1.0, 1.0))])
    await store.pings.store([chunk(VENDORS[2], [T0 - 1], lat=7.0)])
    assert await store.reconcile_positions(T0 - 1000) == 1
    assert await position_of(direct, VENDOR) == (7.0, 21.0, datetime(2024, 11, 24, 17, 0, 0, 9000))
    assert (await position_of(direct, OTHER))[0] is None
    assert (await position_of(direct, VENDORS[2]))[:2] == (1.0, 1.0)
    assert await store.reconcile_positions(T0 - 1000) == 0
    await direct.execute("""UPDATE "vendors" SET "locatedAt" = NULL""")
    assert await store.reconcile_positions(T0 - 1000) == 2


async def rows_read(direct: Any, statement: str, *arguments: object) -> int:
    """Returns the number of rows and index entries of locations that a statement reads."""
    (plan,) = json.loads(await direct.fetchval("EXPLAIN (ANALYZE, FORMAT JSON) " + statement, *arguments))
    nodes, read = [plan["Plan"]], 0
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if "locations" in node.get("Relation Name", node.get("Index Name", "")):
            read += node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
    return int(read)


async def test_only_what_is_newer_than_a_position_is_read(store: Store, direct: Any) -> None:
    """With 2,000 vendors that report each second, updating positions at a start exceeded the statement timeout."""
    await store.pings.store([chunk(vendor_id, range(T0, T0 + 1000)) for vendor_id in VENDORS])
    await store.update_positions([(vendor_id, Position(T0 + 999, 52.0, 21.0)) for vendor_id in VENDORS])
    hour = T0 - 3_600_000
    assert await rows_read(direct, queries.RECONCILE_POSITIONS, id_floor(hour), hour, "", "z") == 0
    # where a server with a wrong clock wrote the position
    since = [T0 + 1000] * len(VENDORS)
    assert await rows_read(direct, queries.NEWEST_STORED, VENDORS, since, since, [id_floor(T0)] * len(VENDORS)) == 0


# reading


async def vendor(store: Store, vendor_id: str) -> VendorRow | None:
    """Reads one vendor."""
    return await DataLoader(store).vendor(vendor_id)


async def durable(store: Store) -> int | None:
    """Reads `hello.durable` of a connection."""
    dataloader = DataLoader(store)
    row = await dataloader.vendor(VENDOR)
    assert row is not None
    return await dataloader.durable(row)


async def test_vendors_and_cards(store: Store, direct: Any) -> None:
    """Only the owner may report for a vendor; a deleted one has no owner."""
    row = VendorRow(VENDOR, "clerk", "Truck 0", True, None, None)
    assert await vendor(store, VENDOR) == row
    await store.set_open(VENDOR, False, False, "clerk")
    await store.update_positions([(VENDOR, Position(T0 + 7, 52.5, 21.5))])
    moved = VendorRow(VENDOR, "clerk", "Truck 0", False, None, T0 + 7)
    assert await vendor(store, VENDOR) == moved
    assert [each.vendor_id for each in await store.vendors_of(["clerk"])] == VENDORS
    await direct.execute('UPDATE "vendors" SET "deletedAt" = now() WHERE "id" = $1', OTHER)
    assert await vendor(store, OTHER) is None
    assert await store.cards([VENDOR, OTHER, "nobody", "\0", "\ud800"]) == [moved]
    assert len(await store.vendors_of(["clerk"])) == len(VENDORS) - 1
    await direct.execute('UPDATE "users" SET "deletedAt" = now()')
    assert await vendor(store, VENDOR) is None
    assert await store.vendors_of(["clerk"]) == []
    assert await store.cards([]) == []
    for impossible in ("\0", "\ud800", "", "nobody"):
        assert await vendor(store, impossible) is None
        assert await store.vendors_of([impossible]) == []
        assert await store.newest_stored([(impossible, None)]) == {}
        assert await store.locations(impossible, 0, T0 * 2, 10) == []
        await store.set_open(impossible, True, False, "clerk")


async def test_durable_is_the_newest_stored_ping(store: Store) -> None:
    """An app removes older pings from its queue: a value too new would lose pings, one too old causes resends."""
    assert await durable(store) is None
    await store.pings.store([chunk(VENDOR, [T0, T0 + 60_000]), chunk(OTHER, [T0 + 90_000])])
    assert await durable(store) == T0 + 60_000
    await store.update_positions([(VENDOR, Position(T0 + 60_000, 1.0, 1.0))])
    assert await durable(store) == T0 + 60_000
    await store.pings.store([chunk(VENDOR, [T0 + 70_000, T0 + 30_000])])
    assert await durable(store) == T0 + 70_000


async def test_history_is_paged_without_gaps_or_repeats(store: Store, direct: Any) -> None:
    """Rows with other ids, written by Prisma or an import, belong to the history, too."""
    day = 86_400_000
    timestamps = [T0 - day, T0, T0 + 1, T0 + 2, T0 + day]
    await store.pings.store([chunk(VENDOR, timestamps), chunk(OTHER, timestamps)])
    foreign = ["0198c0de-0000-7000-8000-000000000000", "c0ffee00-0000-4000-8000-000000000000", "zzz", "cm3vuh7k1zzzz"]
    await direct.executemany(
        """INSERT INTO "locations" ("id", "vendorId", "lat", "long", "timestamp") VALUES ($1, $2, 52, 21, $3)""",
        [(id, VENDOR, datetime(2024, 11, 24, 17, 0, 0, 1000)) for id in foreign],
    )
    expected = sorted(
        [(timestamp, location_id(VENDOR, timestamp)) for timestamp in timestamps] + [(T0 + 1, id) for id in foreign]
    )
    for limit in (1, 2, 3, 100):
        found: list[tuple[int, str]] = []
        after = None
        while page := await store.locations(VENDOR, T0 - 2 * day, T0 + 2 * day, limit, after):
            assert len(page) <= limit
            found += [(row.timestamp, row.id) for row in page]
            after = found[-1]
        assert found == expected
    assert await store.locations(VENDOR, T0 + 2, T0 + day, 10) == [
        LocationRow(location_id(VENDOR, T0 + 2), T0 + 2, 52.0, 21.0)
    ]
    assert len(await store.locations(VENDOR, -(10**18), 10**18, 100)) == len(expected)
    assert await store.locations(VENDOR, T0, T0, 10) == []
    assert await store.locations(VENDOR, T0, T0 + 1, 10, (T0 * 9, "x")) == []


async def test_a_database_without_our_tables_is_named_as_such(empty_database_url: str) -> None:
    """The error must contain the remedy; pings must be kept until then."""
    async with opened(empty_database_url) as store:
        with pytest.raises(Unavailable, match="42P01"):
            await store.pings.store([chunk(VENDOR, [T0])])
        with pytest.raises((Unavailable, DatabaseError), match="42P01"):
            await vendor(store, VENDOR)


async def test_position_updates_stay_on_their_page(store: Store, direct: Any) -> None:
    """Thousands of vendors move every second: updates that write all indexes would bloat the table."""
    if direct.get_server_version().major < 16:
        pytest.skip("BRIN indexes do not prevent HOT updates from PostgreSQL 16 on")
    for n in range(20):
        await store.update_positions([(vendor_id, Position(T0 + n, 52.0 + n / 1000, 21.0)) for vendor_id in VENDORS])
    await store.database.close()  # a session sends its statistics at the latest when it ends
    statistics = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'vendors'"

    async def counted() -> bool:
        await direct.execute("SELECT pg_stat_clear_snapshot()")
        return bool((await direct.fetchrow(statistics))[0] >= 20 * len(VENDORS))

    await eventually(counted, "the statistics of the updates")
    updates, hot = await direct.fetchrow(statistics)
    assert updates == hot
