"""One run of a scenario: workers put the server under load, here it is watched, judged and written down."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from loadtest.clients.identity import Identity
from loadtest.clients.target import Target
from loadtest.engine.scenario import Scenario
from loadtest.engine.share import Share, Trace
from loadtest.engine.stages import Course
from loadtest.engine.worker_pool import Crew
from loadtest.errors import RunFailed
from loadtest.measure.clock import Offset, offset
from loadtest.measure.readiness import unready
from loadtest.measure.timeline import Record, shown
from loadtest.measure.usage import Meter
from loadtest.reports.verdict import judge

SCHEMA = "venta-loadtest/1"
LEAD = 0.3
GRACE = 30.0
VERIFY_WITHIN = 600.0
END_WITHIN = 30.0
OVERDUE = 120.0
TIMED_APPS = 30


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: part `part` of `parts` machines; `workers` processes for vendors and as many for customers."""

    target: Target
    secret: str
    scenario: Scenario
    name: str
    identities: Sequence[Identity]
    meter: Meter | None = None
    database: str | None = None
    own: str | None = None
    verify: bool = False
    trace: Trace | None = None
    workers: int = 1
    sampled: int = 20
    seed: int = 0
    part: int = 1
    parts: int = 1
    start_at: float | None = None

    def shares(self, clock: Offset) -> list[Share]:
        """What each worker gets."""
        course = Course(self.scenario.stages)
        customers = self.scenario.customers.count * course.peak().customers
        of = self.workers * self.parts

        def share(kind: Literal["vendors", "customers"], number: int) -> Share:
            return Share(
                kind=kind,
                number=(self.part - 1) * self.workers + number,
                of=of,
                target=self.target,
                secret=self.secret,
                scenario=self.scenario,
                identities=self.identities,
                seed=self.seed,
                offset=clock.ms,
                keep=self.verify and self.database is not None,
                sampled=self.sampled,
                timed_every=max(1, round(customers / TIMED_APPS)),
                trace=self.trace,
                database=self.database,
                own=self.own,
            )

        found = [share("vendors", number) for number in range(self.workers)]
        return found + [share("customers", number) for number in range(self.workers) if customers]


class Interrupted(Exception):
    """Ctrl-C a second time."""


async def run(plan: Plan, show: Callable[[Record, Course, str], None]) -> dict[str, Any]:
    """Carry a run out; `show` is called about every second. The report's `ok` is false when it can't be believed.

    RunFailed when there is nothing to report; what goes wrong later stands in the report, beside what was measured.
    """
    course = Course(plan.scenario.stages)
    record = Record(course.total, plan.scenario.warmup)
    if (cause := await unready(plan.target)) is not None:
        raise RunFailed(f"the server is not ready ({cause}); look into its log, mend it and start it again")
    clock = await offset(plan.target, plan.identities[0], plan.secret)
    show(record, course, "starting workers")
    checks: dict[str, Any] = {}
    ends: list[dict[str, Any]] = []
    failures: list[str] = []
    interrupted = False
    async with Crew(plan.shares(clock)) as crew, interrupts() as stop:
        began = plan.start_at or time.time() + LEAD
        if (late := time.time() - began) > 0:
            raise RunFailed(f"the workers were ready {late:.1f} s after --start-at; give a later one")
        own = time.process_time()
        await crew.tell({"do": "start", "at": began * 1000 + clock.ms})
        try:
            interrupted = await drive(plan, crew, record, course, began, stop, show)
            own = time.process_time() - own
            show(record, course, "waiting for acks")
            checks = await check(plan, crew)
            await crew.tell({"do": "end"})
            ends = await crew.gather("ended", crew.members, END_WITHIN)
        except (RunFailed, TimeoutError) as failed:
            if not record.reached:
                raise
            failures.append(str(failed) or "the workers did not come to an end")
    try:
        if (cause := await unready(plan.target)) is not None:
            failures.append(f"the server was not ready after the run: {cause}")
    except RunFailed as away:
        failures.append(str(away))
    return report(plan, record, course, clock, began, own, ends, checks, failures, interrupted)


async def drive(
    plan: Plan,
    crew: Crew,
    record: Record,
    course: Course,
    began: float,
    stop: asyncio.Event,
    show: Callable[[Record, Course, str], None],
) -> bool:
    """Take in what the workers tell until all have gone through the stages; true when they were stopped before."""
    driving = {id(member) for member in crew.members}
    looking = asyncio.create_task(look(plan.meter, record, began, course.total))
    stopping: asyncio.Task[Any] = asyncio.create_task(stop.wait())
    hearing: asyncio.Task[Any] | None = None
    interrupted = False
    try:
        async with asyncio.timeout(max(0.0, began - time.time()) + course.total + OVERDUE):
            while driving:
                hearing = hearing or asyncio.create_task(crew.next())
                await asyncio.wait({hearing, stopping, looking}, return_when=asyncio.FIRST_COMPLETED)
                if looking.done():
                    looking.result()
                    looking = asyncio.create_task(asyncio.sleep(course.total + OVERDUE))
                if stopping.done() and not interrupted:
                    interrupted = True
                    stop.clear()
                    stopping = asyncio.create_task(asyncio.sleep(course.total + OVERDUE))
                    await crew.tell({"do": "stop"})
                if not hearing.done():
                    continue
                member, told = hearing.result()
                hearing = None
                if told["is"] == "second":
                    record.second(member.share.kind, member.share.number, told)
                    show(record, course, "stopping" if interrupted else "")
                elif told["is"] == "driven":
                    driving.discard(id(member))
    finally:
        for task in (looking, stopping, hearing):
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in (looking, stopping, hearing) if task), return_exceptions=True)
    return interrupted


async def look(meter: Meter | None, record: Record, began: float, total: float) -> None:
    """Look at what the server uses, every second."""
    if meter is None:
        return
    second = 0
    while second <= total:
        await asyncio.sleep(max(0.0, began + second - time.time()))
        if (found := await meter.look()) is not None:
            record.usage(time.time() - began, *found)
        second = max(second + 1, int(time.time() - began))


async def check(plan: Plan, crew: Crew) -> dict[str, Any]:
    """Let everything settle, and with `verify` compare it with the database and the views with the truth."""
    await crew.tell({"do": "settle"}, crew.of("vendors"))
    settled = await crew.gather("settled", crew.of("vendors"), plan.scenario.settle + GRACE)
    truth: dict[str, Any] = {"newest": {}, "unsure": [], "connected": []}
    for one in settled:
        truth["newest"] |= one["newest"]
        truth["unsure"] += one["unsure"]
        truth["connected"] += one["connected"]
    if not plan.verify:
        return {}
    # another machine's vendors: nobody here knows where they are
    known = truth["newest"].keys() | set(truth["unsure"])
    truth["unsure"] += [identity.vendor_id for identity in plan.identities if identity.vendor_id not in known]
    verifying = crew.of("customers")
    await crew.tell({"do": "verify", **truth}, verifying)
    if plan.database is not None:
        await crew.tell({"do": "verify"}, crew.of("vendors"))
        verifying = crew.members
    checks: dict[str, Any] = {}
    for told in await crew.gather("verified", verifying, VERIFY_WITHIN):
        for name in ("stored", "positions", "views"):
            if name in told:
                before = checks.setdefault(name, {"ok": True, "differences": 0, "shown": []})
                before["ok"] = before["ok"] and told[name]["ok"]
                before["differences"] += told[name]["differences"]
                before["shown"] = (before["shown"] + told[name]["shown"])[:10]
        for name, of in (("rows", "stored"), ("watchers", "views"), ("cards", "views")):
            if name in told:
                checks[of][name] = checks[of].get(name, 0) + told[name]
    return checks


@asynccontextmanager
async def interrupts() -> AsyncIterator[asyncio.Event]:
    """An event that Ctrl-C sets; a second Ctrl-C ends everything at once."""
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


def report(
    plan: Plan,
    record: Record,
    course: Course,
    clock: Offset,
    began: float,
    own: float,
    ends: Sequence[dict[str, Any]],
    checks: dict[str, Any],
    failures: list[str],
    interrupted: bool,
) -> dict[str, Any]:
    """All that is known after a run; `loadtest/schema.json` says what each member means."""
    totals: Counter[str] = Counter()
    for bucket in record.buckets:
        totals.update(bucket.counts)
    errors, closes, rejected, gave_up = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    violations: list[str] = []
    for end in ends:
        totals.update(end["counts"])
        totals.update(end["sums"])
        errors.update(end["errors"])
        closes.update(end["closes"])
        rejected.update(end["rejected"])
        gave_up.update(end["gave_up"])
        violations += end["violations"]
    seconds, counts, workers = record.seconds, record.counts(), record.own()
    made: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "run",
        "scenario": plan.name,
        "settings": plan.scenario.model_dump(mode="json"),
        "target": plan.target.authority,
        "trace": plan.trace.path if plan.trace else None,
        "started": datetime.fromtimestamp(began, UTC).isoformat(timespec="milliseconds"),
        "seed": plan.seed,
        "part": plan.part,
        "parts": plan.parts,
        "machines": 1,
        "workers": len(plan.shares(clock)),
        "planned_seconds": course.total,
        "warmup": record.warmup,
        "seconds": round(seconds, 3),
        "interval": record.interval,
        "interrupted": interrupted,
        "failures": failures,
        "totals": {
            **{name: totals[name] for name in TOTALS},
            "errors": dict(errors),
            "closes": dict(closes),
            "rejected": dict(rejected),
            "gave_up": dict(gave_up),
        },
        "measured": {name: counts[name] for name in MEASURED},
        "delays": {name: shown(histogram) for name, histogram in record.delays().items()},
        "server": server(plan.meter, record),
        "generator": {
            "cpu": {kind: round(value, 3) for kind, value in sorted(workers.items())},
            "coordinator_cpu": round(own, 3),
            "clock_offset_ms": round(clock.ms, 2),
            "clock_error_ms": round(clock.error_ms, 2),
        },
        "checks": checks
        | {"protocol": {"ok": not violations, "differences": len(violations), "shown": violations[:10]}},
        "timeline": [{"t": leg.begin, "seconds": leg.stage.seconds, "kind": leg.stage.kind} for leg in course.legs],
        "series": record.series(),
    }
    return judge(made)


def server(meter: Meter | None, record: Record) -> dict[str, Any] | None:
    """CPU seconds and memory of the server in the measured time; None when nobody could tell."""
    used = record.used()
    if meter is None or used is None:
        return None
    seconds, cpu = used
    inside = [usage for usage in record.usages if usage.at >= record.warmup - 0.5]
    names = inside[-1].resident
    return {
        "source": meter.source,
        "seconds": round(seconds, 3),
        "cpu": {name: round(value, 3) for name, value in sorted(cpu.items())},
        "resident_mb": {
            name: round(max(usage.resident.get(name, 0.0) for usage in inside) / 1e6, 1) for name in sorted(names)
        },
    }


TOTALS = (
    *("due", "sent", "acked", "resent", "backlog", "unanswered", "dropped", "connections"),
    *("positions", "frames", "snapshots", "pans", "follows", "sleeps", "losses", "cuts", "skewed"),
)
MEASURED = (
    *("due", "sent", "acked", "backlog", "positions", "frames", "update_bytes"),
    *("snapshots", "snapshot_bytes", "snapshot_positions"),
)
