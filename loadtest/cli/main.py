"""The commands for scenarios: run, and what is done with the reports of runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from loadtest.benchmarks.find_max import find
from loadtest.cli.command import told
from loadtest.cli.dashboard import Dashboard
from loadtest.cli.options import (
    Data,
    DatabaseUrl,
    Json,
    Own,
    Pid,
    Place,
    RedisUrl,
    Secret,
    Seed,
    Url,
    VendorsFile,
)
from loadtest.cli.progress import Bar
from loadtest.clients.identity import enough
from loadtest.clients.identity import read as read_vendors
from loadtest.engine import run as running
from loadtest.engine import scenario as scenarios
from loadtest.engine.scenario import Scenario
from loadtest.engine.share import Trace
from loadtest.engine.stages import Course
from loadtest.engine.trace_file import beginning, surroundings
from loadtest.engine.trace_file import read as read_trace
from loadtest.errors import WrongUse
from loadtest.measure.usage import meter
from loadtest.reports.compare import compare
from loadtest.reports.html import page
from loadtest.reports.merge import merge
from loadtest.reports.summary import show_changes, summarise
from loadtest.reports.table import as_json

EPILOG = f"SCENARIO is a .toml file or one of: {', '.join(scenarios.names())}."

Name = Annotated[str, typer.Argument(help=EPILOG, metavar="SCENARIO", show_default=False)]
Vendors = Annotated[int | None, typer.Option(help="vendors at level 1", min=1)]
Customers = Annotated[int | None, typer.Option(help="customers at level 1", min=0)]
Scale = Annotated[float, typer.Option(help="multiply vendors and customers", min=0.001, max=1000)]
Warmup = Annotated[float | None, typer.Option(help="seconds left out of the figures", min=0)]
StageList = Annotated[
    list[str] | None,
    typer.Option("--stage", help="instead of the scenario's: ramp:SECONDS:LEVEL, hold:S, spike:S:LEVEL, storm:S:SHARE"),
]
Change = Annotated[
    list[str] | None, typer.Option("--set", help="any other member of the scenario", metavar="NAME=VALUE")
]
TraceFile = Annotated[
    Path | None, typer.Option("--trace", help="gzip CSV vehicle,timestamp,lat,long that drives the vendors")
]
Speedup = Annotated[float, typer.Option(help="divide the gaps of --trace by this", min=0.01, max=1000)]
Workers = Annotated[int, typer.Option(help="processes for vendors, and as many for customers", min=1, max=64)]
Sampled = Annotated[int, typer.Option(help="customers whose whole view is held", min=0, max=1000)]
Verify = Annotated[bool, typer.Option("--verify", help="compare what is stored and shown with the truth")]
P99 = Annotated[float | None, typer.Option("--p99-ms", help="promise: ping to watcher, 99th percentile", min=0.1)]
AckP99 = Annotated[float | None, typer.Option("--ack-p99-ms", help="promise: ping to ack", min=0.1)]
SnapshotP99 = Annotated[float | None, typer.Option("--snapshot-p99-ms", help="promise: connect to snapshot", min=0.1)]
Lost = Annotated[int | None, typer.Option(help="promise: pings not acked, or not stored", min=0)]
Errors = Annotated[int | None, typer.Option(help="promise: errors and closed connections", min=0)]
Out = Annotated[
    Path | None,
    typer.Option(help="where the report goes, NAME for NAME.json and NAME.html; default: reports/SCENARIO-TIME"),
]


def run(
    name: Name,
    vendors: Vendors = None,
    customers: Customers = None,
    scale: Scale = 1.0,
    warmup: Warmup = None,
    stage: StageList = None,
    change: Change = None,
    trace: TraceFile = None,
    speedup: Speedup = 1.0,
    workers: Workers = 1,
    sampled: Sampled = 20,
    verify: Verify = False,
    p99_ms: P99 = None,
    ack_p99_ms: AckP99 = None,
    snapshot_p99_ms: SnapshotP99 = None,
    lost: Lost = None,
    errors: Errors = None,
    part: Annotated[str, typer.Option(help="this machine's part of a run on several, like 2/3")] = "1/1",
    repeat: Annotated[int, typer.Option(help="so many runs, to see how much they differ", min=1, max=20)] = 1,
    start_at: Annotated[
        float | None, typer.Option(help="when to start, in epoch seconds, the same on all machines")
    ] = None,
    out: Out = None,
    pid: Pid = None,
    url: Url = None,
    database: DatabaseUrl = None,
    redis: RedisUrl = None,
    data: Data = None,
    secret: Secret = None,
    vendors_file: VendorsFile = None,
    i_own: Own = None,
    random_seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run a scenario: vendors that move as vendors do, customers who look around; judge what it was like."""
    asked = promised(p99_ms, ack_p99_ms, snapshot_p99_ms, lost, errors)

    async def main() -> dict[str, Any]:
        scenario = chosen(name, vendors, customers, scale, warmup, stage, change, asked)
        driven, scenario = following(trace, speedup, scenario)
        number, parts = of(part)
        if start_at is not None and not time.time() < start_at < time.time() + 3600:
            raise WrongUse(f"--start-at is {start_at:.0f}, now is {time.time():.0f}: give a time within the next hour")
        place = Place(url, database, redis, data, secret, i_own)
        if verify:
            place.verifiable()
        plan = running.Plan(
            target=place.target,
            secret=place.secret,
            scenario=scenario,
            name=Path(name).stem,
            identities=await place.vendors(vendors_file, needed(scenario), Bar(quiet=True)),
            meter=await meter(place.target, await place.processes(pid, None)),
            database=place.database_url,
            own=i_own,
            verify=verify,
            trace=driven,
            workers=workers,
            sampled=sampled,
            seed=random_seed,
            part=number,
            parts=parts,
            start_at=start_at,
        )
        done: list[dict[str, Any]] = []
        while len(done) < repeat and not (done and done[-1]["interrupted"]):
            title = scenario.title + (f", run {len(done) + 1} of {repeat}" if repeat > 1 else "")
            with Dashboard(title, quiet=json) as dashboard:
                done.append(await running.run(plan, dashboard.show))
            plan = replace(plan, seed=plan.seed + 1)
        return middle(done)

    finish(told(main()), out, json)


def find_max(
    name: Name,
    vendors: Vendors = None,
    customers: Customers = None,
    change: Change = None,
    vary: Annotated[str, typer.Option(help="what grows: both, vendors or customers")] = "both",
    first: Annotated[float, typer.Option("--from", help="the scale to begin with", min=0.001, max=1000)] = 1.0,
    up_to: Annotated[float, typer.Option(help="the highest scale to try", min=0.001, max=10_000)] = 10_000,
    steps: Annotated[int, typer.Option(help="the most scales to try", min=1, max=40)] = 12,
    seconds: Annotated[float, typer.Option(help="how long each is measured", min=2, max=600)] = 15.0,
    workers: Workers = 1,
    sampled: Sampled = 20,
    verify: Verify = False,
    p99_ms: P99 = None,
    ack_p99_ms: AckP99 = None,
    snapshot_p99_ms: SnapshotP99 = None,
    lost: Lost = None,
    errors: Errors = None,
    out: Out = None,
    pid: Pid = None,
    url: Url = None,
    database: DatabaseUrl = None,
    redis: RedisUrl = None,
    data: Data = None,
    secret: Secret = None,
    vendors_file: VendorsFile = None,
    i_own: Own = None,
    random_seed: Seed = 0,
    json: Json = False,
) -> None:
    """Search for the highest load that keeps the promises, and show where the knee is."""
    asked = promised(p99_ms, ack_p99_ms, snapshot_p99_ms, lost, errors)
    interrupted = False

    async def main() -> dict[str, Any]:
        scenario = chosen(name, vendors, customers, 1.0, None, None, change, asked)
        if vary not in ("both", "vendors", "customers"):
            raise WrongUse(f"--vary is {vary!r}; it must be both, vendors or customers")
        place = Place(url, database, redis, data, secret, i_own)
        if verify:
            place.verifiable()
        given = read_vendors(vendors_file) if vendors_file is not None else None
        highest = up_to if given is None or vary == "customers" else min(up_to, len(given) / scenario.vendors.count)
        measuring = await meter(place.target, await place.processes(pid, None))

        async def step(wanted: Scenario, scale: float) -> dict[str, Any]:
            nonlocal interrupted
            count = needed(wanted)
            plan = running.Plan(
                target=place.target,
                secret=place.secret,
                scenario=wanted,
                name=Path(name).stem,
                identities=await place.vendors(None, count, Bar(quiet=True))
                if given is None
                else enough(given, count, str(vendors_file)),
                meter=measuring,
                database=place.database_url,
                own=i_own,
                verify=verify,
                workers=workers,
                sampled=sampled,
                seed=random_seed,
            )
            with Dashboard(f"{wanted.title}, {scale:.3g} times", quiet=json) as dashboard:
                report = await running.run(plan, dashboard.show)
            interrupted = interrupted or report["interrupted"]
            return report

        return await find(
            scenario,
            Path(name).stem,
            step,
            vary=vary,  # type: ignore[arg-type]
            first=first,
            most=steps,
            highest=highest,
            seconds=seconds,
            say=(lambda text: None) if json else (lambda text: typer.echo(text, err=True)),
            stopped=lambda: interrupted,
        )

    finish(told(main()), out, json)


def compare_reports(
    before: Annotated[Path, typer.Argument(help="a report's JSON", metavar="A.json", show_default=False)],
    after: Annotated[Path, typer.Argument(help="another's", metavar="B.json", show_default=False)],
    tolerance: Annotated[float, typer.Option(help="a change of so many percent does not matter", min=0, max=100)] = 5.0,
    json: Json = False,
) -> None:
    """What got better or worse from A to B, beside the noise; exit code 1 when something got worse."""

    async def main() -> dict[str, Any]:
        return compare(read_report(before), read_report(after), tolerance / 100)

    report = told(main())
    if json:
        typer.echo(as_json(report))
    else:
        show_changes(report, Console())
    for reason in report["reasons"]:
        typer.echo(f"Error: {reason}", err=True)
    raise typer.Exit(0 if report["ok"] else 1)


def merge_reports(
    reports: Annotated[
        list[Path], typer.Argument(help="one report of each machine", metavar="REPORT.json…", show_default=False)
    ],
    out: Out = None,
    json: Json = False,
) -> None:
    """Add up the reports of several machines that drove one run, each with its own --part and the same --start-at."""

    async def main() -> dict[str, Any]:
        return merge([read_report(path) for path in reports])

    finish(told(main()), out, json)


def report_page(
    report: Annotated[Path, typer.Argument(help="a report's JSON", metavar="REPORT.json", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="the HTML file; default: beside the JSON")] = None,
) -> None:
    """Make the HTML page of a report again."""

    async def main() -> dict[str, Any]:
        return read_report(report)

    path = out or report.with_suffix(".html")
    path.write_text(page(told(main())), encoding="utf-8")
    typer.echo(f"written to {path}")


def needed(scenario: Scenario) -> int:
    """How many vendors a scenario has at its peak."""
    return ceil(scenario.vendors.count * Course(scenario.stages).peak().vendors)


def promised(
    p99_ms: float | None, ack_p99_ms: float | None, snapshot_p99_ms: float | None, lost: int | None, errors: int | None
) -> dict[str, Any]:
    """The promises that flags give."""
    return {
        "p99_ms": p99_ms,
        "ack_p99_ms": ack_p99_ms,
        "snapshot_p99_ms": snapshot_p99_ms,
        "lost": lost,
        "errors": errors,
    }


def middle(done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median delay, and the figures of all; not ok when one is not."""
    if len(done) == 1:
        return done[0]
    ordered = sorted(done, key=lambda report: report["figures"]["watch_p99_ms"] or 0.0)
    reasons = [f"run {number}: {reason}" for number, one in enumerate(done, 1) for reason in one["reasons"]]
    return ordered[len(done) // 2] | {
        "repeats": [report["figures"] for report in done],
        "interrupted": any(report["interrupted"] for report in done),
        "reasons": reasons,
        "ok": not reasons,
    }


def read_report(path: Path) -> dict[str, Any]:
    """A report's JSON; WrongUse when it is none."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as bad:
        raise WrongUse(f"{path} can't be read as a report: {bad}") from None
    if not isinstance(found, dict) or found.get("schema") != running.SCHEMA:
        raise WrongUse(f"{path} is no report of `python -m loadtest run` with the schema {running.SCHEMA}")
    return found


def chosen(
    name: str,
    vendors: int | None,
    customers: int | None,
    scale: float,
    warmup: float | None,
    stage: Sequence[str] | None,
    change: Sequence[str] | None,
    promises: dict[str, Any],
) -> Scenario:
    """The scenario with what the flags say instead."""
    changes = scenarios.assignments(change or ())
    changes += [
        (dotted, value)
        for dotted, value in (("vendors.count", vendors), ("customers.count", customers), ("warmup", warmup))
        if value is not None
    ]
    changes += [(f"promises.{promise}", value) for promise, value in promises.items() if value is not None]
    if stage:
        changes.append(("stages", scenarios.stages(stage)))
    return scenarios.load(name, changes).scaled(scale)


def following(path: Path | None, speedup: float, scenario: Scenario) -> tuple[Trace | None, Scenario]:
    """The trace that drives the vendors, and the scenario in the trace's city with the trace's vendors."""
    if path is None:
        return None, scenario
    fixes = read_trace(path)
    ordered = sorted(fixes, key=lambda fix: fix.timestamp)
    vehicles = len({fix.vehicle for fix in fixes})
    lat, long, radius = surroundings(fixes)
    return Trace(str(path.resolve()), ordered[beginning(ordered)].timestamp, speedup), scenario.changed(
        {
            "city": scenario.city.model_dump() | {"lat": lat, "long": long, "radius": radius},
            "vendors": scenario.vendors.model_dump() | {"count": min(vehicles, scenarios.MAX_APPS)},
        }
    )


def of(part: str) -> tuple[int, int]:
    """The two numbers of --part."""
    try:
        number, parts = (int(one) for one in part.split("/"))
        if not 1 <= number <= parts <= 100:
            raise ValueError
    except ValueError:
        raise WrongUse(f"--part is {part!r}; it must be NUMBER/OF like 2/3") from None
    return number, parts


def finish(report: dict[str, Any], out: Path | None, json: bool) -> None:
    """Write the report down, print it, and exit as it went."""
    if not json or out is not None:
        base = out or Path("reports") / f"{report['scenario']}-{datetime.now():%Y%m%d-%H%M%S}"
        written = save(report, base)
        if not json:
            summarise(report, Console())
            typer.echo(f"written to {' and '.join(str(path) for path in written)}", err=True)
    if json:
        typer.echo(as_json(report))
    if report.get("interrupted"):
        raise typer.Exit(130)
    if not report["ok"]:
        for reason in report["reasons"]:
            typer.echo(f"Error: {reason}", err=True)
        raise typer.Exit(1)


def save(report: dict[str, Any], base: Path) -> list[Path]:
    """Write BASE.json and BASE.html; what can't be written is printed instead, so that no run is lost."""
    stem = base.with_suffix("") if base.suffix in (".json", ".html") else base
    written = []
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for suffix, text in ((".json", as_json(report) + "\n"), (".html", page(report))):
            path = stem.with_name(stem.name + suffix)
            path.write_text(text, encoding="utf-8")
            written.append(path)
    except OSError as failed:
        typer.echo(f"Error: the report can't be written: {failed}; it follows", err=True)
        typer.echo(as_json(report))
        raise typer.Exit(1) from None
    return written


def list_scenarios() -> None:
    """The scenarios that come along."""
    for name in scenarios.names():
        found = scenarios.load(name)
        typer.echo(f"{name:18} {found.about} ({found.seconds:.0f} s)")


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "find-max": find_max,
    "compare": compare_reports,
    "merge": merge_reports,
    "report": report_page,
    "scenarios": list_scenarios,
}
