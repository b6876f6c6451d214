"""Replays a trace: each vehicle is a vendor's app, in the trace's own rhythm, and every ping is accounted for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from loadtest.cli.progress import Bar
from loadtest.clients.group import counts, minting, running, settled
from loadtest.clients.identity import Identity
from loadtest.clients.ping import Ping
from loadtest.clients.target import Target
from loadtest.clients.vendor import Vendor
from loadtest.clients.watcher import Watcher
from loadtest.engine import verification as truth
from loadtest.engine.database import Database, Stored
from loadtest.engine.trace_file import Fix, Moved, centre, move
from loadtest.errors import WrongUse
from loadtest.measure.histogram import Histogram
from streamer.geo.shapes import Circle

ACK_TIMEOUT = 60.0
LOOKS, LOOK_EVERY = 25, 0.2
MAX_SECONDS = 6 * 3600
MAX_VEHICLES = 20_000


@dataclass(frozen=True, slots=True)
class Replay:
    """What to replay and how: `watch` is lat, long, radius in metres; None is the middle of the trace and 5 km."""

    target: Target
    secret: str
    identities: Sequence[Identity]
    fixes: Sequence[Fix]
    speedup: float = 1.0
    watch: tuple[float, float, float] | None = None
    database: Database | None = None
    verify: bool = False
    seed: int = 0


async def run(replay: Replay, bar: Bar) -> dict[str, Any]:
    """Replay and account; the report's `ok` is false when a check failed."""
    circle = Circle(*(replay.watch or (*centre(replay.fixes), 5000.0)))
    vehicles = check_bounds(move(replay.fixes, 0, replay.speedup))
    random = Random(replay.seed)
    ack_delays, watch_delays, lag = Histogram(), Histogram(), Histogram()
    vendors = {
        vehicle: Vendor(replay.target, identity, minting(identity, replay.secret), random, delays=ack_delays)
        for vehicle, identity in zip(vehicles, replay.identities, strict=False)
    }
    watcher = Watcher(
        replay.target, area(circle), minting(replay.identities[0], replay.secret), random, delays=watch_delays
    )
    bar.show("connecting")
    async with running([watcher, *vendors.values()]):
        shown_before = set(watcher.view)
        vendor_ids = [vendor.identity.vendor_id for vendor in vendors.values()]
        newest_before = await replay.database.newest(vendor_ids) if replay.database is not None else {}
        started = time.time()
        start = int(started * 1000)
        moved = move(replay.fixes, start, replay.speedup)
        watcher.since = start
        own = time.process_time()
        await play(moved, vendors, lag, bar)
        bar.show("waiting for acks")
        unanswered = await settled(vendors.values(), ACK_TIMEOUT)
        seconds = time.time() - started
        own = time.process_time() - own
        report = {
            "run": "replay",
            "vehicles": len(vendors),
            "speedup": replay.speedup,
            "seconds": round(seconds, 3),
            "parked": moved.parked,
            "duplicates": moved.duplicates,
            "nudged": moved.nudged,
            **counts(vendors.values()),
            "unanswered": unanswered,
            "stored": None,
            "ack_delay": ack_delays.summary(),
            "watcher": {
                "positions": watcher.positions,
                "closes": dict(watcher.closes),
                "delay": watch_delays.summary(),
            },
            "lag": lag.summary(),
            "own_cpu_us_per_ping": round(own / max(1, len(moved.pings)) * 1e6, 1),
        }
        checks = {
            "answered": truth.check([f"{unanswered} pings were neither acked nor rejected"] if unanswered else []),
            "protocol": truth.check([line for app in (watcher, *vendors.values()) for line in app.violations]),
        }
        bar.show("looking at what was stored")
        if replay.database is not None:
            stored = await replay.database.stored(vendor_ids, *span(moved))
            ours = {(vendors[vehicle].identity.vendor_id, ping.timestamp) for vehicle, ping in moved.pings}
            report["stored"] = sum((row.vendor_id, row.timestamp) in ours for row in stored)
            if replay.verify:
                checks |= await verify(replay.database, stored, vendors.values())
        if replay.verify:
            live = truth.live(accepted(vendors.values()), shown_before, newest_before)
            checks["watcher"] = await check_watcher(watcher, live, vendor_ids, circle)
    report["checks"] = checks
    report["ok"] = all(check["ok"] for check in checks.values())
    return report


def check_bounds(moved: Moved) -> list[str]:
    """The vehicles of a replay; WrongUse for one that would be too long or too large."""
    if moved.seconds > MAX_SECONDS:
        raise WrongUse(
            f"the replay would take {moved.seconds / 3600:.1f} h, at most 6 h are allowed; give a larger --speedup"
        )
    if len(moved.vehicles) > MAX_VEHICLES:
        raise WrongUse(f"the trace has {len(moved.vehicles)} vehicles; at most {MAX_VEHICLES} are replayed")
    return moved.vehicles


def area(circle: Circle) -> dict[str, Any]:
    """A circle as it stands on the wire."""
    return {"center": {"lat": circle.lat, "long": circle.long}, "radius": circle.radius}


async def play(moved: Moved, vendors: dict[str, Vendor], lag: Histogram, bar: Bar) -> None:
    """Send each ping when it is due, whether or not the ones before were answered."""
    total, at, shown = len(moved.pings), 0, 0.0
    while at < total:
        now = time.time() * 1000
        while at < total and (item := moved.pings[at])[1].due <= now:
            vendors[item[0]].ping(item[1])
            lag.record((now - item[1].due) / 1000)
            at += 1
        if now - shown > 200:
            shown = now
            bar.show("replaying", at, total)
        if at < total:
            await asyncio.sleep(min(max((moved.pings[at][1].due - time.time() * 1000) / 1000, 0.001), 1.0))


def span(moved: Moved) -> tuple[int, int]:
    """The first and the last timestamp of a replay."""
    timestamps = [ping.timestamp for _, ping in moved.pings]
    return min(timestamps), max(timestamps)


def accepted(vendors: Iterable[Vendor]) -> dict[str, list[Ping]]:
    """The acked pings of each vendor, by its id."""
    return {vendor.identity.vendor_id: vendor.acked for vendor in vendors}


async def verify(database: Database, stored: Sequence[Stored], vendors: Iterable[Vendor]) -> dict[str, Any]:
    """Whether what was acked is stored exactly once, and each vendor is where its newest fix is (within 5 s)."""
    acked = accepted(vendors)
    rejected = {vendor.identity.vendor_id: [ping for _, ping in vendor.rejected] for vendor in vendors}
    lost = truth.stored_differences(stored, acked, rejected)
    newest = await database.newest(list(acked))
    differences = await until_none(
        lambda positions: truth.position_differences(positions, newest, acked), lambda: database.positions(list(acked))
    )
    return {"stored": truth.check(lost), "positions": truth.check(differences)}


async def until_none(find: Callable[[Any], list[str]], look: Callable[[], Any]) -> list[str]:
    """Look again until there are no differences, for at most 5 s; returns those that stayed."""
    found: list[str] = []
    for _ in range(LOOKS):
        if not (found := find(await look())):
            break
        await asyncio.sleep(LOOK_EVERY)
    return found


async def check_watcher(
    watcher: Watcher, live: truth.Live, vendor_ids: Collection[str], circle: Circle
) -> dict[str, Any]:
    """Whether the watcher's view comes to be the truth (within 5 s)."""

    async def view() -> dict[str, dict[str, Any]]:
        return watcher.view

    found = await until_none(lambda seen: truth.view_differences(seen, live, vendor_ids, circle.contains), view)
    inside = sum(circle.contains(ping.lat, ping.long) for ping in live.newest.values())
    return {
        **truth.check(found),
        "inside": inside,
        "shown_vendors": len(watcher.view),
        "never_live": len(vendor_ids) - len(live.newest) - len(live.unsure),
        "unsure": len(live.unsure),
        "others": len(watcher.view.keys() - set(vendor_ids)),
    }
