"""Metrics for a scraper: figures must be correct, and the number of series must not grow with clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from random import Random
from typing import Any

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text

from streamer.accounts.tokens import make_token
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.vendor import Card, Presence
from streamer.live.view import ViewKey
from streamer.live.watch import Watch
from streamer.operations.embedded import PostgresServer
from streamer.storage import migrate, seed
from streamer.storage.seed import SeededVendor
from tests.conftest import Collected, Running, Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually, now_ms
from tests.support.viewer import Client

LAT, LONG = 52.2297, 21.0122
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"

Sample = tuple[str, frozenset[tuple[str, str]]]


OWN_WORK = (
    "streamer_clock_offset_",
    "streamer_database_",
    "streamer_migration_",
    "streamer_partitions_",
    "streamer_postgresql_",
)


class Scraper:
    """Scrapes a server."""

    def __init__(self, session: aiohttp.ClientSession, running: Running) -> None:
        self.session = session
        self.url = running.url

    async def scrape(self) -> dict[Sample, float]:
        async with self.session.get(f"{self.url}/metrics") as response:
            assert response.status == 200
            families = prometheus_text(await response.text())
            return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    async def value(self, name: str, **labels: str) -> float:
        """Returns a sample's value; 0 if it does not exist yet."""
        return (await self.scrape()).get((name, frozenset(labels.items())), 0.0)

    async def shows(self, value: float, name: str, **labels: str) -> None:
        """Waits until a sample has this value."""
        seen: list[float] = []

        async def there() -> bool:
            seen[:] = [await self.value(name, **labels)]
            return seen[0] == value

        await eventually(there, f"{name} {labels} being {value}, only {seen}")


@pytest.fixture
async def running(serve: Serve, vendors: list[SeededVendor]) -> Running:
    return await serve()


@pytest.fixture
async def scraper(running: Running) -> AsyncIterator[Scraper]:
    async with aiohttp.ClientSession() as session:
        yield Scraper(session, running)


async def test_the_path_of_a_ping_is_counted(running: Running, scraper: Scraper, vendors: list[SeededVendor]) -> None:
    """Every ping is counted as stored or as rejected with its reason, and the watcher's frame is counted, too."""
    async with CustomerApp(running.url) as customer, VendorApp(running.url, vendors[0].clerk_id) as app:
        await customer.watch("w", circle(LAT, LONG, 1000))
        await app.ping(LAT, LONG)
        await app.send(
            {"type": "pings", "pings": [{"lat": LAT, "long": LONG, "timestamp": now_ms() + n} for n in (1, 2)]}
        )
        await app.send({"type": "pings", "pings": [{"lat": 95, "long": LONG}, {"lat": LAT, "long": LONG}]})
        await app.send({"type": "ping", "lat": LAT, "long": LONG, "timestamp": now_ms() + 3_600_000})
        await app.send(b"no JSON")
        await app.acked(6)
        await customer.sees("w", {vendors[0].vendor_id: (LAT, LONG)})
        await app.expect("error")
        await scraper.shows(4, "streamer_pings_stored_total")
        assert await scraper.value("streamer_pings_rejected_total", reason="ERR_INVALID_COORDINATES") == 1
        assert await scraper.value("streamer_pings_rejected_total", reason="ERR_TIMESTAMP_IN_FUTURE") == 1
        assert await scraper.value("streamer_messages_refused_total", code="ERR_INVALID_JSON") == 1
        samples = await scraper.scrape()
        none: frozenset[tuple[str, str]] = frozenset()
        assert samples["streamer_batch_pings_sum", none] == 4
        assert samples["streamer_ack_seconds_count", none] >= 1
        assert samples["streamer_commit_seconds_count", none] == samples["streamer_batch_pings_count", none]
        assert samples["streamer_postgresql_seconds_count", frozenset({("work", "copy")})] >= 1
        assert samples["streamer_redis_seconds_count", frozenset({("lane", "write")})] >= 1
        assert samples["streamer_frames_total", none] >= 1
        assert samples["streamer_frame_bytes_total", none] > 50
        assert samples["streamer_positions_delivered_total", none] >= 1
        assert samples["streamer_live_changes_total", none] >= 1
        assert samples["streamer_watches", none] == 1
        assert samples["streamer_connections", frozenset({("kind", "vendor")})] == 1
        assert samples["streamer_connections", frozenset({("kind", "watch")})] == 1
        assert samples["streamer_unready", frozenset({("part", "redis")})] == 0
        assert samples["streamer_unhealthy", frozenset({("part", "storing")})] == 0
        assert samples["streamer_redis_up", none] == 1
        assert samples["streamer_loop_delay_seconds_count", none] >= 0
        assert samples["process_resident_memory_bytes", none] > 1e7
    await scraper.shows(0, "streamer_connections", kind="vendor")
    await scraper.shows(1, "streamer_connections_closed_total", kind="vendor", code="1000")
    # merged by vendor: four stored pings are fewer writes
    await eventually(lambda: scraper_sum(running) >= 1, "a written position")


def scraper_sum(running: Running) -> int:
    return running.server.positions.written


async def test_closes_are_counted_by_code(running: Running, scraper: Scraper, vendors: list[SeededVendor]) -> None:
    """Closes are counted by the server's code; a code invented by a client adds no series."""
    async with VendorApp(running.url, "clerk_nobody") as app:
        code = await app.closed()
    await scraper.shows(1, "streamer_connections_closed_total", kind="vendor", code=str(code))
    for made_up in (3001, 3002, 4999):
        async with VendorApp(running.url, vendors[0].clerk_id) as app:
            await app.expect("hello")
            await app.socket.close(code=made_up)
    await scraper.shows(3, "streamer_connections_closed_total", kind="vendor", code="other")
    async with CustomerApp(running.url) as customer:
        await customer.cut()
        await scraper.shows(1, "streamer_connections_closed_total", kind="watch", code="1006")


async def test_no_label_grows_with_what_clients_send(
    running: Running, scraper: Scraper, vendors: list[SeededVendor]
) -> None:
    """A scanner that requests a thousand paths, methods and vendors must not add a thousand series."""
    headers = {"Authorization": f"Bearer {make_token(SECRET, vendors[0].clerk_id, 600)}"}

    async def scan(numbers: Iterable[int]) -> None:
        for n in numbers:
            asked = {f"/wp-{n}": "GET", f"/v1/vendors/c{n}": "GET", "/health": "PUT", "/livez": "PROPFIND"}
            for path, method in asked.items():
                async with scraper.session.request(method, running.url + path, headers=headers) as response:
                    assert response.status >= 400

    async def series() -> set[Sample]:
        # the server's own queries and commands appear once they are first run
        return {sample for sample in await scraper.scrape() if not sample[0].startswith(OWN_WORK)}

    await scan(range(3))
    await series()
    before = await series()
    await scan(range(3, 30))
    assert await series() == before
    assert await scraper.value("streamer_http_requests_total", method="GET", route="none", status="404") == 30
    assert (
        await scraper.value("streamer_http_requests_total", method="GET", route="/v1/vendors/{id}", status="404") == 30
    )


async def test_both_formats(running: Running, scraper: Scraper) -> None:
    """Prometheus requests OpenMetrics by default, and its parser is strict."""
    async with scraper.session.get(f"{running.url}/health") as response:
        assert response.status == 200  # so that both have the database's state
    async with scraper.session.get(f"{running.url}/metrics", headers={"Accept": OPEN_METRICS}) as response:
        assert response.content_type == "application/openmetrics-text"
        strict = {family.name for family in open_metrics(await response.text())}  # type: ignore[no-untyped-call]
    async with scraper.session.get(f"{running.url}/metrics") as response:
        assert response.content_type == "text/plain"
        text = await response.text()
    assert {name.removesuffix("_info") for name in strict} == {
        family.name.removesuffix("_info") for family in prometheus_text(text)
    }
    assert "clerk" not in text
    for line in text.splitlines():
        if line.startswith("# HELP streamer_"):
            assert line.endswith("."), f"not explained: {line}"


async def test_an_outage_shows(serve: Serve, postgres_server: PostgresServer, loop_errors: Collected) -> None:
    """The metrics show which part fails, how many pings wait and for how long."""
    await migrate.upgrade(postgres_server.url)
    vendor = (await seed.seed(postgres_server.url, 1))[0]
    running = await serve(database_url=postgres_server.url)
    async with aiohttp.ClientSession() as session, VendorApp(running.url, vendor.clerk_id) as app:
        scraper = Scraper(session, running)
        await app.expect("hello")
        await scraper.shows(0, "streamer_unhealthy", part="postgresql")
        postgres_server.kill()
        await scraper.shows(1, "streamer_unhealthy", part="postgresql")  # also while no vendor sends pings
        await app.ping(LAT, LONG)
        await scraper.shows(1, "streamer_unhealthy", part="storing")
        samples: dict[Any, float] = await scraper.scrape()
        none: frozenset[tuple[str, str]] = frozenset()
        assert samples["streamer_buffer_pings", none] == 1
        assert samples["streamer_buffer_oldest_seconds", none] > 0
        assert 0 < samples["streamer_buffer_fill_ratio", none] < 0.01
        await postgres_server.restart()
        await app.acked(1, within=30)
        await scraper.shows(0, "streamer_unhealthy", part="storing")
        await scraper.shows(0, "streamer_unhealthy", part="postgresql")
        assert await scraper.value("streamer_store_retries_total") >= 1
    loop_errors.messages[:] = [m for m in loop_errors.messages if "ConnectionDoesNotExistError" not in m]


def test_positions_delivered_are_reckoned_well() -> None:
    """The CPU time per delivered position is computed from this number, which must be accurate to a few percent."""
    index = LiveIndex("me")
    clients = [Client() for _ in range(3)]
    for number in range(600):
        index.put_card(f"cvendor{number}", Card(1, "Truck", True, None), 0)
        index.put_presence(f"cvendor{number}", Presence(1, "me", 0), 0)
        index.put_fix(f"cvendor{number}", Fix(1, LAT, LONG), 0)
    for client, listed in zip(clients, (600, 600, 5), strict=True):
        key = ViewKey(None, frozenset(f"cvendor{number}" for number in range(listed)), False)
        index.watch(Watch("w", client), key, 0)
    index.tick(1)
    chance = Random(7)
    for now in range(2, 200):
        for number in chance.sample(range(600), chance.choice((1, 3, 200, 600))):
            heading = chance.choice((None, 12.5))
            index.put_fix(f"cvendor{number}", Fix(now, LAT + chance.random(), LONG, heading, heading), now)
        index.tick(now)
    delivered = sum(frame.count(b'"vendorId":') for client in clients for frame in client.frames)
    assert delivered > 50_000
    assert abs(index.delivered - delivered) < 0.05 * delivered
    assert index.sent == sum(len(frame) for client in clients for frame in client.frames)
