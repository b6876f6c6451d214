"""The commands for scenarios: run, and what is done with the reports of runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from loadtest import run as running
from loadtest import scenario as scenarios
from loadtest.command import attended, told
from loadtest.dashboard import Dashboard
from loadtest.errors import WrongUse
from loadtest.place import (
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
from loadtest.progress import Bar
from loadtest.report import as_json
from loadtest.scenario import Scenario
from loadtest.share import Trace
from loadtest.stages import Course
from loadtest.summary import summarise
from loadtest.trace import beginning, surroundings
from loadtest.trace import read as read_trace
from loadtest.usage import meter

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
    asked = {
        "p99_ms": p99_ms,
        "ack_p99_ms": ack_p99_ms,
        "snapshot_p99_ms": snapshot_p99_ms,
        "lost": lost,
        "errors": errors,
    }

    async def main() -> dict[str, Any]:
        scenario = chosen(name, vendors, customers, scale, warmup, stage, change, asked)
        driven, scenario = following(trace, speedup, scenario)
        place = Place(url, database, redis, data, secret, i_own)
        wanted = ceil(scenario.vendors.count * Course(scenario.stages).peak().vendors)
        identities = await place.vendors(vendors_file, wanted, Bar(quiet=True))
        number, parts = of(part)
        if start_at is not None and not time.time() < start_at < time.time() + 3600:
            raise WrongUse(f"--start-at is {start_at:.0f}, now is {time.time():.0f}: give a time within the next hour")
        plan = running.Plan(
            target=place.target,
            secret=place.secret,
            scenario=scenario,
            name=Path(name).stem,
            identities=identities,
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
        with Dashboard(scenario.title, quiet=json) as dashboard:
            return await attended(place.target, running.run(plan, dashboard.show))

    report = told(main())
    finish(report, out, json)


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
            typer.echo(" ".join(f"written to {path}" for path in written), err=True)
    if json:
        typer.echo(as_json(report))
    if report.get("interrupted"):
        raise typer.Exit(130)
    if not report["ok"]:
        for reason in report["reasons"]:
            typer.echo(f"Error: {reason}", err=True)
        raise typer.Exit(1)


def save(report: dict[str, Any], base: Path) -> list[Path]:
    """Write BASE.json; WrongUse when that is not possible."""
    stem = base.with_suffix("") if base.suffix in (".json", ".html") else base
    path = stem.with_name(stem.name + ".json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_json(report) + "\n", encoding="utf-8")
    except OSError as failed:
        typer.echo(f"Error: the report can't be written to {path}: {failed}; it follows", err=True)
        typer.echo(as_json(report))
        raise typer.Exit(1) from None
    return [path]


def list_scenarios() -> None:
    """The scenarios that come along."""
    for name in scenarios.names():
        found = scenarios.load(name)
        typer.echo(f"{name:18} {found.about} ({found.seconds:.0f} s)")


COMMANDS: dict[str, Callable[..., None]] = {"run": run, "scenarios": list_scenarios}
