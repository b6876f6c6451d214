"""What it costs the server to store pings, next to what PostgreSQL itself can take in the same minutes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from loadtest.benchmarks.stream import Stream, frames
from loadtest.cli.progress import Bar
from loadtest.clients.group import minting
from loadtest.clients.identity import Identity
from loadtest.clients.ping import Ping
from loadtest.clients.target import Target
from loadtest.engine.database import Database, Row, rows
from loadtest.errors import RunFailed
from loadtest.measure.histogram import Histogram
from loadtest.measure.process import Processes, per, spent

BATCH = 500
PAST = 500_000
FUTURE = 30_000
MAX_PINGS = 500_000
MAX_SINGLE = 200_000
GRACE = 60.0
LATENCY_RATE = 100
PARTS = ("batches", "single", "many", "latency")


@dataclass(frozen=True, slots=True)
class Ingest:
    """What to measure: `connections` send batches, `many` send one ping a second; `window` is in batches of 500."""

    target: Target
    secret: str
    identities: Sequence[Identity]
    database: Database
    processes: Processes | None
    seconds: float = 10.0
    connections: int = 16
    many: int = 1000
    window: int = 4
    single_window: int = 1000
    bare_rows: int = 50_000
    parts: Sequence[str] = field(default=PARTS)
    seed: int = 0


def vendors_needed(connections: int, many: int) -> int:
    """How many vendors a run speaks for: each part has its own, so that their times don't meet."""
    return connections + 2 + max(many, 1)


async def run(ingest: Ingest, bar: Bar) -> dict[str, Any]:
    """Measure part after part; the report's `ok` is false when something was not stored."""
    newest = await ingest.database.newest([identity.vendor_id for identity in ingest.identities])
    clock = Calendar(newest, int(time.time() * 1000))
    # the parts that need most timestamps get the vendors that have most left
    single, *others = sorted(ingest.identities, key=lambda identity: newest.get(identity.vendor_id, 0))
    batching, (latency, *many) = others[: ingest.connections], others[ingest.connections :]
    random = Random(ingest.seed)
    report: dict[str, Any] = {"run": "ingest", "seconds": ingest.seconds}
    if "batches" in ingest.parts:
        bar.show("bare COPY, before")
        before = await bare(ingest, clock, many, random)
        bar.show("batches")
        batches = await measure_batches(ingest, clock, batching, before["rows_per_s"], random)
        bar.show("bare COPY, after")
        after = await bare(ingest, clock, many, random)
        base = (before["rows_per_s"] + after["rows_per_s"]) / 2
        report |= {"bare_before": before, "batches": batches, "bare_after": after}
        report["durable_to_bare"] = round(batches["durable_per_s"] / base, 3)
    if "single" in ingest.parts:
        bar.show("single pings")
        report["single"] = await measure_single(ingest, clock, single, random)
    if "many" in ingest.parts:
        bar.show(f"{ingest.many} connections, one ping a second each")
        report["many"] = await measure_many(ingest, many[: ingest.many], random)
    if "latency" in ingest.parts:
        bar.show("ack latency beside bare commits")
        report["latency"] = await measure_latency(ingest, latency, many[-1], random)
    parts = [report[part] for part in ingest.parts]
    report["ok"] = all(part["sent"] == part["acked"] == part["stored"] and not part["rejected"] for part in parts)
    return report


class Calendar:
    """Hands out timestamps that no ping of a vendor has yet: rising, a few minutes old, so that each goes live too.

    `newest` is what is stored of each vendor, `now` and all times are epoch ms.
    """

    def __init__(self, newest: dict[str, int], now: int) -> None:
        self._next = {vendor_id: max(timestamp + 1, now - PAST) for vendor_id, timestamp in newest.items()}
        self._default = now - PAST
        self._last = now + FUTURE

    def take(self, vendor_id: str, count: int) -> range:
        """The next `count` milliseconds of one vendor."""
        first = self._next.get(vendor_id, self._default)
        self._next[vendor_id] = first + count
        if first + count > self._last:
            raise RunFailed(
                f"vendor {vendor_id} has no {count} free milliseconds left before now; "
                "wait some minutes, give other vendors or ask for fewer seconds"
            )
        return range(first, first + count)


def wander(timestamps: range, random: Random) -> list[Ping]:
    """Pings of one vendor that moves through a city, a step each timestamp."""
    lat, long = 52.2297 + random.uniform(-0.05, 0.05), 21.0122 + random.uniform(-0.08, 0.08)
    north, east = random.uniform(-2e-6, 2e-6), random.uniform(-2e-6, 2e-6)
    return [
        Ping(timestamp, round(lat + north * (step % 10_000), 6), round(long + east * (step % 10_000), 6), timestamp)
        for step, timestamp in enumerate(timestamps)
    ]


async def bare(ingest: Ingest, clock: Calendar, vendors: Sequence[Identity], random: Random) -> dict[str, Any]:
    """How fast one COPY of ready rows into `locations` is, committed."""
    share = -(-ingest.bare_rows // len(vendors))
    ready: list[Row] = rows(
        (identity.vendor_id, ping)
        for identity in vendors
        for ping in wander(clock.take(identity.vendor_id, share), random)
    )
    ready.sort(key=lambda row: row[0])  # as time would bring them
    used = Usage(ingest.processes)
    began = time.perf_counter()
    await ingest.database.copy(ready)
    seconds = time.perf_counter() - began
    return {
        "rows": len(ready),
        "seconds": round(seconds, 4),
        "rows_per_s": round(len(ready) / seconds),
        "cpu_us_per_row": used.per(len(ready)),
        "own_cpu_us_per_row": used.own(len(ready)),
    }


async def measure_batches(
    ingest: Ingest, clock: Calendar, vendors: Sequence[Identity], bare_rate: float, random: Random
) -> dict[str, Any]:
    """How many pings a second become durable through many connections that send full batches."""
    wanted = min(bare_rate * ingest.seconds, MAX_PINGS)
    batches = max(1, round(wanted / BATCH / len(vendors)))
    times = {identity.vendor_id: clock.take(identity.vendor_id, batches * BATCH) for identity in vendors}
    ready = [frames(wander(some, random), BATCH) for some in times.values()]
    async with streams(ingest, vendors) as opened:
        used = Usage(ingest.processes)
        began = time.perf_counter()
        # the number is what bounds this part; the time limit is for a server far slower than PostgreSQL
        await together(
            stream.drive(sending, BATCH, ingest.window, 3 * ingest.seconds, GRACE)
            for stream, sending in zip(opened, ready, strict=True)
        )
        result = outcome(opened, time.perf_counter() - began, used)
    # an ack alone proves nothing: the database itself is asked what it has
    stored = await ingest.database.count(times)
    return result | {"stored": stored, "connections": len(vendors), "batch": BATCH, "window": ingest.window}


async def measure_single(ingest: Ingest, clock: Calendar, vendor: Identity, random: Random) -> dict[str, Any]:
    """How many pings a second one connection gets stored that sends each in a message of its own."""
    count = min(int(20_000 * ingest.seconds), MAX_SINGLE)
    times = clock.take(vendor.vendor_id, count)
    ready = frames(wander(times, random), 1)
    async with streams(ingest, [vendor]) as opened:
        used = Usage(ingest.processes)
        began = time.perf_counter()
        await opened[0].drive(ready, 1, ingest.single_window, ingest.seconds, GRACE)
        result = outcome(opened, time.perf_counter() - began, used)
    stored = await ingest.database.count({vendor.vendor_id: times})
    return result | {"stored": stored, "window": ingest.single_window}


async def measure_many(ingest: Ingest, vendors: Sequence[Identity], random: Random) -> dict[str, Any]:
    """What many phones cost that each send one ping a second, spread evenly; open loop."""
    delays = Histogram()
    paths = [wander(range(int(ingest.seconds) + 1), random) for _ in vendors]
    async with streams(ingest, vendors, delays) as opened:
        used = Usage(ingest.processes)
        began, first = time.perf_counter(), int(time.time() * 1000)
        total = len(opened) * max(1, int(ingest.seconds))
        for number in range(total):
            due = began + number / len(opened)
            await pause_until(due)
            second, which = divmod(number, len(opened))
            place = paths[which][second]
            timestamp = opened[which].stamp()
            opened[which].ping(Ping(timestamp, place.lat, place.long, timestamp), due)
        for stream in opened:
            await stream.answered(GRACE)
        result = outcome(opened, time.perf_counter() - began, used)
    stored = await ingest.database.count({stream.identity.vendor_id: range(first, stream.stamp()) for stream in opened})
    return result | {"stored": stored, "connections": len(vendors), "ack_delay": delays.summary()}


async def measure_latency(ingest: Ingest, vendor: Identity, beside: Identity, random: Random) -> dict[str, Any]:
    """How long an ack takes at 100 pings a second, and in the gaps a bare commit of one row of the vendor `beside`."""
    acks, commits = Histogram(), Histogram()
    count = max(1, int(ingest.seconds * LATENCY_RATE))
    path = wander(range(2 * count), random)
    async with streams(ingest, [vendor], acks) as opened:
        used = Usage(ingest.processes)
        began, first = time.perf_counter(), int(time.time() * 1000)
        skipped = 0
        for number in range(count):
            due = began + number / LATENCY_RATE
            await pause_until(due)
            now = opened[0].stamp()
            opened[0].ping(Ping(now, path[2 * number].lat, path[2 * number].long, now), time.perf_counter())
            await pause_until(due + 0.5 / LATENCY_RATE)
            if time.perf_counter() > due + 0.9 / LATENCY_RATE:
                skipped += 1  # the commit before took so long that this one would run into the next ping
                continue
            now = int(time.time() * 1000)
            row = rows([(beside.vendor_id, Ping(now, path[2 * number + 1].lat, path[2 * number + 1].long, now))])
            start = time.perf_counter()
            await ingest.database.copy(row)
            commits.record(time.perf_counter() - start)
        await opened[0].answered(GRACE)
        result = outcome(opened, time.perf_counter() - began, used)
    return result | {
        "stored": await ingest.database.count({vendor.vendor_id: range(first, opened[0].stamp())}),
        "ack": acks.summary(),
        "bare_commit": commits.summary(),
        "commits_skipped": skipped,
    }


async def pause_until(due: float) -> None:
    """Sleep until a time of perf_counter, if it isn't past."""
    left = due - time.perf_counter()
    if left > 0:
        await asyncio.sleep(left)


@asynccontextmanager
async def streams(
    ingest: Ingest, vendors: Sequence[Identity], delays: Histogram | None = None
) -> AsyncIterator[list[Stream]]:
    """Open connections, one for each vendor, 50 at a time."""
    async with AsyncExitStack() as stack:
        opened = [Stream(ingest.target, identity, minting(identity, ingest.secret), delays) for identity in vendors]
        for first in range(0, len(opened), 50):
            await together(stack.enter_async_context(stream) for stream in opened[first : first + 50])
        yield opened


async def together(work: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Do all of it at once; the first failure ends the rest."""
    async with asyncio.TaskGroup() as group:
        for part in work:
            group.create_task(part)


class Usage:
    """CPU of the server and of this process since it was made."""

    def __init__(self, processes: Processes | None) -> None:
        self._processes = processes
        self._before = processes.cpu() if processes else {}
        self._own = time.process_time()

    def per(self, count: int) -> dict[str, float] | None:
        """Server CPU µs for one of `count`, by kind of process."""
        return per(spent(self._before, self._processes.cpu()), count) if self._processes else None

    def own(self, count: int) -> float:
        """This process's CPU µs for one of `count`."""
        return round((time.process_time() - self._own) / max(count, 1) * 1e6, 2)


def outcome(opened: Sequence[Stream], seconds: float, used: Usage) -> dict[str, Any]:
    """What a part reached."""
    sent, acked = sum(stream.sent for stream in opened), sum(stream.acked for stream in opened)
    rejected = sum(stream.rejected for stream in opened)
    durable = acked - rejected
    return {
        "sent": sent,
        "acked": acked,
        "rejected": rejected,
        "seconds": round(seconds, 3),
        "durable_per_s": round(durable / seconds, 1),
        "cpu_us_per_ping": used.per(durable),
        "own_cpu_us_per_ping": used.own(durable),
    }
