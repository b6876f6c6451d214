"""What it costs the server to show positions live, and how late they are."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from loadtest.cli.progress import Bar
from loadtest.clients.counting_watcher import Spectator
from loadtest.clients.group import counts, minting, running, settled
from loadtest.clients.identity import Identity
from loadtest.clients.ping import Ping
from loadtest.clients.target import Target
from loadtest.clients.vendor import Vendor
from loadtest.errors import WrongUse
from loadtest.measure.histogram import Histogram
from loadtest.measure.process import Processes, per, spent

LAT, LONG = 52.2297, 21.0122
SPREAD = 0.009
RADIUS = 5000.0
TIMED = 10
WARM_UP = 1.0
DRAIN = 1.0
DEAF = 4096
"""Bytes that the system keeps for a watcher that reads nothing."""
MAX_OFFERED = 20_000_000
EMPTY_LAT, EMPTY_LONG = -48.8767, -123.3933


@dataclass(frozen=True, slots=True)
class Live:
    """What to measure: vendors within a kilometre report `hz` times a second, all watchers want all of them.

    `distinct`: no two watchers have the same circle. `idle` watchers of an empty sea only cost memory. `stalled` more
    watchers read nothing after their snapshot.
    """

    target: Target
    secret: str
    identities: Sequence[Identity]
    processes: Processes | None
    hz: float = 1.0
    watchers: int = 200
    seconds: float = 10.0
    distinct: bool = False
    idle: int = 0
    stalled: int = 0
    seed: int = 0


async def run(live: Live, bar: Bar) -> dict[str, Any]:
    """Measure; the report's `ok` is false when the server broke the protocol or left pings unanswered."""
    offered = len(live.identities) * live.hz * live.watchers * live.seconds
    if offered > MAX_OFFERED:
        raise WrongUse(
            f"{offered:,.0f} positions would be delivered, at most {MAX_OFFERED:,} are; ask for less of something"
        )
    report: dict[str, Any] = {"run": "live"}
    if live.idle:
        report["idle"] = await measure_idle(live, bar)
    if live.watchers:
        report |= await measure_fanout(live, bar)
    report["ok"] = not report.get("violations") and not report.get("unanswered", 0)
    return report


async def measure_fanout(live: Live, bar: Bar) -> dict[str, Any]:
    """CPU for each delivered position, and delay from the time each ping was due."""
    random = Random(live.seed)
    snapshots, delays, acks, lag = Histogram(), Histogram(), Histogram(), Histogram()
    vendors = [Vendor(live.target, identity, minting(identity, live.secret), random) for identity in live.identities]
    watchers = [spectator(live, number, random) for number in range(live.watchers)]
    paths = [Path(random) for _ in vendors]
    bar.show("connecting vendors")
    async with running(vendors):
        for vendor, path in zip(vendors, paths, strict=True):
            vendor.ping(path.ping(int(time.time() * 1000)))
        await settled(vendors, 30.0)
        await asyncio.sleep(WARM_UP)
        bar.show("connecting watchers")
        deaf = [spectator(live, number, random) for number in range(live.stalled)]
        async with running(watchers, at_once=10), running(deaf, at_once=10):
            for watcher in deaf:
                if watcher.socket is not None:
                    watcher.socket.narrow(DEAF)
                    watcher.socket.hold(True)
            for watcher in watchers:
                snapshots.record(watcher.snapshot_delay or 0.0)
            await report_all(vendors, paths, live.hz, WARM_UP, Histogram(), bar)
            await asyncio.sleep(DRAIN)
            for watcher in watchers[:: max(1, len(watchers) // TIMED)]:
                watcher.delays = delays
            for vendor in vendors:
                vendor.delays = acks
            counted = totals(watchers)
            resident = live.processes.resident() if live.processes else {}
            cpu, own = (live.processes.cpu() if live.processes else {}), time.process_time()
            began = time.perf_counter()
            sent = await report_all(vendors, paths, live.hz, live.seconds, lag, bar)
            seconds = time.perf_counter() - began
            await asyncio.sleep(DRAIN)
            measured = time.perf_counter() - began
            used = spent(cpu, live.processes.cpu()) if live.processes else None
            own = time.process_time() - own
            delivered, size, frames = (now - then for now, then in zip(totals(watchers), counted, strict=True))
            grown = grown_by(resident, live.processes.resident()) if live.processes else None
            unanswered = await settled(vendors, 30.0)
            return {
                "vendors": len(vendors),
                "hz": live.hz,
                "watchers": len(watchers),
                "distinct": live.distinct,
                "stalled": live.stalled,
                "resident_grown_bytes": grown,
                "seconds": round(seconds, 3),
                "sent": sent,
                "offered": sent * len(watchers),
                "delivered": delivered,
                "delivered_to_offered": round(delivered / max(1, sent * len(watchers)), 4),
                "delivered_per_s": round(delivered / seconds),
                "frames_per_watcher_per_s": round(frames / len(watchers) / seconds, 2),
                "bytes_per_position": round(size / delivered, 2) if delivered else None,
                "cpu_us_per_position": per(used, delivered) if used else None,
                "server_cores": {name: round(value / measured, 3) for name, value in used.items()} if used else None,
                "own_cores": round(own / measured, 3),
                "delay": delays.summary(),
                "ack_delay": acks.summary(),
                "lag": lag.summary(),
                "connect_to_snapshot": snapshots.summary(),
                "unanswered": unanswered,
                "vendor_counts": counts(vendors),
                "watcher_closes": sum(watcher.closes.total() for watcher in watchers),
                "violations": [line for app in (*vendors, *watchers) for line in app.violations][:20],
            }


async def measure_idle(live: Live, bar: Bar) -> dict[str, Any]:
    """Resident memory of the server for each watcher that watches where nothing is."""
    if live.processes is None:
        raise WrongUse("--idle measures the server's memory; give its process by --pid")
    random = Random(live.seed)
    bar.show("connecting idle watchers")
    # the first few make the server allocate what it needs but once
    first = [idle_spectator(live, number, random) for number in range(min(20, live.idle))]
    idle = [idle_spectator(live, number, random) for number in range(live.idle)]
    async with running(first):
        await asyncio.sleep(WARM_UP)
        before = live.processes.resident()
        async with running(idle):
            await asyncio.sleep(WARM_UP)
            after, cpu = live.processes.resident(), live.processes.cpu()
            await asyncio.sleep(max(2.0, min(live.seconds, 10.0)))
            used = spent(cpu, live.processes.cpu())
    grown = {name: round((after[name] - before.get(name, 0.0)) / live.idle) for name in sorted(after)}
    return {"watchers": live.idle, "bytes_per_watcher": grown, "cpu_s_while_idle": used}


def grown_by(before: dict[str, float], after: dict[str, float]) -> dict[str, int]:
    """Bytes by which each process's resident memory grew."""
    return {name: round(size - before.get(name, 0.0)) for name, size in sorted(after.items())}


class Path:
    """A vendor that goes round in a small circle near the centre; each step is some metres."""

    def __init__(self, random: Random) -> None:
        self._lat = LAT + random.uniform(-SPREAD, SPREAD)
        self._long = LONG + random.uniform(-SPREAD, SPREAD)
        self._angle = random.uniform(0, math.tau)

    def ping(self, due: int) -> Ping:
        """The next position, for the epoch ms at which it is due."""
        self._angle += 0.05
        lat, long = self._lat + 0.001 * math.sin(self._angle), self._long + 0.001 * math.cos(self._angle)
        return Ping(due, round(lat, 6), round(long, 6), due)


async def report_all(
    vendors: Sequence[Vendor], paths: Sequence[Path], hz: float, seconds: float, lag: Histogram, bar: Bar
) -> int:
    """Every vendor pings `hz` times a second, spread evenly, each when it is due; returns how many pings that were."""
    total = int(len(vendors) * hz * seconds)
    start = time.time() * 1000
    gap = 1000 / (len(vendors) * hz)
    number, shown = 0, 0.0
    while number < total:
        now = time.time() * 1000
        while number < total and (due := math.ceil(start + number * gap)) <= now:
            which = number % len(vendors)
            vendors[which].ping(paths[which].ping(due))
            lag.record((now - due) / 1000)
            number += 1
        if now - shown > 200:
            shown = now
            bar.show("reporting", number, total)
        await asyncio.sleep(0.001)
    return total


def spectator(live: Live, number: int, random: Random) -> Spectator:
    """A watcher of all vendors; with `distinct` of a circle that no other watcher has."""
    shift = number + 1 if live.distinct else 0
    area = {
        "center": {"lat": LAT + 0.003 * math.sin(shift), "long": LONG + 0.003 * math.cos(shift)},
        "radius": RADIUS + shift,
    }
    identity = live.identities[number % len(live.identities)]
    return Spectator(live.target, area, minting(identity, live.secret), random)


def idle_spectator(live: Live, number: int, random: Random) -> Spectator:
    """A watcher of a piece of ocean, no two the same."""
    area = {"center": {"lat": EMPTY_LAT, "long": EMPTY_LONG + number * 1e-4}, "radius": RADIUS}
    identity = live.identities[number % len(live.identities)]
    return Spectator(live.target, area, minting(identity, live.secret), random)


def totals(watchers: Sequence[Spectator]) -> tuple[int, int, int]:
    """Positions, bytes of updates and frames that all watchers got so far."""
    return (
        sum(watcher.positions for watcher in watchers),
        sum(watcher.update_bytes for watcher in watchers),
        sum(watcher.frames for watcher in watchers),
    )
