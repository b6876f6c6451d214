"""One run of a scenario: workers put the server under load; this module observes, verifies and reports it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

from loadtest import RunFailed
from loadtest.engine.alerts import Alerts
from loadtest.engine.population import Plan
from loadtest.engine.scenario import Course
from loadtest.engine.verification import MOST_SHOWN, add_checks, check
from loadtest.engine.worker_pool import Coordinator, RemoteMember, WorkerPool
from loadtest.measure.recording import Histogram, Timeline, shown
from loadtest.measure.server import Meter, unready
from loadtest.reports.verdict import LONG, judge, per_customer, uneven

SCHEMA = "venta-loadtest/2"
LEAD = 0.3
GRACE = 30.0
VERIFY_WITHIN = 600.0
END_WITHIN = 30.0
OVERDUE = 120.0
CONNECT_WITHIN = 120.0
Show = Callable[[Timeline, Course, str], None]
NESTED = ("errors", "closes", "rejected", "gave_up")
TOTALS = (
    *("due", "sent", "acked", "resent", "backlog", "unanswered", "dropped", "connections", "refused"),
    *("positions", "frames", "snapshots", "pans", "follows", "sleeps", "losses", "cuts", "skewed"),
)
MEASURED = (
    *("due", "sent", "acked", "backlog", "positions", "frames", "update_bytes"),
    *("snapshots", "snapshot_bytes", "snapshot_positions"),
)


class Run:
    """A running load test. `report()` returns what is known so far, so that a page can show it."""

    def __init__(self, plan: Plan, show: Show, meter: Meter | None = None) -> None:
        self.plan = plan
        self.meter = meter
        self.course = Course(plan.scenario.stages)
        self.timeline = Timeline(self.course.total, plan.scenario.warmup)
        self._show = show
        self._began = 0.0
        self._own = time.process_time()
        self._clock = (0.0, 0.0)
        self._checks: dict[str, Any] = {}
        self._alert_delays: dict[str, Histogram] = {}
        self._ends: list[dict[str, Any]] = []
        self._failures: list[str] = []
        self._interrupted = False

    async def carry_out(self, coordinator: Coordinator | None = None) -> dict[str, Any]:
        """Carries the run out and returns its report; its `ok` is false when it can't be believed.

        Raises RunFailed when there is nothing to report; later failures stand in the report, beside what was measured.
        """
        plan = self.plan
        if (cause := await unready(plan.target)) is not None:
            raise RunFailed(f"the server is not ready ({cause}); read its log, fix the cause and run again")
        remote: list[RemoteMember] = []
        if coordinator is not None and plan.remote:
            self._show(self.timeline, self.course, f"waiting for {plan.remote} workers on port {coordinator.port}")
            remote = await coordinator.members(plan.remote, CONNECT_WITHIN)
        self._show(self.timeline, self.course, "starting workers")
        alerting: AbstractAsyncContextManager[Alerts | None] = nullcontext()
        if plan.scenario.alerts.count:
            alerting = Alerts(plan)
        async with alerting as alerts, WorkerPool(plan.shares(), remote) as pool, interrupts() as stop:
            self._clock = pool.clock
            if alerts is not None:
                self._show(self.timeline, self.course, "creating alerts")
                await alerts.begin(pool.clock[0])
                pool.on_acked = alerts.acked
            self._began = plan.start_at or time.time() + LEAD
            if (late := time.time() - self._began) > 0:
                raise RunFailed(f"the workers were ready {late:.1f} s after --start-at; give a later one")
            self._own = time.process_time()
            await pool.order({"do": "start", "at": self._began * 1000 + pool.clock[0]})
            try:
                await self._drive(pool, stop)
                self._own = time.process_time() - self._own
                self._show(self.timeline, self.course, "waiting for acks")
                await self._verify(pool, alerts)
                await pool.order({"do": "end"})
                self._ends = await pool.gather("ended", pool.members, END_WITHIN)
                self.timeline.end(self._ends)
            except (RunFailed, TimeoutError) as failed:
                if not self.timeline.reached:
                    raise
                self._failures.append(str(failed) or "the workers did not end in time")
        try:
            if (cause := await unready(plan.target)) is not None:
                self._failures.append(f"the server was not ready after the run: {cause}")
        except RunFailed as away:
            self._failures.append(str(away))
        return self.report()

    async def _drive(self, pool: WorkerPool, stop: asyncio.Event) -> None:
        """Takes in the workers' reports until all have gone through the stages, or were stopped."""
        driving = {id(member) for member in pool.members}

        async def interrupt() -> None:
            await stop.wait()
            self._interrupted = True
            await pool.order({"do": "stop"})

        async def listen() -> None:
            while driving:
                member, report = await pool.next()
                if report["is"] == "second":
                    # a worker has one kind and number in the whole run
                    self.timeline.second(member.share.kind, member.share.number, report)
                    self._show(self.timeline, self.course, "stopping" if self._interrupted else "")
                elif report["is"] == "driven":
                    driving.discard(id(member))

        tasks = [asyncio.create_task(one) for one in (interrupt(), self._sample_usage(), listen())]
        try:
            async with asyncio.timeout(max(0.0, self._began - time.time()) + self.course.total + OVERDUE):
                await tasks[-1]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _sample_usage(self) -> None:
        """Reads what the server uses, every second."""
        second = 0
        while self.meter is not None and second <= self.course.total:
            await asyncio.sleep(max(0.0, self._began + second - time.time()))
            if (found := await self.meter.look()) is not None:
                self.timeline.usage(time.time() - self._began, *found)
            second = max(second + 1, int(time.time() - self._began))

    async def _verify(self, pool: WorkerPool, alerts: Alerts | None) -> None:
        """Waits for all acks; with `verify` compares the pings with the database, and the views with the truth."""
        vendors, customers = pool.of("vendors"), pool.of("customers")
        await pool.order({"do": "settle"}, vendors)
        settled = await pool.gather("settled", vendors, self.plan.scenario.settle + GRACE)
        if alerts is not None:
            self._show(self.timeline, self.course, "waiting for webhooks")
            self._checks["alerts"] = await alerts.judged(name for one in settled for name in one["unsure"])
            self._alert_delays = alerts.delays()
        if not self.plan.verify:
            return
        truth: dict[str, Any] = {"newest": {}, "unsure": [], "connected": []}
        for one in settled:
            truth["newest"] |= one["newest"]
            truth["unsure"] += one["unsure"]
            truth["connected"] += one["connected"]
        # another machine's vendors: their positions are unknown here
        known = truth["newest"].keys() | set(truth["unsure"])
        truth["unsure"] += [one.vendor_id for one in self.plan.identities if one.vendor_id not in known]
        await pool.order({"do": "verify", **truth}, customers)
        if self.plan.database is not None:
            await pool.order({"do": "verify"}, vendors)
            customers = pool.members
        for report in await pool.gather("verified", customers, VERIFY_WITHIN):
            add_checks(self._checks, report["checks"])

    def report(self) -> dict[str, Any]:
        """Returns all that is known; `loadtest/schema.json` says what each member means."""
        plan, timeline, course = self.plan, self.timeline, self.course
        totals: Counter[str] = Counter()
        for bucket in timeline.buckets:
            totals.update(bucket.counts)
        nested: dict[str, Counter[str]] = {name: Counter() for name in NESTED}
        for end in self._ends:
            totals.update(end["counts"])
            totals.update(end["sums"])
            for name, counter in nested.items():
                counter.update(end[name])
        violations, incidents, summaries, stalest = (
            [one for end in self._ends for one in end[name]]
            for name in ("violations", "incidents", "summaries", "stalest")
        )
        counts = timeline.counts()
        checks = self._checks | {"protocol": check(violations, compared=1)}
        if compared := sum(one["seconds"] >= LONG for one in summaries):
            checks["even"] = check(uneven(summaries), compared=compared)
        views, positions = self._checks.get("views", {}), self._checks.get("positions", {})
        own = time.process_time() - self._own if not self._ends else self._own
        used = timeline.server()
        made: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": "run",
            "scenario": plan.name,
            "settings": plan.scenario.model_dump(mode="json"),
            "target": plan.target.authority,
            "trace": plan.trace.path if plan.trace else None,
            "tags": plan.tags,
            "environment": plan.environment,
            "started": datetime.fromtimestamp(self._began, UTC).isoformat(timespec="milliseconds"),
            "seed": plan.seed,
            "part": plan.part,
            "parts": plan.parts,
            "machines": 1,
            "workers": len(plan.shares()),
            "planned_seconds": course.total,
            "warmup": timeline.warmup,
            "seconds": round(timeline.seconds, 3),
            "interval": timeline.interval,
            "interrupted": self._interrupted,
            "failures": list(self._failures),
            "verified": plan.verify,
            "compared": {
                "vendors": positions.get("vendors", 0),
                "vendors_of": plan.scenario.vendors.count,
                "customers": views.get("watchers", 0) + self._checks.get("counts", {}).get("watchers", 0),
                "customers_of": plan.scenario.customers.count,
            },
            "totals": {name: totals[name] for name in TOTALS} | {name: dict(one) for name, one in nested.items()},
            "measured": {name: counts[name] for name in MEASURED},
            "delays": {
                # its own lateness is judged by however few samples there are
                name: shown(histogram, strict=name not in ("late", "lag"))
                for name, histogram in (timeline.delays() | self._alert_delays).items()
            },
            "customers": per_customer(summaries, stalest),
            "server": None if self.meter is None or used is None else {"source": self.meter.source, **used},
            "generator": {
                "cpu": {kind: round(value, 3) for kind, value in sorted(timeline.own().items())},
                "coordinator_cpu": round(own, 3),
                "clock_offset_ms": round(self._clock[0], 2),
                "clock_error_ms": round(self._clock[1], 2),
            },
            "checks": checks,
            "incidents": incidents[: 2 * MOST_SHOWN],
            "timeline": [{"t": leg.begin, "seconds": leg.stage.seconds, "kind": leg.stage.kind} for leg in course.legs],
            "series": timeline.series(),
        }
        return judge(made)


@asynccontextmanager
async def interrupts() -> AsyncIterator[asyncio.Event]:
    """Yields an event that Ctrl-C sets; a second Ctrl-C ends everything at once."""
    event, loop, main = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
    seen = 0

    def interrupt() -> None:
        nonlocal seen
        seen += 1
        event.set()
        if seen > 1 and main is not None:
            main.cancel()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, interrupt)
    try:
        yield event
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
