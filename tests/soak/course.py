"""A server under steady load for a long time, with vendors and customers that connect and disconnect."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple
from zlib import crc32

import aiohttp
import asyncpg
import psutil
import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families

from loadtest.clients.target import Identity, Target, minting
from loadtest.clients.vendor import Ping, Vendor
from loadtest.measure.recording import Histogram
from streamer.operations.embedded import PostgresServer, ValkeyServer
from streamer.storage import migrate, seed
from tests.soak.trend import Bound
from tests.support.apps import SECRET
from tests.support.process import ServerProcess
from tests.support.running import running
from tests.support.watchers import CountingWatcher

LAT, LONG, SPREAD = 52.2297, 21.0122, 0.05
RADIUS = 1500.0
CHURN = 0.004
"""The share of clients that disconnect each second; the same number connects."""
STEPS = 4
LATE_MS = 400.0
"""Maximum p90 of acks; above it the load is too high for this machine."""
POOL_SIZE = 4
BOUNDS = {
    "resident_mb": Bound(6.0, 0.01),
    "files": Bound(4.0, 0.02),
    "tasks": Bound(4.0, 0.02),
    "postgres_connections": Bound(POOL_SIZE, 0.0),
    "redis_keys": Bound(4.0, 0.02),
    "partitions": Bound(1.0, 0.0),
    "delay_p50_ms": Bound(3.0, 0.5),
    "delay_p99_ms": Bound(30.0, 1.0),
    "ack_p99_ms": Bound(30.0, 1.0),
}


class Course(NamedTuple):
    """The configuration: the server should use `share` of a core; a sample is taken every `every` seconds."""

    seconds: float
    share: float = 0.5
    vendors: int = 300
    watchers: int = 300
    every: float = 5.0
    calibration: float = 10.0
    seed: int = 0


class Run(NamedTuple):
    """The outcome: samples over time, pings per second, and resources after all clients have disconnected."""

    times: list[float]
    samples: list[dict[str, float]]
    rate: float
    share: float
    left: dict[str, tuple[float, float]]
    """The server's resources before the first client and after the last one."""
    violations: list[str]


class Reporter(Vendor):
    """A vendor's app that times its acks but does not keep its pings, which would fill memory in an hour."""

    delays: Histogram

    def stored(self, pings: list[Ping]) -> None:
        """Records the time since each ping was due."""
        now = time.time()
        for ping in pings:
            self.delays.record(now - ping.due / 1000)


class Soak:
    """One server with its PostgreSQL and Valkey, and its clients."""

    def __init__(self, course: Course, folder: Path) -> None:
        self._course = course
        self._random = Random(course.seed)
        self._folder = folder
        self._stack = AsyncExitStack()
        self._hz = 0.2
        self._delays = Histogram()
        self._acks = Histogram()
        self._vendors: list[Reporter] = []
        self._watchers: list[CountingWatcher] = []
        self._sent = 0
        self._violations: list[str] = []

    @asynccontextmanager
    async def prepared(self) -> AsyncIterator[None]:
        """Starts the server."""
        course = self._course
        async with AsyncExitStack() as stack:
            postgres = await stack.enter_async_context(PostgresServer(self._folder))
            valkey = await stack.enter_async_context(ValkeyServer(self._folder))
            await migrate.upgrade(postgres.url)
            self._identities = [Identity(*one) for one in await seed.seed(postgres.url, course.vendors)]
            log = self._folder / "server.log"
            # Short, so that vendors expire within the run, too, as they do within an hour.
            settings = {"pool_size": POOL_SIZE, "offline_after": 5.0, "leave_after": 10.0}
            self._server = await stack.enter_async_context(ServerProcess(postgres.url, valkey.url, log=log, **settings))
            self._target = Target.parse(self._server.url)
            self._postgres = await asyncpg.connect(postgres.url)
            stack.push_async_callback(self._postgres.close)
            self._valkey = redis.asyncio.Redis.from_url(valkey.url)
            stack.push_async_callback(self._valkey.aclose)
            self._web = await stack.enter_async_context(aiohttp.ClientSession())
            yield

    async def run(self) -> Run:
        """Runs the whole soak test."""
        course = self._course
        await asyncio.sleep(1.0)
        before = await self._held()
        self._vendors = [self._vendor(identity) for identity in self._identities]
        self._watchers = [self._watcher() for _ in range(course.watchers)]
        times: list[float] = []
        samples: list[dict[str, float]] = []
        async with running([*self._vendors, *self._watchers]):
            reporting = asyncio.create_task(self._report())
            churning: asyncio.Task[None] | None = None
            try:
                await self._calibrate()
                churning = asyncio.create_task(self._churn())
                began, cpu, sent = time.monotonic(), self._cpu(), self._sent
                while (now := time.monotonic() - began) < course.seconds:
                    samples.append(await self._sample())
                    times.append(now)
                    await asyncio.sleep(course.every)
                lasted = time.monotonic() - began
                rate, share = (self._sent - sent) / lasted, (self._cpu() - cpu) / lasted
            finally:
                tasks = [task for task in (reporting, churning) if task is not None]
                for task in tasks:
                    task.cancel()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            self._violations += [repr(error) for error in outcomes if isinstance(error, Exception)]
        self._violations += [line for app in (*self._vendors, *self._watchers) for line in app.violations]
        await asyncio.sleep(3.0)
        after = await self._held()
        left = {name: (before[name], after[name]) for name in ("files", "tasks")}
        return Run(times, samples, rate, share, left, self._violations)

    # the load

    async def _calibrate(self) -> None:
        """Raises the rate until the server uses its share of a core, or until the machine or the apps can't keep up."""
        for _ in range(STEPS):
            cpu, began = self._cpu(), time.monotonic()
            self._renew()
            await asyncio.sleep(self._course.calibration / STEPS)
            used = (self._cpu() - cpu) / (time.monotonic() - began)
            late = (self._acks.curve([90]) or [0.0])[0]
            factor = 0.5 if late > LATE_MS else max(0.2, min(4.0, self._course.share / max(used, 0.01)))
            self._hz = min(10.0, self._hz * factor)

    async def _report(self) -> None:
        angle, credit, looked = 0.0, 0.0, time.monotonic()
        while True:
            now = time.monotonic()
            credit = min(credit + (now - looked) * self._hz * len(self._vendors), 1000.0)
            looked = now
            stamp = time.time_ns() // 1_000_000
            while credit >= 1.0:
                credit -= 1.0
                vendor = self._vendors[self._sent % len(self._vendors)]
                self._sent += 1
                angle += 0.01
                place = crc32(vendor.identity.vendor_id.encode()) % 1000 / 1000 * math.tau
                lat = LAT + SPREAD * math.sin(place) + 0.002 * math.sin(angle)
                long = LONG + SPREAD * math.cos(place) + 0.002 * math.cos(angle)
                vendor.ping(Ping(stamp, round(lat, 6), round(long, 6), stamp))
            await asyncio.sleep(0.005)

    async def _churn(self) -> None:
        """Continuously replaces clients, closed gracefully or aborted; no resources of them may remain."""
        random = self._random
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(1 / max(0.1, CHURN * (len(self._vendors) + len(self._watchers))))
                gone: Vendor | CountingWatcher
                come: Vendor | CountingWatcher
                if random.random() < 0.5:
                    at = random.randrange(len(self._watchers))
                    gone, come = self._watchers[at], self._watcher()
                    self._watchers[at] = come
                else:
                    at = random.randrange(len(self._vendors))
                    gone, come = self._vendors[at], self._vendor(self._vendors[at].identity)
                    self._vendors[at] = come
                self._violations += gone.violations
                socket = gone.socket
                if random.random() < 0.5 and socket is not None:
                    gone.stop()
                    socket.abort()
                else:
                    gone.stop()
                group.create_task(come.run())

    def _vendor(self, identity: Identity) -> Reporter:
        vendor = Reporter(self._target, identity, minting(identity, SECRET), self._random)
        vendor.delays = self._acks
        return vendor

    def _watcher(self) -> CountingWatcher:
        random = self._random
        center = {"lat": LAT + random.uniform(-SPREAD, SPREAD), "long": LONG + random.uniform(-SPREAD, SPREAD)}
        watcher = CountingWatcher(self._target, {"center": center, "radius": RADIUS}, None, random)
        watcher.delays = self._delays if random.random() < 0.2 else None
        return watcher

    # samples

    def _cpu(self) -> float:
        times = psutil.Process(self._server.pid).cpu_times()
        return float(times.user + times.system)

    async def _held(self) -> dict[str, float]:
        process = psutil.Process(self._server.pid)
        async with self._web.get(f"{self._server.url}/metrics") as response:
            families = list(text_string_to_metric_families(await response.text()))
        (tasks,) = (s.value for family in families for s in family.samples if s.name == "streamer_tasks")
        return {
            "resident_mb": process.memory_info().rss / (1 << 20),
            "files": float(process.num_fds()),
            "tasks": float(tasks),
        }

    async def _sample(self) -> dict[str, float]:
        connections = await self._postgres.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'venta-streamer'"
        )
        partitions = await self._postgres.fetchval("SELECT count(*) FROM pg_inherits")
        sample = await self._held() | {
            "postgres_connections": float(connections),
            "redis_keys": float(await self._valkey.dbsize()),
            "partitions": float(partitions),
            "pings": float(self._sent),
        }
        for name, histogram in (("delay", self._delays), ("ack", self._acks)):
            p50, p99 = histogram.curve([50, 99]) or (0.0, 0.0)
            sample |= {f"{name}_p50_ms": p50, f"{name}_p99_ms": p99}
        self._renew()
        return sample

    def _renew(self) -> None:
        """Starts new histograms."""
        self._delays, self._acks = Histogram(), Histogram()
        for watcher in self._watchers:
            watcher.delays = self._delays if watcher.delays is not None else None
        for vendor in self._vendors:
            vendor.delays = self._acks
