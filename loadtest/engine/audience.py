"""All customers of one worker: they come and go with the stages, and do what customers do."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from loadtest.clients.customer import MAP, ONE, Customer
from loadtest.clients.group import minting
from loadtest.clients.ping import Ping
from loadtest.engine import verification as truth
from loadtest.engine.city import City
from loadtest.engine.share import SILVER, Share, spread
from loadtest.engine.stages import Course
from loadtest.measure.recorder import Tally
from streamer.geo.shapes import Circle

NAP = 0.02
LOOK_EVERY = 100.0
CONNECTED_AT_ONCE = 100
LOOKS, LOOK_AGAIN = 25, 0.2
READY_WITHIN = 30.0


class Audience:
    """Customers as tasks of `group`; `now` is the server's clock in epoch ms."""

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
        count = round(scenario.customers.count * course.peak().customers)
        self.indices = share.indices(count)
        self._vendor_ids = [identity.vendor_id for identity in share.identities]
        known = frozenset(self._vendor_ids)
        sampled = max(1, count // share.sampled) if share.sampled else 0
        self._randoms = [Random(f"{share.seed} customer {index}") for index in self.indices]
        self.customers = [
            Customer(
                share.target,
                minting(share.identities[index % len(share.identities)], share.secret, share.lifetime),
                random,
                tally,
                now,
                habits=scenario.customers,
                city=city,
                known=known,
                vendor_ids=self._vendor_ids,
                timed_every=share.timed_every,
                full=bool(sampled) and index % sampled == 0,
                slow=spread(index) < scenario.customers.slow,
            )
            for index, random in zip(self.indices, self._randoms, strict=True)
        ]
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._active = 0
        self._faults = 0
        self._turn = [0] * len(self.customers)
        self._acts: list[tuple[float, int, int]] = []
        self._phones: list[tuple[float, int, int]] = []

    async def run(self, start: float, stopping: asyncio.Event) -> None:
        """Have them act from `start` (epoch ms) until the stages are over or a stop is asked for."""
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
            if storms and at >= storms[0][0]:
                stage = storms.pop(0)[1]
                if stage.who != "vendors":
                    self._cut(stage.share)
            self._act(now)
            self._flap(now)
            before = time.perf_counter()
            await asyncio.sleep(NAP)
            # what a frame had to wait before it was looked at is at most this
            self._tally.delay("lag", max(0.0, time.perf_counter() - before - NAP))

    async def verify(self, live: truth.Live, connected: set[str]) -> dict[str, Any]:
        """Whether the views of the sampled customers come to be the truth."""
        sampled = [customer for customer in self.customers[: self._active] if customer.full]
        for customer in sampled:
            customer.hurry()
        until = time.monotonic() + READY_WITHIN
        for customer in sampled:
            with suppress(TimeoutError):
                await asyncio.wait_for(customer.ready.wait(), max(0.01, until - time.monotonic()))
        found: list[str] = []
        for _ in range(LOOKS):
            found = [line for customer in sampled for line in self._differences(customer, live, connected)]
            if not found:
                break
            await asyncio.sleep(LOOK_AGAIN)
        shown = sum(len(view.vendors) for customer in sampled for view in customer.views.values())
        return {"watchers": len(sampled), "cards": shown, "views": truth.check(found)}

    async def stop(self, within: float) -> None:
        """Close all connections; what has not ended `within` seconds is given up."""
        for customer in self.customers:
            customer.stop()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=within)
        for task in self._tasks.values():
            task.cancel()

    def count(self) -> None:
        """Bring what is counted in the apps into the tally."""
        faults = sum(customer.faults for customer in self.customers)
        self._tally.counts["faults"] += faults - self._faults
        self._faults = faults

    @property
    def active(self) -> int:
        """How many customers there are, those asleep too."""
        return self._active

    # inside

    def _adjust(self, now: float, at: float) -> None:
        """Have as many customers as the stage wants; at most some more at once."""
        wanted = round(self._share.scenario.customers.count * self._course.levels(at).customers)
        target = sum(1 for index in self.indices if index < wanted)
        phones = self._share.scenario.customers.phones
        for place in range(self._active, min(target, self._active + CONNECTED_AT_ONCE)):
            self._active = place + 1
            self._turn[place] += 1
            customer, random = self.customers[place], self._randoms[place]
            customer.asleep = False
            customer.regain()
            if place not in self._tasks:
                self._tasks[place] = self._group.create_task(customer.run())
            dwell = self._share.scenario.customers.dwell
            heapq.heappush(self._acts, (now + 1000 * random.expovariate(1 / dwell), place, self._turn[place]))
            if spread(self.indices[place], SILVER) < phones.lossy:
                heapq.heappush(self._phones, (now + 1000 * random.expovariate(1 / phones.up), place, self._turn[place]))
        for place in range(self._active - 1, target - 1, -1):
            self._active = place
            self._turn[place] += 1
            self.customers[place].rest()

    def _act(self, now: float) -> None:
        while self._acts and self._acts[0][0] <= now:
            _, place, turn = heapq.heappop(self._acts)
            if turn == self._turn[place]:
                heapq.heappush(self._acts, (now + 1000 * self.customers[place].act(), place, turn))

    def _flap(self, now: float) -> None:
        phones = self._share.scenario.customers.phones
        while self._phones and self._phones[0][0] <= now:
            _, place, turn = heapq.heappop(self._phones)
            customer, random = self.customers[place], self._randoms[place]
            if turn != self._turn[place]:
                continue
            mean = phones.up
            if customer.reachable:
                customer.lose()
                self._tally.counts["losses"] += 1
                mean = phones.down
            elif not customer.asleep:
                customer.regain()
            heapq.heappush(self._phones, (now + 1000 * random.expovariate(1 / mean), place, turn))

    def _cut(self, share: float) -> None:
        for place in range(self._active):
            if self._randoms[place].random() < share:
                self.customers[place].cut()
                self._tally.counts["cuts"] += 1

    def _differences(self, customer: Customer, live: truth.Live, connected: set[str]) -> list[str]:
        """How one customer's views differ from the truth."""
        if not customer.ready.is_set():
            return [f"a customer of {customer.area} is not connected: {customer.ended or dict(customer.closes)}"]
        circle = Circle(*customer.circle)
        held = customer.views[MAP].vendors
        found = truth.view_differences(held, live, self._vendor_ids, circle.contains)
        found += [
            f"{vendor_id} is shown at {card['lat']}, {card['long']}, outside of {customer.area}"
            for vendor_id, card in held.items()
            if not circle.contains(card["lat"], card["long"])
        ]
        if customer.following is not None:
            view = customer.views.get(ONE)
            if view is None or not view.snapshots:
                return [*found, f"no snapshot came for the vendor {customer.following}"]
            found += truth.view_differences(view.vendors, live, [customer.following], lambda lat, long: True)
            others = view.vendors.keys() - {customer.following}
            found += [f"{other} is shown to one who follows {customer.following}" for other in others]
            held = held | view.vendors
        found += [
            f"{vendor_id} is shown as offline, but it is connected"
            for vendor_id in held.keys() & connected
            if not held[vendor_id]["online"]
        ]
        return found


def live_of(settled: dict[str, Any]) -> truth.Live:
    """The truth as the vendors' workers told it."""
    newest = {vendor_id: Ping(time, lat, long, time) for vendor_id, (time, lat, long) in settled["newest"].items()}
    return truth.Live(newest, set(settled["unsure"]))
