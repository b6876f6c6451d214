"""The vendors of one worker: each ping is sent when it is due, whether or not earlier ones were answered."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest import behaviour
from loadtest.behaviour import MOVEMENTS, Fix, VendorBehaviour, by_vehicle, read_trace
from loadtest.clients.vendor import GRID, Acked, BulkVendor, Ping, SimulatedVendor, on_grid, route
from loadtest.engine import verification
from loadtest.engine.database import Database
from loadtest.engine.population import Population, pick

LONGEST_SLEEP = 0.02
SHORTEST_SLEEP = 0.001
TRIES, TRY_AGAIN = 25, 0.2
VERIFIED_AT_ONCE = 50
PINGS_AT_ONCE = 100_000
GONE_AFTER = 500_000.0
OVERDUE = 2000.0


class Fleet(Population[SimulatedVendor]):
    """Vendors that come and go with the stages."""

    kind = "vendors"
    counted = ("faults", "refused", "sent", "resent")

    def _make_apps(self) -> None:
        share, plan, recorder, clock = self._share, self._plan, self._recorder, self._now
        vendors = self._scenario.vendors
        self._prepare(min(round(vendors.count * self._course.peak().vendors), len(plan.identities)), vendors.phones)
        self.apps = [
            (BulkVendor if vendors.bulk else SimulatedVendor)(
                plan.target,
                plan.identities[index],
                share.token(index),
                random,
                recorder,
                clock,
                index=index,
                keep=plan.verify and plan.database is not None,
                audited=share.audited,
            )
            for index, random in zip(self.indices, self.randoms, strict=True)
        ]
        own = behaviour.load(vendors.behaviour, VendorBehaviour) if vendors.behaviour else None
        for app, random in zip(self.apps, self.randoms, strict=True):
            if isinstance(app, BulkVendor) and vendors.bulk is not None:
                app.batch, app.window = vendors.bulk.batch, vendors.bulk.window
            elif own is not None:
                app.behaviour = own(self._city, random, app.index)
            else:
                movement = vendors.movements[pick(app.index, [one.share for one in vendors.movements])]
                app.behaviour = MOVEMENTS[movement.kind](self._city, random, app.index)
                app.behaviour.every = movement.every
        self._due: list[tuple[int, int, int, Ping, Iterator[Ping]]] = []
        self._start = 0.0
        self._fixes: list[list[Fix]] | None = None
        if plan.trace is not None:
            vehicles = by_vehicle(read_trace(Path(plan.trace.path)))
            self._fixes = [vehicles[index] for index in share.indices(len(vehicles))]

    async def settle(self, within: float) -> dict[str, Any]:
        """Gives every phone its network back, waits for the acks, and returns what watchers must see."""
        for place, vendor in enumerate(self.apps):
            if place < self.active or vendor.waiting:
                vendor.reconnect()
        until = time.monotonic() + within
        while time.monotonic() < until:
            if not any(vendor.waiting for vendor in self.apps) and all(
                vendor.ready.is_set() or vendor.ended for vendor in self.apps[: self.active]
            ):
                break
            await asyncio.sleep(0.05)
        newest, unsure = {}, []
        for vendor in self.apps:
            ledger, vendor_id = vendor.ledger, vendor.identity.vendor_id
            # a vendor that has not pinged may be where an earlier run left it
            if vendor.waiting or ledger.unsure or ledger.newest is None or self._gone(vendor):
                unsure.append(vendor_id)
            else:
                newest[vendor_id] = list(ledger.newest[:3])
        connected = [vendor.identity.vendor_id for vendor in self.apps if vendor.ready.is_set()]
        return {"newest": newest, "unsure": unsure, "connected": connected}

    async def verify(self) -> dict[str, Any]:
        """Compares what was acked with `locations` (each ping exactly once) and each vendor with its newest fix."""
        lost: list[str] = []
        misplaced: list[str] = []
        rows = verified = 0
        assert self._plan.database is not None
        async with Database(self._plan.database, self._plan.own) as database:
            waiting = [vendor for vendor in self.apps if vendor.ledger.count]
            while waiting:
                some = [waiting.pop()]
                pings = some[0].ledger.count
                while waiting and len(some) < VERIFIED_AT_ONCE and pings < PINGS_AT_ONCE:
                    some.append(waiting.pop())
                    pings += some[-1].ledger.count
                acked = {vendor.identity.vendor_id: vendor.ledger.pings() for vendor in some}
                rejected = {vendor.identity.vendor_id: [ping for _, ping in vendor.rejected] for vendor in some}
                times = [ping.timestamp for pings in acked.values() for ping in pings]
                stored = await database.stored(list(acked), min(times), max(times))
                rows += len(stored)
                verified += len(some)
                lost += verification.stored_differences(stored, acked, rejected)
                misplaced += await self._misplaced(database, acked)
        return {
            "stored": verification.check(lost, compared=rows) | {"rows": rows},
            "positions": verification.check(misplaced, compared=verified) | {"vendors": verified},
        }

    def acked(self) -> list[Acked]:
        """Returns the pings that were acked since the last call, for the auditor of the views."""
        found: list[Acked] = []
        for vendor in self.apps:
            if vendor.unreported:
                found += vendor.unreported
                vendor.unreported = []
        return found

    def waiting(self) -> list[tuple[int, int]]:
        """Returns the vendors whose acks are overdue, each with the time of its newest acked ping (epoch ms)."""
        overdue = self._now() - OVERDUE
        return [
            (vendor.index, vendor.acked_until)
            for vendor in self.apps
            if vendor.acked_until < overdue and vendor.waiting
        ]

    def unsure(self) -> list[int]:
        """Returns the vendors that the server may have taken off the map: the auditor forgets them."""
        return [vendor.index for vendor in self.apps if self._gone(vendor) or vendor.ledger.unsure]

    # Population

    def _begin(self, start: float) -> None:
        self._start = start

    async def _act(self, now: float) -> None:
        heap, counts, delay = self._due, self._recorder.counts, self._recorder.delay
        while heap and heap[0][0] <= now:
            due, place, turn, ping, pings = heap[0]
            following = next(pings, None) if turn == self.turns[place] else None
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following.due, place, turn, following, pings))
            if turn == self.turns[place]:
                delay("late", (now - due) / 1000)
                counts["due"] += 1
                self.apps[place].report(ping)
        wait = (heap[0][0] - self._now()) / 1000 if heap else LONGEST_SLEEP
        await asyncio.sleep(min(max(wait, SHORTEST_SLEEP), LONGEST_SLEEP))

    def _come(self, place: int, now: float) -> None:
        vendor, random = self.apps[place], self.randoms[place]
        vendor.left_at = 0.0
        if isinstance(vendor, BulkVendor):
            vendor.start()
            return
        if self._fixes is not None:
            pings = self._follow(place, now)
        else:
            assert vendor.behaviour is not None
            pings = route(vendor.behaviour, now + random.uniform(0, vendor.behaviour.every * 1000), random)
        if (ping := next(pings, None)) is not None:
            heapq.heappush(self._due, (ping.due, place, self.turns[place], ping, pings))

    def _leave(self, place: int, now: float) -> None:
        self.apps[place].left_at = now
        self.apps[place].reconnect()  # so that a backlog is sent; it disconnects when nothing waits any more

    def _adjust(self, now: float, at: float) -> None:
        super()._adjust(now, at)
        for vendor in self.apps[self.active :]:
            if vendor.left_at and not vendor.waiting and vendor.reachable:
                vendor.sleep()

    def _may_flap(self, app: SimulatedVendor) -> bool:
        # a ping being sent would be delayed by the phone and not by the server
        return not (app.reachable and app.waiting and app.ready.is_set())

    def _unfinished(self) -> bool:
        # a generator that can't keep up is late, but sends the whole trace
        return self._fixes is not None and (self.active < self._target or bool(self._due))

    def _finish(self) -> None:
        for vendor in self.apps:
            if isinstance(vendor, BulkVendor):
                vendor.finish()

    # inside

    def _gone(self, vendor: SimulatedVendor) -> bool:
        # a vendor that left goes off the map after the server's 60 s and 10 min
        return bool(vendor.left_at) and self._now() - vendor.left_at > GONE_AFTER

    def _follow(self, place: int, now: float) -> Iterator[Ping]:
        """Yields the vehicle's fixes moved onto the present; what is past already is due at once, like a backlog."""
        assert self._fixes is not None
        assert self._plan.trace is not None
        zero, speedup = self._plan.trace.zero, self._plan.trace.speedup
        ends = self._start + self._course.total * 1000
        last = 0
        for fix in self._fixes[place] if place < len(self._fixes) else ():
            # two fixes of a vehicle at one time would be one ping
            last = max(on_grid(self._start + (fix.timestamp - zero) / speedup), last + GRID)
            if last > ends:
                return
            yield Ping(last | (last < now), fix.lat, fix.long, max(last, on_grid(now)))

    async def _misplaced(self, database: Database, acked: dict[str, list[Ping]]) -> list[str]:
        """Returns the vendors whose lat and long do not become their newest fix within some seconds."""
        newest = await database.newest(list(acked))
        found: list[str] = []
        for _ in range(TRIES):
            if not (found := verification.position_differences(await database.positions(list(acked)), newest, acked)):
                break
            await asyncio.sleep(TRY_AGAIN)
        return found
