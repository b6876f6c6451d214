"""Read coalescing: without it, a reconnect storm causes one query per client. A bug would mix up vendors' answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import aiohttp

from streamer.accounts.dataloader import MAX_KEYS, BatchLoader
from streamer.errors import Unavailable
from streamer.storage import seed
from tests.conftest import Running, Serve
from tests.support.apps import VendorApp, eventually, now_ms


def queries(running: Running) -> int:
    """Returns the number of queries for vendors and their newest pings that PostgreSQL has answered."""
    return sum(running.server.counters.postgresql[what].count for what in ("vendors", "durable"))


class Numbers:
    """Returns the squares of even numbers, once released."""

    def __init__(self) -> None:
        self.asked: list[Sequence[int]] = []
        self.let = asyncio.Event()
        self.fails = False

    async def find(self, keys: Sequence[int]) -> Mapping[int, int]:
        self.asked.append(keys)
        await self.let.wait()
        if self.fails:
            raise Unavailable("away")
        return {key: key * key for key in keys if key % 2 == 0}


async def test_callers_during_a_query_share_the_next_one() -> None:
    """One query for the first caller, one for all who call during it; callers with the same key share the answer."""
    numbers = Numbers()
    loader = BatchLoader(numbers.find, "numbers")
    first = asyncio.create_task(loader.get(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(loader.get(key)) for key in (3, 4, 4, 6, 2)]
    await asyncio.sleep(0.01)
    assert numbers.asked == [[2]]
    others[3].cancel()  # a cancelled caller does not cancel the others' query
    numbers.let.set()
    assert await first == 4
    assert await asyncio.gather(*others[:3], others[4]) == [None, 16, 16, 4]
    assert numbers.asked == [[2], [3, 4, 6, 2]]
    assert await loader.get(8) == 64


async def test_no_query_is_too_large_and_none_is_forgotten() -> None:
    """More keys than fit into one query are served by several queries, and none is missed."""
    numbers = Numbers()
    numbers.let.set()
    loader = BatchLoader(numbers.find, "numbers")
    answers = await asyncio.gather(*[loader.get(key) for key in range(3 * MAX_KEYS)])
    assert answers == [key * key if key % 2 == 0 else None for key in range(3 * MAX_KEYS)]
    assert max(map(len, numbers.asked)) <= MAX_KEYS
    assert len(numbers.asked) <= 5


async def test_an_outage_is_everyone_s() -> None:
    """An outage fails all waiting callers rather than blocking them, and the next call queries again."""
    numbers = Numbers()
    numbers.let.set()
    numbers.fails = True
    loader = BatchLoader(numbers.find, "numbers")
    failed = await asyncio.gather(*[loader.get(key) for key in range(5)], return_exceptions=True)
    assert all(isinstance(error, Unavailable) for error in failed)
    numbers.fails = False
    assert await loader.get(2) == 4


async def test_many_vendors_connecting_at_once_are_a_few_queries(serve: Serve, database_url: str) -> None:
    """A hundred vendors connect at once: all are greeted with their own newest ping, with only a few queries."""
    vendors = await seed.seed(database_url, 100)
    began = now_ms() - 3_600_000
    running = await serve(admission_rate=10_000.0)
    apps = [VendorApp(running.url, vendor.clerk_id) for vendor in vendors]
    await asyncio.gather(*[app.__aenter__() for app in apps])
    try:
        for number, app in enumerate(apps):
            await app.ping(52.0, 21.0 + number / 1000, timestamp=began + number)
        await asyncio.gather(*[app.acked(1) for app in apps])
    finally:
        await asyncio.gather(*[app.close() for app in apps])
    before = queries(running)
    apps = [VendorApp(running.url, vendor.clerk_id) for vendor in vendors]
    await asyncio.gather(*[app.__aenter__() for app in apps])
    try:
        hellos = await asyncio.gather(*[app.expect("hello") for app in apps])
        assert [hello["durable"] for hello in hellos] == [began + number for number in range(100)]
        assert queries(running) - before < 100
    finally:
        await asyncio.gather(*[app.close() for app in apps])


async def test_connections_above_the_admission_rate_wait_or_get_retry_after(serve: Serve, database_url: str) -> None:
    """A reconnect storm is admitted at the configured rate; clients that would wait too long get a retry time."""
    rate = 2.0
    running = await serve(admission_rate=rate, admission_wait=1.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def come() -> tuple[float, int | None]:
            try:
                socket = await session.ws_connect(running.url.replace("http", "ws") + "/v1/watch")
            except aiohttp.WSServerHandshakeError as refused:
                return loop.time() - began, int(dict(refused.headers or ())["Retry-After"])
            await socket.close()
            return loop.time() - began, None

        came = await asyncio.gather(*[come() for _ in range(60)])
    inside = sorted(at for at, refused in came if refused is None)
    told = [later for _, later in came if later is not None]
    assert inside
    for number, at in enumerate(inside):
        assert at > (number - 1) / rate - 0.05, f"more than {rate} a second, after a first one at once"
    assert len(inside) + len(told) == 60
    assert min(told) >= 1, "a client that comes back at once is refused again"
    assert max(told) > min(told) + 1, "those who come back all together are a storm again"
    await eventually(lambda: not running.server.connections, "no connection left")
    assert running.server.admission.rate.refused == len(told)
