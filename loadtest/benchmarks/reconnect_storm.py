"""All clients of a server cut off in the same moment: how they get in again, and what that costs those who stayed.

`python -m loadtest.benchmarks.reconnect_storm --data .venta --clients 5000` against a running `streamer dev`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path as Folder
from random import Random
from typing import Any

from loadtest.benchmarks.live import LAT, LONG, RADIUS, Path
from loadtest.cli.services import Services
from loadtest.clients.app import App
from loadtest.clients.counting_watcher import Spectator
from loadtest.clients.group import minting, running
from loadtest.clients.identity import Identity, enough, seed
from loadtest.clients.ping import Ping
from loadtest.clients.target import Target
from loadtest.clients.vendor import Vendor
from loadtest.engine.database import Database
from loadtest.errors import RunFailed, WrongUse
from loadtest.measure.histogram import Histogram

STAYED = 20
"""Watchers that keep their connections: what they see is timed."""
BEFORE = 5.0
"""Seconds that are measured before the cut."""
BACK_WITHIN = 180.0
QUERIES = "SELECT sum(xact_commit + xact_rollback)::bigint FROM pg_stat_database WHERE datname = current_database()"


async def run(
    target: Target, database_url: str, secret: str, identities: Sequence[Identity], clients: int, hz: float
) -> dict[str, Any]:
    """Cut `clients` watchers and all vendors but half; the report."""
    random = Random(0)
    area = {"center": {"lat": LAT, "long": LONG}, "radius": RADIUS}
    vendors = [Vendor(target, identity, minting(identity, secret), random) for identity in identities]
    paths = [Path(random) for _ in vendors]
    stayed = [Spectator(target, area, minting(identities[0], secret), random) for _ in range(STAYED)]
    herd = [
        Spectator(target, area, minting(identities[number % len(identities)], secret), random)
        for number in range(clients)
    ]
    cut_vendors = vendors[::2]
    async with running(vendors), running(stayed), running(herd, at_once=40), Database(database_url) as database:
        reporting = asyncio.create_task(report(vendors, paths, hz))
        try:
            before = await timed(stayed, BEFORE)
            queries, began = await database.connection.fetchval(QUERIES), time.perf_counter()
            cut = [*herd, *cut_vendors]
            for app in cut:
                app.ready.clear()
                if app.socket is not None:
                    app.socket.abort()
            delays = Histogram()
            for watcher in stayed:
                watcher.delays = delays
            arrivals = await back(cut, began)
            lasted = time.perf_counter() - began
            await asyncio.sleep(1.0)  # PostgreSQL tells of its counts a second late
            queries = await database.connection.fetchval(QUERIES) - queries
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
    per_second = Counter(int(at) for at in arrivals)
    return {
        "clients": clients,
        "vendors_cut": len(cut_vendors),
        "back_within_s": round(lasted, 1),
        "arrivals_per_s": [per_second[second] for second in range(int(lasted) + 1)],
        "refused": sum(count for app in cut for code, count in app.closes.items() if code == 1012),
        "transactions": queries,
        "delay_before": before.summary(),
        "delay_meanwhile": delays.summary(),
    }


async def report(vendors: Sequence[Vendor], paths: Sequence[Path], hz: float) -> None:
    """Every vendor pings `hz` times a second, for ever."""
    number, began = 0, time.monotonic()
    while True:
        while number < (time.monotonic() - began) * hz * len(vendors):
            which = number % len(vendors)
            ping: Ping = paths[which].ping(time.time_ns() // 1_000_000)
            vendors[which].ping(ping)
            number += 1
        await asyncio.sleep(0.005)


async def timed(watchers: Sequence[Spectator], seconds: float) -> Histogram:
    """How old positions are when they are seen."""
    delays = Histogram()
    for watcher in watchers:
        watcher.delays = delays
    await asyncio.sleep(seconds)
    return delays


async def back(apps: Sequence[App], began: float) -> list[float]:
    """When each app was ready again, in seconds since the cut."""

    async def ready(app: App) -> float:
        await app.ready.wait()
        return time.perf_counter() - began

    try:
        async with asyncio.timeout(BACK_WITHIN):
            return list(await asyncio.gather(*map(ready, apps)))
    except TimeoutError:
        missing = sum(not app.ready.is_set() for app in apps)
        raise RunFailed(f"{missing} of {len(apps)} clients are not back after {BACK_WITHIN:g} s") from None


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmarks.reconnect_storm", description=__doc__)
    parser.add_argument("--data", type=Folder, required=True, help="data folder of a running `streamer dev`")
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--vendors", type=int, default=100)
    parser.add_argument("--hz", type=float, default=1.0)
    chosen = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(asyncio.run(against(chosen.data, chosen.clients, chosen.vendors, chosen.hz)), indent=2))


async def against(data: Folder, clients: int, count: int, hz: float) -> dict[str, Any]:
    """Run against the server of a data folder."""
    services = Services.read(data)
    if services.http is None or services.database is None or services.secret is None:
        raise WrongUse(f"{data} does not say all of a server; is it the data folder of a running `streamer dev`?")
    Database(services.database)  # seeding a stranger's database is no less a harm
    identities = enough(await seed(count, services.database), count, "`streamer db seed`")
    return await run(Target.parse(services.http), services.database, services.secret, identities, clients, hz)


if __name__ == "__main__":
    main()
