"""All vendors of one worker: each ping goes out when it is due, whether or not the ones before were answered."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from loadtest.clients.group import minting
from loadtest.clients.ping import Ping
from loadtest.clients.simulated_vendor import GRID, Truck, on_grid, wander
from loadtest.engine import verification as truth
from loadtest.engine.city import City, mover
from loadtest.engine.database import Database
from loadtest.engine.share import SILVER, Share, pick, spread
from loadtest.engine.stages import Course
from loadtest.engine.trace_file import Fix, read
from loadtest.measure.recorder import Tally

LONGEST_NAP = 0.02
SHORTEST_NAP = 0.001
LOOK_EVERY = 100.0
LOOKS, LOOK_AGAIN = 25, 0.2
VERIFIED_AT_ONCE = 50
CONNECTED_AT_ONCE = 100
GONE_AFTER = 600_000.0


class Fleet:
    """Vendors that come and go with the stages, as tasks of `group`; `now` is the server's clock in epoch ms."""

    def __init__(
        self,
        share: Share,
        city: City,
        course: Course,
        tally: Tally,
        now: Callable[[], float],
        group: asyncio.TaskGroup,
    ) -> None:
        self._share, self._course, self._tally, self._now, self._group = share, course, tally, now, group
        scenario = share.scenario
        movements = scenario.vendors.movements
        self.indices = share.indices(min(round(scenario.vendors.count * course.peak().vendors), len(share.identities)))
        self._movements = [movements[pick(index, [one.share for one in movements])] for index in self.indices]
        self._randoms = [Random(f"{share.seed} vendor {index}") for index in self.indices]
        self._movers = [
            mover(one.kind, city, random) for one, random in zip(self._movements, self._randoms, strict=True)
        ]
        self.trucks = [
            Truck(
                share.target,
                identity,
                minting(identity, share.secret, share.lifetime),
                random,
                tally,
                now,
                keep=share.keep,
            )
            for identity, random in zip((share.identities[i] for i in self.indices), self._randoms, strict=True)
        ]
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._active = 0
        self._turn = [0] * len(self.trucks)  # grows when a vendor comes or goes, so that what was due is void
        self._due: list[tuple[int, int, int, Ping, Iterator[Ping]]] = []
        self._phones: list[tuple[float, int, int]] = []
        self._counted = (0, 0, 0)
        self._start = 0.0
        self._fixes: list[list[Fix]] | None = None
        if share.trace is not None:
            self._fixes = by_vehicle(read(Path(share.trace.path)))[share.number :: share.of]

    async def run(self, start: float, stopping: asyncio.Event) -> None:
        """Drive from `start` (epoch ms) until the stages are over or a stop is asked for."""
        self._start = start
        storms = self._course.storms()
        looked = 0.0
        while not stopping.is_set():
            now = self._now()
            at = (now - start) / 1000
            if at >= self._course.total:
                break
            if now - looked >= LOOK_EVERY:
                looked = now
                self._adjust(now, at)
                self._flap(now)
            if storms and at >= storms[0][0]:
                stage = storms.pop(0)[1]
                if stage.who != "customers":
                    self._cut(stage.share)
            self._send(now)
            wait = (self._due[0][0] - self._now()) / 1000 if self._due else LONGEST_NAP
            await asyncio.sleep(min(max(wait, SHORTEST_NAP), LONGEST_NAP))

    async def settle(self, within: float) -> dict[str, Any]:
        """Bring every phone back, wait for the acks, and tell what watchers must see."""
        for place, truck in enumerate(self.trucks):
            if place < self._active or truck.waiting:
                truck.regain()
        until = time.monotonic() + within
        while time.monotonic() < until:
            if not any(truck.waiting for truck in self.trucks) and all(
                truck.ready.is_set() or truck.ended for truck in self.trucks[: self._active]
            ):
                break
            await asyncio.sleep(0.05)
        newest, unsure = {}, []
        for place, truck in enumerate(self.trucks):
            ledger, vendor_id = truck.ledger, truck.identity.vendor_id
            # a vendor that left may be off the map, but not before the server's 60 s and 10 min
            gone = place >= self._active and self._now() - truck.left_at > GONE_AFTER
            # one that has not pinged may be where an earlier run left it
            if truck.waiting or ledger.unsure or ledger.newest is None or gone:
                unsure.append(vendor_id)
            else:
                newest[vendor_id] = list(ledger.newest[:3])
        connected = [truck.identity.vendor_id for truck in self.trucks if truck.ready.is_set()]
        return {"newest": newest, "unsure": unsure, "connected": connected}

    async def verify(self) -> dict[str, Any]:
        """Whether all that was acked is stored exactly once, and each vendor is where its newest fix is."""
        lost: list[str] = []
        misplaced: list[str] = []
        rows = 0
        assert self._share.database is not None
        async with Database(self._share.database, self._share.own) as database:
            for first in range(0, len(self.trucks), VERIFIED_AT_ONCE):
                acked = {
                    truck.identity.vendor_id: truck.ledger.pings()
                    for truck in self.trucks[first : first + VERIFIED_AT_ONCE]
                    if truck.ledger.count
                }
                if not acked:
                    continue
                rejected = {
                    truck.identity.vendor_id: [ping for _, ping in truck.rejected]
                    for truck in self.trucks[first : first + VERIFIED_AT_ONCE]
                }
                times = [ping.timestamp for pings in acked.values() for ping in pings]
                stored = await database.stored(list(acked), min(times), max(times))
                rows += len(stored)
                lost += truth.stored_differences(stored, acked, rejected)
                misplaced += await self._misplaced(database, acked)
        return {"rows": rows, "stored": truth.check(lost), "positions": truth.check(misplaced)}

    async def stop(self, within: float) -> None:
        """Close all connections; what has not ended `within` seconds is given up."""
        for truck in self.trucks:
            truck.stop()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=within)
        for task in self._tasks.values():
            task.cancel()

    def count(self) -> None:
        """Bring what is counted in the apps into the tally."""
        sent, resent = sum(truck.sent for truck in self.trucks), sum(truck.resent for truck in self.trucks)
        self._tally.counts["sent"] += sent - self._counted[0]
        self._tally.counts["resent"] += resent - self._counted[1]
        faults = sum(truck.faults for truck in self.trucks)
        self._tally.counts["faults"] += faults - self._counted[2]
        self._counted = sent, resent, faults

    @property
    def active(self) -> int:
        """How many vendors are at work."""
        return self._active

    # inside

    def _adjust(self, now: float, at: float) -> None:
        """Have as many vendors as the stage wants; at most some at once, so that connecting is no storm of its own."""
        wanted = round(self._share.scenario.vendors.count * self._course.levels(at).vendors)
        target = sum(1 for index in self.indices if index < wanted)
        for place in range(self._active, min(target, self._active + CONNECTED_AT_ONCE)):
            self._come(place, now)
        for place in range(self._active - 1, target - 1, -1):
            self._turn[place] += 1
            self._active = place
            self.trucks[place].left_at = now
        for truck in self.trucks[self._active :]:
            if truck.reachable and truck.left_at and not truck.waiting:
                truck.rest()

    def _come(self, place: int, now: float) -> None:
        truck, random = self.trucks[place], self._randoms[place]
        self._active = place + 1
        self._turn[place] += 1
        truck.left_at = 0.0
        truck.regain()
        if place not in self._tasks:
            self._tasks[place] = self._group.create_task(truck.run())
        if self._fixes is not None:
            route = self._follow(place, now)
        else:
            every = self._movements[place].every
            route = wander(self._movers[place], every, now + random.uniform(0, every * 1000), random)
        self._plan(place, route)
        phones = self._share.scenario.vendors.phones
        if spread(self.indices[place], SILVER) < phones.lossy:
            heapq.heappush(self._phones, (now + 1000 * random.expovariate(1 / phones.up), place, self._turn[place]))

    def _follow(self, place: int, now: float) -> Iterator[Ping]:
        """The vehicle's fixes on the present; those that are past as the one last known."""
        assert self._fixes is not None
        assert self._share.trace is not None
        if place >= len(self._fixes):
            return
        zero, speedup = self._share.trace.zero, self._share.trace.speedup
        before, last = None, 0
        for fix in self._fixes[place]:
            due = on_grid(self._start + (fix.timestamp - zero) / speedup)
            if due < now:
                before = fix
                continue
            if before is not None:
                last = on_grid(now)
                yield Ping(last + 1, before.lat, before.long, last)
                before = None
            last = max(due, last + GRID)
            yield Ping(last, fix.lat, fix.long, last)

    def _plan(self, place: int, route: Iterator[Ping]) -> None:
        ping = next(route, None)
        if ping is not None:
            heapq.heappush(self._due, (ping.due, place, self._turn[place], ping, route))

    def _send(self, now: float) -> None:
        """Send all that is due."""
        heap, counts, delay = self._due, self._tally.counts, self._tally.delay
        while heap and heap[0][0] <= now:
            due, place, turn, ping, route = heap[0]
            if turn != self._turn[place]:
                heapq.heappop(heap)
                continue
            following = next(route, None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following.due, place, turn, following, route))
            delay("late", (now - due) / 1000)
            counts["due"] += 1
            self.trucks[place].report(ping)

    def _flap(self, now: float) -> None:
        """Take the network from phones whose time it is, or give it back."""
        phones = self._share.scenario.vendors.phones
        while self._phones and self._phones[0][0] <= now:
            _, place, turn = heapq.heappop(self._phones)
            truck, random = self.trucks[place], self._randoms[place]
            if turn != self._turn[place]:
                truck.regain()
                continue
            if truck.reachable:
                if truck.waiting and truck.ready.is_set():  # its ping would be held up by us and not by the server
                    heapq.heappush(self._phones, (now + LOOK_EVERY, place, turn))
                    continue
                truck.lose()
                self._tally.counts["losses"] += 1
                mean = phones.down
            else:
                truck.regain()
                mean = phones.up
            heapq.heappush(self._phones, (now + 1000 * random.expovariate(1 / mean), place, turn))

    def _cut(self, share: float) -> None:
        for place in range(self._active):
            if self._randoms[place].random() < share:
                self.trucks[place].cut()
                self._tally.counts["cuts"] += 1

    async def _misplaced(self, database: Database, acked: dict[str, list[Ping]]) -> list[str]:
        """The vendors whose lat and long do not come to be their newest fix within some seconds."""
        newest = await database.newest(list(acked))
        found: list[str] = []
        for _ in range(LOOKS):
            if not (found := truth.position_differences(await database.positions(list(acked)), newest, acked)):
                break
            await asyncio.sleep(LOOK_AGAIN)
        return found


def by_vehicle(fixes: Iterable[Fix]) -> list[list[Fix]]:
    """A trace's fixes by vehicle, in the order in which the vehicles appear, each in the order of time."""
    found: dict[str, list[Fix]] = {}
    for fix in sorted(fixes, key=lambda fix: fix.timestamp):
        found.setdefault(fix.vehicle, []).append(fix)
    return list(found.values())
