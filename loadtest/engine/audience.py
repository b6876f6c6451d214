"""The customers of one worker: they come and go with the stages and behave as customers do."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from statistics import median
from typing import Any

from loadtest import behaviour
from loadtest.behaviour import City, CustomerBehaviour, LookAround
from loadtest.clients.app import ReadTime
from loadtest.clients.customer import CHECK, COUNTS, MAP, ONE, Customer
from loadtest.clients.vendor import Ping
from loadtest.engine import verification
from loadtest.engine.population import SILVER, Population, spread
from loadtest.engine.verification import CountsAuditor, Observation, ViewAuditor
from loadtest.reports.verdict import NAMED
from streamer.geo.shapes import Circle

SLEEP = 0.02
TIMED_APPS = 30
TRIES, TRY_AGAIN = 25, 0.2
READY_WITHIN = 30.0
OBSERVE_EVERY = 0.5
FEWEST_COMPARED = 5
"""Minimum number of customers with delays in a second, for their median to be meaningful."""
CHECK_COUNTS_EVERY = 15.0
DISTURBED = 0.25
"""Seconds of own delay after which a worker pauses its observations: it would blame the server."""
CALM_AFTER = 3.0


class Audience(Population[Customer]):
    """Customers that come and go with the stages; `auditor` compares what the sampled ones see with the truth."""

    kind = "customers"

    def _make_apps(self) -> None:
        share, plan, recorder, clock, city = self._share, self._plan, self._recorder, ReadTime(self._now), self._city
        habits = self._scenario.customers
        count = round(habits.count * self._course.peak().customers)
        self._prepare(count, habits.phones)
        self._vendor_ids = [identity.vendor_id for identity in plan.identities]
        known = frozenset(self._vendor_ids)
        every = max(1, count // plan.sampled) if plan.sampled else 0
        self.apps = [
            Customer(
                plan.target,
                share.token(index),
                random,
                recorder,
                clock,
                habits=habits,
                known=known,
                index=index,
                timed_every=max(1, round(plan.customers / TIMED_APPS)),
                full=bool(every) and index % every == 0,
                slow=spread(index) < habits.slow,
                stalled=spread(index, SILVER) < habits.stalled,
                counting=spread(index + 1, SILVER) < habits.zoomed,
            )
            for index, random in zip(self.indices, self.randoms, strict=True)
        ]
        kind = behaviour.load(habits.behaviour, CustomerBehaviour) if habits.behaviour else LookAround
        lat, long = city.lat + habits.offset[0], city.long + habits.offset[1]
        where = City(lat, long, city.radius, city.block)
        self._first: list[float] = []
        reporting = self._vendor_ids[: round(self._scenario.vendors.count * self._course.peak().vendors)]
        for customer, random in zip(self.apps, self.randoms, strict=True):
            self._first.append(customer.start(kind(customer, where, random, reporting, habits)))
            if habits.shared:
                customer.circle = (lat, long, habits.radius[1])
        self.sampled = [customer for customer in self.apps if customer.full and not customer.stalled]
        self._acts: list[tuple[float, int, int]] = []
        self.auditor = ViewAuditor(self._vendor_ids, recorder)
        self.counts_auditor = CountsAuditor()
        self._observed: list[float] = []
        self._calm_from = 0.0

    def acked(self, order: dict[str, Any]) -> None:
        """Takes in what a vendors' worker reports as acked."""
        self.auditor.acked(order["pings"], self._now())
        self.auditor.waiting(order["number"], order["waiting"])
        self.auditor.forget(order["unsure"])

    async def verify(self, live: verification.Live, connected: set[str]) -> dict[str, Any]:
        """Compares the views of the sampled customers with the truth; they may take some seconds to agree."""
        self.auditor.judge(math.inf)
        taking_part = set(self.apps[: self.active])
        sampled = [customer for customer in self.sampled if customer in taking_part]
        for customer in sampled:
            customer.hurry()
        until = time.monotonic() + min(READY_WITHIN, self._scenario.settle)
        for customer in sampled:
            with suppress(TimeoutError):
                await asyncio.wait_for(customer.ready.wait(), max(0.01, until - time.monotonic()))
        viewing = [customer for customer in sampled if not customer.counting]
        found: list[str] = []
        for _ in range(TRIES):
            found = [line for customer in viewing for line in self._differences(customer, live, connected)]
            if not found:
                break
            await asyncio.sleep(TRY_AGAIN)
        shown = sum(len(view.vendors) for customer in viewing for view in customer.views.values())
        checks = {
            "views": verification.check(found, compared=len(viewing) or len(sampled) or (0 if self.apps else 1))
            | {"watchers": len(viewing), "cards": shown}
        }
        if counting := [customer for customer in sampled if customer.counting]:
            checks["counts"] = await self._verify_counts(counting)
        if self._share.audited:
            auditor = self.auditor
            checks["live views"] = verification.check(auditor.found, compared=1, total=auditor.total) | {
                "observations": auditor.observations
            }
        return checks

    def summaries(self) -> list[dict[str, Any]]:
        """Returns the delays of each customer that was timed."""
        return [customer.summary() for customer in self.apps if customer.delays and not customer.slow]

    def stalest(self) -> list[dict[str, Any]]:
        """Returns the customers with the largest freshness gaps, the largest first."""
        found = sorted(self.auditor.stalest.values(), key=lambda stale: -stale.gap_ms)
        return [stale._asdict() for stale in found[:NAMED]]

    # Population

    def _begin(self, start: float) -> None:
        self.auditor.measured_from = start + self._scenario.warmup * 1000

    def count(self) -> None:
        super().count()
        self.compare()

    def compare(self) -> None:
        """Compares each customer's delay since the last call with that of the median customer."""
        delays = {customer: median(customer.recent) for customer in self.apps if customer.recent}
        middle = median(delays.values()) if len(delays) >= FEWEST_COMPARED else None
        for customer, delay in delays.items():
            if middle is None:
                customer.forget()
            else:
                customer.compared(delay - middle)

    async def _act(self, now: float) -> None:
        while self._acts and self._acts[0][0] <= now:
            _, place, turn = heapq.heappop(self._acts)
            if turn == self.turns[place]:
                heapq.heappush(self._acts, (now + 1000 * self.apps[place].act(), place, turn))
        if self._share.audited:
            self._audit(time.monotonic())
        before = time.perf_counter()
        await asyncio.sleep(SLEEP)
        # a frame that arrived meanwhile waited at most this long before it was read
        late = time.perf_counter() - before - SLEEP
        self._recorder.stall("lag", max(late, 0.0001), SLEEP)
        if late > DISTURBED:
            self._calm_from = time.monotonic() + CALM_AFTER

    def _come(self, place: int, now: float) -> None:
        self.apps[place].asleep = False
        heapq.heappush(self._acts, (now + 1000 * self._first[place], place, self.turns[place]))

    def _leave(self, place: int, now: float) -> None:
        self.apps[place].sleep()

    def _may_flap(self, app: Customer) -> bool:
        return not app.asleep

    # inside

    def _audit(self, now: float) -> None:
        """Observes each sampled customer every half second, evenly spread, and checks older observations."""
        if not self._observed:
            self._observed = [now + OBSERVE_EVERY * n / max(1, len(self.sampled)) for n in range(len(self.sampled))]
            self._check_counts_at = now + CHECK_COUNTS_EVERY / 2
        at = self._now()
        for place, customer in enumerate(self.sampled):
            if self._observed[place] > now:
                continue
            self._observed[place] = max(self._observed[place] + OBSERVE_EVERY, now)
            if now < self._calm_from or not customer.ready.is_set() or customer.slow:
                continue
            if customer.counting:
                self.counts_auditor.observe(customer.name, now, customer.groups.get(COUNTS), customer.groups.get(CHECK))
            elif not customer.pending and MAP in customer.views:
                contains = Circle(*customer.circle).contains
                self.auditor.observe(Observation.of(customer.name, at, contains, customer.views[MAP]))
                view = customer.views.get(ONE)
                if customer.following is not None and view is not None and view.snapshots:
                    self.auditor.observe(Observation.of(customer.name, at, everywhere, view, customer.following))
        self.auditor.judge(at)
        if now >= self._check_counts_at:
            self._check_counts_at = now + CHECK_COUNTS_EVERY
            for customer in self.sampled:
                if customer.counting and customer.ready.is_set():
                    customer.check_counts()

    async def _verify_counts(self, customers: Sequence[Customer]) -> dict[str, Any]:
        """Compares held counts with a fresh snapshot of the same box; they may take some seconds to agree."""
        for customer in customers:
            customer.check_counts()
        found: list[str] = []
        for _ in range(2 * TRIES):
            await asyncio.sleep(TRY_AGAIN)
            found = [
                line
                for customer in customers
                for line in verification.count_differences(
                    customer.name, customer.groups.get(COUNTS), customer.groups.get(CHECK)
                )
            ]
            if not found:
                break
        found += self.counts_auditor.found
        return verification.check(found, compared=len(customers)) | {"watchers": len(customers)}

    def _differences(self, customer: Customer, live: verification.Live, connected: set[str]) -> list[str]:
        """Returns how one customer's views differ from the truth."""
        if not customer.ready.is_set():
            return [f"{customer.name} is not connected: {customer.ended or dict(customer.closes)}"]
        circle = Circle(*customer.circle)
        held = customer.views[MAP].vendors
        found = verification.view_differences(held, live, self._vendor_ids, circle.contains)
        found += [
            f"vendor {vendor_id} is shown at {card['lat']}, {card['long']}, outside of {customer.area}"
            for vendor_id, card in held.items()
            if not circle.contains(card["lat"], card["long"])
        ]
        if customer.following is not None:
            view = customer.views.get(ONE)
            if view is None or not view.snapshots:
                return [f"{customer.name}: no snapshot came for vendor {customer.following}"]
            found += verification.view_differences(view.vendors, live, [customer.following], everywhere)
            others = view.vendors.keys() - {customer.following}
            found += [f"vendor {other} is shown, but only {customer.following} is watched" for other in others]
            held = held | view.vendors
        found += [
            f"vendor {vendor_id} is shown as offline, but it is connected"
            for vendor_id in held.keys() & connected
            if not held[vendor_id]["online"]
        ]
        return [f"{customer.name}: {line}" for line in found]


def everywhere(lat: float, long: float) -> bool:
    """The area of a watch of one vendor."""
    return True


def live_of(settled: dict[str, Any]) -> verification.Live:
    """Returns the truth as the vendors' workers report it."""
    newest = {vendor_id: Ping(time, lat, long, time) for vendor_id, (time, lat, long) in settled["newest"].items()}
    return verification.Live(newest, set(settled["unsure"]))
