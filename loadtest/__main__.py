"""`python -m loadtest run|find-max|compare|merge|report|scenarios|replay|ingest|live`.

Exit codes: 0 for a good run, 1 when a check failed or the run could not be carried out, 2 for wrong use.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtest.benchmarks import ingest as ingesting
from loadtest.benchmarks import live as living
from loadtest.benchmarks import replay as replaying
from loadtest.cli import main as load
from loadtest.cli.command import attended, perform
from loadtest.cli.options import (
    Data,
    DatabaseUrl,
    Json,
    Own,
    Pid,
    Place,
    RedisUrl,
    Seconds,
    Secret,
    Seed,
    Url,
    VendorsFile,
)
from loadtest.cli.progress import Bar
from loadtest.engine.database import Database
from loadtest.engine.trace_file import Fix, generate
from loadtest.engine.trace_file import read as read_trace
from loadtest.errors import WrongUse

app = typer.Typer(
    help="Puts a running server under load from outside, and checks what it stored and showed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name, command in load.COMMANDS.items():
    app.command(name)(command)


@app.command()
def replay(
    trace: Annotated[
        Path | None, typer.Argument(help="gzip CSV: vehicle,timestamp,lat,long", metavar="FILE.csv.gz")
    ] = None,
    made_up: Annotated[
        int | None, typer.Option("--generate", help="no file: so many made-up vehicles", min=1, max=5000)
    ] = None,
    seconds: Annotated[int, typer.Option(help="length of the made-up trace", min=10, max=86_400)] = 300,
    speedup: Annotated[float, typer.Option(help="divide all gaps by this", min=0.01, max=100_000)] = 1.0,
    watch: Annotated[
        str | None, typer.Option(help="lat,long,radius in m; default: 5 km round the middle of the trace")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="check what was stored and shown")] = False,
    url: Url = None,
    database: DatabaseUrl = None,
    data: Data = None,
    secret: Secret = None,
    vendors_file: VendorsFile = None,
    i_own: Own = None,
    random_seed: Seed = 0,
    json: Json = False,
) -> None:
    """Replay a trace: each vehicle is a vendor, in its own rhythm, moved onto the present."""

    async def run(bar: Bar) -> dict[str, Any]:
        fixes = trace_of(trace, made_up, seconds, random_seed)
        place = Place(url, database, None, data, secret, i_own)
        if verify:
            place.verifiable()
        wanted = len({fix.vehicle for fix in fixes})
        plan = replaying.Replay(
            target=place.target,
            secret=place.secret,
            identities=await place.vendors(vendors_file, wanted, bar),
            fixes=fixes,
            speedup=speedup,
            watch=circle(watch),
            verify=verify,
            seed=random_seed,
        )
        if place.database_url is None:
            return await attended(place.target, replaying.run(plan, bar))
        async with Database(place.database_url, i_own) as connected:
            return await attended(place.target, replaying.run(replace(plan, database=connected), bar))

    perform(run, json)


@app.command()
def ingest(
    seconds: Seconds = 10.0,
    connections: Annotated[int, typer.Option(help="connections that send batches", min=1, max=1000)] = 16,
    many: Annotated[int, typer.Option(help="connections that send one ping a second", min=1, max=10_000)] = 1000,
    window: Annotated[int, typer.Option(help="batches of 500 un-acked on a connection", min=1, max=64)] = 4,
    single_window: Annotated[
        int, typer.Option(help="single pings un-acked on their connection", min=1, max=20_000)
    ] = 1000,
    bare_rows: Annotated[int, typer.Option(help="rows of each bare COPY", min=100, max=500_000)] = 50_000,
    part: Annotated[
        list[str] | None, typer.Option(help=f"only this part: {', '.join(ingesting.PARTS)}; may be repeated")
    ] = None,
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
    """Measure what storing costs, next to a bare COPY into the same table. The rows stay in the database."""

    async def run(bar: Bar) -> dict[str, Any]:
        parts = part or list(ingesting.PARTS)
        if unknown := sorted(set(parts) - set(ingesting.PARTS)):
            raise WrongUse(f"there is no part {unknown[0]!r}; the parts are {', '.join(ingesting.PARTS)}")
        place = Place(url, database, redis, data, secret, i_own)
        if place.database_url is None:
            raise WrongUse("ingest compares with the database itself; give --database or --data")
        identities = await place.vendors(vendors_file, ingesting.vendors_needed(connections, many), bar)
        async with Database(place.database_url, i_own) as connected:
            plan = ingesting.Ingest(
                target=place.target,
                secret=place.secret,
                identities=identities,
                database=connected,
                processes=await place.processes(pid, connected),
                seconds=seconds,
                connections=connections,
                many=many,
                window=window,
                single_window=single_window,
                bare_rows=bare_rows,
                parts=parts,
                seed=random_seed,
            )
            return await attended(place.target, ingesting.run(plan, bar))

    perform(run, json)


@app.command()
def live(
    vendors: Annotated[int, typer.Option(help="vendors that report", min=1, max=20_000)] = 200,
    hz: Annotated[float, typer.Option(help="pings a second of each vendor", min=0.01, max=100)] = 1.0,
    watchers: Annotated[int, typer.Option(help="watchers of all of them", min=0, max=20_000)] = 200,
    distinct: Annotated[bool, typer.Option("--distinct", help="each watcher has a circle of its own")] = False,
    idle: Annotated[
        int, typer.Option(help="measure memory with so many watchers of an empty place", min=0, max=25_000)
    ] = 0,
    stalled: Annotated[
        int, typer.Option(help="more watchers, who read nothing after their snapshot", min=0, max=20_000)
    ] = 0,
    seconds: Seconds = 10.0,
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
    """Measure what showing costs and how late it is: open-loop vendors, many watchers."""

    async def run(bar: Bar) -> dict[str, Any]:
        place = Place(url, database, redis, data, secret, i_own)
        if idle and pid is None:
            raise WrongUse("--idle measures the server's memory; give its process by --pid")
        identities = await place.vendors(vendors_file, vendors, bar)
        plan = living.Live(
            target=place.target,
            secret=place.secret,
            identities=identities,
            processes=await place.processes(pid, None),
            hz=hz,
            watchers=watchers,
            seconds=seconds,
            distinct=distinct,
            idle=idle,
            stalled=stalled,
            seed=random_seed,
        )
        return await attended(place.target, living.run(plan, bar))

    perform(run, json)


def trace_of(path: Path | None, made_up: int | None, seconds: int, random_seed: int) -> list[Fix]:
    """The trace that was asked for: a file or a made-up one, not both."""
    if (path is None) == (made_up is None):
        raise WrongUse("give either a trace file or --generate VEHICLES")
    return read_trace(path) if path is not None else generate(made_up or 0, seconds, random_seed)


def circle(text: str | None) -> tuple[float, float, float] | None:
    """The three numbers of --watch."""
    if text is None:
        return None
    try:
        lat, long, radius = (float(part) for part in text.split(","))
    except ValueError:
        raise WrongUse(f"--watch is {text!r}; it must be lat,long,radius like 52.2297,21.0122,5000") from None
    if not (abs(lat) <= 90 and abs(long) <= 180 and 0 < radius <= 100_000):
        raise WrongUse(f"--watch is {text!r}; lat is -90 to 90, long -180 to 180, radius up to 100,000 m")
    return lat, long, radius


if __name__ == "__main__":
    app(prog_name="python -m loadtest")
