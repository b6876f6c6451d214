"""Checks a system from outside: the apps' views, stored pings, and the processes' resources."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from loadtest import LoadtestError
from loadtest.clients.vendor import Ping
from loadtest.engine import verification as truth
from loadtest.engine.database import Database
from streamer.geo.shapes import Circle
from tests.chaos.crowd import CENTER, RADIUS, Crowd
from tests.chaos.stage import HOST_DELIVERIES, LEAVE_AFTER, OFFLINE_AFTER, POOL_SIZE, Stage

GHOST_SLACK = 5.0
"""Tolerance in seconds, in addition to the settings, for which a vendor that left may still be shown."""
MORE_BYTES = 48 << 20
"""Maximum growth of a process's resident memory in bytes."""
REDIS_CONNECTIONS = 3
"""Connections of a process to one Redis: for writes, reads and subscriptions."""
BUSY = 0.75
"""Maximum share of a core that a server may use in a round; more means a busy loop."""


ALERTED = Circle(*CENTER, 8_000.0)
"""The area of the alert."""


class Held(NamedTuple):
    """A process's resources; `pools`: its connections by remote port, if a pool limits them."""

    files: int
    """Open files that are neither connections of these pools nor of clients."""
    pools: Counter[int]
    resident: int
    cpu: float
    """CPU seconds used."""


def held_by(pid: int, port: int, pools: Collection[int]) -> Held:
    """Returns the resources of a process that listens on `port`; raises psutil.Error or OSError if it has ended."""
    process = psutil.Process(pid)
    connections = [c for c in process.net_connections("tcp") if c.raddr]
    pooled = [c for c in connections if c.raddr.port in pools]
    clients = [c for c in connections if c.laddr.port == port]
    # By descriptor, so that one that was closed since is in neither number.
    files = {int(name) for name in os.listdir(f"/proc/{pid}/fd")} - {c.fd for c in (*pooled, *clients)}
    cpu = process.cpu_times()
    by_port = Counter(c.raddr.port for c in pooled)
    return Held(len(files), by_port, process.memory_info().rss, cpu.user + cpu.system)


def held_too_much(first: Held, now: Held, pools: Mapping[int, tuple[str, int]]) -> list[str]:
    """Returns the resources above their limit: the size of a pool (by port, with a name), else the initial value."""
    found = [
        f"{now.pools[port]} connections to {name}, where {most} are the most"
        for port, (name, most) in pools.items()
        if now.pools[port] > most
    ]
    if now.files > first.files:
        found.append(f"{now.files} files open besides pools and clients, at first {first.files}")
    if now.resident > first.resident + MORE_BYTES:
        found.append(f"{now.resident >> 20} MiB, at first {first.resident >> 20}")
    return found


class Judge:
    """Checks the clients of a system under test; `gone`: when vendors left (monotonic)."""

    def __init__(self, stage: Stage, crowd: Crowd) -> None:
        self.gone: dict[str, float] = {}
        self._stage = stage
        self._crowd = crowd
        self._first: dict[int, Held] = {}

    def apps(self) -> list[str]:
        """Returns the faults of the apps' views."""
        found = list(self._crowd.violations)
        for mover in self._crowd.movers:
            app = mover.app
            if app.waiting:
                found.append(f"{app.identity.vendor_id}: {app.waiting} pings are not acked")
            if app.rejected:
                found.append(f"{app.identity.vendor_id}: rejected {app.rejected[:2]}")
            if app.ended is not None:
                found.append(f"{app.identity.vendor_id}: ended for good by {app.ended}")
        newest = {m.app.identity.vendor_id: m.pings[-1] for m in self._crowd.movers if m.pings}
        live, now = truth.Live(newest, set()), time.monotonic()
        for number, watcher in enumerate(self._crowd.watchers):
            if not watcher.snapshots:
                found.append(f"watcher {number} has no snapshot")
                continue
            view = watcher.view
            wrong = truth.view_differences(view, live, newest, watcher.circle.contains)
            found += [f"watcher {number}: {line}" for line in wrong[:3]]
            found += [
                f"watcher {number}: {vendor_id} is shown as offline"
                for vendor_id, card in view.items()
                if vendor_id in newest and not card["online"]
            ]
            for vendor_id, since in self.gone.items():
                card = view.get(vendor_id)
                if card is None:
                    continue
                if now - since > OFFLINE_AFTER + LEAVE_AFTER + GHOST_SLACK:
                    found.append(f"watcher {number}: {vendor_id} should have left, gone for {now - since:.1f} s")
                elif now - since > OFFLINE_AFTER + GHOST_SLACK and card["online"]:
                    found.append(f"watcher {number}: {vendor_id} is online, but gone for {now - since:.1f} s")
        return found

    def counts(self) -> list[str]:
        """Returns the watches of counts that differ from the number of vendors which watchers see."""
        seen = {len(watcher.view) for watcher in self._crowd.watchers if watcher.circle.radius == RADIUS}
        return [
            f"zoomed-out customer {number}: {customer.count} vendors are counted; others see {sorted(seen)}"
            for number, customer in enumerate(self._crowd.zoomed_out)
            if seen != {customer.count}
        ]

    def alerts(self) -> list[str]:
        """Returns the faults of the alert's events: missed, invented or out of order."""
        told: dict[str, list[str]] = {}
        for event in self._stage.receiver.events():
            told.setdefault(event["vendor"]["vendorId"], []).append(event["type"].removeprefix("vendor."))
        found = list(self._stage.receiver.faults)
        for mover in self._crowd.movers:
            vendor_id = mover.app.identity.vendor_id
            events = told.get(vendor_id, [])
            if events != [("entered", "left")[number % 2] for number in range(len(events))]:
                found.append(f"{vendor_id}: its events do not follow each other: {events[-6:]}")
            inside = len(events) % 2 == 1
            if mover.pings and inside != ALERTED.contains(mover.pings[-1].lat, mover.pings[-1].long):
                found.append(f"{vendor_id}: the last event {events[-1:]} is not where it is")
        return found

    async def storage(self, since: int) -> list[str]:
        """Returns the faults of the pings stored since `since` (epoch ms), and of vendors' positions."""
        acked: Mapping[str, Sequence[Ping]] = {m.app.identity.vendor_id: m.app.acked for m in self._crowd.movers}
        recent = {id: [ping for ping in pings if ping.timestamp >= since] for id, pings in acked.items()}
        try:
            async with Database(self._stage.postgres.url) as database:
                rows = await database.stored(list(acked), since, int(time.time() * 1000) + 60_000)
                newest = await database.newest(list(acked))
                found = truth.stored_differences(rows, recent, {})
                return found + truth.position_differences(await database.positions(list(acked)), newest, acked)
        except (LoadtestError, OSError, TimeoutError) as failed:
            return [f"PostgreSQL can't be asked: {failed!r}"]

    def held(self) -> dict[int, Held]:
        """Returns the current resources of each server process."""
        found = {}
        for name, server in self._stage.servers.items():
            with suppress(psutil.Error, OSError):
                found[server.pid] = held_by(server.pid, server.port, self._pools(name))
        return found

    def resources(self) -> list[str]:
        """Returns the resources of the processes that exceed their limits."""
        held = self.held()
        return [
            f"process {server.pid} holds {line}; its sockets: {dict(open_sockets(server.pid))}"
            for name, server in self._stage.servers.items()
            if (now := held.get(server.pid)) is not None
            for line in held_too_much(self._first.setdefault(server.pid, now), now, self._pools(name))
        ]

    def _pools(self, name: str) -> dict[int, tuple[str, int]]:
        """The name and maximum size of each of a server's pools, by remote port."""
        stage = self._stage

        def port(wire: str) -> int:
            found = urlsplit(stage.wires[wire].url).port
            assert found is not None
            return found

        return {
            port(f"wire {name} to postgresql"): ("PostgreSQL", POOL_SIZE),
            port(f"wire {name} to valkey"): ("Valkey", REDIS_CONNECTIONS),
            stage.receiver.port: ("the receiver of webhooks", HOST_DELIVERIES),
        }

    def busy(self, before: Mapping[int, Held], seconds: float) -> list[str]:
        """Returns the processes that used more CPU since then than the load can explain."""
        return [
            f"process {pid} used {held.cpu - before[pid].cpu:.1f} s of CPU in {seconds:.1f} s"
            for pid, held in self.held().items()
            if pid in before and held.cpu - before[pid].cpu > BUSY * max(seconds, 1.0)
        ]


def open_sockets(pid: int) -> Counter[str]:
    """Returns the number of a process's sockets by remote address and state."""
    try:
        return Counter(f"{c.raddr.port if c.raddr else '-'} {c.status}" for c in psutil.Process(pid).net_connections())
    except psutil.Error:
        return Counter()
