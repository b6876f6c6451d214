"""Health checks for probes and operators: each must fail when its part is broken."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import orjson
import pytest
import redis.asyncio

from streamer import lifecycle, settings
from streamer.errors import Unavailable
from streamer.operations.embedded import PostgresServer, ValkeyServer
from streamer.operations.health import PATIENCE, Probe, Result, shortcomings
from streamer.storage import migrate, partitions, revisions, seed
from streamer.storage.models import METADATA
from streamer.storage.revisions import Condition
from streamer.storage.seed import SeededVendor
from tests.conftest import SERVING_ROLE, Collected, Running, Serve
from tests.support.apps import CustomerApp, VendorApp, circle, eventually
from tests.support.issuer import EC, Issuer


async def ask(session: aiohttp.ClientSession, running: Running, path: str) -> tuple[int, dict[str, Any]]:
    async with session.get(running.url + path) as response:
        assert response.headers["Cache-Control"] == "no-store" or response.status == 404
        return response.status, orjson.loads(await response.read())


async def unhealthy(session: aiohttp.ClientSession, running: Running, path: str, part: str) -> dict[str, Any]:
    """Waits until a part makes it fail; returns the answer."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        status, answer = await ask(session, running, path)
        found[:] = [answer]
        return status == 503 and part in answer.get("causes", {})

    await eventually(there, f"{path} that complains of {part}, only: {found}", within=20)
    return found[0]


async def well(session: aiohttp.ClientSession, running: Running, path: str) -> dict[str, Any]:
    """Waits until nothing is wrong; returns the answer."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        status, answer = await ask(session, running, path)
        found[:] = [answer]
        return status == 200

    await eventually(there, f"{path} without complaints, only: {found}", within=20)
    return found[0]


async def test_health_of_a_healthy_server(serve: Serve, database_url: str, session: aiohttp.ClientSession) -> None:
    """The documented members, and those that an operator reads first."""
    vendor = (await seed.seed(database_url, 3))[0]
    running = await serve()
    direct = await asyncpg.connect(database_url)
    await direct.execute("ANALYZE")
    await direct.close()
    async with VendorApp(running.url, vendor.clerk_id) as app:
        await app.ping(52.2, 21.0)
        await app.acked(1)
        answer = await well(session, running, "/health")
    assert answer["status"] == "healthy"
    assert abs(datetime.fromisoformat(answer["timestamp"]) - datetime.now(UTC)).total_seconds() < 60
    tables = {each["table"]: each for each in answer["tables"]}
    assert set(tables) >= set(METADATA.tables)
    assert not any("_default" in name or name[-1].isdecimal() for name in tables), "a partition belongs to its table"
    assert tables["vendors"]["rows"] == 3
    assert tables["locations"]["bytes"] > 8192
    checks = answer["checks"]
    assert all(check["ok"] for check in checks.values()), checks
    assert checks["migration"]["revision"] == revisions.head()
    assert checks["partitions"]["daysAhead"] >= 6
    assert checks["storing"]["waiting"] == 0
    assert "error" not in answer
    assert (await ask(session, running, "/livez"))[1] == {"status": "ok"}
    assert (await ask(session, running, "/readyz"))[1] == {"status": "ready"}


async def test_asked_by_many_it_asks_once(serve: Serve, session: aiohttp.ClientSession) -> None:
    """Load balancers send frequent probes, which must not cause load on PostgreSQL."""
    running = await serve()
    await asyncio.gather(*[ask(session, running, path) for path in ("/health", "/readyz") * 50])
    health = running.server.health
    before = (health.condition.runs, health.sizes.runs)
    await asyncio.gather(*[ask(session, running, path) for path in ("/health", "/readyz") * 50])
    after = (health.condition.runs, health.sizes.runs)
    # At most once more each, even on a slow machine: 200 requests take less than the shortest cache time.
    assert sum(after) - sum(before) <= 4


async def test_postgresql_away_and_back(
    serve: Serve, postgres_server: PostgresServer, session: aiohttp.ClientSession, loop_errors: Collected
) -> None:
    """`/health` names the cause, without secrets. `/readyz` stays 200: if all processes were unready at once, none
    could serve customers, who need no PostgreSQL.
    """
    await migrate.upgrade(postgres_server.url)
    (vendor,) = await seed.seed(postgres_server.url, 1)
    password = urlsplit(postgres_server.url).password
    assert password
    running = await serve(database_url=postgres_server.url)
    async with VendorApp(running.url, vendor.clerk_id) as app:
        await app.expect("hello")
        postgres_server.kill()
        await app.ping(52.2, 21.0)
        answer = await unhealthy(session, running, "/health", "postgresql")
        assert answer["status"] == "unhealthy"
        assert "PostgreSQL at" in answer["causes"]["postgresql"]
        assert password not in str(answer)
        assert "@" not in str(answer)
        answer = await unhealthy(session, running, "/health", "storing")
        assert answer["checks"]["storing"]["waiting"] == 1
        assert answer["error"].startswith(tuple(answer["causes"]))
        assert not answer["checks"]["postgresql"]["ok"]
        assert (await ask(session, running, "/livez"))[0] == 200, "a restart would lose what waits and mend nothing"
        assert await ask(session, running, "/readyz") == (200, {"status": "ready"})
        async with CustomerApp(running.url) as customer:
            await customer.watch("w", circle(52.2, 21.0, 1000))
            await customer.sees("w", {vendor.vendor_id: (52.2, 21.0)})
        await postgres_server.restart()
        await app.acked(1, within=30)
        await well(session, running, "/health")
    loop_errors.messages[:] = [m for m in loop_errors.messages if "ConnectionDoesNotExistError" not in m]


async def test_all_answer_while_nothing_else_does(
    serve: Serve,
    postgres_server: PostgresServer,
    valkey_server: ValkeyServer,
    session: aiohttp.ClientSession,
    loop_errors: Collected,
) -> None:
    """A probe that waits for a hanging PostgreSQL or Redis times out after a second, and the process is restarted."""
    assert PATIENCE < 1
    await migrate.upgrade(postgres_server.url)
    running = await serve(database_url=postgres_server.url, redis_url=valkey_server.url)
    await well(session, running, "/health")
    postgres_server.pause()
    valkey_server.pause()
    try:
        await unhealthy(session, running, "/health", "postgresql")
        await unhealthy(session, running, "/readyz", "redis")
        runs = running.server.health.condition.runs
        assert (await ask(session, running, "/livez"))[0] == 200
        status, answer = await ask(session, running, "/readyz")
        assert (status, set(answer["causes"])) == (503, {"redis"})
        async with session.get(f"{running.url}/metrics") as response:
            assert 'streamer_unhealthy{part="postgresql"} 1.0' in await response.text()
        assert running.server.health.condition.runs - runs <= 1, "they asked PostgreSQL"
    finally:
        valkey_server.resume()
        postgres_server.resume()
    await well(session, running, "/health")
    loop_errors.messages[:] = [m for m in loop_errors.messages if "ConnectionDoesNotExistError" not in m]


async def test_redis_away(serve: Serve, valkey_server: ValkeyServer, session: aiohttp.ClientSession) -> None:
    """`/health` names Redis while it is down, and no longer once it is back."""
    running = await serve(redis_url=valkey_server.url)
    await well(session, running, "/health")
    valkey_server.kill()
    answer = await unhealthy(session, running, "/health", "redis")
    assert not answer["checks"]["redis"]["ok"]
    assert answer["checks"]["postgresql"]["ok"]
    await unhealthy(session, running, "/readyz", "redis")
    await valkey_server.restart()
    assert (await well(session, running, "/health"))["checks"]["redis"]["gaps"] >= 1


async def test_redis_that_refuses_writes(
    serve: Serve, valkey_server: ValkeyServer, session: aiohttp.ClientSession
) -> None:
    """Redis answers, so the cause must contain the remedy; the process is unready, so that customers go elsewhere."""
    running = await serve(redis_url=valkey_server.url)
    async with redis.asyncio.Redis.from_url(valkey_server.url) as client:
        await client.config_set("maxmemory", "1mb")
        assert "maxmemory" in (await unhealthy(session, running, "/readyz", "redis"))["causes"]["redis"]
        async with session.get(f"{running.url}/metrics") as response:
            assert "streamer_redis_up 0.0" in await response.text()
        await client.config_set("maxmemory", "0")
    await well(session, running, "/readyz")


async def test_partitions_that_are_missing(serve: Serve, database_url: str, session: aiohttp.ClientSession) -> None:
    """Vendors are still served, so `/readyz` stays 200; an operator must see it before the next night."""
    running = await serve()
    direct = await asyncpg.connect(database_url)
    for name in await direct.fetch(
        "SELECT relname FROM pg_class WHERE relname ~ '^locations_[0-9]+$' AND relkind = 'r'"
    ):
        await direct.execute(f"DROP TABLE {name[0]}")
    await direct.close()
    answer = await unhealthy(session, running, "/health", "partitions")
    assert "streamer db upgrade" in answer["causes"]["partitions"]
    assert (await ask(session, running, "/readyz"))[0] == 200


async def test_an_issuer_that_is_away(serve: Serve, session: aiohttp.ClientSession) -> None:
    """Tokens with new keys are refused; known keys stay valid, so another process would be no better."""
    async with Issuer(EC["e1"]) as issuer:
        issuer.status = 503
        running = await serve(jwks_url=issuer.url)
        answer = await unhealthy(session, running, "/health", "jwks")
        assert "503" in answer["causes"]["jwks"]
        assert await ask(session, running, "/readyz") == (200, {"status": "ready"})
        async with session.get(f"{running.url}/metrics") as response:
            assert 'streamer_unhealthy{part="jwks"} 1.0' in await response.text()
        issuer.status = 200
        await well(session, running, "/health")


async def test_an_issuer_that_is_away_from_the_start(
    serving_url: str, serving_redis_url: str, session: aiohttp.ClientSession
) -> None:
    """All customers would be refused: a rolling restart must stop, and a load balancer must choose another process."""
    places: dict[str, Any] = {"database_url": serving_url, "redis_url": serving_redis_url, "port": 0, "pool_size": 4}
    async with Issuer(EC["e1"]) as issuer:
        issuer.status = 503
        configured = settings.load(**places, jwks_url=issuer.url, watch_auth="required", drain_timeout=2.0)
        async with lifecycle.serving(configured) as served:
            running = Running(*served)
            assert "jwks" in (await ask(session, running, "/readyz"))[1]["causes"], "before the first answer"
            await eventually(lambda: running.server.broker.up, "Redis heard")
            assert set((await unhealthy(session, running, "/readyz", "jwks"))["causes"]) == {"jwks"}
            async with session.get(f"{running.url}/metrics") as response:
                assert 'streamer_unready{part="jwks"} 1.0' in await response.text()
            issuer.status = 200
            await well(session, running, "/readyz")


@pytest.mark.parametrize(
    ("part", "table", "privilege"),
    [("change-poller", "streamer_changes", "SELECT"), ("positions", "vendors", "UPDATE (lat, long)")],
)
async def test_a_privilege_that_is_missing(
    serve: Serve,
    direct: Any,
    vendor: SeededVendor,
    session: aiohttp.ClientSession,
    part: str,
    table: str,
    privilege: str,
) -> None:
    """Pings are stored: only `/health` reports that deleted users stay or `vendors.lat` and `long` are outdated."""
    running = await serve(change_poll_interval=0.2, position_interval=0.1)
    await well(session, running, "/health")
    await direct.execute(f"REVOKE {privilege} ON {table} FROM {SERVING_ROLE}")
    async with VendorApp(running.url, vendor.clerk_id) as app:
        await app.ping(52.2, 21.0)
        await app.acked(1)
        answer = await unhealthy(session, running, "/health", part)
    assert set(answer["causes"]) == {part}
    assert (await ask(session, running, "/readyz"))[0] == 200
    await direct.execute(f"GRANT {privilege} ON {table} TO {SERVING_ROLE}")
    await well(session, running, "/health")


@pytest.mark.parametrize(
    ("condition", "parts"),
    [
        (Condition("new", True, True, 7), set()),
        (Condition("newer, of the next version", False, False, 7), set()),
        (Condition("old", True, False, 7), {"migration"}),
        (Condition(None, False, False, 7), {"migration"}),
        (Condition("new", True, True, 1), set()),
        (Condition("new", True, True, 0), {"partitions"}),
        (Condition("old", True, False, -1), {"migration", "partitions"}),
    ],
)
def test_what_needs_somebody(condition: Condition, parts: set[str]) -> None:
    """A database behind this version or without tomorrow's partition is named; one ahead, as in an upgrade, is not."""
    assert set(shortcomings(Result(condition, None, 0.0))) == parts


async def test_condition(database_url: str) -> None:
    """Seven days of partitions without tomorrow's count as none: the next day's pings need tomorrow's."""
    today = date(2031, 3, 1)
    direct = await asyncpg.connect(database_url)
    try:
        assert (await revisions.condition(direct, today)).days_ahead == -1
        await partitions.ensure_partitions(direct, today, 4)
        assert await revisions.condition(direct, today) == Condition(revisions.head(), True, True, 4)
        await direct.execute("DROP TABLE locations_20310303")
        assert (await revisions.condition(direct, today)).days_ahead == 1
    finally:
        await direct.close()


async def test_a_probe_that_fails_is_asked_again_soon() -> None:
    """A failure must be cached for less time than a success, or a short outage would be reported for long."""
    answers: list[Exception | int] = [Unavailable("away"), ValueError("odd"), 7]

    async def answered() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    probe = Probe(answered, 3600.0)
    assert [each.cause for each in await asyncio.gather(probe.result(), probe.result())] == ["away", "away"]
    await eventually(lambda: _cause(probe, "ValueError('odd')"), "the next answer")
    await eventually(lambda: _cause(probe, None), "a good answer")
    assert (await probe.result()).value == 7
    assert probe.runs == 3


async def test_an_answer_does_not_wait_for_a_query_that_hangs() -> None:
    """A probe gets the previous result in time; the query continues, and its result is used afterwards."""
    go = asyncio.Event()
    go.set()
    answers = [1, 2]

    async def answered() -> int:
        await go.wait()
        return answers.pop(0)

    probe = Probe(answered, 0.0)
    assert (await probe.result()).value == 1
    go.clear()
    assert (await probe.result()).value == 1
    go.set()
    await eventually(lambda: probe.latest.value == 2, "the query's result")
    await probe.close()


async def _cause(probe: Probe[int], cause: str | None) -> bool:
    return (await probe.result()).cause == cause


async def test_who_gives_up_takes_the_answer_from_nobody() -> None:
    """A client that disconnects must not fail the probes of others."""
    go = asyncio.Event()

    async def answered() -> int:
        await go.wait()
        return 1

    probe = Probe(answered, 60.0)
    impatient, patient = asyncio.create_task(probe.result()), asyncio.create_task(probe.result())
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    go.set()
    assert (await patient).value == 1
    go.clear()
    await probe.close()
